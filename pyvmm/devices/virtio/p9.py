# SPDX-License-Identifier: Apache-2.0
"""virtio-9p: a folder of the host in the guest, by the 9P2000.L protocol.

The transport is described in Linux's net/9p/trans_virtio.c: every chain is a request the device reads and a
buffer it answers into; the configuration space holds the mount tag.

``mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`` mounts it, and ``root=TAG rootfstype=9p
rootflags=trans=virtio,version=9p2000.L`` boots from it.
"""

from __future__ import annotations

import os
from collections import deque
from functools import cache, partial

from pyvmm.devices import settings as keys
from pyvmm.devices.p9.allowance import Allowance
from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.hostcalls import PROC_SUPER_MAGIC, fstatfs
from pyvmm.devices.p9.protocol import HEADER, TFLUSH
from pyvmm.devices.p9.server import LATER, Server
from pyvmm.devices.virtio.bits import feature_set
from pyvmm.devices.virtio.chain import gather, scatter, total
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.settings import Settings
    from pyvmm.devices.virtio.chain import Chain
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session

MOUNT_TAG = 0  # feature bit
MAX_TAG = 32
QUEUE_SIZE = 128

#: Requests on worker threads at a time; more wait here and leave threads to other devices.
MAX_JOBS = 3

# Descriptors of the process. A guest's cache of names holds one for each.
_PLENTY = 1 << 18
_RESERVE = 256  # for everything else


