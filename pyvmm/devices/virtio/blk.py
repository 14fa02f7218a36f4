# SPDX-License-Identifier: Apache-2.0
"""virtio-blk: a disk (virtio 1.2, section 5.2).

What needs no waiting, which is reading what the host has in its page cache, is done at once on the loop's
thread, up to a limit: it takes a fiftieth of the time that handing it over takes. Everything else goes to the
workers, where requests run side by side and finish in any order, as the specification allows.

What a hostile guest can do: send any request to any sector. Types, flags and lengths it may not use are
answered with an error; ranges are checked against the size the disk had when it was opened; what a request
says is copied once before it is looked at; and it cannot have more in flight than its queues hold.
"""

from __future__ import annotations

import errno
import struct
from functools import partial

from pyvmm.devices.disk.image import SECTOR
from pyvmm.devices.disk.jobs import JobQueue
from pyvmm.devices.disk.request import IOERR, OK, UNSUPP, Request
from pyvmm.devices.settings import Setting, choice, flag, number, path
from pyvmm.devices.virtio.bits import feature_set, has
from pyvmm.devices.virtio.chain import gather, scatter, split, total
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Bit, Reg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from pyvmm.devices.disk.image import DiskImage
    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session
    from pyvmm.mmio.regs import State

    Job = Callable[[], None]

# Feature bits.
SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES = 2, 5, 6, 9, 10, 11, 12, 13, 14

# Types of requests.
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13

_QUEUE_SIZE = 256
_MOST_QUEUES = 64
_ID_SIZE = 20
_AT_ONCE = 1 << 20  # bytes that one kick has copied on the loop's thread, at most
_MOST_SEGMENTS = 32  # of one discard or write-zeroes request
_DISCARD_SECTORS = (1 << 30) // SECTOR  # of one segment
_ZERO_SECTORS = (128 << 20) // SECTOR  # less: the host may have to write them
_UNMAP = 1
# Bytes of one request, which descriptors can make 512 GiB of the same page. Linux's are some MiB at most.
# Once begun, a request keeps a reset and the machine's end waiting.
_MOST_BYTES = 64 << 20

#: Registers that say what the disk is. The driver relies on them, and ranges are checked against them.
_OF_THE_IMAGE = ("CAPACITY", "BLK_SIZE", "NUM_QUEUES", "MAX_DISCARD_SECTORS")

_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_SEGMENT = struct.Struct("<QII")  # sector, count, flags


def _parse_id(value: str) -> str:
    if not value.isascii() or not value.isprintable() or not 0 < len(value) <= _ID_SIZE:
        raise ValueError(f"up to {_ID_SIZE} printable ASCII characters")
    return value


