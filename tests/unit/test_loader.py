# SPDX-License-Identifier: Apache-2.0
"""Opening, recognising and loading kernels, initrds and firmware."""

import bz2
import gzip
import lzma
import os
import random
import shutil
import subprocess
import sys
import types

import pytest
from fakes import kernels

from pyvmm.errors import ConfigError, HostError
from pyvmm.guest.fragment import fragment
from pyvmm.loader import Boot
from pyvmm.memory import GuestMemory

MIB = 1 << 20
RAM_BASE, RAM_SIZE = 0x8000_0000, 64 * MIB
BODY = bytes(range(256)) * 512  # 128 KiB that no codec makes trivial to mistake
NOISE = random.Random(1).randbytes(2 * MIB)
IMAGE = kernels.image(BODY)
FDT_SIZE = 4000


@pytest.fixture
def memory():
    with GuestMemory() as memory:
        memory.add(RAM_BASE, RAM_SIZE)
        yield memory


@pytest.fixture
def write(tmp_path):
    def write(data, name="Image"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def load(memory, **files):
    with Boot(RAM_BASE, RAM_SIZE, **files) as boot:
        placement = boot.place(FDT_SIZE)
        boot.load(memory, placement)
        return boot.entry, placement


def refusal(**files):
    with pytest.raises(ConfigError) as caught, Boot(RAM_BASE, RAM_SIZE, **files):
        pass
    return str(caught.value)


def loading_refusal(memory, **files):
    with Boot(RAM_BASE, RAM_SIZE, **files) as boot:
        placement = boot.place(FDT_SIZE)
        with pytest.raises(ConfigError) as caught:
            boot.load(memory, placement)
    return str(caught.value)


def lzma_alone(data):
    return lzma.compress(data, lzma.FORMAT_ALONE)


# What boots --------------------------------------------------------------------------------------------


def test_flat_image_goes_where_its_header_says(memory, write):
    entry, placement = load(memory, kernel=write(IMAGE))
    assert entry == RAM_BASE + 2 * MIB
    assert placement.kernel == (entry, entry + 4 * MIB)
    assert memory.read(entry, len(IMAGE)) == IMAGE
    assert placement.initrd is None


def test_flat_image_with_another_text_offset_goes_there(memory, write):
    data = kernels.image(BODY, text_offset=8 * MIB)
    entry, placement = load(memory, kernel=write(data))
    assert entry == placement.kernel[0] == RAM_BASE + 8 * MIB
    assert memory.read(entry, len(data)) == data


def test_flat_image_longer_than_its_memory_is_loaded_up_to_there(memory, write):
    data = kernels.image(BODY, image_size=4096)
    entry, _ = load(memory, kernel=write(data + b"signature"))
    assert memory.read(entry, 4096) == data[:4096]
    assert memory.read(entry + 4096, 4096) == bytes(4096)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, lzma_alone])
@pytest.mark.parametrize("trailer", [b"", b"\0\0\0\0trailing bytes"])
def test_compressed_image_is_unpacked_and_trailing_bytes_are_ignored(memory, write, compress, trailer):
    entry, placement = load(memory, kernel=write(compress(IMAGE) + trailer))
    assert placement.kernel == (entry, entry + 4 * MIB)
    assert memory.read(entry, len(IMAGE)) == IMAGE


@pytest.mark.parametrize(
    ("program", "options"), [("zstd", "-qc"), ("lz4", "-qc"), ("lz4", "-lqc"), ("lzop", "-qc")]
)
def test_image_that_takes_a_program_is_unpacked(memory, write, program, options):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packed = subprocess.run([program, options], input=IMAGE, capture_output=True, check=True).stdout
    entry, _ = load(memory, kernel=write(packed))
    assert memory.read(entry, len(IMAGE)) == IMAGE


