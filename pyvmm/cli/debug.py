# SPDX-License-Identifier: Apache-2.0
"""``pyvmm debug``: a running guest's registers and memory, and its kernel's SysRq."""

from __future__ import annotations

from pyvmm.cli import guests
from pyvmm.cli.parser import Option, UsageError
from pyvmm.cli.say import say
from pyvmm.control.client import Control
from pyvmm.control.requests import LONGEST_MEMORY
from pyvmm.control.runfolder import Found
from pyvmm.nearest import nearest

_LENGTH = 256
_MOST = 16 << 20
_ACTIONS = {
    "regs": "pc, integer registers and trap CSRs of a CPU",
    "mem": "ADDRESS [LENGTH]: guest-physical memory, in hex",
    "sysrq": "KEY: have the kernel obey a SysRq key (h lists them on the console)",
}

COMMAND = guests.command(
    "debug",
    "Look into a running guest, paused or not:\n"
    + "\n".join(f"  {name:<8}{what}" for name, what in _ACTIONS.items()),
    Option("--cpu", key="cpu", metavar="N", help="which CPU's registers [0]"),
    arguments="[NAME] regs|mem|sysrq [ARGUMENTS]",
)


def main(words: list[str]) -> int:
    """Do one of these things."""
    values = COMMAND.parse(words)
    arguments = values.get("arguments", [])
    assert isinstance(arguments, list)
    name, action, rest = _split(arguments)
    if action != "regs" and "cpu" in values:
        raise UsageError(f"--cpu has no meaning with pyvmm debug {action}; leave it out.")
    params = _READERS[action](rest, values)
    return guests.on_guest(COMMAND, values, name, lambda found: _do(found, action, params, values))


def _split(arguments: list[str]) -> tuple[str | None, str, list[str]]:
    """The guest's name, if it is there, the action, and what belongs to that."""
    name: str | None = None
    if arguments and (arguments[0] not in _ACTIONS or arguments[1:2] in [[action] for action in _ACTIONS]):
        name, *arguments = arguments
    if not arguments:
        hint = nearest(name or "", _ACTIONS)
        raise UsageError(f"pyvmm debug needs one of {', '.join(_ACTIONS)} to do.{hint}")
    action, *rest = arguments
    if action not in _ACTIONS:
        raise UsageError(
            f"pyvmm debug cannot do {action!r}.{nearest(action, _ACTIONS)} See pyvmm debug --help."
        )
    return name, action, rest


def _read_registers(rest: list[str], values: guests.Values) -> guests.Values:
    if rest:
        raise UsageError(
            f"pyvmm debug regs takes no argument, but got {rest[0]!r}; a CPU is chosen with --cpu."
        )
    return {"cpu": _number(str(values.get("cpu", "0")), "--cpu")}


def _read_memory(rest: list[str], _values: guests.Values) -> guests.Values:
    if not 1 <= len(rest) <= 2:
        raise UsageError("pyvmm debug mem takes an ADDRESS and a LENGTH: pyvmm debug mem 0x80200000 64.")
    length = _number(rest[1], "LENGTH") if len(rest) == 2 else _LENGTH
    if not 1 <= length <= _MOST:
        raise UsageError(f"pyvmm debug mem shows 1 to {_MOST} bytes, not {length}.")
    return {"address": _number(rest[0], "ADDRESS"), "length": length}


def _read_key(rest: list[str], _values: guests.Values) -> guests.Values:
    if len(rest) != 1 or len(rest[0]) != 1 or not rest[0].isascii() or not rest[0].isalnum():
        raise UsageError("pyvmm debug sysrq takes a KEY, which is one letter or digit.")
    return {"key": rest[0]}


def _number(text: str, what: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(f"{what} takes a number such as 64 or 0x80200000, not {text!r}.")
    return value


def _do(found: Found, action: str, params: guests.Values, values: guests.Values) -> int:
    with guests.connect(found) as control:
        result = _REQUESTS[action](control, params)
    if values.get("json"):
        guests.print_json({"name": found.name, **result})
    elif action == "sysrq":
        say(f"{found.name}: SysRq {params['key']} sent; what comes of it is on the console")
    else:
        print("\n".join(_registers(result) if action == "regs" else _hexdump(result)))
    return 0


def _ask_registers(control: Control, params: guests.Values) -> guests.Values:
    return control.request("registers", **params)


def _ask_sysrq(control: Control, params: guests.Values) -> guests.Values:
    return control.request("sysrq", **params)


def _ask_memory(control: Control, params: guests.Values) -> guests.Values:
    """Memory in as many requests as it takes."""
    address, length = params["address"], params["length"]
    pieces = []
    for at in range(0, length, LONGEST_MEMORY):
        size = min(LONGEST_MEMORY, length - at)
        pieces.append(control.request("memory", address=address + at, length=size)["data"])
    return {"address": address, "length": length, "data": "".join(pieces)}


def _registers(result: guests.Values) -> list[str]:
    """Three a line."""
    cells = [f"{name:<10} {int(value, 16):016x}" for name, value in result["registers"].items()]
    return [f"CPU {result['cpu']}:", *("  ".join(cells[at : at + 3]) for at in range(0, len(cells), 3))]


def _hexdump(result: guests.Values) -> list[str]:
    data = bytes.fromhex(result["data"])
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(
            f"{result['address'] + at:016x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  |{shown}|"
        )
    return lines


_READERS = {"regs": _read_registers, "mem": _read_memory, "sysrq": _read_key}
_REQUESTS = {
    "regs": _ask_registers,
    "mem": _ask_memory,
    "sysrq": _ask_sysrq,
}
