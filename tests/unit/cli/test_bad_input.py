# SPDX-License-Identifier: Apache-2.0
"""Every mistake a user can make is one sentence on stderr, the right exit code, and nothing left behind."""

import gzip
import os
import struct
from types import SimpleNamespace

import pytest

from pyvmm import cli, preview
from pyvmm.config import MachineConfig

ELF_X86 = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 2, 62, 1, 0, 0, 0) + bytes(16)


def image(size=0x1000, memory=0x1000, magic=0x05435352):
    header = struct.pack("<IIQQQIIQQII", 0, 0, 0x20_0000, memory, 0, 2, 0, 0, 0, magic, 0)
    return header.ljust(size, b"\0")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "good": image(),
        "empty": b"",
        "text": b"not a kernel at all\n" * 10,
        "x86": ELF_X86,
        "truncated.gz": gzip.compress(os.urandom(1 << 16))[:1000],
        "large": image(memory=64 << 20),
        "initrd": bytes(24 << 20),
        "odd.img": bytes(1000),
        "ok.img": bytes(1024),
        "cow.img": (b"QFI\xfb" + bytes(3)).ljust(65536, b"\0"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "directory").mkdir()
    return tmp_path


def outcome(capfd, *words):
    code = cli.main(list(words))
    out, err = capfd.readouterr()
    assert out == ""
    return code, err


@pytest.fixture(autouse=True)
def no_lab(monkeypatch):
    """Whatever is wrong is found before a lab host is started for it."""
    monkeypatch.setattr("pyvmm.lab.host.Lab", None)


def twice(*disks):
    return [word for disk in disks for word in ("-d", disk)]


