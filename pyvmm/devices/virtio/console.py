# SPDX-License-Identifier: Apache-2.0
"""virtio console (virtio 1.2, section 5.3): the machine's console, and named ports to talk to the guest.

Port 0 is the console (Linux's hvc0); the others are found by name (/dev/virtio-ports/NAME). With named ports
the device offers VIRTIO_CONSOLE_F_MULTIPORT, and the two sides tell each other over a pair of control queues
which ports there are and which are open (``console.control``). Without it needs neither, and boots sooner.
"""

from __future__ import annotations

from pyvmm.devices.console.ports import ScreenPort
from pyvmm.devices.settings import path, text
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from pyvmm.devices.console.ports import Port, Screen
    from pyvmm.devices.settings import Setting, Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session

    After = Callable[[], None] | None

F_SIZE, F_MULTIPORT, F_EMERG_WRITE = 0, 1, 2

#: How many ports there can be besides the console: as many as a word of flags is wide, less the console.
MAX_PORTS = 31

_QUEUE_SIZE = 64
_SCREEN_OUT, _CONTROL_IN, _CONTROL_OUT = 1, 2, 3  # queues, named as the driver sees them

# What a port has still to be told, one bit a message, in the order in which they have to go out. A flag
# instead of a queue of messages: a guest that asks and never listens costs nothing.
TELL_ADD, TELL_CONSOLE, TELL_NAME, TELL_RESIZE, TELL_OPEN = (1 << bit for bit in range(5))


def _nothing() -> None:
    """There is no port."""


_SYSRQ = b"\x0f"  # ^O: what Linux's hvc takes for the first half of SysRq


