# SPDX-License-Identifier: Apache-2.0
"""What the 9P server does without waiting for a disk, and what it leaves for later."""

import errno
import os

import pytest
from fakes.p9client import P9Client, P9Error, frame, serve

from pyvmm.devices.p9 import attrs, hostcalls
from pyvmm.devices.p9.allowance import BYTES, STEPS, Allowance
from pyvmm.devices.p9.beneath import open_root, step
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.server import LATER, Server


@pytest.fixture
def server(make_server, share):
    """A server of a folder with a file ``a``; its file system counts as local."""
    (share / "a").write_bytes(b"0123456789" * 1000)
    server = make_server()
    server.devices.local = True
    client = P9Client(serve(server))
    server.test_root = client.start()
    server.test_client = client
    return server


def at_once(server, *request, allowance=None):
    """The answer, or LATER."""
    answer = bytearray(16384)
    written = server.handle([memoryview(frame(*request))], [memoryview(answer)], allowance or Allowance())
    return written if written == LATER else bytes(answer[:written])


def test_attributes_names_opening_and_cached_data_are_answered_at_once(server):
    root, client = server.test_root, server.test_client
    assert at_once(server, "getattr", root, 0)[4] == 25
    assert at_once(server, "walk", root, 500, [b"a"])[4] == 111
    assert at_once(server, "lopen", 500, os.O_RDONLY)[4] == 13
    client.read(500)
    answer = at_once(server, "read", 500, 5, 4096)
    assert answer[11:] == (b"0123456789" * 1000)[5:4101]
    assert at_once(server, "read", 500, 9995, 4096)[11:] == b"56789"  # the end of the file is not "later"
    assert at_once(server, "clunk", 500)[4] == 121


def test_name_that_is_known_not_to_be_there_is_refused_at_once(server):
    with pytest.raises(P9Error):
        server.test_client.walk(server.test_root, b"none")
    answer = at_once(server, "walk", server.test_root, 500, [b"none"])
    assert int.from_bytes(answer[7:], "little") == errno.ENOENT


@pytest.mark.parametrize(
    "request_",
    [
        ("lopen", "file", os.O_RDWR),
        ("lopen", "file", 0o1000),
        ("write", "open", 0, 1, b"x"),
        ("readdir", "root", 0, 4096),
        ("mkdir", "root", b"n", 0o755, 0),
        ("unlinkat", "root", b"a", 0),
        ("fsync", "open", 0),
        ("clunk", "open"),
        ("clunk", "xattr"),
        ("clunk", "removed"),
        ("clunk", "locked"),
        ("read", "xattr-read", 0, 10),
        ("walk", "root", 600, [b".."]),
        ("getattr", "none", 0),
    ],
    ids=lambda request: f"{request[0]}-{request[1]}",
)
def test_what_may_wait_is_left_for_later_and_changes_nothing(server, share, request_):
    client, root = server.test_client, server.test_root
    (share / "gone").write_bytes(b"")
    os.setxattr(share / "a", "user.a", b"value")
    fids = {
        "root": root,
        "file": client.walk(root, b"a"),
        "open": client.open(root, b"a", flags=2),
        "none": 999,
    }
    fids |= {"xattr": client.walk(root, b"a"), "removed": client.walk(root, b"gone"), "xattr-read": 700}
    fids["locked"] = client.open(root, b"a")
    client.do("lock", fids["locked"], 0, 0, 0, 0, 1, b"x")
    client.do("xattrcreate", fids["xattr"], b"user.b", 0, 0)
    client.do("xattrwalk", fids["file"], 700, b"user.a")
    (share / "gone").unlink()
    before = sorted(os.listdir(share)), len(server.fids)
    values = [fids[value] if isinstance(value, str) else value for value in request_[1:]]
    assert at_once(server, request_[0], *values) == LATER
    assert (sorted(os.listdir(share)), len(server.fids)) == before


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_data_that_is_not_in_memory_is_left_for_later(server, monkeypatch, code):
    fid = server.test_client.open(server.test_root, b"a")

    def preadv(fd, views, offset, flags=0):
        assert flags == os.RWF_NOWAIT
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    assert at_once(server, "read", fid, 0, 4096) == LATER


