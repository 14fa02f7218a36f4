# SPDX-License-Identifier: Apache-2.0
"""The 9P server never leaves its folder, and never opens what could make it wait."""

import errno
import os
import socket
import threading

import pytest
from fakes.p9client import P9Client, P9Error, serve

from pyvmm.devices.p9 import beneath, hostcalls
from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.server import Server
from pyvmm.errors import ConfigError

SECRET = b"not to be seen"
BAD_NAMES = [b"..", b".", b"", b"../secret", b"/", b"/etc", b"a/b", b"a\0b", b"./a"]


def code_of(call, *arguments, **options):
    with pytest.raises(P9Error) as caught:
        call(*arguments, **options)
    return caught.value.code


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_that_is_not_one_component_is_refused_everywhere(client, share, name):
    (share / "a").write_bytes(b"x")
    (share / "d").mkdir()
    fid = client.walk(client.root, b"a")
    for request in (
        ("walk", client.root, 900, [name]),
        ("walk", client.root, 900, [b"d", name]),
        ("lcreate", client.root, name, 2, 0o644, 0),
        ("symlink", client.root, name, b"x", 0),
        ("mknod", client.root, name, 0o100644, 0, 0, 0),
        ("mkdir", client.root, name, 0o755, 0),
        ("link", client.root, fid, name),
        ("rename", fid, client.root, name),
        ("renameat", client.root, name, client.root, b"n"),
        ("renameat", client.root, b"a", client.root, name),
        ("unlinkat", client.root, name, 0),
        ("unlinkat", client.root, name, 0x200),
    ):
        if request[0] == "walk" and len(request[3]) == 2:
            assert client.do(*request)[:2] == b"\1\0"
            assert code_of(client.do, "clunk", 900) == errno.EBADF
        else:
            assert code_of(client.do, *request) == errno.EINVAL, request
    assert sorted(os.listdir(share)) == ["a", "d"]
    assert sorted(os.listdir(share.parent)) == ["secret", "share"]


def test_name_that_is_too_long_is_refused(client):
    assert code_of(client.do, "mkdir", client.root, b"n" * 256, 0o755, 0) == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "target", ["../secret", "/etc/passwd", "/", "..", "/proc/self/root", "/proc/self/cwd"]
)
def test_symbolic_link_is_never_followed(client, share, target):
    (share / "l").symlink_to(target)
    link = client.walk(client.root, b"l")
    assert code_of(client.do, "lopen", client.walk(client.root, b"l"), 0) == errno.ELOOP
    assert code_of(client.walk, client.root, b"l", b"passwd") == errno.ENOENT  # a part of the way only
    assert code_of(client.walk, link, b"passwd") == errno.ENOTDIR
    assert code_of(client.create, client.root, b"l") == errno.ELOOP
    assert code_of(client.do, "mkdir", link, b"n", 0o755, 0) == errno.ENOTDIR
    assert code_of(client.do, "lcreate", link, b"n", 2, 0o644, 0) == errno.ENOTDIR
    assert code_of(client.setattr, link, size=0) == errno.EINVAL
    assert (share.parent / "secret").read_bytes() == SECRET


def test_changes_to_a_link_do_not_reach_its_target(client, share):
    (share / "l").symlink_to("../secret")
    secret = share.parent / "secret"
    os.utime(secret, ns=(1, 1))
    before = secret.stat()
    link = client.walk(client.root, b"l")
    for change in ({"mode": 0o777}, {"uid": 7, "gid": 7}, {"mtime": (9, 9)}):
        try:
            client.setattr(link, **change)
        except P9Error:
            pass
    for name in (b"user.a", b"trusted.a", b"security.a"):
        try:
            client.set_xattr(link, name, b"x")
        except P9Error:
            pass
    client.do("remove", link)
    assert secret.stat() == before
    assert os.listxattr(secret) == []
    assert not os.path.lexists(share / "l")


def test_hard_link_to_a_link_does_not_reach_its_target(client, share):
    (share / "l").symlink_to("../secret")
    client.do("link", client.root, client.walk(client.root, b"l"), b"m")
    assert (share.parent / "secret").stat().st_nlink == 1


def test_folder_swapped_for_a_link_while_in_use_is_never_left(client, share):
    """A racing host process replaces folders by links to the outside, as fast as it can."""
    outside = share.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(SECRET)
    inside = share / "d"
    inside.mkdir()
    (inside / "f").write_bytes(b"inside")
    spare = share / "link"
    spare.symlink_to(outside)
    done = threading.Event()

    def swap():
        while not done.is_set():
            os.rename(inside, share / "x")
            os.rename(spare, inside)
            os.rename(inside, spare)
            os.rename(share / "x", inside)

    racer = threading.Thread(target=swap)
    racer.start()
    seen = set()
    try:
        for number in range(2000):
            for attempt in (
                lambda: seen.add(client.read(client.open(client.root, b"d", b"f"))),
                lambda number=number: client.create(client.walk(client.root, b"d"), b"n%d" % number),
                lambda number=number: client.do(
                    "mkdir", client.walk(client.root, b"d"), b"m%d" % number, 0, 0
                ),
                lambda number=number: client.do(
                    "unlinkat", client.walk(client.root, b"d"), b"n%d" % number, 0
                ),
            ):
                try:
                    attempt()
                except P9Error as error:
                    assert error.code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMFILE)
            if number % 100 == 0:
                client.root = client.start()
    finally:
        done.set()
        racer.join()
    assert seen == {b"inside"}
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_bytes() == SECRET


def test_pipe_socket_and_devices_are_never_opened(client, share):
    os.mkfifo(share / "p")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(share / "s"))
    names = [b"p", b"s"]
    if os.geteuid() == 0:
        os.mknod(share / "n", 0o020666, os.makedev(1, 3))
        names.append(b"n")
    for name in names:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            assert code_of(client.open, client.root, name, flags=flags) == errno.ENXIO
            assert code_of(client.create, client.root, name, flags=flags) == errno.ENXIO


def test_process_file_system_beneath_the_folder_is_out_of_bounds():
    server = Server(open_root("/", "--9p"), writable=False, budget=Budget(100))
    try:
        client = P9Client(serve(server))
        root = client.start()
        assert code_of(client.walk, root, b"proc") == errno.EACCES
        assert code_of(client.walk, root, b"proc", b"self", b"mem") == errno.EACCES
        client.walk(root, b"dev", b"null")  # other file systems may be entered
    finally:
        server.close()
        os.close(server.root)


def test_file_on_another_file_system_has_another_qid_path(client, share):
    inode = client.getattr(client.root)["inode"]
    server = Server(open_root("/", "--9p"), writable=False, budget=Budget(100))
    try:
        outer = P9Client(serve(server))
        root = outer.start()
        found = {
            outer.getattr(outer.walk(root, *path))["inode"]: path
            for path in ([b"dev"], [b"dev", b"shm"], [b"sys"])
        }
        assert len(found) == 3
        assert inode == share.stat().st_ino
    finally:
        server.close()
        os.close(server.root)


def test_host_without_openat2_is_refused_with_a_sentence(share, monkeypatch):
    monkeypatch.setattr(hostcalls, "_OPENAT2", 100_000)
    with pytest.raises(ConfigError, match=r"Linux 5\.6"):
        beneath.open_root(str(share), "--9p")


def test_folder_that_may_not_be_searched_is_refused_with_a_sentence(share, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(beneath, "openat2", refused)
    with pytest.raises(ConfigError, match="may not be searched by you"):
        beneath.open_root(str(share), "--9p")