class Blk(VirtioDevice):
    """A disk on ``image``, which it closes. ``malformed`` counts chains without room for an answer.

    Under its lock it calls only the loop and the workers, whose locks are leaves.
    """

    NAME = "blk"
    SIZE = 60
    DEVICE_ID = 2
    POSITIONAL = ("file",)
    SETTINGS: ClassVar[dict[str, Setting]] = {
        "file": path("raw image file or block device"),
        "ro": flag("the guest may only read; several machines may share the image so"),
        "rw": flag("the guest may write, which is the default"),
        "direct": flag("go around the host's page cache (O_DIRECT)"),
        "id": Setting(_parse_id, "serial number that the guest sees, up to 20 characters"),
        "queues": number("request queues, best one for each CPU", 1, _MOST_QUEUES, 1),
        "format": choice("raw: do not look for image formats in the contents", "raw"),
    }

    CAPACITY = Reg(0, 64, access="r", sizes=(4, 8))  # in sectors
    SEG_MAX = Reg(12, 32, access="r")
    BLK_SIZE = Reg(20, 32, access="r")  # bytes of a logical block
    PHYSICAL_BLOCK_EXP = Reg(24, 8, access="r")  # log2 of logical blocks in a physical one
    ALIGNMENT_OFFSET = Reg(25, 8, access="r")
    MIN_IO_SIZE = Reg(26, 16, access="r")  # in logical blocks
    OPT_IO_SIZE = Reg(28, 32, access="r")
    WRITEBACK = Reg(32, 8, fields={"cache": Bit(0)}, on_write="_write_writeback")
    NUM_QUEUES = Reg(34, 16, access="r")
    MAX_DISCARD_SECTORS = Reg(36, 32, access="r")
    MAX_DISCARD_SEG = Reg(40, 32, access="r")
    DISCARD_SECTOR_ALIGNMENT = Reg(44, 32, access="r")
    MAX_WRITE_ZEROES_SECTORS = Reg(48, 32, access="r")
    MAX_WRITE_ZEROES_SEG = Reg(52, 32, access="r")
    WRITE_ZEROES_MAY_UNMAP = Reg(56, 8, access="r")

    def __init__(self, image: DiskImage, *, serial: str = "", queues: int = 1) -> None:
        super().__init__((_QUEUE_SIZE,) * queues)
        self._image = image
        self._serial = serial.encode().ljust(_ID_SIZE, b"\0")
        self._session: Session | None = None
        self._jobs: JobQueue | None = None
        self._starters: dict[int, Callable[[Request, list[memoryview], int], Job | int]] = {
            T_IN: self._start_read,
            T_OUT: self._start_write,
            T_FLUSH: self._start_flush,
            T_GET_ID: self._start_get_id,
            T_DISCARD: self._start_discard,
            T_WRITE_ZEROES: self._start_write_zeroes,
        }
        self._budget = 0
        self.malformed = 0
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Open the image, and let it go. Raises ConfigError."""
        cls._open_image(settings).close()

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Blk:
        """The disk the user asked for. Raises ConfigError."""
        del services
        image = cls._open_image(settings)
        return cls(image, serial=settings.text("id") or "", queues=settings.number("queues") or 1)

    @staticmethod
    def _open_image(settings: Settings) -> DiskImage:
        from pyvmm.devices.disk.opening import open_image

        if settings.flag("ro") and settings.flag("rw"):
            raise ConfigError(f"{settings.what} is either ro or rw; leave one of them out.")
        return open_image(
            settings.require("file"),
            settings.what,
            read_only=settings.flag("ro"),
            direct=settings.flag("direct"),
            any_content=settings.text("format") == "raw",
        )

    def reset(self) -> None:
        """Power-on values. Those of the image do not change."""
        super().reset()
        image = self._image
        block = image.block_size
        self.CAPACITY = image.size // SECTOR
        self.SEG_MAX = _QUEUE_SIZE - 2  # header and status take one each
        self.BLK_SIZE = block
        self.MIN_IO_SIZE = max(image.physical // block, 1)
        self.PHYSICAL_BLOCK_EXP = self.MIN_IO_SIZE.bit_length() - 1
        self.NUM_QUEUES = len(self.queue_sizes)
        if not image.read_only:
            self.WRITEBACK = 1
            self.MAX_DISCARD_SECTORS = _DISCARD_SECTORS
            self.MAX_WRITE_ZEROES_SECTORS = _ZERO_SECTORS
            self.MAX_DISCARD_SEG = self.MAX_WRITE_ZEROES_SEG = _MOST_SEGMENTS
            self.DISCARD_SECTOR_ALIGNMENT = max(image.physical, block) // SECTOR
            self.WRITE_ZEROES_MAY_UNMAP = 1

    def load_state(self, state: State) -> None:
        """See RegisterDevice. The image has to be like the one that the state was saved with."""
        for name in _OF_THE_IMAGE:
            if name in state and state[name] != getattr(self, name):
                raise ConfigError(
                    f"The saved state is of a disk with {name} = {state[name]}, not {getattr(self, name)}: "
                    f"give the machine the disk it was saved with, with the same settings."
                )
        super().load_state(state)

    def offered(self) -> int:
        """Feature bits."""
        features = feature_set(SEG_MAX, BLK_SIZE, TOPOLOGY)
        if len(self.queue_sizes) > 1:
            features |= feature_set(MQ)
        if self._image.read_only:
            return features | feature_set(RO)
        return features | feature_set(FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES)

    def activate(self, session: Session) -> None:
        """A driver that cannot flush gets every write on disk before it is completed (5.2.6.2)."""
        self._session = session
        self._jobs = JobQueue(session)
        if not has(session.features, FLUSH):
            self.WRITEBACK = 0

    def stop(self) -> None:
        """Forget what no worker has begun."""
        if self._jobs is not None:
            self._jobs.close()
        self._jobs = self._session = None

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """Forget what no worker has begun, and drop the results of the rest."""
        del queue
        if self._jobs is not None:
            self._jobs.drop_stale()

    def close(self) -> None:
        """Close the image, which unlocks it."""
        self._image.close()

    # Requests, on the loop's thread

    def on_kick(self, queue: ActiveQueue) -> None:
        """Begin with everything that came; complete what needs no waiting."""
        jobs = self._jobs
        if jobs is None:
            return
        self._budget = _AT_ONCE
        for chain in queue.chains():
            size = total(chain.writable)
            if not size:
                self.malformed += 1
                queue.complete(chain, 0)
                continue
            request = Request(queue, chain, size)
            self._start(request, chain.readable)
            if request.job is None:
                request.finish()
            else:
                jobs.put(request)
        jobs.start()

    def _start(self, request: Request, readable: list[memoryview]) -> None:
        """Look at a request: it is given its status, or the job that finds it out."""
        words: memoryview | bytes = readable[0] if readable else b""
        payload = readable[1:]
        if len(words) != _HEADER.size:  # not as drivers lay it out
            header, payload = split(readable, _HEADER.size)
            words = gather(header)
            if len(words) < _HEADER.size:
                request.status = IOERR
                return
        kind, _, sector = _HEADER.unpack(words)
        starter = self._starters.get(kind)
        if starter is None:
            request.status = UNSUPP
            return
        try:
            outcome = starter(request, payload, sector)
        except OSError:
            outcome = IOERR
        if isinstance(outcome, int):
            request.status = outcome
        else:
            request.job = outcome

    def _offset(self, sector: int, length: int) -> int:
        """Where in the image that is. Raises OSError when it is not in it, or not whole sectors."""
        if length % SECTOR or sector + length // SECTOR > self.CAPACITY:
            raise OSError(errno.EINVAL, "not on the disk")
        return sector * SECTOR

    def _transfer(self, sector: int, length: int) -> int:
        """Like ``_offset``, of what is read or written. Raises OSError for too much at once."""
        if length > _MOST_BYTES:
            raise OSError(errno.EINVAL, "too large a request")
        return self._offset(sector, length)

    def _start_read(self, request: Request, _payload: list[memoryview], sector: int) -> Job | int:
        length = request.room
        offset = self._transfer(sector, length)
        if self._afford(length) and self._image.read_cached(request.data, offset, length):
            return OK
        return partial(self._image.read, request.data, offset)

    def _start_write(self, _request: Request, payload: list[memoryview], sector: int) -> Job | int:
        length = total(payload)
        offset = self._transfer(sector, length)
        if self._image.read_only:
            return IOERR
        write = partial(self._image.write, payload, offset, not self.WRITEBACK)
        if not self._image.in_memory or not self._afford(length):
            return write
        write()
        return OK

    def _afford(self, length: int) -> bool:
        """Whether that many more bytes may be copied in this pass; they are counted."""
        self._budget -= length
        return self._budget >= 0

    def _start_flush(self, _request: Request, _payload: list[memoryview], _sector: int) -> Job | int:
        return OK if self._image.read_only else self._image.flush

    def _start_get_id(self, request: Request, _payload: list[memoryview], _sector: int) -> int:
        scatter(request.data, self._serial)
        return OK

    def _start_discard(self, _request: Request, payload: list[memoryview], _sector: int) -> Job | int:
        segments = self._segments(DISCARD, payload, _DISCARD_SECTORS)
        if segments is None or any(flags for _, _, flags in segments):
            return UNSUPP
        return partial(self._discard_all, segments, not self.WRITEBACK)

    def _start_write_zeroes(self, _request: Request, payload: list[memoryview], _sector: int) -> Job | int:
        segments = self._segments(WRITE_ZEROES, payload, _ZERO_SECTORS)
        if segments is None or any(flags & ~_UNMAP for _, _, flags in segments):
            return UNSUPP
        return partial(self._zero_all, segments, not self.WRITEBACK)

    def _segments(
        self, feature: int, payload: list[memoryview], most_sectors: int
    ) -> list[tuple[int, int, int]] | None:
        """(offset, length, flags) of each, None without the feature. Raises OSError for what cannot be."""
        session = self._session
        if session is None or not has(session.features, feature):
            return None
        size = total(payload)
        if not size or size % _SEGMENT.size or size > _SEGMENT.size * _MOST_SEGMENTS:
            raise OSError(errno.EINVAL, "not whole segments, or too many")
        segments = []
        for sector, count, flags in _SEGMENT.iter_unpack(gather(payload)):
            if count > most_sectors:
                raise OSError(errno.EINVAL, "too many sectors")
            segments.append((self._offset(sector, count * SECTOR), count * SECTOR, flags))
        return segments

    # Jobs, on a worker

    def _discard_all(self, segments: list[tuple[int, int, int]], durable: bool) -> None:
        for offset, length, _ in segments:
            self._image.discard(offset, length)
        if durable:
            self._image.flush()

    def _zero_all(self, segments: list[tuple[int, int, int]], durable: bool) -> None:
        for offset, length, flags in segments:
            self._image.zero(offset, length, bool(flags & _UNMAP))
        if durable:
            self._image.flush()

    # Configuration

    def _write_writeback(self, value: int) -> None:
        if self._session is not None and has(self._session.features, CONFIG_WCE):
            self.WRITEBACK = value
        else:
            self.odd += 1
