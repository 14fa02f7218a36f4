# SPDX-License-Identifier: Apache-2.0
"""What a user asks for: one object whose every field was checked, with full sentences when it was not.

The nouns are the same on the command line and in Python. Sizes are bytes inside; users write ``512M``,
``2G`` or a bare number of MiB. Durations are seconds inside; users write ``500ms``, ``30s``, ``5m``.
"""

from __future__ import annotations

from pyvmm.errors import ConfigError
from pyvmm.layout import MAX_CPUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm.devicelist import DeviceRequest

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
_SIZE_UNITS = {"": MiB, "B": 1, "K": KiB, "M": MiB, "G": GiB, "T": 1 << 40}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# The widest G-stage, Sv57x4, translates 59 bits.
_LARGEST_MEMORY = 1 << 58

#: Read by the commands when it is in the current folder (``profiles``).
CONFIG_FILE = "pyvmm.toml"

IRQCHIPS = ("auto", "aia", "aplic", "plic")
AIA_MODES = ("auto", "emul", "hwaccel")
CONSOLES = ("auto", "virtio", "serial", "sbi", "none")
TRANSPORTS = ("pci", "mmio")
ON_REBOOT = ("reboot", "exit")
ON_PANIC = ("exit", "wait")
TRACE_KINDS = ("mmio", "sbi", "irq")

_CONSOLE_WORDS = {
    "virtio": "console=hvc0 earlycon=sbi",
    "serial": "console=ttyS0 earlycon=sbi",
    "sbi": "earlycon=sbi keep_bootcon",
    "none": "",
}