class FakeZstd:
    """A decoder that yields the Image whatever it is fed."""

    eof = False
    needs_input = True

    def decompress(self, data, max_length=-1):
        self.eof = True
        return IMAGE

    def decompressobj(self):
        return self


ZSTD_MODULES = ("compression.zstd", "backports.zstd", "zstandard")


@pytest.mark.parametrize("available", ZSTD_MODULES)
def test_zstd_image_is_unpacked_by_whichever_module_is_there(memory, write, monkeypatch, available):
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ZSTD_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name))
    monkeypatch.setitem(sys.modules, available, types.SimpleNamespace(ZstdDecompressor=FakeZstd))
    entry, _ = load(memory, kernel=write(b"\x28\xb5\x2f\xfd"))
    assert memory.read(entry, len(IMAGE)) == IMAGE


@pytest.mark.parametrize(
    ("name", "compress"),
    [(b"gzip", gzip.compress), (b"xzkern", lzma.compress), (b"lzma", lzma_alone)],
)
def test_efi_zboot_is_unpacked(memory, write, name, compress):
    entry, _ = load(memory, kernel=write(kernels.zboot(compress(IMAGE), name) + b"\0\0\0\0"))
    assert memory.read(entry, len(IMAGE)) == IMAGE


def test_elf_vmlinux_goes_2_mib_into_ram_and_starts_at_its_physical_entry(memory, write):
    virtual = 0xFFFF_FFFF_8000_0000
    data = kernels.elf(
        [(virtual, 0, b"text", 0x1000), (virtual + 0x20_0000, 0x20_0000, b"data", 0x30_0000)], virtual + 2
    )
    entry, placement = load(memory, kernel=write(data))
    start = RAM_BASE + 2 * MIB
    assert entry == start + 2
    assert placement.kernel == (start, start + 0x50_0000)
    assert memory.read(start, 4) == b"text"
    assert memory.read(start + 0x20_0000, 5) == b"data\0"


def test_elf_linked_for_ram_goes_where_it_says(memory, write):
    data = kernels.elf([(RAM_BASE + 0x20_0000, RAM_BASE + 0x20_0000, b"boot", 0x8000)], RAM_BASE + 0x20_0000)
    entry, placement = load(memory, firmware=write(data))
    assert entry == RAM_BASE + 0x20_0000
    assert placement.kernel == (entry, entry + 0x8000)
    assert memory.read(entry, 4) == b"boot"


def test_compressed_elf_is_unpacked(memory, write):
    data = kernels.elf([(1 << 63, 0, BODY, len(BODY))], 1 << 63)
    entry, _ = load(memory, kernel=write(gzip.compress(data)))
    assert memory.read(entry, len(BODY)) == BODY


def test_flat_firmware_goes_2_mib_into_ram(memory, write):
    entry, placement = load(memory, firmware=write(BODY, "u-boot.bin"))
    assert entry == placement.kernel[0] == RAM_BASE + 2 * MIB
    assert placement.kernel[1] >= entry + len(BODY)
    assert memory.read(entry, len(BODY)) == BODY


def test_initrd_is_put_where_the_placement_says(memory, write):
    content = b"070701" + BODY
    _, placement = load(memory, kernel=write(IMAGE), initrd=write(content, "initrd"))
    start, end = placement.initrd
    assert memory.read(start, end - start) == content


def test_agent_goes_in_front_of_the_initrd(memory, write):
    path = write(bytes(range(256)), "initrd")
    _, placement = load(memory, kernel=write(IMAGE), initrd=path, agent=True)
    start, end = placement.initrd
    agent = fragment()
    assert memory.read(start, end - start) == agent + bytes(range(256))


def test_agent_is_an_initrd_by_itself(memory, write):
    _, placement = load(memory, kernel=write(IMAGE), agent=True)
    start, end = placement.initrd
    assert memory.read(start, end - start) == fragment()