RUN = ["run", "--host=lab"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing"], "The kernel missing does not exist; check the path."),
        (["directory"], "The kernel directory is a directory; name the kernel file in it."),
        (["empty"], "The kernel empty is empty; was it copied completely?"),
        (["text"], "The kernel text is no RISC-V kernel"),
        (["x86"], "The kernel x86 is built for x86-64; give one for 64-bit RISC-V."),
        (["truncated.gz"], "The kernel truncated.gz"),
        (["good", "-i", "missing"], "The initrd missing does not exist"),
        (["good", "-m", "16M", "-i", "initrd"], "Kernel, initrd and device tree need"),
        (["large", "-m", "16M"], "Kernel, initrd and device tree need"),
        (["good", "-m", "1M"], "Kernel, initrd and device tree need"),
        (["good", "-m", "0"], "--mem takes a multiple of 4K above 0"),
        (["good", "-m", "-5"], "--mem takes a size"),
        (["good", "-m", "much"], "--mem takes a size"),
        (["good", "-c", "0"], "--cpus takes 1 to 128, not 0."),
        (["good", "-c", "129"], "--cpus takes 1 to 128, not 129."),
        (["good", "--isa", "host,+zbbb"], "KVM knows no ISA extension 'zbbb'. Did you mean zbb?"),
        (["good", "--isa", "host,+foo"], "KVM knows no ISA extension 'foo'. It knows a, c, d, f, h, i, m,"),
        (["good", "--disable-ssct"], "KVM knows no ISA extension 'ssct'. Did you mean sstc?"),
        (["good", "--cpu-type", "big"], "--cpu-type takes max, or min,EXT,..., not 'big'."),
        (["-kernel", "good"], "pyvmm run has no option -kernel. Did you mean --kernel?"),
        (["good", "--debug-mmio"], "--debug-mmio is spelled --trace mmio here."),
        (["good", "--kernal", "x"], "pyvmm run has no option --kernal. Did you mean --kernel?"),
        (["good", "-d", "disk.img,read-only"], "--disk disk.img,read-only has no setting 'read-only'. It ha"),
        (["good", "-d", "ok.img,direkt"], "--disk ok.img,direkt has no setting 'direkt'. Did you mean direc"),
        (["good", *twice("ok.img", "./ok.img")], "The disk image ./ok.img is given twice, with --disk ok.im"),
        (["good", *twice("ok.img", "ok.img,ro")], "The disk image ok.img is given twice, with --disk ok.img"),
        (["good", "--rng", "rate=1M"], "There is no file rate=1M; if that belongs to --rng, write --rng=rat"),
        (["good", "--rng=rate=0"], "--rng rate=0: a rate of 0 would give nothing; leave it out"),
        (["good", "--disk", "--verbose"], "--disk needs a value, and --verbose is an option; write --disk=-"),
        (["good", "--log", "no/log"], "The log cannot be written to no/log: there is no folder no; make it"),
        (["good", "--log", "directory"], "The log cannot be written to directory: it is a folder; name a fi"),
        (["good", "--log", "./good"], "./good would be written over, and the guest needs it; name another f"),
        (["good", "-d", "ok.img", "--log=ok.img"], "ok.img would be written over, and the guest needs it"),
        (["good", "--log=x", "--dump-dtb=./x"], "./x would be written by two at once; name another file"),
        (["good", "--log="], "--log needs the name of a file."),
        (["good", "--dump-dtb", "no/dtb"], "The device tree cannot be written to no/dtb: there is no folder"),
        (["good", "--trace=mmio", "--trace-out=no/x"], "The trace cannot be written to no/x: there is no fo"),
        (["good", "--port", "a,unix=no/x"], "--port a,unix=no/x: cannot listen at no/x: there is no folder"),
        (["good", "--port", "a,file=no/x"], "--port a,file=no/x: cannot append to no/x: there is no folder"),
        (["good", "--port", "a,unix=good"], "--port a,unix=good: good exists and is not a socket: remove it"),
        (["good", "--port", "a,file=x", "--port", "b,file=x"], "x would be written by two at once"),
        (["good", "--port", "a,unix=x", "--port", "b,unix=x"], "--port a,unix=x and --port b,unix=x have th"),
        (["good", "-n", "user,tap=x"], "--network user,tap=x: tap= is for mode=tap; leave out one of"),
        (["good", "-n", "tap=a b"], "--network tap=a b: tap takes the name of a network interface"),
        (["good", "-n", "tap,publish=22:22"], "--network tap,publish=22:22: publish= is for mode=user"),
        (["good", "-n", "tap=t", "-n", "tap=t"], "--network tap=t and --network tap=t have the same tap 't'"),
        (["good", "--vsock", "5", "--vsock", "5"], "--vsock 5 and --vsock 5 have the same cid 5; give each"),
        (["good", "--device", "vsock"], "--device vsock needs cid=, the guest's address: a number from 3."),
        (["good", "--9p", "missing"], "--9p missing: missing does not exist; give the folder to share"),
        (["good", "--9p", ".," + "t" * 33], f"--9p .,{'t' * 33}: tag takes a name of at most 32 bytes, not"),
        (["good", "--share", ".," + "t" * 37], f"--share .,{'t' * 37}: tag takes a name of at most 36 bytes"),
        (["good", "--timeout=-3"], "--timeout takes a duration such as 500ms, 30s or 5m, not '-3'."),
        (["good", "-d", "a,id=x", "-d", "b,id=x"], "--disk a,id=x and --disk b,id=x have the same id 'x'"),
        (["good", "-d", "directory"], "--disk directory: directory is a directory"),
        (["good", "-d", "odd.img"], "--disk odd.img: odd.img is 1000 bytes long, not whole sectors of 512"),
        (["good", "-d", "cow.img"], "--disk cow.img: cow.img is a qcow2 image"),
        (["good", "-d", "good,ro,rw"], "--disk good,ro,rw is either ro or rw; leave"),
        (["good", "--9p", "good"], "--9p good: good is"),
        (["good", "--9p", ".,a", "--share", ".,a"], "--9p .,a and --share .,a have the same tag"),
        (["good", "--share", "missing"], "--share missing: missing does not exist; give the folder to"),
        (["good", "--share", "good"], "--share good: good is not a folder; give the folder to share."),
        (["good", "--network", "bridge"], "--network bridge: mode takes one of"),
        (["good", "-n", "user,mac=01:00:00:00:00:00"], "--network user,mac=01:00:00:00:00:00: mac takes"),
        (["good", "--device", "sound"], "There is no device 'sound'. There are 9p, balloon, blk"),
        (["good", "--device", "rnd"], "There is no device 'rnd'. Did you mean rng?"),
        (["good", "--vsock", "2"], "--vsock 2: cid takes a whole number"),
        (["good", "--virtio-transport", "isa"], "--virtio-transport takes one of pci, mmio"),
        (["good", "--console", "serail"], "--console takes one of auto, virtio, serial, sbi, none"),
        (["good", "--timeout", "soon"], "--timeout takes a duration"),
        (
            ["-f", "missing", "good"],
            "Firmware loads its own kernel, from a disk: leave out --firmware missing, or the kernel good.",
        ),
        (["-f", "missing"], "The firmware missing does not exist"),
        (["good", "good"], "KERNEL was given twice"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_with_code_125(folder, capfd, words, sentence):
    code, said = outcome(capfd, *RUN, *words)
    assert code == 125
    assert said.startswith(f"pyvmm: {sentence}")
    assert said.endswith((".\n", "?\n", "truncate -s %512 odd.img\n"))
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("disk", "sentence"),
    [
        ("missing.img", "missing.img does not exist; an empty disk is made with: truncate -s 8G missing.img"),
        ("empty", "empty is empty; give it a size with: truncate -s 8G empty"),
    ],
)
def test_disk_that_is_no_image_says_how_to_make_one(folder, capfd, disk, sentence):
    assert outcome(capfd, *RUN, "good", "-d", disk) == (125, f"pyvmm: --disk {disk}: {sentence}\n")


def test_two_disks_share_an_image_that_both_only_read(folder):
    config = MachineConfig(kernel="good", mem="16M", disks=["ok.img,ro", "./ok.img,ro"])
    preview.check(config)


def test_what_is_printed_may_go_to_one_terminal(folder):
    preview.check(MachineConfig(kernel="good", mem="16M", log="/dev/null", dump_dtb="/dev/null"))


@pytest.mark.parametrize("words", [["run", "-m", "much"], ["exec", "-m", "much", "--", "x"]])
def test_mistake_is_found_before_a_kernel_is_fetched(monkeypatch, capfd, words):
    monkeypatch.setattr("pyvmm.lab.guests.kernel", None)
    code, said = outcome(capfd, *words)
    assert (code, said[:24]) == (125, "pyvmm: --mem takes a siz")


def test_unreadable_kernel_is_one_sentence(folder, capfd, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    flags = {name: getattr(os, name) for name in ("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK")}
    monkeypatch.setattr("pyvmm.loader.files.os", SimpleNamespace(open=refuse, **flags))
    code, said = outcome(capfd, *RUN, "good")
    assert (code, said) == (
        125,
        "pyvmm: The kernel good may not be read by this user; check its permissions.\n",
    )


def test_failed_run_leaves_an_earlier_log_trace_and_tree_alone(folder, capfd):
    for name in ("log", "trace", "tree"):
        (folder / name).write_text("precious")
    words = [*RUN, "missing", "--log=log", "--trace=mmio", "--trace-out=trace", "--dump-dtb=tree"]
    assert outcome(capfd, *words)[0] == 125
    assert {(folder / name).read_text() for name in ("log", "trace", "tree")} == {"precious"}


def test_host_that_is_not_riscv_is_said_with_code_126(folder, capfd):
    if os.uname().machine == "riscv64":
        pytest.skip("this host is RISC-V")
    code, said = outcome(capfd, "run", "--host=local", "good")
    assert code == 126
    assert said.startswith("pyvmm: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rum"], "there is no command 'rum'. Did you mean run? See pyvmm --help."),
        (["version", "x"], "pyvmm version takes no argument, but got 'x'. See pyvmm version --help."),
        (["lab", "strat"], "pyvmm lab has no command 'strat'. Did you mean start? See pyvmm lab --help."),
        (["lab", "exec", "ls"], "The command comes after --: pyvmm lab exec -- ls"),
        (
            ["dtb", "-o", "/no/x"],
            (
                "The device tree cannot be written to /no/x: "
                "there is no folder /no; make it, or name another one."
            ),
        ),
        (
            ["exec", "--rootfs=/no", "--", "x"],
            "--rootfs /no: /no does not exist; give the guest's root folder.",
        ),
    ],
)  # fmt: skip
def test_other_commands_say_it_in_one_sentence_too(capfd, words, sentence):
    assert outcome(capfd, *words) == (125, f"pyvmm: {sentence}\n")


def test_without_a_command_the_help_is_shown_with_code_125(capsys):
    assert cli.main([]) == 125
    assert capsys.readouterr().out.startswith("usage: pyvmm COMMAND")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(capsys, name):
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: pyvmm {name}")


def test_version_says_what_it_runs_on(capsys):
    assert cli.main(["version"]) == 0
    assert os.uname().machine in capsys.readouterr().out


def test_dtb_is_the_same_bytes_every_time(tmp_path):
    blobs = set()
    for number in range(2):
        path = tmp_path / str(number)
        assert cli.main(["dtb", "--cpus=3", "-o", str(path)]) == 0
        blobs.add(path.read_bytes())
    assert len(blobs) == 1
