# SPDX-License-Identifier: Apache-2.0
"""virtio memory balloon (virtio 1.2, section 5.5): take memory from a running guest, and give it back.

The machine sets how much it wants; the driver takes that much from its kernel and names the pages, and the
host gets them. Free page reporting does the same, without being asked, for whatever is free. A page is the
guest's again as soon as it touches it: giving back needs nothing but keeping count.
"""

from __future__ import annotations

from struct import Struct, unpack

from pyvmm.devices.settings import flag, memory
from pyvmm.devices.virtio import bits
from pyvmm.devices.virtio.chain import gather, total
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError, GuestAccessError
from pyvmm.mmio.regs import Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import ClassVar

    from pyvmm.devices.settings import Setting, Settings
    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.memory import GuestMemory

F_STATS_VQ, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING = 1, 2, 4, 5

PAGE = 4096  # of the balloon, whatever the guest's and the host's are
_MOST_PAGES = 0xFFFF_FFFF

_QUEUE_SIZE = 64
_INFLATE, _DEFLATE, _STATS, _REPORTING = range(4)
_LARGEST_ARRAY = 64 << 10  # bytes of page numbers looked at in one buffer; Linux sends 1 KiB

_STATISTIC = Struct("<HQ")
#: Names of the statistics by their tag (5.5.6.4): bytes of memory, or counts of events.
STATISTICS = (
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
)
_LARGEST_STATISTICS = 64 * _STATISTIC.size
_MOST_WAITING = 16  # for fresh statistics