def test_closing_closes_every_file(write):
    before = set(os.listdir("/proc/self/fd"))
    with Boot(RAM_BASE, RAM_SIZE, kernel=write(gzip.compress(IMAGE)), initrd=write(b"x", "initrd")) as boot:
        boot.place(FDT_SIZE)
    boot.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_refusing_closes_every_file(write):
    before = set(os.listdir("/proc/self/fd"))
    refusal(kernel=write(b"no kernel"), initrd=write(b"x", "initrd"))
    assert set(os.listdir("/proc/self/fd")) == before


# What does not: files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "other"), [("kernel", {}), ("initrd", {"kernel": IMAGE}), ("firmware", {})]
)
def test_missing_file_is_refused_by_name(write, tmp_path, option, other):
    files = {name: write(data) for name, data in other.items()}
    path = str(tmp_path / "nowhere")
    assert refusal(**files, **{option: path}) == f"The {option} {path} does not exist; check the path."


def test_empty_file_is_refused(write):
    assert "is empty" in refusal(kernel=write(b""))


def test_directory_is_refused(tmp_path):
    assert "is a directory; name the kernel file in it." in refusal(kernel=str(tmp_path))


def test_fifo_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refusal(kernel=str(tmp_path / "fifo"))


def test_unreadable_file_is_refused(write, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = write(IMAGE)
    monkeypatch.setattr(os, "open", refuse)
    assert "may not be read by this user" in refusal(kernel=path)


def test_path_with_a_nul_character_is_refused():
    assert "cannot be opened" in refusal(kernel="a\0b")


def test_file_that_cannot_be_read_is_a_host_error(write, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    path = write(IMAGE)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(HostError, match=f"The kernel {path} cannot be read: Input/output error"):
        Boot(RAM_BASE, RAM_SIZE, kernel=path)


def test_file_that_shrinks_while_it_is_read_is_refused(memory, write, tmp_path):
    path = write(IMAGE)
    with Boot(RAM_BASE, RAM_SIZE, kernel=path) as boot:
        placement = boot.place(FDT_SIZE)
        os.truncate(path, 100)
        with pytest.raises(ConfigError, match="became shorter while it was being read"):
            boot.load(memory, placement)


def test_program_that_was_begun_is_there_when_the_boot_is_closed(memory, write):
    with Boot(RAM_BASE, RAM_SIZE, kernel=write(IMAGE)) as boot:
        boot.begin(memory)
    assert memory.read(boot.entry, len(IMAGE)) == IMAGE


def test_failure_of_a_load_that_was_begun_is_raised_by_the_one_who_waits(memory, write):
    path = write(IMAGE)
    with Boot(RAM_BASE, RAM_SIZE, kernel=path) as boot:
        os.truncate(path, 100)
        boot.begin(memory)
        with pytest.raises(ConfigError, match="became shorter while it was being read"):
            boot.load(memory, boot.place(FDT_SIZE))


# What does not: combinations and memory ----------------------------------------------------------------


def test_nothing_to_boot_is_refused():
    assert "name a kernel with --kernel" in refusal()


def test_kernel_with_firmware_is_refused(write):
    path = write(IMAGE)
    assert "leave out --firmware" in refusal(kernel=path, firmware=path)


def test_initrd_with_firmware_is_refused(write):
    path = write(BODY)
    assert "initrd goes with a kernel" in refusal(firmware=path, initrd=path)


def test_initrd_larger_than_ram_is_refused_with_the_memory_needed(write, tmp_path):
    path = tmp_path / "initrd"
    path.touch()
    os.truncate(path, 100 * MIB)
    needed = pytest.raises(ConfigError, match=r"need 107 MiB of memory, and the guest has 64; .* --mem 107M")
    with Boot(RAM_BASE, RAM_SIZE, kernel=write(IMAGE), initrd=str(path)) as boot, needed:
        boot.place(FDT_SIZE)


def test_kernel_larger_than_ram_is_refused_with_the_memory_needed(write):
    kernel = write(kernels.image(BODY, image_size=100 * MIB))
    needed = pytest.raises(ConfigError, match="need 103 MiB")
    with Boot(RAM_BASE, RAM_SIZE, kernel=kernel) as boot, needed:
        boot.place(FDT_SIZE)


# What does not: contents -------------------------------------------------------------------------------


def x86_image():
    return b"MZ".ljust(0x202, b"\0") + b"HdrS".ljust(0x200, b"\0")


def pe_for(machine):
    return kernels.zboot(gzip.compress(IMAGE), pe_machine=machine)


@pytest.mark.parametrize(
    ("data", "architecture"),
    [
        (kernels.elf([(0, 0, b"x", 1)], 0, machine=62), "x86-64"),
        (kernels.elf([(0, 0, b"x", 1)], 0, machine=183), "arm64"),
        (kernels.elf([(0, 0, b"x", 1)], 0, machine=9999), r"another architecture (ELF machine 9999)"),
        (kernels.elf([(0, 0, b"x", 1)], 0, elf_class=1), "32-bit RISC-V"),
        (x86_image(), "x86"),
        (b"MZ".ljust(0x38, b"\0") + b"ARM\x64".ljust(64, b"\0"), "arm64"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(64), "32-bit Arm"),
        (gzip.compress(b"MZ".ljust(0x38, b"\0") + b"ARM\x64".ljust(64, b"\0")), "arm64"),
        (pe_for(0xAA64), "arm64"),
        (pe_for(0x8664), "x86-64"),
        (pe_for(0x6264), "LoongArch"),
    ],
)
def test_kernel_for_another_architecture_is_refused_by_its_name(write, data, architecture):
    assert refusal(kernel=write(data)).endswith(f"is built for {architecture}; give one for 64-bit RISC-V.")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"#!/bin/sh\n", "is no RISC-V kernel"),
        (b"MZ", "is no RISC-V kernel"),
        (IMAGE[:60], "is no RISC-V kernel"),
        (b"\x27\x05\x19\x56" + BODY, "is a U-Boot uImage"),
        (b"\xd0\x0d\xfe\xed" + BODY, "is a device tree or a FIT image"),
        (b"070701" + BODY, "an initramfs goes with --initrd"),
        (gzip.compress(b"070701" + BODY), "an initramfs goes with --initrd"),
        (gzip.compress(BODY), "its gzip stream is neither Image nor ELF"),
        (kernels.image(BODY, flags=1), "is a big-endian kernel"),
        (kernels.image(BODY, version=1 << 16), "has an Image header of version 1.0"),
        (kernels.image(BODY, image_size=0), "has a damaged header"),
        (kernels.image(BODY, text_offset=0x1000), "0x1000, which is not a multiple of 2 MiB"),
        (kernels.image(BODY, pe_sections=[(0x1000, 0x1000), (0x2000, 1 << 20)]), "is truncated: its header"),
        (kernels.zboot(b"", size=100), "is truncated: its EFI zboot header"),
        (kernels.zboot(BODY, b"brotli"), "is compressed with 'brotli', which pyvmm does not know"),
        (b"\x7fELF\x02\x01\x01", "is truncated: it ends within its ELF header"),
        (kernels.elf([(0, 0, b"x", 1)], 0, kind=1), "is an ELF file but not an executable"),
        (kernels.elf([], 0), "has no usable program headers"),
        (kernels.elf([(1 << 63, 0, b"", 0)], 1 << 63), "has no PT_LOAD segment"),
        (kernels.elf([(1 << 63, 0, b"abcd", 4)], 1 << 63)[:-1], "is truncated: an ELF segment reaches"),
        (kernels.elf([(1 << 63, 0, b"abcd", 4)], 1 << 63)[:100], "its ELF program headers are missing"),
        (kernels.elf([(1 << 63, 0, b"abcd", 3)], 1 << 63), "sizes contradict each other"),
        (kernels.elf([(1 << 63, (1 << 64) - 1, b"abcd", 4)], 1 << 63), "sizes contradict each other"),
        (kernels.elf([(1 << 63, 0, b"abcd", 4)], 12), "its ELF entry point is in none of its segments"),
        (kernels.elf([(0x4000_0000, 0x4000_0000, b"a", 1)], 0x4000_0000), "is linked for address 0x40000000"),
    ],
)
def test_kernel_that_cannot_boot_is_refused_with_the_reason(write, data, reason):
    path = write(data)
    message = refusal(kernel=path)
    assert message.startswith(f"The kernel {path} ")
    assert reason in message


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, lzma_alone])
def test_truncated_stream_is_refused(memory, write, compress):
    packed = compress(kernels.image(NOISE))
    message = loading_refusal(memory, kernel=write(packed[:-20]))
    assert "is truncated: its " in message
    assert "stream ends too early" in message


