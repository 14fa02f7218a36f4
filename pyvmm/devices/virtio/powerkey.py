# SPDX-License-Identifier: Apache-2.0
"""virtio-input (virtio 1.2, section 5.8) with a single key: power.

What a hostile guest can do: give no buffers, or small ones: then it does not hear of the key.
"""

from __future__ import annotations

import struct

from pyvmm.devices.virtio.chain import scatter
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.mmio.regs import Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

    from pyvmm.devices.virtio.session import ActiveQueue, Session

KEY_POWER = 116
_EV_SYN, _EV_KEY = 0, 1
_EVENT = struct.Struct("<HHI")  # type, code, value
_PRESS = tuple(
    _EVENT.pack(*event)
    for event in ((_EV_KEY, KEY_POWER, 1), (_EV_SYN, 0, 0), (_EV_KEY, KEY_POWER, 0), (_EV_SYN, 0, 0))
)
_ID_NAME, _EV_BITS = 0x01, 0x11
_LARGEST = 128
#: (select, subsel) -> what the driver finds.
_ANSWERS = {
    (_ID_NAME, 0): b"Power Button",
    (_EV_BITS, _EV_KEY): (1 << KEY_POWER).to_bytes(KEY_POWER // 8 + 1, "little"),
}
_QUEUE_SIZE = 64
_EVENTS = 0


class PowerKey(VirtioDevice):
    """See the module. Queues: events, and status, which nothing comes through."""

    NAME = "power"
    SIZE = 8 + _LARGEST
    DEVICE_ID = 18

    SELECT = Reg(0, 8)
    SUBSEL = Reg(1, 8)
    LENGTH = Reg(2, 8, access="r", on_read="_read_length")
    ANSWER = RegArray(8, 8, access="r", count=_LARGEST, on_read="_read_answer")

    def __init__(self, lock: threading.Lock) -> None:
        """``lock`` is the device's."""
        super().__init__((_QUEUE_SIZE, _QUEUE_SIZE))
        self.lock = lock
        self._session: Session | None = None
        self._pressed = False  # and not let go yet
        self.reset()

    def press(self) -> bool:
        """Press the key and let it go; whether there is a driver that may hear of it. With the lock held.

        While the guest is paused, any number of presses are one.
        """
        session = self._session
        if session is None or not session.alive:
            return False
        if not self._pressed:
            self._pressed = True
            session.post(self._press)
        return True

    def _press(self) -> None:
        self._pressed = False
        session = self._session
        if session is None:
            return
        events = session.queues[_EVENTS]
        for event in _PRESS:
            chain = events.pop()
            if chain is None:
                return
            events.complete(chain, scatter(chain.writable, event))

    def activate(self, session: Session) -> None:
        """See VirtioDevice."""
        self._session = session
        self._pressed = False

    def stop(self) -> None:
        """See VirtioDevice."""
        self._session = None

    def on_kick(self, queue: ActiveQueue) -> None:
        """Room for events, which waits in the ring; or a status, such as that of a lamp, which is ignored."""
        if queue.index != _EVENTS:
            for chain in queue.chains():
                queue.complete(chain, 0)

    def _answer(self) -> bytes:
        return _ANSWERS.get((self.SELECT, self.SUBSEL), b"")

    def _read_length(self) -> int:
        return len(self._answer())

    def _read_answer(self, index: int) -> int:
        return self._answer()[index] if index < self._read_length() else 0
