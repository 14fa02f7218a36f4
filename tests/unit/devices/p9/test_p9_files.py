# SPDX-License-Identifier: Apache-2.0
"""The 9P server: opening, data, attributes, listings."""

import contextlib
import errno
import os
import stat
import struct

import pytest
from fakes.p9client import P9Client, P9Error, serve

O_CREAT, O_EXCL, O_TRUNC, O_APPEND = 0o100, 0o200, 0o1000, 0o2000


@contextlib.contextmanager
def refused(code):
    """Expect this errno."""
    with pytest.raises(P9Error) as caught:
        yield
    assert caught.value.code == code


def test_file_opened_for_reading_gives_its_bytes(client, share):
    (share / "a").write_bytes(b"hello world")
    fid = client.open(client.root, b"a")
    assert client.read(fid) == b"hello world"
    assert client.read(fid, offset=6, count=3) == b"wor"
    assert client.read(fid, offset=11) == b""


def test_read_longer_than_the_frame_size_is_cut_to_it(make_server, share):
    (share / "a").write_bytes(bytes(10000))
    client = P9Client(serve(make_server()))
    root = client.start(msize=4096)
    assert len(client.read(client.open(root, b"a"), count=10000)) == 4096 - 11


def test_read_longer_than_the_answer_buffer_is_cut_to_it(client, share):
    (share / "a").write_bytes(bytes(10000))
    fid = client.open(client.root, b"a")
    answer = client.do("read", fid, 0, 10000, room=100)
    assert struct.unpack_from("<I", answer)[0] == 89


def test_file_opened_for_writing_takes_bytes_at_their_offset(client, share):
    (share / "a").write_bytes(b"0123456789")
    fid = client.open(client.root, b"a", flags=os.O_RDWR)
    assert client.write(fid, b"xy", offset=4) == 2
    assert (share / "a").read_bytes() == b"0123xy6789"


def test_file_opened_with_append_writes_where_the_guest_says(client, share):
    (share / "a").write_bytes(b"0123456789")
    fid = client.open(client.root, b"a", flags=os.O_WRONLY | O_APPEND)
    client.write(fid, b"x", offset=0)
    assert (share / "a").read_bytes() == b"x123456789"


def test_file_opened_with_truncate_is_empty(client, share):
    (share / "a").write_bytes(b"0123456789")
    client.open(client.root, b"a", flags=os.O_WRONLY | O_TRUNC)
    assert (share / "a").stat().st_size == 0


def test_file_not_opened_refuses_data(client, share):
    (share / "a").write_bytes(b"x")
    fid = client.walk(client.root, b"a")
    for request in (("read", fid, 0, 1), ("write", fid, 0, 1, b"y"), ("fsync", fid, 0)):
        with refused(errno.EBADF):
            client.do(*request)


def test_open_fid_opened_again_is_refused(client, share):
    (share / "a").write_bytes(b"x")
    fid = client.open(client.root, b"a")
    with refused(errno.EBADF):
        client.do("lopen", fid, 0)


def test_write_with_less_data_than_it_says_is_refused(client, share):
    fid = client.create(client.root, b"a")
    with refused(errno.EPROTO):
        client.do("write", fid, 0, 100, b"short")
    assert (share / "a").stat().st_size == 0


def test_create_makes_the_file_with_the_guests_mode_whatever_the_umask(client, share):
    before = os.umask(0o077)
    try:
        fid = client.create(client.root, b"new", mode=0o664)
    finally:
        os.umask(before)
    client.write(fid, b"data")
    status = (share / "new").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o664, 4)
    assert client.read(fid) == b"data"


def test_create_of_an_existing_file_opens_it(client, share):
    (share / "a").write_bytes(b"old")
    assert client.read(client.create(client.root, b"a", flags=os.O_RDWR | O_CREAT)) == b"old"


def test_create_of_an_existing_file_with_exclusive_is_refused(client, share):
    (share / "a").write_bytes(b"old")
    with refused(errno.EEXIST):
        client.create(client.root, b"a", flags=os.O_RDWR | O_EXCL)


def test_file_created_without_write_permission_can_be_written_and_truncated(client, share):
    fid = client.create(client.root, b"a", mode=0o444)
    client.write(fid, b"0123456789")
    client.setattr(fid, size=4)
    assert (share / "a").read_bytes() == b"0123"


def test_file_created_and_removed_while_open_still_works(client, share):
    fid = client.create(client.root, b"a")
    client.do("unlinkat", client.root, b"a", 0)
    client.write(fid, b"alive")
    assert client.read(fid) == b"alive"
    assert client.getattr(fid)["nlink"] == 0


