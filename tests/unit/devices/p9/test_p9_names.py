# SPDX-License-Identifier: Apache-2.0
"""The 9P server: sessions, walking, and the messages that deal with names."""

import errno
import os
import stat
import struct

import pytest
from fakes.p9client import NOFID, P9Client, P9Error, serve


def code_of(call, *arguments, **options):
    """The errno a request is refused with."""
    with pytest.raises(P9Error) as caught:
        call(*arguments, **options)
    return caught.value.code


def test_version_agrees_on_the_smaller_frame_size(make_server):
    client = P9Client(serve(make_server()))
    assert client.do("version", 8192, b"9P2000.L") == struct.pack("<IH", 8192, 8) + b"9P2000.L"
    assert struct.unpack_from("<I", client.do("version", 1 << 30, b"9P2000.L"))[0] == 1 << 20


def test_version_that_is_not_known_is_answered_so_and_opens_nothing(make_server):
    client = P9Client(serve(make_server()))
    assert client.do("version", 8192, b"9P2000.u").endswith(b"unknown")
    assert code_of(client.attach) == errno.EPROTO


def test_version_with_a_tiny_frame_size_is_refused(make_server):
    client = P9Client(serve(make_server()))
    assert code_of(client.do, "version", 100, b"9P2000.L") == errno.EMSGSIZE


def test_requests_before_version_are_refused(make_server):
    assert code_of(P9Client(serve(make_server())).attach) == errno.EPROTO


def test_version_again_forgets_every_fid(client):
    fid = client.walk(client.root)
    client.do("version", 8192, b"9P2000.L")
    assert code_of(client.do, "clunk", fid) == errno.EBADF


def test_attach_with_authentication_is_refused(client):
    assert code_of(client.do, "attach", 5, 1, b"", b"", 0) == errno.EINVAL
    assert code_of(client.do, "auth", 5, b"", b"", 0) == errno.EOPNOTSUPP


def test_attach_to_a_path_gives_the_folder_there(client, share):
    (share / "a" / "b").mkdir(parents=True)
    fid = client.attach(path=b"/a/b")
    assert client.getattr(fid)["inode"] == (share / "a" / "b").stat().st_ino
    assert code_of(client.attach, path=b"../") == errno.EINVAL
    assert code_of(client.attach, path=b"a/none") == errno.ENOENT


def test_attach_with_a_fid_in_use_is_refused(client):
    assert code_of(client.do, "attach", client.root, NOFID, b"", b"", 0) == errno.EBADF


def test_walk_of_several_names_gives_a_qid_for_each(client, share):
    (share / "a" / "b").mkdir(parents=True)
    (share / "a" / "b" / "c").write_bytes(b"x")
    answer = client.do("walk", client.root, 500, [b"a", b"b", b"c"])
    count, *qids = struct.unpack("<H" + "BIQ" * 3, answer)
    assert count == 3
    assert qids[0::3] == [0x80, 0x80, 0]
    assert qids[8] == (share / "a" / "b" / "c").stat().st_ino


def test_walk_that_ends_early_gives_the_qids_so_far_and_no_fid(client, share):
    (share / "a").mkdir()
    answer = client.do("walk", client.root, 500, [b"a", b"none", b"c"])
    assert struct.unpack_from("<H", answer)[0] == 1
    assert code_of(client.do, "clunk", 500) == errno.EBADF


def test_walk_whose_first_name_is_missing_is_refused(client):
    assert code_of(client.walk, client.root, b"none") == errno.ENOENT


def test_walk_in_place_moves_the_fid(client, share):
    (share / "a").mkdir()
    fid = client.walk(client.root)
    client.do("walk", fid, fid, [b"a"])
    assert client.getattr(fid)["inode"] == (share / "a").stat().st_ino


def test_walk_to_a_fid_in_use_is_refused(client):
    fid = client.walk(client.root)
    assert code_of(client.do, "walk", client.root, fid, []) == errno.EBADF