def parse_size(text: str | int, what: str) -> int:
    """Bytes in ``text``: a whole number with K, M, G or T, or a bare number of MiB.

    Raises ConfigError, naming the option ``what``.
    """
    if isinstance(text, int):
        return text * MiB
    body = text.strip()
    digits = body.rstrip("BKMGTibkmgt")
    unit = body[len(digits) :].upper().removesuffix("IB" if body[-2:-1] in ("i", "I") else "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15 or unit not in _SIZE_UNITS:
        raise ConfigError(f"{what} takes a size such as 512M or 2G (a bare number is MiB), not {text!r}.")
    return int(digits) * _SIZE_UNITS[unit]


def parse_duration(text: str | float, what: str) -> float:
    """Seconds in ``text``: a number with ms, s, m or h (seconds when bare). Raises ConfigError."""
    body = str(text).strip()
    digits = body.rstrip("msh")
    unit = body[len(digits) :]
    try:
        seconds = float(digits) * _DURATION_UNITS[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{what} takes a duration such as 500ms, 30s or 5m, not {text!r}.")
    return seconds


def format_size(size: int) -> str:
    """``size`` bytes as users write them: the largest unit that divides it."""
    for unit, factor in (("G", GiB), ("M", MiB), ("K", KiB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


class MachineConfig:
    """Everything that defines a machine. Values may be given as users write them.

    Raises ConfigError for a value that can be seen to be wrong without touching the host.
    """

    __slots__ = (
        "agent",
        "aia_mode",
        "console",
        "cpu_type",
        "cpus",
        "dev",
        "devices",
        "disable_isa",
        "disable_sbi",
        "dump_dtb",
        "firmware",
        "initrd",
        "irqchip",
        "isa",
        "kernel",
        "log",
        "mem",
        "mem_backend",
        "on_panic",
        "on_reboot",
        "params",
        "timeout",
        "trace",
        "trace_out",
        "virtio_transport",
    )

    def __init__(
        self,
        *,
        kernel: str | None = None,
        initrd: str | None = None,
        params: str = "",
        firmware: str | None = None,
        agent: bool = False,
        dump_dtb: str | None = None,
        mem: str | int = "256M",
        mem_backend: str = "anon",
        cpus: str | int = 1,
        isa: str = "host",
        cpu_type: str = "max",
        disable_isa: list[str] | None = None,
        disable_sbi: list[str] | None = None,
        irqchip: str = "auto",
        aia_mode: str = "auto",
        console: str = "auto",
        ports: list[str] | None = None,
        disks: list[str] | None = None,
        nets: list[str] | None = None,
        p9: list[str] | None = None,
        shares: list[str] | None = None,
        vsock: list[str] | None = None,
        rng: list[str] | bool | None = None,
        balloon: list[str] | bool | None = None,
        devices: list[str] | None = None,
        virtio_transport: str = "pci",
        log: str | None = None,
        timeout: str | float | None = None,
        on_reboot: str = "reboot",
        on_panic: str = "exit",
        trace: str = "",
        trace_out: str | None = None,
        dev: str = "/dev/kvm",
    ) -> None:
        self.kernel = kernel
        self.initrd = initrd
        self.params = params
        self.firmware = firmware
        self.agent = agent
        self.dump_dtb = dump_dtb
        self.mem = _memory_size(mem)
        self.mem_backend = _backend(mem_backend)
        self.cpus = _cpu_count(cpus)
        self.isa = isa
        self.cpu_type = cpu_type
        self.disable_isa = _texts("disable_isa", disable_isa) if disable_isa else []
        self.disable_sbi = _texts("disable_sbi", disable_sbi) if disable_sbi else []
        self.irqchip = _one_of("--irqchip", irqchip, IRQCHIPS)
        self.aia_mode = _one_of("--aia-mode", aia_mode, AIA_MODES)
        self.virtio_transport = _one_of("--virtio-transport", virtio_transport, TRANSPORTS)
        self.console = _console(_one_of("--console", console, CONSOLES), firmware, self.virtio_transport)
        nouns = {
            "disks": disks,
            "nets": nets,
            "p9": p9,
            "shares": shares,
            "vsock": vsock,
            "rng": [""] if rng is True else rng,
            "balloon": [""] if balloon is True else balloon,
            "ports": ports,
        }
        self.devices = _requests(
            {noun: _texts(noun, bodies) for noun, bodies in nouns.items() if bodies},
            _texts("devices", devices) if devices else (),
        )
        self._check_balloons()
        if self.shared_memory and self.mem_backend == "anon":
            self.mem_backend = "memfd"
        self.log = log
        self.timeout = None if timeout is None else parse_duration(timeout, "--timeout")
        self.on_reboot = _one_of("--on-reboot", on_reboot, ON_REBOOT)
        self.on_panic = _one_of("--on-panic", on_panic, ON_PANIC)
        self.trace = _trace_kinds(trace)
        self.trace_out = trace_out
        self.dev = dev
        self._check_combinations()

    def _check_combinations(self) -> None:
        for option, path in (
            ("--kernel", self.kernel),
            ("--initrd", self.initrd),
            ("--firmware", self.firmware),
            ("--log", self.log),
            ("--dump-dtb", self.dump_dtb),
            ("--trace-out", self.trace_out),
        ):
            if path == "":
                raise ConfigError(f"{option} needs the name of a file.")
        if self.agent and self.firmware is not None:
            raise ConfigError(
                "--agent goes with --kernel: firmware has no initrd that could bring the agent."
            )
        if self.agent and any(word.startswith("rdinit=") for word in self.params.split()):
            raise ConfigError("--agent needs rdinit= for itself; leave that out of --params, or --agent.")
        if self.trace_out is not None and not self.trace:
            raise ConfigError("--trace-out needs --trace, which says what to write there.")
        if self.aia_mode != "auto" and self.irqchip not in ("auto", "aia"):
            raise ConfigError(
                f"--aia-mode has no meaning with --irqchip {self.irqchip}; leave one of them out."
            )

    def serve_agent(self, path: str) -> None:
        """Let programs of the host talk to the guest's agent at this unix socket. Raises ConfigError."""
        from pyvmm import guest
        from pyvmm.devicelist import add

        found = list(self.devices)
        add(found, "console", f"{guest.PORT},unix={path}", "--agent")
        self.devices = tuple(found)

    def _check_balloons(self) -> None:
        for request in self.devices:
            size = request.settings.number("size") if request.kind == "balloon" else None
            if size is not None and size >= self.mem:
                raise ConfigError(
                    f"{request.settings.what} would take all of the guest's {format_size(self.mem)}; "
                    "choose a smaller balloon, or give the guest more with --mem."
                )

    @property
    def shared_memory(self) -> bool:
        """Whether another process serves a device and needs the guest's memory."""
        return any(request.model.SHARED_MEMORY for request in self.devices)

    def summary(self) -> str:
        """The machine in a few words."""
        program = self.kernel or self.firmware
        return f"{program}, {format_size(self.mem)}, {self.cpus} CPU{'s' if self.cpus > 1 else ''}"

    def command_line(self) -> str:
        """The kernel's command line: console arguments, unless ``params`` chooses one, then ``params``."""
        chosen = any(word.startswith("console=") for word in self.params.split())
        words = [] if chosen else [_CONSOLE_WORDS[self.console]]
        if self._boots_from_disk():
            words.append("root=/dev/vda rw")
        if self.agent:
            from pyvmm import guest

            words.append(guest.PARAMETER)
        return " ".join(word for word in (*words, self.params) if word)

    def _boots_from_disk(self) -> bool:
        """There is a disk and nothing else that could be the root file system."""
        has_root = any(word.startswith("root=") for word in self.params.split())
        return self.initrd is None and not has_root and any(one.kind == "blk" for one in self.devices)


def _console(wanted: str, firmware: str | None, transport: str) -> str:
    """Firmware knows the serial port; for Linux virtio is faster by far.

    But distributions' kernels have virtio-mmio as a module, which comes too late for a console.
    """
    if wanted != "auto":
        return wanted
    return "virtio" if firmware is None and transport == "pci" else "serial"


def _requests(nouns: Mapping[str, Sequence[str]], devices: Sequence[str]) -> tuple[DeviceRequest, ...]:
    """See ``pyvmm.devicelist``, which a machine without devices has no use for."""
    if not (nouns or devices):
        return ()
    from pyvmm.devicelist import requests

    return requests(nouns, devices)


def _memory_size(text: str | int) -> int:
    size = parse_size(text, "--mem")
    if size <= 0 or size % (4 * KiB):
        raise ConfigError(f"--mem takes a multiple of 4K above 0, such as 512M, not {text!r}.")
    if size > _LARGEST_MEMORY:
        raise ConfigError(f"--mem takes at most {format_size(_LARGEST_MEMORY)}, not {text!r}.")
    return size


def _cpu_count(text: str | int) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ConfigError(f"--cpus takes a whole number, not {text!r}.") from None
    if not 1 <= count <= MAX_CPUS:
        raise ConfigError(f"--cpus takes 1 to {MAX_CPUS}, not {text}.")
    return count


def _backend(text: str) -> str:
    kind, _, path = text.partition(":")
    if kind in ("anon", "memfd") and not path:
        return text
    if kind == "hugetlbfs" and path:
        return text
    raise ConfigError(f"--mem-backend takes anon, memfd or hugetlbfs:PATH, not {text!r}.")


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(f"{what} takes one of {', '.join(choices)}, not {value!r}.")
    return value


def _texts(noun: str, value: object) -> list[str]:
    """``value``, which is a list of texts: a lone text, a list of its letters, is the mistake to expect."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{noun} takes a list of texts, not {value!r}.")
    return list(value)


def _trace_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(kind for kind in text.split(",") if kind)
    for kind in kinds:
        _one_of("--trace", kind, TRACE_KINDS)
    return kinds