def test_getattr_gives_what_stat_does(client, share):
    (share / "a").write_bytes(b"0123456789")
    os.utime(share / "a", ns=(1_000_000_007, 2_000_000_009))
    status = (share / "a").stat()
    found = client.getattr(client.walk(client.root, b"a"))
    assert found["mode"] == status.st_mode
    assert (found["uid"], found["gid"], found["nlink"], found["size"]) == (
        status.st_uid,
        status.st_gid,
        1,
        10,
    )
    assert (found["atime"], found["atime_ns"]) == (1, 7)
    assert (found["mtime"], found["mtime_ns"]) == (2, 9)
    assert found["inode"] == status.st_ino
    assert found["valid"] == 0x7FF


def test_qid_version_changes_with_the_file(client, share):
    (share / "a").write_bytes(b"1")
    fid = client.walk(client.root, b"a")
    before = client.getattr(fid)["qid_version"]
    (share / "a").write_bytes(b"22")
    assert client.getattr(fid)["qid_version"] != before


def test_setattr_changes_mode_size_and_times(client, share):
    (share / "a").write_bytes(b"0123456789")
    fid = client.walk(client.root, b"a")
    client.setattr(fid, mode=0o4711, size=3, atime=(5, 6), mtime=(7, 8))
    status = (share / "a").stat()
    assert stat.S_IMODE(status.st_mode) == 0o4711
    assert (status.st_size, status.st_atime_ns, status.st_mtime_ns) == (3, 5_000_000_006, 7_000_000_008)


def test_setattr_of_one_time_leaves_the_other(client, share):
    (share / "a").write_bytes(b"")
    os.utime(share / "a", ns=(1, 2))
    client.setattr(client.walk(client.root, b"a"), mtime="now")
    status = (share / "a").stat()
    assert status.st_atime_ns == 1
    assert status.st_mtime_ns > 10**18


def test_setattr_with_the_owner_there_is_succeeds(client, share):
    (share / "a").write_bytes(b"")
    client.setattr(client.walk(client.root, b"a"), uid=os.geteuid(), gid=os.getegid())


def test_setattr_of_a_links_times_changes_the_link_itself(client, share):
    (share / "a").write_bytes(b"")
    os.utime(share / "a", ns=(1, 1))
    (share / "l").symlink_to("a")
    client.setattr(client.walk(client.root, b"l"), mtime=(9, 0))
    assert os.lstat(share / "l").st_mtime == 9
    assert os.stat(share / "a").st_mtime_ns == 1


def test_setattr_of_absurd_numbers_is_refused_or_harmless(client, share):
    (share / "a").write_bytes(b"keep")
    fid = client.walk(client.root, b"a")
    for values in (
        (8, 0, 0, 0, (1 << 64) - 1, 0, 0, 0, 0),
        (0x1B0, 0, 0, 0, 0, (1 << 64) - 1, (1 << 64) - 1, 1 << 63, 1 << 63),
    ):
        with pytest.raises(P9Error):
            client.do("setattr", fid, *values)
    client.do("setattr", fid, 0xFFFF_FE00, *[0xFFFF_FFFF] * 8)
    assert (share / "a").read_bytes() == b"keep"


def test_setattr_of_a_directorys_size_is_refused(client):
    with refused(errno.EINVAL):
        client.setattr(client.root, size=0)


def test_statfs_describes_the_host_file_system(client, share):
    answer = client.do("statfs", client.root)
    _, bsize, blocks, *_, longest = struct.unpack("<IIQQQQQQI", answer)
    host = os.statvfs(share)
    assert (bsize, blocks, longest) == (host.f_bsize, host.f_blocks, host.f_namemax)


@pytest.mark.parametrize("data_only", [0, 1])
def test_fsync_of_an_open_file_succeeds(client, data_only):
    fid = client.create(client.root, b"a")
    client.write(fid, b"data")
    client.do("fsync", fid, data_only)


def test_fsync_of_an_open_directory_succeeds(client):
    client.do("fsync", client.open(client.root), 0)


# Directories


def test_listing_has_every_entry_with_its_kind_and_inode(client, share):
    (share / "file").write_bytes(b"")
    (share / "dir").mkdir()
    (share / "link").symlink_to("nowhere")
    found = {name: (kind, inode) for name, kind, _, inode in client.readdir(client.open(client.root))}
    assert set(found) == {b".", b"..", b"file", b"dir", b"link"}
    assert found[b"file"] == (8, (share / "file").stat().st_ino)
    assert found[b"dir"][0] == 4
    assert found[b"link"][0] == 10


def test_listing_of_the_root_does_not_tell_what_is_above(client, share):
    found = {name: inode for name, _, _, inode in client.readdir(client.open(client.root))}
    assert found[b".."] == share.stat().st_ino


def test_listing_in_small_pieces_has_every_entry_once(client, share):
    names = sorted(b"name-%04d" % number for number in range(300))
    for name in names:
        (share / os.fsdecode(name)).write_bytes(b"")
    assert client.names(client.open(client.root), count=200) == names


