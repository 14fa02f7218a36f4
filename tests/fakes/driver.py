# SPDX-License-Identifier: Apache-2.0
"""The guest's side of a virtqueue, for tests of devices: split or packed, well behaved or malicious.

    memory = GuestMemory()
    memory.add(0x8000_0000, 1 << 20)
    driver = FakeDriver(memory, packed=True, size=8)
    queue = make_queue(memory, ring, driver.setup)
    token = driver.add_chain([b"request"], [512])
    ... the device works the queue ...
    [(token, written, data)] = driver.collect()

It runs in the device's thread, so plain accesses do. It asserts what a device owes its driver: only buffers
that are in flight come back, once, and never more bytes than fit.
"""

from __future__ import annotations

from typing import NamedTuple

from fakes.driver_rings import INDIRECT, NEXT, WRITE, PackedRing, SplitRing, encode

from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.errors import GuestAccessError


class Completion(NamedTuple):
    """One buffer that came back. ``data`` is the first ``written`` bytes of its writable part."""

    token: int
    written: int
    data: bytes


class _Sent(NamedTuple):
    token: int
    writable: list
    allocated: list
    honest: bool


class FakeDriver:
    """See the module. ``setup`` is what the device is told; ``ring`` gives access to the ring's own words.

    ``base`` is where the rings begin (the first bank's start unless given) and ``span`` how many bytes from
    there belong to this driver, rings and buffers together. ``start`` lets free-running counters begin just
    before their wrap: a split ring's index, a packed ring's position (and wrap counter 1).
    """

    def __init__(
        self,
        memory,
        *,
        packed=False,
        size=16,
        base=None,
        span=0x4_0000,
        event_idx=False,
        indirect=True,
        start=0,
    ):
        self.memory = memory
        self.base = memory.banks[0].base if base is None else base
        driver = self.base + 16 * size
        device = -(-(driver + 6 + 2 * size) // 16) * 16
        self.setup = QueueSetup(
            size, self.base, driver, device, event_idx=event_idx, indirect=indirect, packed=packed
        )
        self._buffers = -(-(device + 6 + 8 * size) // 64) * 64, self.base + span
        self._tokens = 0
        self.reset(start)

    def reset(self, start=0):
        """Begin anew with empty rings, as after a reset of the device. Tokens go on."""
        self.start = start
        self.ring = (PackedRing if self.setup.packed else SplitRing)(self.memory, self.setup, start)
        self.pool = _Pool(*self._buffers)
        self._sent = {}

    def make_queue(self, ring):
        """The device's side of it, standing where ``start`` says."""
        queue = make_queue(self.memory, ring, self.setup)
        queue.load_state(self.ring.device_state(self.start))
        return queue

    @property
    def in_flight(self):
        """Tokens of the chains the device has not returned."""
        return [sent.token for sent in self._sent.values()]

    @property
    def free_slots(self):
        """Descriptors left."""
        return self.ring.free

    # Giving buffers to the device

    def add_chain(self, readable=(), writable=(), *, indirect=False):
        """Make a chain available and return its token.

        ``readable`` holds bytes, or (address, length) of what is in memory already; ``writable`` holds sizes,
        or (address, length). With ``indirect`` it takes one descriptor of the ring. IndexError: ring full.
        """
        allocated = []
        pairs = [(*self._place(item, allocated), 0) for item in readable]
        outputs = [self._place(item, allocated) for item in writable]
        pairs += [(address, length, WRITE) for address, length in outputs]
        if indirect:
            table = encode(pairs, packed=self.setup.packed, linked=not self.setup.packed)
            pairs = [(*self._place(table, allocated), INDIRECT)]
        else:
            pairs = [(a, n, f | NEXT) for a, n, f in pairs[:-1]] + pairs[-1:]
        return self._send(pairs, outputs, allocated, honest=True)

    def add_raw(self, descriptors, *, links=None):
        """Make exactly these (address, length, flags) available, as the chain's descriptors in the ring.

        Nothing is checked, corrected or linked. ``links``: the split ring's next fields, which otherwise name
        the descriptor that follows. Returns the token.
        """
        return self._send(list(descriptors), [], [], honest=False, links=links)

    def allocate(self, data_or_size):
        """The address of a new buffer of this size, or holding these bytes. It stays allocated."""
        return self._place(data_or_size, [])[0]

    def add_table(self, descriptors, *, links=None, length=None):
        """Make an indirect table of raw (address, length, flags) available, of ``length`` bytes if given."""
        table = encode(descriptors, packed=self.setup.packed, links=links)
        address = self.allocate(table)
        return self.add_raw([(address, len(table) if length is None else length, INDIRECT)])

    def needs_kick(self):
        """Whether the device asks to be notified of what was added since the last call."""
        return self.ring.needs_kick()

    # Getting them back

    def collect(self):
        """Every Completion since the last call, in the device's order."""
        done = []
        while (used := self.ring.take_used()) is not None:
            head, written = used
            assert head in self._sent, f"the device returned {head}, which is not in flight"
            sent = self._sent.pop(head)
            self.ring.release(head)
            done.append(Completion(sent.token, written, self._read_back(sent, written)))
            for address in sent.allocated:
                self.pool.free(address)
        return done

    # Interrupt suppression

    def disable_interrupts(self):
        """Ask for none: a hint, the device may still send some."""
        self.ring.disable_interrupts()

    def enable_interrupts(self):
        """Ask for one at the next completion. True: some came meanwhile, collect them."""
        return self.ring.interrupt_after(1)

    def interrupt_after(self, count):
        """Ask for one when ``count`` more were used (packed: slots of the ring). Needs the event index.

        True: that many were meanwhile.
        """
        return self.ring.interrupt_after(count)

    def _place(self, item, allocated):
        if isinstance(item, tuple):
            return item
        size = item if isinstance(item, int) else len(item)
        address = self.pool.allocate(size)
        allocated.append(address)
        self.memory.write(address, b"\xa5" * size if isinstance(item, int) else item)
        return address, size

    def _send(self, descriptors, outputs, allocated, *, honest, links=None):
        head = self.ring.add(descriptors, links)
        self._tokens += 1
        self._sent[head] = _Sent(self._tokens, outputs, allocated, honest)
        return self._tokens

    def _read_back(self, sent, written):
        room = sum(length for _, length in sent.writable)
        assert written <= room or not sent.honest, f"{written} bytes written to a buffer of {room}"
        data = b""
        for address, length in sent.writable:
            try:
                data += self.memory.read(address, min(length, written - len(data)))
            except GuestAccessError:  # it was not ours to give
                break
        return data


class _Pool:
    """First-fit allocation of [start, end)."""

    def __init__(self, start, end):
        self._start, self._end = start, end
        self._taken = {}

    def allocate(self, size):
        room = max(64, -(-size // 64) * 64)
        at = self._start
        for start in sorted(self._taken):
            if start - at >= room:
                break
            at = self._taken[start]
        if at + room > self._end:
            raise MemoryError(f"the fake driver has no {size} bytes left: give it a larger span")
        self._taken[at] = at + room
        return at

    def free(self, address):
        del self._taken[address]
