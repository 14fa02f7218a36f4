# SPDX-License-Identifier: Apache-2.0
"""The server: takes a frame apart, lets a handler do it, and frames the answer.

``Server.handle`` is called from several threads at once, and requests are answered in any order. What they
share is the table of fids and the locks (fids.py and locks.py say how), and three values that only Tversion
changes. Handlers are functions of the server, the request and the fields of its body; they return the body
of the answer and raise OSError for an errno.

A hostile guest can send anything: what is no frame gets no answer, and everything else an error. It can use
up its fids, not the host's descriptors; name only what is beneath the folder; and open only files and
directories, so that it cannot make a thread wait.
"""

from __future__ import annotations

import errno
import os

from pyvmm.devices.p9 import files, names, protocol
from pyvmm.devices.p9.attrs import Devices
from pyvmm.devices.p9.beneath import refusal, step
from pyvmm.devices.p9.fids import Fid, Fids
from pyvmm.devices.p9.locks import Locks
from pyvmm.devices.p9.protocol import COUNT, HEADER, READ_HEADER, RLERROR, WRITE_HEADER, Malformed
from pyvmm.devices.p9.xattrs import WrittenXattr
from pyvmm.devices.virtio.chain import gather, scatter, split, total

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.p9.allowance import Allowance
    from pyvmm.devices.p9.fids import Budget

MIN_MSIZE, MAX_MSIZE = 4096, 1 << 20
LATER = -1

#: What can often be done without waiting, on a local file system.
_AT_ONCE = frozenset((protocol.TGETATTR, protocol.TWALK, protocol.TCLUNK, protocol.TLOPEN, protocol.TREAD))

#: The longest frame but for Twrite: sixteen names of a walk, with room to spare.
_MAX_FRAME = 32768


class Request:
    """What a handler may need of a request besides its fields.

    ``payload`` is what follows the fields of Twrite; ``room`` is where the data of Rread goes, of which a
    handler may fill ``limit`` bytes and says in ``filled`` how many it did. Unless ``patient``, it must not
    wait for a disk, and ``spend`` before it does much: it raises an error instead, and has changed nothing.
    """

    __slots__ = ("_allowance", "filled", "limit", "patient", "payload", "room")

    def __init__(self, allowance: Allowance | None) -> None:
        self._allowance = allowance
        self.patient = allowance is None
        self.payload: list[memoryview] = []
        self.room: list[memoryview] = []
        self.limit = 0
        self.filled = 0

    def spend(self, steps: int, size: int = 0) -> None:
        """Raises OSError when that is too much to be done at once."""
        if self._allowance is not None:
            self._allowance.spend(steps, size)


class Server:
    """Serves the folder of descriptor ``root`` for one session; its fids are on ``budget``."""

    def __init__(self, root: int, *, writable: bool, budget: Budget) -> None:
        self.root = root
        self.writable = writable
        self.devices = Devices(root)
        self.locks = Locks(writable, budget)
        self.fids = Fids(budget, self.locks.forget)
        self.msize = 0  # of a frame in bytes; 0 until Tversion
        #: Frames that were none.
        self.odd = 0

    def close(self) -> None:
        """Close every file. Requests that still run finish with what they hold."""
        self.fids.close()
        self.locks.close()

    def handle(
        self, readable: list[memoryview], writable: list[memoryview], allowance: Allowance | None = None
    ) -> int:
        """Serve the request in ``readable``, answer into ``writable``; how many bytes the answer has.

        0 when there is none: the request is no frame, or the answer does not fit. Never raises. Within
        an ``allowance`` it does not wait, and returns LATER when it would have to: call it again without.
        """
        head = gather(readable, HEADER.size)
        capacity = total(writable)
        if len(head) < HEADER.size or capacity < READ_HEADER:
            self.odd += 1
            return 0
        size, kind, tag = HEADER.unpack(head)
        request = Request(allowance)
        patient = request.patient
        if not patient and (kind not in _AT_ONCE or not self.devices.local):
            return LATER
        try:
            request.spend(1, min(size, _MAX_FRAME))
            body = self._serve(request, kind, size, readable, writable, capacity)
        except OSError as error:
            if not patient and error.errno != errno.ENOENT:  # the other way may know better
                return LATER
            kind, body = RLERROR - 1, COUNT.pack(error.errno or errno.EIO)
        except (OverflowError, ValueError):  # a number the host's interface cannot take
            kind, body = RLERROR - 1, COUNT.pack(errno.EINVAL)
        except Malformed:
            self.odd += 1
            kind, body = RLERROR - 1, COUNT.pack(errno.EPROTO)
        if HEADER.size + len(body) > capacity:
            kind, body = RLERROR - 1, COUNT.pack(errno.EMSGSIZE)
        length = HEADER.size + len(body) + request.filled
        scatter(writable, HEADER.pack(length, kind + 1, tag) + body)
        return length

    def _serve(
        self,
        request: Request,
        kind: int,
        size: int,
        readable: list[memoryview],
        writable: list[memoryview],
        capacity: int,
    ) -> bytes:
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise refusal(errno.EOPNOTSUPP)
        if kind in protocol.MODIFYING and not self.writable:
            raise refusal(errno.EROFS)
        if not self.msize and kind != protocol.TVERSION:
            raise refusal(errno.EPROTO)
        if kind == protocol.TWRITE:  # its size need not be that of the data: count is
            header, request.payload = split(readable, WRITE_HEADER)
            frame = gather(header)
        else:
            if size > _MAX_FRAME:
                raise Malformed
            frame = gather(readable, size)
            if len(frame) < size:
                raise Malformed
        request.limit = max(min(capacity, self.msize) - READ_HEADER, 0)
        if kind == protocol.TREAD:
            request.room = split(writable, READ_HEADER)[1]
        return handler(self, request, *protocol.decode(kind, frame))


