# SPDX-License-Identifier: Apache-2.0
"""A 9P2000.L client for tests: it makes frames by hand, and takes answers apart as a guest would.

``P9Client(call)`` where ``call(frame, room)`` returns the bytes of the answer. ``serve(server)`` makes such a
call of a Server without a queue between.
"""

from __future__ import annotations

import os
import struct

from pyvmm.devices.p9.allowance import Allowance

NOFID = 0xFFFF_FFFF
HEADER = struct.Struct("<IBH")

# number and body of every request: struct letters, "s" for a string, "*" for a list of strings, "d" for data
REQUESTS = {
    "statfs": (8, "I"),
    "lopen": (12, "II"),
    "lcreate": (14, "IsIII"),
    "symlink": (16, "IssI"),
    "mknod": (18, "IsIIII"),
    "rename": (20, "IIs"),
    "readlink": (22, "I"),
    "getattr": (24, "IQ"),
    "setattr": (26, "IIIIIQQQQQ"),
    "xattrwalk": (30, "IIs"),
    "xattrcreate": (32, "IsQI"),
    "readdir": (40, "IQI"),
    "fsync": (50, "II"),
    "lock": (52, "IBIQQIs"),
    "getlock": (54, "IBQQIs"),
    "link": (70, "IIs"),
    "mkdir": (72, "IsII"),
    "renameat": (74, "IsIs"),
    "unlinkat": (76, "IsI"),
    "version": (100, "Is"),
    "auth": (102, "IssI"),
    "attach": (104, "IIssI"),
    "flush": (108, "H"),
    "walk": (110, "II*"),
    "read": (116, "IQI"),
    "write": (118, "IQId"),
    "clunk": (120, "I"),
    "remove": (122, "I"),
}


class P9Error(Exception):
    """Rlerror. ``code`` is its errno."""

    def __init__(self, code):
        super().__init__(f"{os.strerror(code)} ({code})")
        self.code = code


def string(text):
    return struct.pack("<H", len(text)) + text


