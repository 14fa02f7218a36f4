# SPDX-License-Identifier: Apache-2.0
"""The messages of 9P2000.L as data: numbers, bodies, and how to take one apart.

All integers are little-endian. A frame is size (u32, counting itself), type (u8), tag (u16) and a body. The
answer to type T has type T + 1, or is Rlerror with a Linux errno.
"""

from __future__ import annotations

import struct

VERSION_NAME = b"9P2000.L"
NOFID = 0xFFFF_FFFF
NONUNAME = 0xFFFF_FFFF
MAX_WALK = 16

HEADER = struct.Struct("<IBH")  # size, type, tag
QID = struct.Struct("<BIQ")  # type, version, path
COUNT = struct.Struct("<I")
RLERROR = 7

(
    TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TRENAME, TREADLINK, TGETATTR, TSETATTR, TXATTRWALK,
    TXATTRCREATE, TREADDIR, TFSYNC, TLOCK, TGETLOCK, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT, TVERSION,
    TATTACH, TFLUSH, TWALK, TREAD, TWRITE, TCLUNK, TREMOVE,
) = (8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 100, 104, 108, 110, 116,
     118, 120, 122)  # fmt: skip

# A body: struct letters for integers, "s" for a string (u16 length and bytes), "*" for a counted list of
# strings. What comes after it in a frame (the data of Twrite) is not looked at.
BODIES = {
    TSTATFS: "I",  # fid
    TLOPEN: "II",  # fid, flags
    TLCREATE: "IsIII",  # fid, name, flags, mode, gid
    TSYMLINK: "IssI",  # dfid, name, target, gid
    TMKNOD: "IsIIII",  # dfid, name, mode, major, minor, gid
    TRENAME: "IIs",  # fid, dfid, name
    TREADLINK: "I",  # fid
    TGETATTR: "IQ",  # fid, mask
    TSETATTR: "IIIIIQQQQQ",  # fid, valid, mode, uid, gid, size, atime s and ns, mtime s and ns
    TXATTRWALK: "IIs",  # fid, newfid, name
    TXATTRCREATE: "IsQI",  # fid, name, size, flags
    TREADDIR: "IQI",  # fid, offset, count
    TFSYNC: "II",  # fid, datasync
    TLOCK: "IBIQQIs",  # fid, type, flags, start, length, proc_id, client_id
    TGETLOCK: "IBQQIs",  # fid, type, start, length, proc_id, client_id
    TLINK: "IIs",  # dfid, fid, name
    TMKDIR: "IsII",  # dfid, name, mode, gid
    TRENAMEAT: "IsIs",  # olddirfid, oldname, newdirfid, newname
    TUNLINKAT: "IsI",  # dirfid, name, flags
    TVERSION: "Is",  # msize, version
    TATTACH: "IIssI",  # fid, afid, uname, aname, n_uname
    TFLUSH: "H",  # oldtag
    TWALK: "II*",  # fid, newfid, names
    TREAD: "IQI",  # fid, offset, count
    TWRITE: "IQI",  # fid, offset, count; data
    TCLUNK: "I",  # fid
    TREMOVE: "I",  # fid
}

#: Messages that change the folder: refused as a whole when it is shared read-only.
MODIFYING = frozenset(
    (TLCREATE, TSYMLINK, TMKNOD, TRENAME, TSETATTR, TXATTRCREATE, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT, TWRITE,
     TREMOVE)
)  # fmt: skip

#: Bytes before the data of Twrite, and before that of Rread and Rreaddir.
WRITE_HEADER = HEADER.size + struct.calcsize("<IQI")
READ_HEADER = HEADER.size + COUNT.size


def _compile(body: str) -> tuple[struct.Struct | str, ...]:
    """Runs of integers become one Struct each."""
    parts: list[struct.Struct | str] = []
    run = ""
    for letter in body + "s":  # the last one flushes
        if letter in "s*":
            if run:
                parts.append(struct.Struct(f"<{run}"))
            run = ""
            parts.append(letter)
        else:
            run += letter
    return tuple(parts[:-1])


_COMPILED = {kind: _compile(body) for kind, body in BODIES.items()}


class Malformed(Exception):
    """A frame that is not one."""


def decode(kind: int, frame: bytes) -> tuple[int | bytes | list[bytes], ...]:
    """Fields of a frame's body. Raises Malformed, and KeyError for a type that the server does not know."""
    fields: list[int | bytes | list[bytes]] = []
    at = HEADER.size
    try:
        for part in _COMPILED[kind]:
            if isinstance(part, struct.Struct):
                fields += part.unpack_from(frame, at)
                at += part.size
            elif part == "s":
                text, at = _string(frame, at)
                fields.append(text)
            else:
                names, at = _strings(frame, at)
                fields.append(names)
    except struct.error:
        raise Malformed from None
    return tuple(fields)


_LENGTH = struct.Struct("<H")


def _string(frame: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(frame, at)
    start, end = at + 2, at + 2 + length
    if end > len(frame):
        raise Malformed
    return frame[start:end], end


def _strings(frame: bytes, at: int) -> tuple[list[bytes], int]:
    (count,) = _LENGTH.unpack_from(frame, at)
    if count > MAX_WALK:
        raise Malformed
    at += 2
    names = []
    for _ in range(count):
        name, at = _string(frame, at)
        names.append(name)
    return names, at


def string(text: bytes) -> bytes:
    """A string as it is in a body."""
    return _LENGTH.pack(len(text)) + text