class Console(VirtioDevice):
    """The device. Output of port 0 goes to ``screen``; its input comes from ``receive`` and ``send_break``.

    Without a ``screen`` there is no port 0, only ``ports``: then port numbers begin at 1 all the same. The
    ports are the caller's, to be closed by it: they outlive the device when the machine reboots.

    What a hostile guest can do: write control messages about any port, in any order, and not read the
    answers. Unknown ones are counted in ``odd``; answers wait as flags. For the data see ``console.ports``.
    """

    NAME = "console"
    SIZE = 12
    DEVICE_ID = 3
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "name": text("what the guest finds the port by"),
        "unix": path("listen for a client at this path"),
        "file": path("append what the guest writes to this file"),
    }
    POSITIONAL = ("name",)
    STATE = ("ready", "guest_open", "to_tell", "_heard")

    COLS = Reg(0, 16, access="r", on_read="_read_cols", sizes=(1, 2))
    ROWS = Reg(2, 16, access="r", on_read="_read_rows", sizes=(1, 2))
    MAX_NR_PORTS = Reg(4, 32, access="r", on_read="_read_max_nr_ports", sizes=(1, 2, 4))
    EMERG_WR = Reg(8, 32, access="w", on_write="_write_emerg_wr")

    def __init__(
        self,
        screen: Screen | None,
        ports: Sequence[Port] = (),
        on_room: Callable[[], None] | None = None,
    ) -> None:
        if len(ports) > MAX_PORTS:
            raise ConfigError(f"A console has {MAX_PORTS} named ports at most, not {len(ports)}.")
        pairs = len(ports) + 2 if ports else 1
        super().__init__((_QUEUE_SIZE,) * (2 * pairs))
        self._screen = screen
        if screen is not None:
            self.at_once = (_SCREEN_OUT,)
        # For ``console.control``, which is a part of this, and so is what ``reset`` sets:
        self.screen_port = ScreenPort(screen, on_room) if screen is not None else None
        self.ports: tuple[Port | None, ...] = (self.screen_port, *ports)
        self.columns = self.rows = 0

        self._kicks = self._what_kicks_do()
        self._owned: Sequence[Port] = ()
        self._session: Session | None = None
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Raise ConfigError for what cannot be a port."""
        from pyvmm.devices.console.setting import check_port

        check_port(settings)

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Console:
        """A device with one named port. Raises ConfigError, HostError."""
        from pyvmm.devices.console.setting import open_port

        del services
        port = open_port(settings)
        device = cls(None, (port,))
        device._owned = (port,)
        return device

    def close(self) -> None:
        """See VirtioDevice."""
        for port in self._owned:
            port.close()

    def reset(self) -> None:
        """See RegisterDevice. The size of the screen stays, and so do the ports' host ends."""
        super().reset()
        count = len(self.ports)
        self.ready = [False] * count
        self.guest_open = [False] * count
        self.to_tell = [0] * count

    @property
    def _heard(self) -> bool:
        return self.screen_port is not None and self.screen_port.heard

    @_heard.setter
    def _heard(self, heard: bool) -> None:
        if self.screen_port is not None:
            self.screen_port.heard = heard

    def _restored(self) -> None:
        for port, is_open in zip(self.ports, self.guest_open, strict=True):
            if port is not None:
                port.guest_open = is_open

    def offered(self) -> int:
        """See VirtioDevice."""
        features = bits.feature_set(F_SIZE, F_EMERG_WRITE) if self._screen is not None else 0
        return features | (len(self.ports) > 1) << F_MULTIPORT

    def acceptable(self, features: int) -> bool:
        """See VirtioDevice. A driver that knows of port 0 only can do nothing without it."""
        return self._screen is not None or bits.has(features, F_MULTIPORT)

    # Configuration space

    def _read_cols(self) -> int:
        return self.columns

    def _read_rows(self) -> int:
        return self.rows

    def _read_max_nr_ports(self) -> int:
        return len(self.ports)

    def _write_emerg_wr(self, value: int) -> After:
        return self._screen.write(bytes((value & 0xFF,))) if self._screen is not None else None

    # The machine's side. Without the lock.

    def receive(self, data: bytes) -> int:
        """Give ``data`` to the guest as console input; returns how many bytes it had room for.

        After less than all, ``on_room`` tells when to offer the rest. On the loop's thread.
        """
        return self.screen_port.receive(data) if self.screen_port is not None else 0

    def send_break(self) -> bool:
        """The first half of SysRq; False when there was no room. On the loop's thread."""
        return self.receive(_SYSRQ) == 1

    def resize(self, columns: int, rows: int) -> None:
        """The screen has this many characters now, up to 65535 each way. Callable from any thread."""
        with self.lock:
            if (columns, rows) == (self.columns, self.rows):
                return
            self.columns, self.rows = columns, rows
            self.config_changed()
            if self.ready[0]:
                self._tell_soon(0, TELL_RESIZE)

    # The driver's side

    def activate(self, session: Session) -> None:
        """See VirtioDevice."""
        self._session = session
        if self.screen_port is not None:
            self.screen_port.attach(session, session.queues[0], session.queues[1], lambda: None)
            if self.columns and not self.multiport:
                self.config_changed()  # Linux looks at the size only then
        for number, port in enumerate(self.ports):
            if self.ready[number] and port is not None and port is not self.screen_port:
                self._go_on(session, number, port)

    def _go_on(self, session: Session, number: int, port: Port) -> None:
        """From a saved state: the driver knows the port, but not who is at its host end now."""
        self.attach(number, port)
        session.post(lambda: self._tell_soon(number, TELL_OPEN))

    @property
    def multiport(self) -> bool:
        """The driver knows of named ports, and talks about them."""
        return self._session is not None and bits.has(self._session.features, F_MULTIPORT)

    def finish(self) -> None:
        """See VirtioDevice. Linux's ports do not wait for what was written to them to be taken."""
        for port in self.ports:
            if port is not None:
                port.finish()

    def stop(self) -> None:
        """See VirtioDevice."""
        self._session = None
        for port in self.ports:
            if port is not None:
                port.detach()

    def on_kick(self, queue: ActiveQueue) -> None:
        """See VirtioDevice."""
        self._kicks[queue.index]()

    def _what_kicks_do(self) -> tuple[Callable[[], None], ...]:
        """What to do for each queue. They come in pairs, the second of which is for control."""
        kicks: list[Callable[[], None]] = []
        for port in self.ports:
            kicks += (_nothing, _nothing) if port is None else (port.work_input, port.work_output)
        kicks[_CONTROL_IN:_CONTROL_IN] = self._tell, self._hear
        return tuple(kicks)

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """See VirtioDevice."""
        port = self._port_of(queue)
        if port is not None:
            port.forget(queue)

    def _port_of(self, queue: ActiveQueue) -> Port | None:
        """Queues come in pairs, of which the second is for control."""
        pair = queue.index // 2
        if pair == _CONTROL_IN // 2:
            return None
        return self.ports[pair - 1 if pair else 0]

    def attach(self, number: int, port: Port) -> None:
        """The driver knows ``port`` now: give it its queues."""
        session = self._session
        if session is not None:
            first = 2 * number + 2
            rx, tx = session.queues[first : first + 2]
            port.attach(session, rx, tx, lambda: self._tell_soon(number, TELL_OPEN))

    # Control messages

    def _hear(self) -> None:
        if self._session is not None:
            from pyvmm.devices.console import control

            control.hear(self, self._session.queues[_CONTROL_OUT])
        self._tell()

    def _tell_soon(self, number: int, flags: int) -> None:
        self.to_tell[number] |= flags
        if self._session is not None:
            self._session.post(self._tell)

    def _tell(self) -> None:
        if self._session is not None and self.multiport:
            from pyvmm.devices.console import control

            control.tell(self, self._session.queues[_CONTROL_IN])
