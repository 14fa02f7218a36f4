# SPDX-License-Identifier: Apache-2.0
"""What a folder shared with a guest has to go through, whatever shares it."""

import hashlib
import io
import os
import random
import stat
import tarfile

SLOW = 900  # seconds: thousands of files on an emulated host


def source_tree(path, files):
    """Write a tar file like a source tree: folders, small files, links, modes. Returns what is in it."""
    chooser = random.Random(9)
    expected = {}
    with tarfile.open(path, "w") as archive:

        def add(name, kind, data=b"", mode=0o644, target=""):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(data), target
            info.mtime = 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
            expected[name] = (mode, target or hashlib.sha256(data).hexdigest())

        for folder in range(files // 50):
            top = f"tree/dir{folder:02}"
            archive.addfile(directory(top))
            for number in range(49):
                data = chooser.randbytes(chooser.choice([0, 10, 300, 4096, 9000]))
                add(f"{top}/file{number:02}.c", tarfile.REGTYPE, data, chooser.choice([0o644, 0o755, 0o600]))
            add(f"{top}/link", tarfile.SYMTYPE, mode=0o777, target=f"file{folder % 49:02}.c")
    return expected


def directory(name):
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def found_on_host(folder, top="tree"):
    """The same description, of what is there."""
    found = {}
    for path, _, names in os.walk(folder / top):
        for name in names:
            full = os.path.join(path, name)
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(full)
            else:
                with open(full, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(full, folder)] = stat.S_IMODE(status.st_mode), content
    return found


def exercise(guest, folder, files):
    """Work on ``folder``, which the guest has at /mnt, and look at the outcome from the host."""
    expected = source_tree(folder / "source.tar", files)
    guest.run("cd /mnt && tar xf source.tar", SLOW)
    assert found_on_host(folder) == expected
    guest.run("cp -a tree/dir00 copy && diff -r tree/dir00 copy && rm -r copy", SLOW)
    guest.run("mv tree/dir01 moved && mv moved/file00.c tree/dir00/moved.c && ln moved/link hard", SLOW)
    assert os.readlink(folder / "hard") == expected["tree/dir01/link"][1]
    guest.run("ln tree/dir00/moved.c twin && test $(stat -c %h twin) = 2")
    assert (folder / "twin").stat().st_nlink == 2
    guest.run("test $(find tree moved | wc -l) = " + str(len(expected) + files // 50 + 1), SLOW)
    guest.run('rm -r tree moved hard twin && test -z "$(ls | grep -v source.tar)"', SLOW)
    assert os.listdir(folder) == ["source.tar"]


def details(guest, folder):
    """Times, modes, owners, sizes, special files, and a file used by both sides."""
    guest.run("cd /mnt && touch -d '2001-02-03 04:05:06' old && chown 12:34 old && chmod 4751 old")
    status = (folder / "old").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4751, 12, 34)
    assert guest.run("stat -c '%a %u %g %Y' old").split() == ["4751", "12", "34", str(int(status.st_mtime))]
    guest.run("mkfifo pipe && mknod null c 1 3 && (echo through the pipe > pipe & cat pipe) | grep through")
    guest.run("echo gone > null && test -c null")
    assert (folder / "null").lstat().st_rdev == os.makedev(1, 3)
    guest.run("truncate -s 1000000 sparse && dd if=/dev/zero of=sparse bs=1 count=1 seek=500000 conv=notrunc")
    assert (folder / "sparse").stat().st_size == 1_000_000
    guest.run("exec 3<>held && rm held && echo still here >&3 && exec 3>&-")
    guest.run("for i in 1 2 3; do echo line $i >> log; done; test $(wc -l < log) = 3")
    assert (folder / "log").read_text() == "line 1\nline 2\nline 3\n"


def big_file(guest, folder, mib=16):
    """Written by the host and copied by the guest."""
    data = random.Random(5).randbytes(1 << 20)
    with open(folder / "big", "wb") as file:
        for _ in range(mib):
            file.write(data)
    guest.run("cp big big2 && sync && cmp big big2", SLOW)
    with open(folder / "big", "rb") as one, open(folder / "big2", "rb") as other:
        assert hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()


def off(guest):
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")
