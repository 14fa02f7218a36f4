# SPDX-License-Identifier: Apache-2.0
"""The shortcut for serial output: hardly any exits while a guest prints, and cheap ones.

A driver that prints loads LSR and stores to THR, for each byte or for each filling of the FIFO.

Stores: while there is much output, THR is a coalesced zone. KVM notes stores down in a ring, and whichever
vCPU's thread comes out of the guest next carries them out, before its own exit: so their order among the
accesses of a hart is kept, and between harts that synchronise. A full ring makes the next store exit. For a
guest that prints and then makes no exits there is a timer, which has a vCPU kicked out: output is at most
``2 * TICK`` seconds late, and so is the THRE interrupt that follows it. A real port is no quicker, and a
driver that looks at any other register sees all its stores done. The timer exists only while the zone does,
and the zone goes when nothing was stored for a while: an idle guest is left alone.

Interrupts: a terminal hands the driver a few bytes at a time, for each of which it would switch the THRE
interrupt on, be interrupted at once, send them, and switch it off. A real port has bytes to send until then.
So while there is much output, the interrupt comes ``PACE`` seconds after it was switched on, but at once to a
driver that tests whether it comes.

Loads: what LSR shows while there is nothing to receive is known beforehand (``answers``), whatever is in the
ring. It is answered without asking the device.

What a hostile guest can do: fill the ring, which holds 169 bytes. The thread that carries out stores waits
while the console's reader does not keep up, as after any exit, and a hart that finds the ring full exits and
waits, too. Only stores of one byte get into the ring: wider ones are not inside of the zone.
"""

from __future__ import annotations

import threading
from functools import partial

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.coalesced import FIRST, LAST, ring_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from pyvmm.devices.base import Loop
    from pyvmm.devices.uart8250 import Uart8250
    from pyvmm.kvm.coalesced import CoalescedRing
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.kvm.vm import Vm

#: Seconds between looks for stores that no exit has brought.
TICK = 0.02
#: Seconds from a driver's wish to send to the interrupt that lets it.
PACE = 0.002
# So many looks without a new store end it.
_IDLE_TICKS = 10


class SerialShortcut:
    """For the port ``uart`` at ``base``. ``post`` runs a task on a vCPU's thread, outside of the guest.

    The zone is looked after on the loop's thread. Lock order: this one's own lock is a leaf but for the
    loop's; the ring's comes before the device's.
    """

    def __init__(
        self,
        uart: Uart8250,
        base: int,
        vm: Vm,
        vcpu: Vcpu,
        loop: Loop,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        #: Address -> what a load of one byte there yields, without any effect on the device.
        self.answers: dict[int, int] = {}
        self._uart = uart
        self._base = base
        self._vm = vm
        self._address = vcpu.ring_address
        self._loop = loop
        self._post = post
        self._lock = threading.Lock()
        self._refused = not vm.check_extension(uapi.KVM_CAP_COALESCED_MMIO)
        #: The ring; something is in it while the bytes at FIRST and LAST differ.
        self.page: bytes | ctypes.Array[ctypes.c_char] = (
            bytes(LAST + 1) if self._refused else ring_page(self._address)
        )
        self._ring: CoalescedRing | None = None
        self._watchers: set[object] = set()
        self._zone = self._asked = False
        self._looks = False  # whether a look is to come; of the loop's thread alone
        self._stored = self._seen = self._idle = 0
        uart.on_busy = partial(loop.call_soon, self._begin)
        uart.on_status = self._status
        with uart.lock:
            uart.tell_status()

    def _status(self, offset: int, value: int | None) -> None:
        """With the device's lock held."""
        if value is None:
            self.answers.pop(self._base + offset, None)
        else:
            self.answers[self._base + offset] = value

    def settle(self) -> None:
        """Carry out the stores in the ring. On a vCPU's thread: waits while the output has no room."""
        ring = self._ring
        if ring is not None:
            after = ring.drain(self._carry_out)
            if after is not None:
                after()

    def _carry_out(self, data: bytes) -> Callable[[], None] | None:
        self._stored += len(data)
        return self._uart.transmit(data)

    def _begin(self) -> None:
        with self._lock:
            if self._zone or self._refused or self._watchers:
                return
            try:
                self._ring = self._ring or self._open_ring()
                self._vm.register_coalesced_mmio(self._base, 1)
            except (HostError, KvmError):
                self._refused = True  # then stores cause exits, as ever
                return
            self._zone = True
            self._idle = 0
            self._uart.on_send = self._pace
            if self._looks:
                return  # the last zone went a moment ago, and its next look is this one's
            self._looks = True
        self._loop.call_later(TICK, self._look)

    def _open_ring(self) -> CoalescedRing:
        from pyvmm.kvm.coalesced import CoalescedRing
        from pyvmm.ring import Ring

        ring = Ring()
        return CoalescedRing(self._address, ring.load_acquire32, ring.store_release32)

    def _pace(self) -> None:
        """With the device's lock held."""
        self._loop.call_later(PACE, self._uart.ready)

    def _look(self) -> None:
        """Once a tick: see to stores that have been in the ring for a tick, and to the end of the zone."""
        with self._lock:
            if not self._zone:
                self._looks = False
                return
            stored = self._stored
            if stored != self._seen:  # so what is in the ring came after the last look
                self._seen = stored
                self._idle = 0
            elif self._waiting():
                self._ask()
            else:
                self._idle += 1
                if self._idle == _IDLE_TICKS:
                    self._end_zone()
                    self._looks = False
                    return
        self._loop.call_later(TICK, self._look)

    def _waiting(self) -> bool:
        return self.page[FIRST] != self.page[LAST]

    def _ask(self) -> None:
        """Have a vCPU come out and settle; once, as its thread may wait long for the console's reader."""
        if not self._asked:
            self._asked = True
            self._post(self._settle_asked)

    def _settle_asked(self) -> None:
        self._asked = False
        self.settle()

    def _end_zone(self) -> None:
        """Take the zone back. What was stored until then is carried out."""
        self._zone = False
        self._uart.on_send = None
        try:
            self._vm.unregister_coalesced_mmio(self._base, 1)
        except KvmError:
            pass  # KVM declared the machine dead
        if self._waiting():
            self._ask()

    def stop(self, watcher: object) -> None:
        """Let every store exit from now on: ``watcher`` wants to see them. Idempotent; any thread."""
        with self._lock:
            self._watchers.add(watcher)
            if self._zone:
                self._end_zone()

    def resume(self, watcher: object) -> None:
        """Once no other watcher is left, much output makes a zone again. Idempotent; any thread."""
        with self._lock:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Let every store exit until the end. Idempotent; any thread."""
        self.stop(self)