def version(server: Server, _request: Request, msize: int, name: bytes) -> bytes:
    """Begin anew: agree on the protocol and on the largest frame."""
    server.fids.clear()
    server.msize = 0
    if msize < MIN_MSIZE:
        raise refusal(errno.EMSGSIZE)
    msize = min(msize, MAX_MSIZE)
    if name == protocol.VERSION_NAME:
        server.msize = msize
        return COUNT.pack(msize) + protocol.string(name)
    return COUNT.pack(msize) + protocol.string(b"unknown")


def attach(
    server: Server, _request: Request, number: int, auth: int, _user: bytes, path: bytes, uid: int
) -> bytes:
    """The fid of the folder, or of one beneath it."""
    if auth != protocol.NOFID:
        raise refusal(errno.EINVAL)
    fd, qids = _descend(server, server.root, [name for name in path.split(b"/") if name], True)
    if fd < 0:
        raise refusal(errno.ENOENT)
    qid = qids[-1] if qids else server.devices.qid_of(server.root)
    server.fids.install(number, Fid(fd, None if uid == protocol.NONUNAME else uid))
    return qid


def walk(server: Server, request: Request, number: int, new: int, path: list[bytes]) -> bytes:
    """``new`` is what is found from ``number`` by names; no name makes a second fid of the same file.

    As many qids as there were names found; ``new`` exists only when all were.
    """
    with server.fids.use(number) as start:
        if start.xattr is not None:
            raise refusal(errno.EBADF)
        request.spend(len(path))
        fd, qids = _descend(server, start.fd, path, request.patient)
        if fd >= 0:
            server.fids.install(new, Fid(fd, start.uid), instead_of=start if new == number else None)
    return len(qids).to_bytes(2, "little") + b"".join(qids)


def _descend(server: Server, start: int, path: list[bytes], patient: bool) -> tuple[int, list[bytes]]:
    """A new descriptor of what is at ``path``, or -1, and the qids on the way. Raises at the first name."""
    at, qids = start, []
    try:
        for name in path:
            below = step(at, name, patient=patient)
            if at != start:
                os.close(at)
            at = below
            qids.append(server.devices.qid_of(at))
    except OSError as error:
        if at != start:
            os.close(at)
        if not qids or (not patient and error.errno != errno.ENOENT):
            raise
        return -1, qids
    return (os.dup(start) if at == start else at), qids


def clunk(server: Server, request: Request, number: int) -> bytes:
    """The fid is not used any more; an extended attribute that was being written is set now."""
    if not request.patient:
        with server.fids.use(number) as fid:
            _check_quick_to_close(fid)
    with server.fids.forget(number) as fid:
        if isinstance(fid.xattr, WrittenXattr):
            fid.xattr.apply(fid.fd)
    return b""


def _check_quick_to_close(fid: Fid) -> None:
    """Closing writes what was written, gives up locks, and deletes what has no name any more."""
    if fid.writable or fid.locked or fid.xattr is not None or not os.stat(fid.fd).st_nlink:
        raise refusal(errno.EAGAIN)


_HANDLERS: dict[int, Callable[..., bytes]] = {
    protocol.TVERSION: version,
    protocol.TATTACH: attach,
    protocol.TWALK: walk,
    protocol.TCLUNK: clunk,
    protocol.TSTATFS: files.statfs,
    protocol.TLOPEN: files.lopen,
    protocol.TLCREATE: files.lcreate,
    protocol.TREAD: files.read,
    protocol.TWRITE: files.write,
    protocol.TREADDIR: files.readdir,
    protocol.TFSYNC: files.fsync,
    protocol.TGETATTR: files.getattr,
    protocol.TSETATTR: files.setattr,
    protocol.TXATTRWALK: files.xattrwalk,
    protocol.TXATTRCREATE: files.xattrcreate,
    protocol.TLOCK: files.lock,
    protocol.TGETLOCK: files.getlock,
    protocol.TREADLINK: names.readlink,
    protocol.TSYMLINK: names.symlink,
    protocol.TMKNOD: names.mknod,
    protocol.TMKDIR: names.mkdir,
    protocol.TLINK: names.link,
    protocol.TRENAME: names.rename,
    protocol.TRENAMEAT: names.renameat,
    protocol.TUNLINKAT: names.unlinkat,
    protocol.TREMOVE: names.remove,
}