class P9(VirtioDevice):
    """Serves one folder, read-only unless asked.

    A hostile guest reaches nothing outside of the folder (pyvmm.devices.p9 says why), uses up fids but not
    the host's descriptors, and keeps ``MAX_JOBS`` worker threads busy at most.
    """

    NAME = "9p"
    DEVICE_ID = 9
    SIZE = 2 + MAX_TAG
    SETTINGS: ClassVar[dict[str, keys.Setting]] = {
        "dir": keys.path("folder of the host to share"),
        "tag": keys.tag("name under which the guest mounts it", default="share", most=MAX_TAG),
        "rw": keys.flag("let the guest change the folder"),
    }
    POSITIONAL = ("dir", "tag")

    TAG_LEN = Reg(0, 16, access="r")
    TAG = RegArray(2, 8, count=MAX_TAG, access="r")

    def __init__(self, root: int, tag: bytes, *, writable: bool, budget: Budget) -> None:
        """``root``: the folder's descriptor, which the device closes. ``budget``: of fids."""
        super().__init__((QUEUE_SIZE,), TAG=len(tag))
        self._root = root
        self._tag = tag
        self._writable = writable
        self._budget = budget
        #: Chains that held no request, or had no room for an answer.
        self.odd_requests = 0
        self._server: Server | None = None
        self._idle()
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Open the folder, and let it go. Raises ConfigError."""
        os.close(_open_folder(settings))

    @classmethod
    def open(cls, settings: Settings, services: Services) -> P9:
        """Raises ConfigError: no such folder, a host that is too old."""
        del services
        tag = os.fsencode(settings.require("tag"))
        return cls(_open_folder(settings), tag, writable=settings.flag("rw"), budget=_budget())

    def reset(self) -> None:
        """The tag is there from the start."""
        super().reset()
        self.TAG_LEN = len(self._tag)
        self.TAG = list(self._tag)

    def offered(self) -> int:
        """The configuration space has a tag."""
        return feature_set(MOUNT_TAG)

    def activate(self, session: Session) -> None:
        """A session of the guest's has fids of its own."""
        self._session = session
        try:
            self._server = Server(self._root, writable=self._writable, budget=self._budget)
        except OSError as error:  # such as a network mount that is gone
            session.fail(f"the shared folder cannot be reached: {error.strerror}")

    def _idle(self) -> None:
        self._running: dict[Chain, int] = {}  # on a worker, and the request's tag
        self._waiting: deque[tuple[Chain, int]] = deque()
        self._flushes: list[tuple[Chain, int, int]] = []  # chain, own tag, tag of the request it waits for

    def on_kick(self, queue: ActiveQueue) -> None:
        """Take every request. What need not wait for a disk is done here: handing it over takes longer."""
        server = self._server
        if server is None:
            return
        allowance = Allowance()
        for chain in queue.chains():
            head = gather(chain.readable, HEADER.size)
            if len(head) < HEADER.size:
                self.odd_requests += 1
                queue.complete(chain, 0)
                continue
            _, kind, tag = HEADER.unpack(head)
            if kind == TFLUSH:
                self._flush(queue, chain, tag)
                continue
            written = server.handle(chain.readable, chain.writable, allowance)
            if written == LATER:
                self._waiting.append((chain, tag))
                self._start(queue, server)
            else:
                self._answer(queue, chain, written)

    def _start(self, queue: ActiveQueue, server: Server) -> None:
        while self._waiting and len(self._running) < MAX_JOBS:
            chain, tag = self._waiting.popleft()
            self._running[chain] = tag
            job = partial(server.handle, chain.readable, chain.writable)
            self._session.submit(job, partial(self._done, queue, server, chain))

    def _done(self, queue: ActiveQueue, server: Server, chain: Chain, written: int) -> None:
        if chain not in self._running:  # the queue was reset meanwhile
            return
        tag = self._running.pop(chain)
        self._answer(queue, chain, written)
        for flush in [flush for flush in self._flushes if flush[2] == tag]:
            if not self._busy(tag):
                self._flushes.remove(flush)
                self._answer_flush(queue, flush[0], flush[1])
        self._start(queue, server)

    def _answer(self, queue: ActiveQueue, chain: Chain, written: int) -> None:
        self.odd_requests += not written
        queue.complete(chain, written)

    # Tflush: the guest does not want an answer any more. It gets it nevertheless, and then Rflush: no request
    # takes long, and one that is half done cannot be taken back.

    def _flush(self, queue: ActiveQueue, chain: Chain, tag: int) -> None:
        frame = gather(chain.readable, HEADER.size + 2)
        old = int.from_bytes(frame[HEADER.size :], "little")
        if self._busy(old):
            self._flushes.append((chain, tag, old))
        else:
            self._answer_flush(queue, chain, tag)

    def _busy(self, tag: int) -> bool:
        return tag in self._running.values() or any(tag == other for _, other in self._waiting)

    def _answer_flush(self, queue: ActiveQueue, chain: Chain, tag: int) -> None:
        answer = HEADER.pack(HEADER.size, TFLUSH + 1, tag)
        fits = total(chain.writable) >= len(answer)
        self._answer(queue, chain, scatter(chain.writable, answer) if fits else 0)

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """Forget all requests."""
        del queue
        self._idle()

    def stop(self) -> None:
        """Forget the guest's fids. Closing files may take a while: a worker does it, the reset waits."""
        self._idle()
        if self._server is not None:
            self._session.submit(self._server.close, _nothing)
        self._server = None
        del self._session

    def close(self) -> None:
        """Let go of the folder."""
        if self._root >= 0:
            os.close(self._root)
        self._root = -1


def _nothing(_result: None) -> None:
    """The session is over."""


def _finite(limit: int) -> int:
    return _PLENTY if limit < 0 else limit  # RLIM_INFINITY is -1


def _raise_limit(soft: int, hard: int) -> int:
    """``soft``, or 0 when it is not allowed: raising the hard limit takes privileges."""
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):
        return 0
    return soft


def _open_folder(settings: Settings) -> int:
    path = settings.require("dir")
    root = open_root(path, settings.what)
    if fstatfs(root)[0] == PROC_SUPER_MAGIC:
        os.close(root)
        raise ConfigError(f"{settings.what}: {path} holds processes, not files; share another folder.")
    return root


@cache
def _budget() -> Budget:
    """What all devices of this process may use up. First make room, as far as the host allows."""
    import resource

    soft, hard = map(_finite, resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < _PLENTY:
        soft = _raise_limit(_PLENTY, max(hard, _PLENTY)) or _raise_limit(hard, hard) or soft
    return Budget(max(soft - _RESERVE, _RESERVE))
