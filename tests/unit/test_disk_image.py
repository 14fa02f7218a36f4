# SPDX-License-Identifier: Apache-2.0
"""Disk images: what is refused when one is opened, locks, and reading and writing it."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
from pathlib import Path

import pytest

from pyvmm.devices.disk import image as diskimage
from pyvmm.devices.disk import lock as imagelock
from pyvmm.devices.disk import opening as openimage
from pyvmm.devices.disk.image import DiskImage
from pyvmm.devices.disk.opening import open_image
from pyvmm.errors import ConfigError

SIZE = 1 << 20


def content(size=SIZE, seed=1):
    return random.Random(seed).randbytes(size)


def on_disk(path):
    return Path(path).read_bytes()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(content())
    return str(path)


@pytest.fixture
def opened():
    images = []

    def make(path, **options):
        images.append(open_image(str(path), f"--disk {path}", **options))
        return images[-1]

    yield make
    for image in images:
        image.close()


def refusal(path, **options):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as error:
        open_image(str(path), "--disk X", **options)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor leaked"
    message = str(error.value)
    assert message.startswith("--disk X: ")
    return message.removeprefix("--disk X: ").replace(str(path), "PATH")


class TestOpening:
    def test_missing_file_is_refused_with_how_to_make_one(self, tmp_path):
        said = refusal(tmp_path / "none.img")
        assert said == "PATH does not exist; an empty disk is made with: truncate -s 8G PATH"

    def test_path_below_a_file_is_refused(self, path):
        assert refusal(f"{path}/x") == "PATH cannot be opened: Not a directory."

    def test_directory_is_refused(self, tmp_path):
        said = "PATH is a directory, not a disk image; --share gives it to the guest."
        assert refusal(tmp_path) == said

    def test_pipe_is_refused_without_waiting_for_its_other_end(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert refusal(tmp_path / "pipe") == "PATH is neither a file nor a block device; name a disk image."

    def test_empty_file_is_refused(self, tmp_path):
        (tmp_path / "x").touch()
        assert refusal(tmp_path / "x") == "PATH is empty; give it a size with: truncate -s 8G PATH"

    def test_part_of_a_sector_is_refused_with_the_command_that_mends_it(self, tmp_path):
        (tmp_path / "x").write_bytes(bytes(1000))
        said = refusal(tmp_path / "x")
        assert said.startswith("PATH is 1000 bytes long, not whole sectors of 512; ")
        assert said.endswith("truncate -s %512 PATH")

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
    def test_file_that_may_only_be_read_is_refused_for_writing(self, path, monkeypatch, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(openimage.os, "open", refuse)
        said = f"PATH cannot be written ({os.strerror(code)}); use it with ro, or make it writable."
        assert refusal(path) == said
        assert refusal(path, read_only=True) == f"PATH cannot be opened: {os.strerror(code)}."

    def test_device_that_is_mounted_is_refused(self, path, monkeypatch):
        flags = []

        def refuse(_path, wanted):
            flags.append(wanted)
            raise OSError(errno.EBUSY, "busy")

        monkeypatch.setattr(openimage.os, "open", refuse)
        monkeypatch.setattr(openimage.stat, "S_ISBLK", lambda mode: True)
        monkeypatch.setattr(openimage.stat, "S_ISREG", lambda mode: False)
        assert refusal(path).startswith("PATH is in use on this host, mounted or by another machine;")
        assert flags[0] & os.O_EXCL

    @pytest.mark.parametrize(
        ("magic", "offset", "name"),
        [
            (b"QFI\xfb\0\0\0\3", 0, "qcow2"),
            (b"KDMV", 0, "VMDK"),
            (b"# Disk DescriptorFile\n", 0, "VMDK"),
            (b"vhdxfile", 0, "VHDX"),
            (b"conectix", 0, "VHD"),
            (b"\x7f\x10\xda\xbe", 0x40, "VDI"),
        ],
    )
    def test_other_image_format_is_named_and_refused(self, tmp_path, opened, magic, offset, name):
        path = tmp_path / "x"
        path.write_bytes((bytes(offset) + magic).ljust(4096, b"\0"))
        said = refusal(path)
        assert said.startswith(f"PATH is a {name} image, and disks here are raw; convert it with qemu-img")
        assert opened(path, any_content=True).size == 4096

    @pytest.mark.parametrize(
        ("magic", "command"),
        [
            (b"\x1f\x8b\x08", "gzip -d"),
            (b"\xfd7zXZ\0", "xz -d"),
            (b"\x28\xb5\x2f\xfd", "zstd -d"),
        ],
    )
    def test_compressed_image_is_refused_with_the_command_that_unpacks_it(self, tmp_path, magic, command):
        (tmp_path / "x").write_bytes(magic.ljust(512, b"\0"))
        assert refusal(tmp_path / "x").startswith(f"PATH is compressed; unpack it with {command}, ")

    def test_direct_without_o_direct_is_refused(self, path, monkeypatch):
        real = os.open

        def no_direct(path, flags):
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no")
            return real(path, flags)

        monkeypatch.setattr(openimage.os, "open", no_direct)
        assert refusal(path, direct=True) == "PATH is on a file system without O_DIRECT; leave direct away."

    def test_file_system_without_locks_is_refused(self, path, monkeypatch):
        def refuse(*_, **__):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(imagelock, "lock", refuse)
        assert refusal(path).startswith("PATH cannot be locked against a second machine (No locks available)")

    def test_opened_image_knows_its_size(self, path, opened):
        image = opened(path)
        assert (image.size, image.block_size, image.physical) == (SIZE, 512, 4096)
        assert not image.is_device


class TestLocks:
    def test_second_writer_is_refused(self, path, opened):
        opened(path)
        assert refusal(path) == (
            "PATH is in use by another machine; machines share an image when all have it with ro."
        )

    def test_reader_of_an_image_that_is_written_is_refused(self, path, opened):
        opened(path)
        assert "in use by another machine" in refusal(path, read_only=True)

    def test_writer_of_an_image_that_is_read_is_refused(self, path, opened):
        opened(path, read_only=True)
        assert "in use by another machine" in refusal(path)

    def test_any_number_of_readers_share(self, path, opened):
        for _ in range(3):
            opened(path, read_only=True)

    def test_closing_unlocks(self, path, opened):
        opened(path).close()
        opened(path)

    def test_refused_attempt_leaves_no_lock(self, path, opened):
        first = opened(path)
        refusal(path, read_only=True)
        first.close()
        opened(path)

    @staticmethod
    def as_qemu(path, needs, forbids, flags=os.O_RDWR):
        """Take the locks that QEMU takes for these permissions; returns the descriptor."""
        fd = os.open(path, flags)
        for byte in [100 + p for p in needs] + [200 + p for p in forbids]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
        return fd

    def test_image_that_qemu_writes_is_refused(self, path):
        fd = self.as_qemu(path, needs=(0, 1, 3), forbids=(1, 3))
        assert "in use by another machine" in refusal(path)
        assert "in use by another machine" in refusal(path, read_only=True)
        os.close(fd)

    def test_image_that_qemu_reads_is_shared_for_reading_only(self, path, opened):
        fd = self.as_qemu(path, needs=(0,), forbids=(1, 3), flags=os.O_RDONLY)
        assert "in use by another machine" in refusal(path)
        opened(path, read_only=True)
        os.close(fd)

    def test_locks_are_the_bytes_that_qemu_looks_at(self, path, opened):
        opened(path)
        fd = os.open(path, os.O_RDWR)
        locked = []
        for byte in range(100, 208):
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0)
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
            if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
                locked.append(byte)
        os.close(fd)
        assert locked == [100, 101, 103, 201, 203]


def views(*sizes):
    return [memoryview(bytearray(size)) for size in sizes]


def joined(views):
    return b"".join(views)


def parts(data, *sizes):
    """``data`` in pieces of these sizes, and the rest."""
    cut = []
    for size in sizes:
        cut.append(memoryview(data[:size]))
        data = data[size:]
    return [*cut, memoryview(data)]


@pytest.fixture(params=["cached", "direct"])
def image(request, path, opened):
    return opened(path, direct=request.param == "direct")


class TestTransfers:
    def test_read_fills_views_of_any_cut(self, image):
        into = views(1, 511, 4096, 100, 412)
        image.read(into, 1024)
        assert joined(into) == content()[1024 : 1024 + 5120]

    def test_write_takes_views_of_any_cut(self, image, path):
        data = content(8192, seed=2)
        image.write(parts(data, 3, 509, 4097), 2048)
        image.flush()
        expected = bytearray(content())
        expected[2048 : 2048 + 8192] = data
        assert on_disk(path) == expected

    def test_more_views_than_one_call_takes_are_all_filled(self, image):
        into = views(*[64] * 3000)
        image.read(into, 512)
        assert joined(into) == content()[512 : 512 + 3000 * 64]

    def test_more_views_than_one_call_takes_are_all_written(self, image, path):
        data = content(3000 * 64, seed=3)
        image.write([memoryview(data[at : at + 64]) for at in range(0, len(data), 64)], 1024)
        assert on_disk(path)[1024 : 1024 + len(data)] == data

    def test_larger_than_the_bounce_buffer_comes_through(self, tmp_path, opened):
        path = tmp_path / "large.img"
        path.write_bytes(content(4 << 20))
        image = opened(path, direct=True)
        into = views(1, (3 << 20) - 1)
        image.read(into, 512)
        assert joined(into) == content(4 << 20)[512 : 512 + (3 << 20)]

    def test_short_transfers_are_continued(self, path, opened, monkeypatch):
        image = opened(path)
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, views, at, flags: real(fd, [views[0][:700]], at, flags))
        into = views(1000, 24, 1024)
        image.read(into, 0)
        assert joined(into) == content()[:2048]

    def test_image_that_became_shorter_is_an_io_error(self, path, opened):
        image = opened(path)
        os.truncate(path, 4096)
        with pytest.raises(OSError, match="became shorter") as error:
            image.read(views(8192), 0)
        assert error.value.errno == errno.EIO

    def test_durable_write_asks_for_it_in_the_same_call(self, path, opened, monkeypatch):
        image = opened(path)
        flags = []
        real = os.pwritev

        def record(fd, views, at, given):
            flags.append(given)
            return real(fd, views, at, given)

        monkeypatch.setattr(os, "pwritev", record)
        image.write([memoryview(bytes(512))], 0)
        image.write([memoryview(bytes(512))], 0, True)
        assert flags == [0, os.RWF_DSYNC]

    def test_full_host_disk_raises(self):
        fd = os.open("/dev/full", os.O_RDWR)
        image = DiskImage(fd, SIZE)
        with pytest.raises(OSError) as error:
            image.write([memoryview(bytes(512))], 0)
        assert error.value.errno == errno.ENOSPC
        image.close()


class TestReadingWithoutWaiting:
    def test_cached_data_is_read_with_a_call_that_does_not_wait(self, path, opened, monkeypatch):
        image = opened(path)
        image.in_memory = False
        flags = []
        real = os.preadv

        def record(fd, views, at, given):
            flags.append(given)
            return real(fd, views, at)

        monkeypatch.setattr(os, "preadv", record)
        into = views(100, 412)
        assert image.read_cached(into, 512, 512)
        assert joined(into) == content()[512:1024]
        assert flags == [os.RWF_NOWAIT]

    def test_data_that_is_not_cached_is_left_to_a_worker(self, path, opened, monkeypatch):
        def would_block(*_):
            raise BlockingIOError(errno.EAGAIN, "would block")

        image = opened(path)
        image.in_memory = False
        monkeypatch.setattr(os, "preadv", would_block)
        assert not image.read_cached(views(512), 0, 512)

    def test_file_system_that_cannot_say_is_asked_once(self, path, opened, monkeypatch):
        asked = []

        def refuse(*_):
            asked.append(1)
            raise OSError(errno.EOPNOTSUPP, "unsupported")

        image = opened(path)
        image.in_memory = False
        monkeypatch.setattr(os, "preadv", refuse)
        assert not image.read_cached(views(512), 0, 512)
        assert not image.read_cached(views(512), 0, 512)
        assert len(asked) == 1

    def test_part_of_it_cached_counts_as_not(self, path, opened, monkeypatch):
        image = opened(path)
        image.in_memory = False
        monkeypatch.setattr(os, "preadv", lambda *_: 512)
        assert not image.read_cached(views(1024), 0, 1024)

    def test_direct_image_is_never_read_on_the_spot(self, path, opened):
        image = opened(path, direct=True)
        image.in_memory = False
        assert not image.read_cached(views(512), 0, 512)

    def test_image_in_memory_is_always_read_on_the_spot(self):
        fd = os.memfd_create("image")  # lives on a tmpfs
        os.write(fd, content(4096))
        image = DiskImage(fd, 4096)
        assert image.in_memory
        into = views(*[2] * 2000)
        assert image.read_cached(into, 0, 4000)
        assert joined(into) == content(4096)[:4000]
        image.close()


def zeroed(image, path, offset, length, unmap):
    image.zero(offset, length, unmap)
    expected = bytearray(content())
    expected[offset : offset + length] = bytes(length)
    return on_disk(path) == expected


class TestZerosAndDiscard:
    @pytest.mark.parametrize("unmap", [False, True])
    @pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (512, 512), (4096, 8192), (3584, 9216)])
    def test_zeroed_range_and_nothing_else_reads_as_zeros(self, image, path, offset, length, unmap):
        assert zeroed(image, path, offset, length, unmap)

    @pytest.mark.parametrize("unmap", [False, True])
    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
    def test_zeros_are_written_where_the_host_has_no_other_way(self, image, path, monkeypatch, code, unmap):
        def refuse(*_):
            raise OSError(code, "no")

        monkeypatch.setattr(DiskImage, "_allocate", refuse)
        monkeypatch.setattr(diskimage, "_BOUNCE", 4096)
        monkeypatch.setattr(diskimage, "_ZEROS_AT_ONCE", 2)
        assert zeroed(image, path, 1536, 100_352, unmap)

    def test_failure_to_zero_is_not_hidden_by_writing(self, path, opened, monkeypatch):
        def fail(*_):
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(DiskImage, "_allocate", fail)
        with pytest.raises(OSError, match="broken"):
            opened(path).zero(0, 512, True)

    def test_discard_gives_space_back(self, path, opened):
        image = opened(path)
        image.flush()
        before = os.stat(path).st_blocks
        image.discard(SIZE // 2, SIZE // 2)
        assert os.stat(path).st_blocks <= before // 2 + 8
        assert os.stat(path).st_size == SIZE

    def test_zeroing_without_unmap_keeps_the_space(self, path, opened):
        image = opened(path)
        image.flush()
        before = os.stat(path).st_blocks
        image.zero(0, SIZE, False)
        assert os.stat(path).st_blocks >= before

    def test_discard_does_nothing_where_the_host_cannot(self, path, opened, monkeypatch):
        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "no")

        monkeypatch.setattr(DiskImage, "_allocate", refuse)
        opened(path).discard(0, 4096)
        assert on_disk(path) == content()

    def test_discard_of_part_of_a_block_does_nothing(self, path):
        fd = os.open(path, os.O_RDWR)
        image = DiskImage(fd, SIZE, block_size=4096)
        image.discard(512, 4096)
        assert os.pread(fd, SIZE, 0) == content()
        image.discard(512, 8192)
        assert os.pread(fd, SIZE, 0) == content()[:4096] + bytes(4096) + content()[8192:]
        image.close()

    def test_failed_discard_is_reported(self):
        image = DiskImage(os.open("/dev/null", os.O_RDWR), SIZE)
        with pytest.raises(OSError):
            image.discard(0, 4096)
        image.close()


class LargeBlocks:
    """Stands for the system calls on a file whose O_DIRECT wants blocks of 4096 bytes."""

    def __init__(self, monkeypatch):
        self._real = os.preadv, os.pwritev
        monkeypatch.setattr(os, "preadv", lambda *args: self.check(0, *args))
        monkeypatch.setattr(os, "pwritev", lambda *args: self.check(1, *args))

    def check(self, which, fd, views, offset, flags=0):
        if offset % 4096 or any(len(view) % 4096 for view in views):
            raise OSError(errno.EINVAL, "misaligned")
        return self._real[which](fd, views, offset, flags)


class TestLargeDirectBlocks:
    def test_block_that_o_direct_wants_is_found_by_trying(self, path, opened, monkeypatch):
        LargeBlocks(monkeypatch)
        assert opened(path, direct=True)._direct_block == 4096

    def test_image_of_a_broken_last_block_is_refused(self, path, monkeypatch):
        LargeBlocks(monkeypatch)
        os.truncate(path, SIZE - 512)
        assert refusal(path, direct=True).endswith("truncate -s %4096 PATH")

    def test_parts_of_blocks_are_read_and_written(self, path, opened, monkeypatch):
        LargeBlocks(monkeypatch)
        image = opened(path, direct=True)
        data = content(9216, seed=7)
        image.write(parts(data, 100), 3584)
        expected = bytearray(content())
        expected[3584 : 3584 + 9216] = data
        into = views(10, SIZE - 1024 - 10)
        image.read(into, 512)
        assert joined(into) == expected[512 : SIZE - 512]
        assert os.stat(path).st_size == SIZE

    def test_writes_wait_for_each_other(self, path, opened, monkeypatch):
        LargeBlocks(monkeypatch)
        image = opened(path, direct=True)
        held = []
        transfer = DiskImage._transfer

        def record(self, *args):
            held.append(image._write_lock.locked())
            transfer(self, *args)

        monkeypatch.setattr(DiskImage, "_transfer", record)
        image.write([memoryview(bytes(512))], 512)
        image.write([memoryview(mmap.mmap(-1, 4096))], 4096)
        assert held == [True] * 4
        image.read(views(512), 0)
        assert not all(held[4:])

    @pytest.mark.parametrize("code", [0, errno.EOPNOTSUPP], ids=["by the host", "by writing"])
    @pytest.mark.parametrize("change", ["zero", "unmap", "discard"])
    def test_zeroing_and_discarding_wait_for_writes(self, path, opened, monkeypatch, change, code):
        # Or the write of a part of the same block would bring back what was there before.
        LargeBlocks(monkeypatch)
        image = opened(path, direct=True)
        held = []

        def allocate(*_):
            held.append(image._write_lock.locked())
            ctypes.set_errno(code)
            return -bool(code)

        monkeypatch.setattr(diskimage, "_fallocate", allocate)
        if change == "discard":
            image.discard(512, 512)
        else:
            image.zero(512, 512, change == "unmap")
        assert held == [True] * len(held)
        assert held
        assert not image._write_lock.locked()
        written = change != "discard" and code
        assert on_disk(path)[512:1024] == (bytes(512) if written else content()[512:1024])


def test_closing_twice_closes_no_descriptor_of_others(path, opened):
    image = opened(path)
    image.close()
    fd = os.open(path, os.O_RDONLY)
    image.close()
    assert stat.S_ISREG(os.fstat(fd).st_mode)
    os.close(fd)