def test_walk_through_a_file_is_refused(client, share):
    (share / "a").write_bytes(b"")
    assert code_of(client.walk, client.walk(client.root, b"a"), b"b") == errno.ENOTDIR


def test_fids_beyond_the_limit_are_refused(make_server):
    client = P9Client(serve(make_server(limit=10)))
    root = client.start()
    fids = [client.walk(root) for _ in range(9)]
    assert code_of(client.walk, root) == errno.EMFILE
    client.do("clunk", fids[0])
    client.walk(root)


def test_fid_follows_its_file_when_it_is_renamed(client, share):
    (share / "a").write_bytes(b"data")
    fid = client.walk(client.root, b"a")
    client.do("renameat", client.root, b"a", client.root, b"b")
    client.do("lopen", fid, 0)
    assert client.read(fid) == b"data"


def test_mkdir_makes_a_directory_with_the_guests_mode(client, share):
    before = os.umask(0o077)
    try:
        answer = client.do("mkdir", client.root, b"d", 0o2775, os.getegid())
    finally:
        os.umask(before)
    status = (share / "d").stat()
    assert stat.S_IMODE(status.st_mode) == 0o2775
    assert struct.unpack("<BIQ", answer)[2] == status.st_ino


def test_symlink_keeps_any_target_and_readlink_tells_it(client, share):
    client.do("symlink", client.root, b"l", b"/etc/passwd", os.getegid())
    assert os.readlink(share / "l") == "/etc/passwd"
    assert client.do("readlink", client.walk(client.root, b"l")) == struct.pack("<H", 11) + b"/etc/passwd"


def test_readlink_of_a_file_is_refused(client, share):
    (share / "a").write_bytes(b"")
    assert code_of(client.do, "readlink", client.walk(client.root, b"a")) in (errno.EINVAL, errno.ENOENT)


def test_link_gives_a_file_a_second_name(client, share):
    (share / "a").write_bytes(b"x")
    (share / "d").mkdir()
    client.do("link", client.walk(client.root, b"d"), client.walk(client.root, b"a"), b"b")
    assert (share / "a").samefile(share / "d" / "b")


def test_link_of_a_symbolic_link_links_the_link(client, share):
    (share / "l").symlink_to("nowhere")
    client.do("link", client.root, client.walk(client.root, b"l"), b"m")
    assert os.readlink(share / "m") == "nowhere"


def test_mknod_makes_pipes_and_files(client, share):
    client.do("mknod", client.root, b"p", stat.S_IFIFO | 0o600, 0, 0, os.getegid())
    client.do("mknod", client.root, b"f", stat.S_IFREG | 0o640, 0, 0, os.getegid())
    assert stat.S_ISFIFO((share / "p").stat().st_mode)
    assert stat.S_IMODE((share / "f").stat().st_mode) == 0o640


def test_rename_of_a_fid_moves_its_file(client, share):
    (share / "d").mkdir()
    (share / "d" / "a").write_bytes(b"x")
    client.do("rename", client.walk(client.root, b"d", b"a"), client.root, b"b")
    assert (share / "b").read_bytes() == b"x"


def test_rename_of_a_file_that_was_removed_is_refused(client, share):
    (share / "a").write_bytes(b"x")
    fid = client.walk(client.root, b"a")
    (share / "a").unlink()
    assert code_of(client.do, "rename", fid, client.root, b"b") == errno.ENOENT


def test_rename_of_a_fid_whose_name_another_file_has_now_is_refused(client, share):
    (share / "a").write_bytes(b"x")
    fid = client.walk(client.root, b"a")
    (share / "a").rename(share.parent / "elsewhere")
    (share / "a").write_bytes(b"other")
    assert code_of(client.do, "rename", fid, client.root, b"b") == errno.ENOENT
    assert code_of(client.do, "remove", fid) == errno.ENOENT
    assert (share / "a").read_bytes() == b"other"
    assert (share.parent / "elsewhere").read_bytes() == b"x"


