# SPDX-License-Identifier: Apache-2.0
"""What the pages tell a reader to type, typed in the order in which they say it."""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect
import pytest
from booted import PATIENCE
from pages import blocks, console_lines
from test_debian import SLOW, copied

PYVMM = [sys.executable, "-m", "pyvmm"]
MIB, SECTOR = 1 << 20, 512
# What systemd says first; other tests see Debian to its login prompt, which takes minutes more.
SYSTEMD = "Welcome to "
SHELL, PANIC = "~ # ", "Kernel panic - not syncing"
END_KEYS = "\x01x"


def sessions():
    """Page -> the words after ``pyvmm`` of each of its lines, for pages that start a guest."""
    found = {}
    for page, words in console_lines():
        found.setdefault(page, []).append(words)
    return {
        page: lines
        for page, lines in found.items()
        if any(words[0] == "run" and "--dry-run" not in words for words in lines)
    }


SESSIONS = sessions()


class Reader:
    """Somebody at a terminal, in a folder with the files that the pages name."""

    def __init__(self, folder, page, run_dir):
        self._folder = folder
        self._environment = {**os.environ, "PYVMM_RUN_DIR": run_dir}
        self._guest = None
        self._has_file = False
        for name, text in blocks("toml"):
            if name == page:
                (folder / "pyvmm.toml").write_text(text)
                (folder / "lab" / "pyvmm.toml").write_text(text.replace('"build/', '"../build/'))
                self._has_file = True

    def type(self, words):
        """One line. A guest that it starts is left to itself once it is where it gets to."""
        if words[0] == "run" and "--dry-run" not in words:
            self.end_guest()
            debian = "debian.img" in words or words[-1] == "debian"
            if debian:
                debian_disk(self._folder, partitioned=any("vda1" in word for word in words))
            self._guest = self._spawn(self._with_drivers(words, debian))
            self._guest.expect_exact([SYSTEMD] if debian else [SHELL, PANIC], timeout=SLOW)
            assert self._guest.after != PANIC or "sbi" in words  # that page has no root file system
        elif words[0] == "attach":
            client = self._spawn(words)
            client.expect_exact([SHELL, PANIC])  # what the guest printed so far
            client.close(force=True)
        else:
            done = subprocess.run(
                [*PYVMM, *words],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            # The guest's own grep has nothing to find.
            assert done.returncode == 0 or (words[0], done.returncode) == ("exec", 1), (words, done)

    def _spawn(self, words):
        return pexpect.spawn(
            PYVMM[0],
            [*PYVMM[1:], *words],
            cwd=str(self._folder),
            env=self._environment,
            timeout=PATIENCE,
            encoding="utf-8",
            codec_errors="replace",
        )

    def _with_drivers(self, words, debian):
        """Debian's kernel has none built in, unlike the pages' own: it gets an initramfs with a disk.

        With that the root is no longer told by itself.
        """
        own_kernel = "Image" in words or (self._has_file and "--no-config" not in words)
        if not own_kernel or {"-i", "sbi"} & {*words}:
            return words
        root = ["-p", "root=/dev/vda"] if debian and not any("root=" in word for word in words) else []
        return [*words, "-i", "initrd.img", *root]

    def end_guest(self):
        """End the guest, if there is one that has not come to its end."""
        if self._guest is not None:
            if self._guest.isalive():
                self._guest.send(END_KEYS)
            self._guest.expect(pexpect.EOF)
            assert "Traceback" not in self._guest.before
            self._guest.close()
            self._guest = None

    def close(self):
        """Leave nothing running."""
        if self._guest is not None:
            self._guest.close(force=True)


def debian_disk(folder, partitioned):
    """A Debian system's disk in ``folder``, with or without a partition table."""
    disk = copied(folder, start=MIB if partitioned else 0)
    if partitioned:
        size = disk.stat().st_size - MIB
        with disk.open("r+b") as file:  # a Linux partition; no CHS addresses
            file.seek(446)
            file.write(struct.pack("<B3xB3xII", 0, 0x83, MIB // SECTOR, size // SECTOR))
            file.seek(510)
            file.write(b"\x55\xaa")


@pytest.fixture
def folder(real_kvm, tmp_path):
    """A folder with kernels, initial RAM disks, disks, and folders to share."""
    from pyvmm.lab import guests

    kernel, initrd = guests.kernel(), guests.initrd(full=True)
    for name, target in {
        "Image": kernel,
        "vmlinuz": kernel,
        "build/arch/riscv/boot/Image": kernel,
        "initrd.img": initrd,
        "tests.cpio": initrd,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    for name in ("disk.img", "data.img"):
        (tmp_path / name).write_bytes(bytes(8 << 20))
    for name in ("src", "lab"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def reader(folder):
    """Makes readers of a page."""
    made = []
    with tempfile.TemporaryDirectory() as run_dir:  # short: sockets are in it

        def make(page):
            made.append(Reader(folder, page, run_dir))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.mark.long
@pytest.mark.parametrize("page", SESSIONS)
def test_commands_of_a_page_do_what_it_says(reader, folder, page):
    person = reader(page)
    for words in SESSIONS[page]:
        if words[0] != "doctor":  # it says what this host lacks, which may be something
            person.type(words)
    person.end_guest()
    (Path(folder) / "debian.img").unlink(missing_ok=True)
