# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a running guest: one table, from a request's name to what does it."""

from __future__ import annotations

from base64 import b64encode
from math import inf

from pyvmm import outcome
from pyvmm.control import stopping
from pyvmm.control.protocol import ProtocolError
from pyvmm.nearest import nearest
from pyvmm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyvmm.control.protocol import Request
    from pyvmm.control.served import Served

    Result = Mapping[str, object]
    #: Checks and converts a parameter; raises ValueError with what it takes.
    Reader = Callable[[object], object]

LONGEST_MEMORY = 256 << 10
_LARGEST = (1 << 64) - 1
_LONGEST_TIME = 10**9  # seconds; an integer of JSON may be too large for a float
_LONGEST_LINE = 200
_SHOWN = 60  # letters of an unknown word


def _number(least: int, most: int) -> Reader:
    def read(value: object) -> int:
        if isinstance(value, str):
            value = _from_hex(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return read


def _from_hex(text: str) -> int | None:
    """What JSON cannot write exactly in every language comes as text: 0xffffffff80000000."""
    try:
        return int(text, 16) if text.startswith("0x") else None
    except ValueError:
        return None


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < inf:
        raise ValueError("a number of seconds")
    return float(min(value, _LONGEST_TIME))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _line(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= _LONGEST_LINE:
        raise ValueError(f"1 to {_LONGEST_LINE} printable letters")
    return value


def _key(value: object) -> str:
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or not value.isalnum():
        raise ValueError("one letter or digit")
    return value


class Kind:
    """One kind of request. ``does`` gets the parameters by name; ``waits`` says that it may take its time,
    and must not do so on the loop's thread. ``required`` and ``optional`` parameters have their readers.
    """

    __slots__ = ("does", "optional", "required", "waits")

    def __init__(
        self,
        does: Callable[..., Result | None],
        *,
        waits: bool = True,
        required: dict[str, Reader] | None = None,
        optional: dict[str, Reader] | None = None,
    ) -> None:
        self.does = does
        self.waits = waits
        self.required = required or {}
        self.optional = optional or {}

    def arguments(self, request: Request) -> dict[str, object]:
        """The request's parameters, checked. Raises ProtocolError with a sentence."""
        readers = {**self.required, **self.optional}
        read: dict[str, object] = {}
        for name, value in request.params.items():
            if name not in readers:
                shown = name[:_SHOWN]
                hint = nearest(shown, readers)
                raise ProtocolError(f"The request {request.do} has no parameter {shown!r}.{hint}", request.id)
            try:
                read[name] = readers[name](value)
            except ValueError as error:
                raise ProtocolError(f"{name} takes {error}.", request.id) from None
        for name in self.required:
            if name not in read:
                raise ProtocolError(f"The request {request.do} needs the parameter {name!r}.", request.id)
        return read


def _status(served: Served) -> Result:
    return served.status()


def _pause(served: Served) -> None:
    served.machine.pause()


def _resume(served: Served) -> None:
    served.machine.resume()


def _reset(served: Served) -> None:
    served.machine.reset()


def _power_button(served: Served) -> None:
    served.machine.power_button()


def _stop(served: Served, grace: float = stopping.GRACE) -> Result:
    how = stopping.stop(served, grace)
    return {"how": how, **served.end()}


def _kill(served: Served) -> None:
    served.machine.end(Outcome(outcome.KILLED, "ended by pyvmm kill"))


def _inspect(served: Served) -> Result:
    return served.machine.inspect()


def _balloon(served: Served, size: int | None = None, delta: int | None = None) -> Result:
    if size is not None and delta is not None:
        raise ProtocolError("balloon takes size or delta, not both.")
    if delta is not None:
        wanted = served.machine.balloon()["wanted"]
        assert isinstance(wanted, int)
        size = max(0, wanted + delta)
    if size is not None:
        served.machine.set_balloon(size)
    return served.machine.balloon()


def _registers(served: Served, cpu: int = 0) -> Result:
    found = served.machine.registers(cpu)
    return {"cpu": cpu, "registers": {name: f"0x{value:x}" for name, value in found.items()}}


def _memory(served: Served, address: int, length: int = 256) -> Result:
    data = served.machine.read_memory(address, length)
    return {"address": address, "length": length, "data": data.hex()}


def _sysrq(served: Served, key: str) -> None:
    served.sysrq(key)


def _mark(served: Served, text: str) -> None:
    served.machine.mark_trace(text)


def _resize(served: Served, columns: int, rows: int) -> None:
    served.machine.resize(columns, rows)


def _send(served: Served, text: str) -> None:
    served.type(text.encode("utf-8", "replace"))


def _console_log(served: Served) -> Result:
    return {"data": b64encode(served.console_log()).decode()}


_BYTES = _number(-_LARGEST, _LARGEST)

#: ``events`` is the one request that changes its connection, and is the server's own.
EVENTS = "events"

KINDS = {
    "status": Kind(_status, waits=False),
    "pause": Kind(_pause),
    "resume": Kind(_resume),
    "reset": Kind(_reset),
    "power_button": Kind(_power_button),
    "stop": Kind(_stop, optional={"grace": _seconds}),
    "kill": Kind(_kill, waits=False),
    "inspect": Kind(_inspect),
    "balloon": Kind(_balloon, optional={"size": _number(0, _LARGEST), "delta": _BYTES}),
    "registers": Kind(_registers, optional={"cpu": _number(0, 1023)}),
    "memory": Kind(
        _memory,
        required={"address": _number(0, _LARGEST)},
        optional={"length": _number(1, LONGEST_MEMORY)},
    ),
    "sysrq": Kind(_sysrq, required={"key": _key}),
    "mark": Kind(_mark, waits=False, required={"text": _line}),
    "resize": Kind(
        _resize, waits=False, required={"columns": _number(1, 0xFFFF), "rows": _number(1, 0xFFFF)}
    ),
    "send": Kind(_send, waits=False, required={"text": _text}),
    "console_log": Kind(_console_log, waits=False),
    EVENTS: Kind(lambda _served: None, waits=False),
}


def kind_of(request: Request) -> Kind:
    """The kind of ``request``. Raises ProtocolError when there is none."""
    kind = KINDS.get(request.do)
    if kind is None:
        name = request.do[:_SHOWN]
        raise ProtocolError(f"There is no request {name!r}.{nearest(name, KINDS)}", request.id)
    return kind