def test_data_of_which_only_a_part_is_in_memory_is_left_for_later(server, monkeypatch):
    fid = server.test_client.open(server.test_root, b"a")
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset, flags: 100)
    assert at_once(server, "read", fid, 0, 4096) == LATER


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL])
def test_names_that_are_not_in_memory_are_left_for_later(server, monkeypatch, code, share):
    """EINVAL is what a kernel says that does not know RESOLVE_CACHED."""
    (share / "d").mkdir()
    (share / "d" / "b").write_bytes(b"")
    real = hostcalls.openat2

    def openat2(directory, path, flags, mode, resolve):
        if path == b"b" and resolve & hostcalls.RESOLVE_CACHED:
            raise OSError(code, os.strerror(code))
        return real(directory, path, flags, mode, resolve)

    monkeypatch.setattr("pyvmm.devices.p9.beneath.openat2", openat2)
    assert at_once(server, "walk", server.test_root, 500, [b"d", b"b"]) == LATER
    server.test_client.do("walk", server.test_root, 500, [b"d", b"b"])


def test_mounts_in_the_folder_are_not_entered_at_once(server, monkeypatch, share):
    """What is mounted there may be far away, and to ask it takes entering it."""
    (share / "d").mkdir()
    real = hostcalls.openat2

    def openat2(directory, path, flags, mode, resolve):
        if path == b"d" and resolve & hostcalls.RESOLVE_NO_XDEV:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(directory, path, flags, mode, resolve)

    monkeypatch.setattr("pyvmm.devices.p9.beneath.openat2", openat2)
    assert at_once(server, "walk", server.test_root, 500, [b"d"]) == LATER
    server.test_client.do("walk", server.test_root, 500, [b"d"])


def test_step_at_once_stays_on_its_mount():
    root = os.open("/", os.O_PATH)
    try:
        os.close(step(root, b"proc"))  # now the kernel knows the name
        with pytest.raises(OSError) as caught:
            step(root, b"proc", patient=False)
        assert caught.value.errno in (errno.EXDEV, errno.EAGAIN)
    finally:
        os.close(root)


def test_requests_beyond_the_allowance_are_left_for_later(server):
    allowance = Allowance()
    for _ in range(STEPS):
        assert at_once(server, "getattr", server.test_root, 0, allowance=allowance)[4] == 25
    assert at_once(server, "getattr", server.test_root, 0, allowance=allowance) == LATER
    assert at_once(server, "getattr", server.test_root, 0)[4] == 25


def test_every_name_of_a_walk_counts(server, share):
    path = [b"%d" % number for number in range(16)]
    os.makedirs(os.path.join(os.fsencode(share), *path))
    server.test_client.walk(server.test_root, *path)
    allowance = Allowance()
    answers = [
        at_once(server, "walk", server.test_root, 500 + number, path, allowance=allowance)
        for number in range(5)
    ]
    done = STEPS // 17
    assert [answer == LATER for answer in answers] == [False] * done + [True] * (5 - done)
    assert len(server.fids) == 2 + done


def test_data_beyond_the_allowance_is_left_for_later(server, share, monkeypatch):
    """Also when the host turns out not to have it in memory: copying a part of it took as long."""
    fid = server.test_client.open(server.test_root, b"a")
    copied = []

    def preadv(fd, views, offset, flags):
        copied.append(sum(map(len, views)))
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "preadv", preadv)
    allowance = Allowance()
    for _ in range(STEPS):
        server.handle(
            [memoryview(frame("read", fid, 0, 1 << 15))], [memoryview(bytearray(1 << 16))], allowance
        )
    assert 0 < BYTES - sum(copied) < 1 << 16


def test_file_system_that_may_be_far_away_is_never_asked_at_once(share, monkeypatch):
    monkeypatch.setattr(attrs, "fstatfs", lambda fd: (0x6969,))  # NFS
    server = Server(open_root(str(share), "--9p"), writable=True, budget=Budget(10))
    root = P9Client(serve(server)).start()
    assert at_once(server, "getattr", root, 0) == LATER
    server.close()
    os.close(server.root)
