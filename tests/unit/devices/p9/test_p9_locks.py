# SPDX-License-Identifier: Apache-2.0
"""Byte-range locks of the 9P server, seen from the host."""

import errno
import fcntl
import os
import struct

import pytest
from fakes.p9client import P9Client, P9Error, serve

RDLCK, WRLCK, UNLCK = 0, 1, 2
SUCCESS, BLOCKED = 0, 1


@pytest.fixture
def file(share):
    (share / "a").write_bytes(b"0123456789")
    return share / "a"


def lock(client, fid, kind, start=0, length=0, process=1):
    return client.do("lock", fid, kind, 0, start, length, process, b"guest")[0]


def getlock(client, fid, kind, start=0, length=0, process=1):
    answer = client.do("getlock", fid, kind, start, length, process, b"guest")
    return struct.unpack_from("<BQQI", answer)


def host_can_lock(path, kind, start=0, length=0):
    """Whether another program on the host could."""
    flock = struct.Struct("@hhqqi4x")
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock.pack(kind, 0, start, length, 0))
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EACCES)
        return False
    finally:
        os.close(fd)
    return True


def test_lock_of_the_guest_keeps_the_host_out_of_its_range(client, file):
    fid = client.open(client.root, b"a", flags=2)
    assert lock(client, fid, WRLCK, 2, 3) == SUCCESS
    assert not host_can_lock(file, RDLCK, 4, 1)
    assert host_can_lock(file, WRLCK, 5, 1)
    assert lock(client, fid, UNLCK, 2, 3) == SUCCESS
    assert host_can_lock(file, WRLCK)


def test_lock_of_the_host_blocks_the_guest_and_is_told(client, file):
    fid = client.open(client.root, b"a", flags=2)
    with open(file, "r+b") as host:
        fcntl.fcntl(host, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", WRLCK, 0, 3, 4, 0))
        assert lock(client, fid, WRLCK, 0, 4) == BLOCKED
        assert lock(client, fid, WRLCK, 0, 3) == SUCCESS
        assert getlock(client, fid, RDLCK, 5, 1)[:3] == (WRLCK, 3, 4)
        assert getlock(client, fid, RDLCK, 8, 1)[:3] == (UNLCK, 8, 1)
    assert getlock(client, fid, RDLCK, 5, 1)[:3] == (UNLCK, 5, 1)


def test_one_process_does_not_block_itself_through_two_fids(client, file):
    one, other = client.open(client.root, b"a", flags=2), client.open(client.root, b"a", flags=2)
    assert lock(client, one, WRLCK, process=5) == SUCCESS
    assert lock(client, other, WRLCK, process=5) == SUCCESS
    assert lock(client, other, RDLCK, process=6) == BLOCKED


def test_shared_locks_of_two_processes_are_kept_apart(client, file):
    one, other = client.open(client.root, b"a", flags=2), client.open(client.root, b"a", flags=2)
    assert lock(client, one, RDLCK, 0, 5, process=5) == SUCCESS
    assert lock(client, other, RDLCK, 0, 5, process=6) == SUCCESS
    assert lock(client, one, UNLCK, 0, 5, process=5) == SUCCESS
    assert not host_can_lock(file, WRLCK, 0, 5)


def test_locks_end_with_the_last_fid_they_were_taken_through(client, file):
    one, other = client.open(client.root, b"a", flags=2), client.open(client.root, b"a", flags=2)
    lock(client, one, WRLCK)
    lock(client, other, WRLCK)
    client.do("clunk", one)
    assert not host_can_lock(file, WRLCK)
    client.do("clunk", other)
    assert host_can_lock(file, WRLCK)


def test_exclusive_lock_on_a_read_only_share_is_the_guests_own_business(reader, file):
    fid = reader.open(reader.root, b"a")
    assert lock(reader, fid, WRLCK) == SUCCESS
    assert host_can_lock(file, RDLCK)


def test_lock_on_a_directory_succeeds(client):
    assert lock(client, client.open(client.root), WRLCK) == SUCCESS


@pytest.mark.parametrize(("kind", "start", "length"), [(3, 0, 0), (0, 1 << 63, 0), (1, 0, (1 << 64) - 1)])
def test_lock_that_makes_no_sense_is_refused(client, file, kind, start, length):
    fid = client.open(client.root, b"a", flags=2)
    for ask in (lock, getlock):
        with pytest.raises(P9Error) as caught:
            ask(client, fid, kind, start, length)
        assert caught.value.code == errno.EINVAL


def test_lock_through_a_fid_that_is_not_open_is_refused(client, file):
    with pytest.raises(P9Error) as caught:
        lock(client, client.walk(client.root, b"a"), WRLCK)
    assert caught.value.code == errno.EBADF


def test_processes_with_locks_are_bounded(client, file):
    fid = client.open(client.root, b"a", flags=2)
    for process in range(64):
        lock(client, fid, RDLCK, process=process)
    with pytest.raises(P9Error) as caught:
        lock(client, fid, RDLCK, process=99)
    assert caught.value.code == errno.ENOLCK


def test_owners_of_locks_are_on_the_budget_of_fids(make_server, share):
    (share / "a").write_bytes(b"")
    server = make_server(limit=4)  # the root, the file, and two more
    client = P9Client(serve(server))
    fid = client.open(client.start(), b"a", flags=2)
    for process in (1, 2):
        client.do("lock", fid, 1, 0, process, 1, process, b"x")
    with pytest.raises(P9Error) as caught:
        client.do("lock", fid, 1, 0, 9, 1, 3, b"x")
    assert caught.value.code == errno.ENOLCK
    client.do("lock", fid, 2, 0, 0, 0, 1, b"x")
    client.do("lock", fid, 1, 0, 9, 1, 3, b"x")
    client.do("clunk", fid)
    for _ in range(3):
        client.walk(101)
    with pytest.raises(P9Error):
        client.walk(101)
