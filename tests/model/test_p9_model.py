# SPDX-License-Identifier: Apache-2.0
"""The 9P server against the host: what is done to a folder through it is done to a twin by os calls."""

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path

from fakes.p9client import P9Client, P9Error, serve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.server import Server

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3)
DATA = st.binary(max_size=40)
OFFSETS = st.integers(0, 60)


class Folders(RuleBasedStateMachine):
    """Every rule does one thing both ways; both end alike, also in the errno."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.twin = os.fsencode(self.base / "twin")
        os.mkdir(self.twin)
        os.mkdir(self.base / "share")
        self.server = Server(open_root(str(self.base / "share"), "--9p"), writable=True, budget=Budget(100))
        self.client = P9Client(serve(self.server, patient=False))
        self.root = self.client.start(uid=os.geteuid())

    def teardown(self):
        self.server.close()
        os.close(self.server.root)
        shutil.rmtree(self.base)

    def both(self, served, by_host):
        """Do it both ways, and compare results and errors."""
        used = len(self.server.fids)
        try:
            result = served()
        except P9Error as error:
            result = error_class(error.code)
        try:
            expected = by_host()
        except OSError as error:
            expected = error_class(error.errno)
        assert result == expected
        for number in [number for number in self.server.fids._fids if number != self.root]:
            self.client.do("clunk", number)
        assert len(self.server.fids) == used == 1

    def do(self, *request):
        """A request whose answer says nothing."""
        self.client.do(*request)

    def at(self, path):
        return os.path.join(self.twin, *path)

    def parent(self, path):
        return self.client.walk(self.root, *path[:-1])

    @rule(path=PATHS, mode=st.sampled_from([0o700, 0o755]))
    def mkdir(self, path, mode):
        self.both(
            lambda: self.do("mkdir", self.parent(path), path[-1], mode, os.getegid()),
            lambda: os.mkdir(self.at(path), mode),
        )

    @rule(path=PATHS, data=DATA, exclusive=st.booleans())
    def create(self, path, data, exclusive):
        flags = os.O_WRONLY | (os.O_EXCL if exclusive else 0)

        def by_host():
            with open(os.open(self.at(path), flags | os.O_CREAT | os.O_NOFOLLOW, 0o644), "wb", 0) as file:
                return file.write(data)

        def served():
            return self.client.write(self.client.create(self.parent(path), path[-1], flags=flags), data)

        self.both(served, by_host)

    @rule(path=PATHS, data=DATA, offset=OFFSETS)
    def write(self, path, data, offset):
        def by_host():
            with open(os.open(self.at(path), os.O_RDWR | os.O_NOFOLLOW), "r+b", 0) as file:
                return os.pwrite(file.fileno(), data, offset)

        self.both(
            lambda: self.client.write(self.client.open(self.root, *path, flags=os.O_RDWR), data, offset),
            by_host,
        )

    @rule(path=PATHS, offset=OFFSETS, count=st.integers(1, 60))
    def read(self, path, offset, count):
        def by_host():
            with open(os.open(self.at(path), os.O_RDONLY | os.O_NOFOLLOW), "rb", 0) as file:
                return os.pread(file.fileno(), count, offset)

        self.both(lambda: self.client.read(self.client.open(self.root, *path), offset, count), by_host)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path, size):
        def by_host():
            os.close(os.open(self.at(path), os.O_PATH | os.O_NOFOLLOW))
            if not stat.S_ISREG(os.lstat(self.at(path)).st_mode):
                raise OSError(22, "only files have a size to set")
            os.truncate(self.at(path), size)

        self.both(lambda: self.client.setattr(self.client.walk(self.root, *path), size=size), by_host)

    @rule(path=PATHS, directory=st.booleans())
    def unlink(self, path, directory):
        self.both(
            lambda: self.do("unlinkat", self.parent(path), path[-1], 0x200 * directory),
            lambda: (os.rmdir if directory else os.unlink)(self.at(path)),
        )

    @rule(path=PATHS, text=st.sampled_from([b"nowhere", b"/no/where"]))
    def symlink(self, path, text):
        self.both(
            lambda: self.do("symlink", self.parent(path), path[-1], text, os.getegid()),
            lambda: os.symlink(text, self.at(path)),
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old, new):
        self.both(
            lambda: self.do("link", self.parent(new), self.client.walk(self.root, *old), new[-1]),
            lambda: os.link(self.at(old), self.at(new), follow_symlinks=False),
        )

    @rule(old=PATHS, new=PATHS, by_fid=st.booleans())
    def rename(self, old, new, by_fid):
        def served():
            if by_fid:
                fid = self.client.walk(self.root, *old)
                return self.do("rename", fid, self.parent(new), new[-1])
            parents = self.parent(old), self.parent(new)
            return self.do("renameat", parents[0], old[-1], parents[1], new[-1])

        self.both(served, lambda: os.rename(self.at(old), self.at(new)))

    @rule(path=PATHS)
    def listing(self, path):
        def by_host():
            os.close(os.open(self.at(path), os.O_DIRECTORY | os.O_NOFOLLOW))
            return sorted(os.listdir(self.at(path)))

        def served():
            fid = self.client.open(self.root, *path)
            return self.client.names(fid, count=64)

        self.both(served, by_host)

    @invariant()
    def folders_are_alike(self):
        assert tree(os.fsencode(self.base / "share")) == tree(self.twin)


def error_class(code):
    """Errors that say the same of a path: the guest walks it itself, and follows no link on the way."""
    return "no way there" if code in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) else f"error {code}"


def tree(top):
    """Everything in a folder that a guest could tell."""
    found = {}
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            found[os.path.relpath(path, top)] = status.st_mode, links, content
    return found


TestFolders = Folders.TestCase
TestFolders.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