def test_listing_read_again_from_an_offset_goes_on_there(client, share):
    for number in range(50):
        (share / f"name-{number:04}").write_bytes(b"")
    fid = client.open(client.root)
    first = client.readdir(fid)
    assert client.readdir(fid, offset=first[9][2]) == first[10:]
    assert client.readdir(fid) == first


def test_listing_while_entries_are_removed_still_has_the_others(client, share):
    for number in range(300):
        (share / f"name-{number:04}").write_bytes(b"")
    fid = client.open(client.root)
    first = client.readdir(fid, count=2000)
    for name, *_ in first:
        if name.startswith(b"name"):
            (share / os.fsdecode(name)).unlink()
    rest, offset = [], first[-1][2]
    while entries := client.readdir(fid, offset, 2000):
        rest += entries
        offset = entries[-1][2]
    seen = [entry[0] for entry in first + rest]
    assert len(seen) == len(set(seen)) == 302


def test_listing_with_room_for_no_entry_is_refused(client):
    with refused(errno.EINVAL):
        client.readdir(client.open(client.root), count=10)


def test_listing_of_a_file_is_refused(client, share):
    (share / "a").write_bytes(b"")
    with refused(errno.ENOTDIR):
        client.readdir(client.open(client.root, b"a"))


def test_read_of_a_directory_is_refused(client):
    with refused(errno.EISDIR):
        client.read(client.open(client.root))


def test_hard_offsets_are_refused(client, share):
    (share / "a").write_bytes(b"")
    fid = client.open(client.root, b"a", flags=os.O_RDWR)
    directory = client.open(client.root)
    for request in (
        ("read", fid, (1 << 64) - 1, 10),
        ("write", fid, 1 << 63, 1, b"x"),
        ("readdir", directory, (1 << 64) - 1, 1000),
    ):
        with refused(errno.EINVAL):
            client.do(*request)


# Extended attributes


def test_xattr_written_is_listed_read_and_removed(client, share):
    (share / "a").write_bytes(b"")
    fid = client.walk(client.root, b"a")
    client.set_xattr(fid, b"user.colour", b"green" * 100)
    assert os.getxattr(share / "a", "user.colour") == b"green" * 100
    assert client.xattr(fid, b"user.colour") == b"green" * 100
    assert b"user.colour\0" in client.xattr(fid, b"")
    client.set_xattr(fid, b"user.colour", b"", os.XATTR_REPLACE)
    assert b"user.colour\0" not in client.xattr(fid, b"")


def test_xattr_of_no_bytes_can_be_set(client, share):
    (share / "a").write_bytes(b"")
    client.set_xattr(client.walk(client.root, b"a"), b"user.empty", b"")
    assert os.getxattr(share / "a", "user.empty") == b""


def test_xattr_that_is_not_there_is_refused(client, share):
    (share / "a").write_bytes(b"")
    with refused(errno.ENODATA):
        client.xattr(client.walk(client.root, b"a"), b"user.none")


def test_xattr_flags_are_honoured(client, share):
    (share / "a").write_bytes(b"")
    fid = client.walk(client.root, b"a")
    client.set_xattr(fid, b"user.a", b"1", os.XATTR_CREATE)
    with refused(errno.EEXIST):
        client.set_xattr(fid, b"user.a", b"2", os.XATTR_CREATE)


def test_xattr_clunked_before_it_is_complete_is_not_set(client, share):
    (share / "a").write_bytes(b"")
    fid = client.walk(client.root, b"a")
    client.do("xattrcreate", fid, b"user.a", 10, 0)
    client.write(fid, b"12345")
    with refused(errno.EINVAL):
        client.do("clunk", fid)
    assert os.listxattr(share / "a") == []


def test_xattr_written_beyond_its_size_is_refused(client, share):
    (share / "a").write_bytes(b"")
    fid = client.walk(client.root, b"a")
    client.do("xattrcreate", fid, b"user.a", 3, 0)
    with refused(errno.ENOSPC):
        client.write(fid, b"12345")
    with refused(errno.EINVAL):
        client.write(fid, b"1", offset=2)


def test_xattr_larger_than_the_kernel_takes_is_refused_before_it_is_buffered(client, share):
    (share / "a").write_bytes(b"")
    with refused(errno.E2BIG):
        client.do("xattrcreate", client.walk(client.root, b"a"), b"user.a", 65537, 0)


def test_many_xattrs_being_written_are_bounded(client, share):
    (share / "a").write_bytes(b"")
    for _ in range(64):
        client.do("xattrcreate", client.walk(client.root, b"a"), b"user.a", 65536, 0)
    with refused(errno.ENOSPC):
        client.do("xattrcreate", client.walk(client.root, b"a"), b"user.a", 65536, 0)