def test_rename_and_remove_of_the_root_are_refused(client):
    assert code_of(client.do, "rename", client.root, client.root, b"b") == errno.EBUSY
    assert code_of(client.do, "remove", client.walk(client.root)) == errno.EBUSY


def test_renameat_replaces_what_was_there(client, share):
    (share / "a").write_bytes(b"new")
    (share / "b").write_bytes(b"old")
    client.do("renameat", client.root, b"a", client.root, b"b")
    assert sorted(os.listdir(share)) == ["b"]
    assert (share / "b").read_bytes() == b"new"


def test_unlinkat_removes_files_and_with_its_flag_directories(client, share):
    (share / "a").write_bytes(b"")
    (share / "d").mkdir()
    assert code_of(client.do, "unlinkat", client.root, b"d", 0) == errno.EISDIR
    assert code_of(client.do, "unlinkat", client.root, b"a", 0x200) == errno.ENOTDIR
    assert code_of(client.do, "unlinkat", client.root, b"a", 1) == errno.EINVAL
    client.do("unlinkat", client.root, b"a", 0)
    client.do("unlinkat", client.root, b"d", 0x200)
    assert os.listdir(share) == []


def test_remove_removes_the_file_and_its_fid(client, share):
    (share / "d").mkdir()
    (share / "a").write_bytes(b"")
    for name in (b"d", b"a"):
        fid = client.walk(client.root, name)
        client.do("remove", fid)
        assert code_of(client.do, "clunk", fid) == errno.EBADF
    assert os.listdir(share) == []


def test_new_files_belong_to_whom_the_guest_attached_as_when_the_host_allows(client, share):
    root = client.attach(uid=1234)
    client.create(root, b"a", gid=4321)
    client.do("mkdir", root, b"d", 0o755, 4321)
    client.do("symlink", root, b"l", b"x", 4321)
    expected = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    for name in ("a", "d", "l"):
        status = os.lstat(share / name)
        assert (status.st_uid, status.st_gid) == expected


MODIFYING = [
    ("lcreate", "root", b"n", 2, 0o644, 0),
    ("symlink", "root", b"n", b"x", 0),
    ("mknod", "root", b"n", stat.S_IFREG | 0o644, 0, 0, 0),
    ("mkdir", "root", b"n", 0o755, 0),
    ("link", "root", "file", b"n"),
    ("rename", "file", "root", b"n"),
    ("renameat", "root", b"file", "root", b"n"),
    ("unlinkat", "root", b"file", 0),
    ("remove", "file"),
    ("setattr", "file", 1, 0o777, 0, 0, 0, 0, 0, 0, 0),
    ("xattrcreate", "file", b"user.a", 1, 0),
    ("lopen", "file", os.O_WRONLY),
    ("lopen", "file", os.O_RDWR),
    ("lopen", "file", 0o1000),
    ("write", "open", 0, 1, b"x"),
]


@pytest.mark.parametrize("request_", MODIFYING, ids=lambda request: f"{request[0]}-{request[-1]}")
def test_read_only_share_refuses_every_change(reader, share, request_):
    (share / "file").write_bytes(b"data")
    before = os.lstat(share / "file"), os.listdir(share)
    fids = {
        "root": reader.root,
        "file": reader.walk(reader.root, b"file"),
        "open": reader.open(reader.root, b"file"),
    }
    values = [fids[value] if isinstance(value, str) else value for value in request_[1:]]
    assert code_of(reader.do, request_[0], *values) == errno.EROFS
    assert (os.lstat(share / "file"), os.listdir(share)) == before


def test_read_only_share_can_be_read(reader, share):
    (share / "file").write_bytes(b"data")
    assert reader.read(reader.open(reader.root, b"file")) == b"data"
    assert reader.names(reader.open(reader.root)) == [b"file"]