def frame(name, *values, tag=1):
    """A request's frame."""
    kind, letters = REQUESTS[name]
    body = b""
    for letter, value in zip(letters, values, strict=True):
        if letter == "s":
            body += string(value)
        elif letter == "*":
            body += struct.pack("<H", len(value)) + b"".join(map(string, value))
        elif letter == "d":
            body += value
        else:
            body += struct.pack(f"<{letter}", value)
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def serve(server, *, patient=True):
    """A ``call`` that hands frames to a Server in two pieces, and takes answers from two.

    Unless ``patient`` it asks first for what can be answered at once.
    """

    def call(request, room):
        cut = len(request) // 2
        answer = bytearray(room)
        views = [memoryview(answer)[: room // 3], memoryview(answer)[room // 3 :]]
        pieces = [memoryview(request)[:cut], memoryview(request)[cut:]]
        written = -1 if patient else server.handle(pieces, views, Allowance())
        if written < 0:
            written = server.handle(pieces, views)
        return bytes(answer[:written])

    return call


class P9Client:
    """``client.do("mkdir", ...)`` returns the body of the answer, or raises P9Error."""

    def __init__(self, call, *, room=1 << 16):
        self._call = call
        self._room = room
        self._next = 100

    def do(self, name, *values, tag=1, room=None):
        """One request."""
        request = frame(name, *values, tag=tag)
        answer = self._call(request, self._room if room is None else room)
        size, kind, answer_tag = HEADER.unpack_from(answer)
        assert size == len(answer), f"{name}: the answer says {size} bytes and has {len(answer)}"
        assert answer_tag == tag
        if kind == 7:
            raise P9Error(struct.unpack_from("<I", answer, 7)[0])
        assert kind == REQUESTS[name][0] + 1
        return answer[7:]

    def start(self, *, uid=0, msize=1 << 16):
        """Agree on the protocol and attach. Returns the root's fid."""
        self.do("version", msize, b"9P2000.L")
        return self.attach(uid=uid)

    def attach(self, *, uid=0, path=b""):
        fid = self.new_fid()
        self.do("attach", fid, NOFID, b"user", path, uid)
        return fid

    def new_fid(self):
        self._next += 1
        return self._next

    def walk(self, fid, *names):
        """A new fid for what is there. Raises P9Error(ENOENT) when only a part is."""
        new = self.new_fid()
        answer = self.do("walk", fid, new, list(names))
        if struct.unpack_from("<H", answer)[0] != len(names):
            raise P9Error(2)
        return new

    def open(self, fid, *names, flags=0):
        new = self.walk(fid, *names)
        try:
            self.do("lopen", new, flags)
        except P9Error:
            self.do("clunk", new)
            raise
        return new

    def create(self, directory, name, *, flags=2, mode=0o644, gid=None):
        """A new file, open: its fid."""
        new = self.walk(directory)
        try:
            self.do("lcreate", new, name, flags, mode, os.getegid() if gid is None else gid)
        except P9Error:
            self.do("clunk", new)
            raise
        return new

    def read(self, fid, offset=0, count=1 << 15):
        answer = self.do("read", fid, offset, count)
        (length,) = struct.unpack_from("<I", answer)
        assert length == len(answer) - 4
        return answer[4:]

    def write(self, fid, data, offset=0):
        return struct.unpack("<I", self.do("write", fid, offset, len(data), data))[0]

    def readdir(self, fid, offset=0, count=1 << 14):
        """[(name, type, offset, inode)] of one request."""
        answer = self.do("readdir", fid, offset, count)
        (length,) = struct.unpack_from("<I", answer)
        assert length == len(answer) - 4
        entries, at = [], 4
        while at < len(answer):
            _, _, inode, following, kind, size = struct.unpack_from("<BIQQBH", answer, at)
            at += 24
            entries.append((answer[at : at + size], kind, following, inode))
            at += size
        return entries

    def names(self, fid, count=1 << 14):
        """All names of an open directory but . and .."""
        found, offset = [], 0
        while entries := self.readdir(fid, offset, count):
            found += [entry[0] for entry in entries]
            offset = entries[-1][2]
        return sorted(set(found) - {b".", b".."}) if len(set(found)) == len(found) else found

    def getattr(self, fid):
        """A dictionary."""
        answer = self.do("getattr", fid, 0x7FF)
        values = struct.unpack("<QBIQIIIQQQQQQQQQQQQQQQ", answer)
        keys = (
            "valid", "qid_type", "qid_version", "inode", "mode", "uid", "gid", "nlink", "rdev", "size",
            "blksize", "blocks", "atime", "atime_ns", "mtime", "mtime_ns", "ctime", "ctime_ns",
        )  # fmt: skip
        return dict(zip(keys, values, strict=False))

    def setattr(self, fid, *, mode=None, uid=None, gid=None, size=None, atime=None, mtime=None):
        """Times are (seconds, ns), or "now"."""
        valid = (mode is not None) | (uid is not None) << 1 | (gid is not None) << 2 | (size is not None) << 3
        valid |= (atime is not None) << 4 | (mtime is not None) << 5
        valid |= isinstance(atime, tuple) << 7 | isinstance(mtime, tuple) << 8
        times = [part for time in (atime, mtime) for part in (time if isinstance(time, tuple) else (0, 0))]
        self.do("setattr", fid, valid, mode or 0, uid or 0, gid or 0, size or 0, *times)

    def xattr(self, fid, name):
        """Value of an extended attribute; with an empty name the list."""
        new = self.new_fid()
        (size,) = struct.unpack("<Q", self.do("xattrwalk", fid, new, name))
        value = self.read(new, 0, size) if size else b""
        self.do("clunk", new)
        return value

    def set_xattr(self, fid, name, value, flags=0):
        new = self.walk(fid)
        try:
            self.do("xattrcreate", new, name, len(value), flags)
            if value:
                self.write(new, value)
        finally:
            self.do("clunk", new)