class Balloon(VirtioDevice):
    """The device. ``target`` is how many bytes it should hold; it starts at that.

    What a hostile guest can do: name pages that are not RAM (counted in ``odd``), name pages it uses (they
    read as zeros, to its own loss), send arrays of any length (the first 64 KiB are looked at), send
    statistics that make no sense. All work on memory is done by the worker threads.
    """

    NAME = "balloon"
    SIZE = 16
    DEVICE_ID = 5
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "size": memory("take this much from the guest at once", default=0),
        "deflate-on-oom": flag("let a guest that runs out of memory take it back"),
    }
    POSITIONAL = ("size",)

    NUM_PAGES = Reg(0, 32, access="r", on_read="_read_num_pages", sizes=(1, 2, 4))
    ACTUAL = Reg(4, 32, sizes=(1, 2, 4))
    FREE_PAGE_HINT_CMD_ID = Reg(8, 32, access="r", sizes=(1, 2, 4))
    POISON_VAL = Reg(12, 32, sizes=(1, 2, 4))

    def __init__(self, target: int = 0, *, deflate_on_oom: bool = False) -> None:
        """Raises ConfigError unless ``target`` can be a number of balloon pages."""
        super().__init__((_QUEUE_SIZE,) * 4)
        self._target_pages = _pages(target)
        self._deflate_on_oom = deflate_on_oom
        self._session: Session | None = None
        self._roles: tuple[int, ...] = ()  # of the queues, in their order
        self._statistics: dict[str, int] = {}
        self._stats_chain: Chain | None = None  # the driver's, until new statistics are wanted
        self._waiting: list[Callable[[dict[str, int]], None]] = []
        #: Bytes that inflating and reporting gave to the host so far, pages taken again included.
        self.discarded = 0
        self.reset()

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Balloon:
        """See VirtioDevice."""
        del services
        try:
            return cls(settings.number("size") or 0, deflate_on_oom=settings.flag("deflate-on-oom"))
        except ConfigError as error:
            raise ConfigError(f"{settings.what}: {error}") from None

    def offered(self) -> int:
        """See VirtioDevice."""
        features = bits.feature_set(F_STATS_VQ, F_PAGE_POISON, F_REPORTING)
        return features | self._deflate_on_oom << F_DEFLATE_ON_OOM

    def _read_num_pages(self) -> int:
        return self._target_pages

    # The machine's side. Callable from any thread, without the lock.

    @property
    def target(self) -> int:
        """How many bytes the balloon should hold."""
        return self._target_pages * PAGE

    @property
    def actual(self) -> int:
        """How many bytes it holds, as the driver says."""
        return self.ACTUAL * PAGE

    def set_target(self, target: int) -> None:
        """Ask the driver to hold ``target`` bytes, rounded down to pages. Raises ConfigError."""
        pages = _pages(target)
        with self.lock:
            if pages != self._target_pages:
                self._target_pages = pages
                self.config_changed()

    def stats(self) -> dict[str, int]:
        """What the guest last said of its memory, by the names in STATISTICS; empty before it did."""
        return dict(self._statistics)

    def request_stats(self, callback: Callable[[dict[str, int]], None]) -> bool:
        """Ask the guest for fresh statistics and hand them to ``callback``; False when no driver can answer.

        ``callback`` runs on the loop's thread with the lock held, so it may only take note. When the driver
        goes away first, or many others have asked since of one that does not answer, it gets an empty dict,
        maybe on another thread.
        """
        with self.lock:
            session = self._session
            if session is None or not session.alive or _STATS not in self._roles:
                return False
            if not self._waiting:
                session.post(self._ask)
            elif len(self._waiting) == _MOST_WAITING:
                self._waiting.pop(0)({})
            self._waiting.append(callback)
            return True

    def _ask(self) -> None:
        """Statistics are asked for by giving the driver its buffer back."""
        session, chain = self._session, self._stats_chain
        if session is not None and chain is not None and self._waiting:
            self._stats_chain = None
            session.queues[self._roles.index(_STATS)].complete(chain, 0)

    # The driver's side

    def activate(self, session: Session) -> None:
        """See VirtioDevice. Drivers number the queues that their features call for, without gaps."""
        self._session = session
        roles = [_INFLATE, _DEFLATE]
        if bits.has(session.features, F_STATS_VQ):
            roles.append(_STATS)
        if bits.has(session.features, F_REPORTING):
            roles.append(_REPORTING)
        self._roles = tuple(roles)

    def stop(self) -> None:
        """See VirtioDevice."""
        self._session = None
        self._roles = ()
        self._forget_stats()

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """See VirtioDevice."""
        if self._role(queue) == _STATS:
            self._forget_stats()

    def _forget_stats(self) -> None:
        self._stats_chain = None
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback({})

    def _role(self, queue: ActiveQueue) -> int | None:
        return self._roles[queue.index] if queue.index < len(self._roles) else None

    def on_kick(self, queue: ActiveQueue) -> None:
        """See VirtioDevice."""
        role = self._role(queue)
        if role is None:
            return
        for chain in queue.chains():
            if role == _INFLATE:
                self._inflate(queue, chain)
            elif role == _REPORTING:
                self._take_reported(queue, chain)
            elif role == _STATS:
                self._take_stats(queue, chain)
            else:
                queue.complete(chain, 0)

    # Pages

    def _inflate(self, queue: ActiveQueue, chain: Chain) -> None:
        session = self._session
        if session is None:
            return
        if total(chain.readable) > _LARGEST_ARRAY:
            self.odd += 1
        array, memory = gather(chain.readable, _LARGEST_ARRAY), session.memory
        session.submit(lambda: _discard_pages(memory, array), lambda done: self._taken(queue, chain, *done))

    def _take_reported(self, queue: ActiveQueue, chain: Chain) -> None:
        """Free pages come as buffers. They may come back as they were, or filled with the poison value."""
        session = self._session
        if session is None:
            return
        if bits.has(session.features, F_PAGE_POISON) and self.POISON_VAL:
            queue.complete(chain, 0)  # and pages from the host are zeros
            return
        views, memory = [*chain.writable], session.memory
        session.submit(
            lambda: (sum(map(memory.discard_view, views)), 0),
            lambda done: self._taken(queue, chain, *done),
        )

    def _taken(self, queue: ActiveQueue, chain: Chain, discarded: int, odd: int) -> None:
        self.discarded += discarded
        self.odd += odd
        queue.complete(chain, 0)

    # Statistics

    def _take_stats(self, queue: ActiveQueue, chain: Chain) -> None:
        """Keep the one buffer that there is meant to be; it goes back when new statistics are wanted."""
        data = gather(chain.readable, _LARGEST_STATISTICS)
        whole = len(data) // _STATISTIC.size * _STATISTIC.size
        if whole != len(data) or self._stats_chain is not None:
            self.odd += 1
        if self._stats_chain is not None:
            queue.complete(self._stats_chain, 0)
        self._stats_chain = chain
        for tag, value in _STATISTIC.iter_unpack(data[:whole]):
            if tag < len(STATISTICS):
                self._statistics[STATISTICS[tag]] = value
        self._answer()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback(self.stats())


def _pages(target: int) -> int:
    pages = target // PAGE
    if not 0 <= pages <= _MOST_PAGES:
        raise ConfigError(f"A balloon holds from 0 to just under {(_MOST_PAGES + 1) * PAGE >> 40}T.")
    return pages


def _discard_pages(memory: GuestMemory, array: bytes) -> tuple[int, int]:
    """Give the pages of a little-endian array back: how many bytes went, how many pages are not RAM."""
    count = len(array) // 4
    discarded = odd = 0
    for first, length in _runs(sorted(unpack(f"<{count}I", array[: 4 * count]))):
        try:
            discarded += memory.discard(first * PAGE, length * PAGE)
        except GuestAccessError:
            for number in range(first, first + length):
                try:
                    discarded += memory.discard(number * PAGE, PAGE)
                except GuestAccessError:
                    odd += 1
    return discarded, odd


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, length) of every run of consecutive numbers; duplicates count once."""
    first = end = -1
    for number in numbers:
        if number == end:
            end += 1
        elif number != end - 1:
            if first >= 0:
                yield first, end - first
            first, end = number, number + 1
    if first >= 0:
        yield first, end - first