def test_stream_cut_within_its_first_bytes_is_refused(write):
    assert "is truncated: its gzip stream ends too early." in refusal(kernel=write(gzip.compress(IMAGE)[:15]))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_corrupt_stream_is_refused(memory, write, compress):
    packed = bytearray(compress(kernels.image(NOISE)))
    packed[len(packed) // 2] ^= 0xFF
    assert "stream cannot be decompressed" in loading_refusal(memory, kernel=write(packed))


def test_corrupt_start_of_a_stream_is_refused(write):
    assert "is damaged: its gzip stream cannot be decompressed" in refusal(kernel=write(b"\x1f\x8b" + BODY))


def test_compressed_image_shorter_than_its_pe_header_says_is_refused(memory, write):
    data = kernels.image(BODY, pe_sections=[(0x1000, 1 << 20)])
    assert "is truncated: its header announces" in loading_refusal(memory, kernel=write(gzip.compress(data)))


def test_decompression_bomb_stops_at_the_size_in_the_header(memory, write):
    bomb = gzip.compress(kernels.image(bytes(32 * MIB), image_size=2 * MIB))
    message = loading_refusal(memory, kernel=write(bomb))
    assert "holds more than 2 MiB" in message
    assert memory.read(RAM_BASE + 4 * MIB, MIB) == bytes(MIB)


def test_compressed_elf_stops_at_the_size_of_ram(write):
    bomb = gzip.compress(kernels.elf([(1 << 63, 0, bytes(RAM_SIZE), RAM_SIZE)], 1 << 63))
    assert "holds more than 64 MiB" in refusal(kernel=write(bomb))


@pytest.mark.parametrize(
    ("magic", "name", "program"),
    [(b"\x02\x21\x4c\x18", "lz4", "lz4"), (b"\x89LZO\x00\r\n\x1a\n", "lzo", "lzop")],
)
def test_compression_without_its_program_says_what_to_install(write, monkeypatch, magic, name, program):
    monkeypatch.setenv("PATH", "/nonexistent")
    message = refusal(kernel=write(magic + BODY))
    assert f"is compressed with {name}, which this Python cannot decompress" in message
    assert f"install the program {program}, or decompress the file first." in message


def test_program_that_fails_is_reported_with_its_words(write, tmp_path, monkeypatch):
    program = tmp_path / "lz4"
    program.write_text("#!/bin/sh\necho first >&2\necho 'bad block' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    message = refusal(kernel=write(b"\x02\x21\x4c\x18" + BODY))
    assert message.endswith("its lz4 stream cannot be decompressed (bad block).")


def test_program_that_never_ends_is_stopped_at_the_size_in_the_header(memory, write, tmp_path, monkeypatch):
    (tmp_path / "head").write_bytes(kernels.image(BODY, image_size=2 * MIB))
    program = tmp_path / "lz4"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/head\nexec cat /dev/zero\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "holds more than 2 MiB" in loading_refusal(memory, kernel=write(b"\x02\x21\x4c\x18" + BODY))
