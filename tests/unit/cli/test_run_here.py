# SPDX-License-Identifier: Apache-2.0
"""``pyvmm run`` on this host, as a process: exit codes, signals, the terminal, descriptors."""

import os
import pty
import signal
import sys
import termios

import pytest
from fakes.kernel import FakeKernel
from fakes.threads import PATIENCE, read

from pyvmm import cli, machine, terminal
from pyvmm.kvm import uapi

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def lines(err):
    """What pyvmm said, without the machine's summary."""
    return [line for line in err.splitlines() if ", irqchip " not in line]


# How it ends


@pytest.mark.parametrize(
    ("guest", "words", "code", "said"),
    [
        ("hello", [], 0, "pyvmm: the guest powered off"),
        ("reboot", ["--on-reboot=exit"], 0, "pyvmm: the guest asked for a reboot"),
        ("panic", [], 255, "pyvmm: the guest panicked: Kernel panic - not syncing: x"),
        ("idle", ["--timeout=50ms"], 124, "pyvmm: the guest did not end within 0.05 s"),
        ("misaligned", [], 254, "pyvmm: the guest cannot go on at pc 0x80200000 on CPU 0: "),
        ("no-memory", [], 125, "pyvmm: KVM_RUN failed: Cannot allocate memory (ENOMEM)"),
        ("no-interrupts", [], 125, "pyvmm: KVM_IRQ_LINE failed: Input/output error (EIO)"),
    ],
)  # fmt: skip
def test_end_is_said_and_has_its_exit_code(pyvmm, guest, words, code, said):
    got, _, err = pyvmm(guest, *words).end()
    assert got == code
    assert lines(err)[-1].startswith(said)


def test_registers_are_shown_when_the_guest_cannot_go_on(pyvmm):
    _, _, err = pyvmm("misaligned").end()
    assert "CPU 0:\n" in err
    assert "sepc" in err


def test_output_is_the_guests_and_the_words_are_pyvmms(pyvmm, image):
    code, out, err = pyvmm("hello").end()
    assert (code, out) == (0, b"hello\n")
    assert err == f"pyvmm: vm1: {image}, 16M, 1 CPU, irqchip aia\npyvmm: the guest powered off\n"


def test_quiet_says_nothing_of_a_good_end(pyvmm):
    assert pyvmm("hello", "--quiet").end() == (0, b"hello\n", "")


def test_quiet_says_why_a_run_failed(pyvmm):
    assert pyvmm("idle", "--quiet", "--timeout=50ms").end()[::2] == (
        124,
        "pyvmm: the guest did not end within 0.05 s\n",
    )


def test_verbose_says_what_was_chosen(pyvmm):
    assert "pyvmm: interrupt controller: aia\n" in pyvmm("hello", "--verbose").end()[2]


def test_reader_that_goes_away_is_code_141(pyvmm):
    it = pyvmm("idle")
    it.wait_for(b"ready\n")
    it.process.stdout.close()
    it.process.stdout = None
    assert it.end()[0] == 141


@pytest.fixture
def here(monkeypatch, image):
    """Runs the command in this process; for machines that do not get as far as running."""

    def run(kernel, *words):
        class Faked(machine.Machine):
            def __init__(self, *args, **options):
                super().__init__(*args, kernel=kernel, **options)

        monkeypatch.setattr(machine, "Machine", Faked)
        return cli.main(["run", "--host=local", "--mem=16M", "--console=serial", f"--kernel={image}", *words])

    return run


def test_interrupt_while_the_kernel_is_loaded_is_code_130(here, capfd, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "preadv", interrupt)
    kernel = FakeKernel()
    before = os.listdir("/proc/self/fd")
    assert here(kernel) == 130
    assert capfd.readouterr().err == "pyvmm: interrupted\n"
    assert kernel.open_fds == []
    assert os.listdir("/proc/self/fd") == before


def test_read_error_while_the_kernel_is_loaded_is_said(here, capfd, monkeypatch, image):
    def refuse(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", refuse)
    assert here(FakeKernel()) == 125
    assert capfd.readouterr().err.startswith(f"pyvmm: The kernel {image} cannot be loaded: ")


@pytest.mark.parametrize(
    ("options", "words", "code", "sentence"),
    [
        ({"open_error": 2}, [], 126, "pyvmm: "),
        ({"machine": "x86_64"}, [], 126, "pyvmm: "),
        ({"capabilities": {uapi.KVM_CAP_IRQCHIP: 0}}, ["--irqchip=aia"], 125, "pyvmm: This host's KVM"),
    ],
)  # fmt: skip
def test_host_that_cannot_is_one_sentence(here, capfd, options, words, code, sentence):
    assert here(FakeKernel(**options), *words) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(sentence)
    assert err.count("\n") == 1


# Signals


@pytest.mark.parametrize("number", ENDING)
def test_signal_ends_the_run_with_128_and_its_number(pyvmm, number):
    it = pyvmm("idle")
    it.wait_for(b"ready\n")
    it.send(number)
    code, _, err = it.end()
    assert code == 128 + number
    assert err.endswith(f"pyvmm: ended by {signal.Signals(number).name}\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signal_stays_ignored(pyvmm, number):
    """Of two signals the lower number is handled first, should both be."""
    it = pyvmm("idle", env={"IGNORED": str(int(number))})
    it.wait_for(b"ready\n")
    it.send(number)
    it.send(signal.SIGTERM)
    assert it.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", ENDING)
def test_second_signal_kills_when_stopping_takes_for_ever(pyvmm, number):
    reader, writer = os.pipe()
    it = pyvmm("stuck", env={"CLOSING_FD": str(writer)}, pass_fds=[writer])
    os.close(writer)
    it.wait_for(b"ready\n")
    it.send(number)
    assert read(reader, 1) == b"c"
    os.close(reader)
    it.send(number)
    assert it.end()[0] == -number


def test_signal_ends_a_run_whose_output_nobody_reads(pyvmm):
    it = pyvmm("flood")
    it.wait_for(b"\0")
    it.send(signal.SIGTERM)
    assert it.process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_signals_in_the_middle_of_end_and_wait_neither_deadlock_nor_get_lost(command):
    assert command(sys.executable, "-m", "fakes.interrupted", "300").end() == (0, b"no deadlock\n", "")


# The terminal


class Terminal:
    """A terminal with ``pyvmm run`` on it; ``output`` is what it showed so far."""

    def __init__(self, start, *words):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.output = b""
        self.it = start(*words, stdin=self.slave, stdout=self.slave)

    def wait_for(self, text):
        while text not in self.output:
            self.output += read(self.master, 1000)

    def type(self, keys):
        os.write(self.master, keys)

    def end(self):
        """(exit code, what it said); the terminal is as it was before."""
        code, _, err = self.it.end()
        assert termios.tcgetattr(self.slave) == self.before
        return code, err

    def close(self):
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def tty(pyvmm):
    made = []

    def start(*words):
        made.append(Terminal(pyvmm, *words))
        return made[-1]

    yield start
    for it in made:
        it.close()


def test_terminal_is_raw_and_the_help_key_is_told_of(tty):
    it = tty("echo")
    it.wait_for(b"ready\n")
    assert not termios.tcgetattr(it.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    it.type(b"q")
    code, err = it.end()
    assert code == 0
    assert "(Ctrl-A ? for help)\n" in err


def test_ctrl_a_x_ends_the_run_with_code_0(tty):
    it = tty("idle")
    it.wait_for(b"ready\n")
    it.type(b"\x01x")
    code, err = it.end()
    assert code == 0
    assert err.endswith("pyvmm: ended by Ctrl-A x\n")


def test_ctrl_a_question_mark_shows_the_help(tty):
    it = tty("echo")
    it.wait_for(b"ready\n")
    it.type(b"\x01?q")
    assert terminal.HELP_TEXT in it.end()[1]


def test_ctrl_a_t_starts_the_trace(tty):
    it = tty("echo")
    it.wait_for(b"ready\n")
    it.type(b"k")
    it.wait_for(b"k")
    it.type(b"\x01tzq")
    _, err = it.end()
    assert "uart.RBR read 1 0x7a" in err
    assert "uart.THR write 1 0x7a" in err
    assert "0x6b" not in err


def test_ctrl_a_b_is_a_break_among_the_keys(tty):
    it = tty("echo")
    it.wait_for(b"ready\n")
    it.type(b"a\x01bcq")
    assert it.end()[0] == 0
    it.wait_for(b"a\0c")


def test_ctrl_a_a_is_ctrl_a(tty):
    it = tty("echo")
    it.wait_for(b"ready\n")
    it.type(b"\x01aq")
    assert it.end()[0] == 0
    it.wait_for(b"\x01")


@pytest.mark.parametrize(("guest", "code"), [("no-interrupts", 125), ("misaligned", 254), ("panic", 255)])
def test_terminal_is_restored_whatever_the_end(tty, guest, code):
    assert tty(guest).end()[0] == code


def test_terminal_is_restored_after_a_signal(tty):
    it = tty("idle")
    it.wait_for(b"ready\n")
    it.it.send(signal.SIGTERM)
    assert it.end()[0] == 143


# Descriptors


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_standard_descriptors_may_be_closed(command, image, tmp_path, closed):
    """Else the log, or the kernel, would become the descriptor that output or messages go to."""
    words = [
        "run",
        "--host=local",
        "--mem=16M",
        "--console=serial",
        f"--kernel={image}",
        f"--log={tmp_path / 'log'}",
    ]
    python = [sys.executable, "-m", "fakes.command", "hello", *words]
    code, out, _ = command("sh", "-c", f'exec "$@" {closed}', "sh", *python).end()
    assert code == 0
    assert (tmp_path / "log").read_bytes() == b"hello\n"
    assert out == (b"" if ">&-" in closed.split() else b"hello\n")


def test_dump_of_the_tree_that_cannot_be_written_is_one_sentence(pyvmm):
    assert pyvmm("hello", "--dump-dtb=/dev/full").end() == (
        125,
        b"",
        "pyvmm: The device tree cannot be written to /dev/full: No space left on device.\n",
    )


def test_trace_that_cannot_be_opened_is_one_sentence(pyvmm):
    code, out, err = pyvmm("hello", "--trace=mmio", "--trace-out=/nonexistent/trace").end()
    assert (code, out) == (125, b"")
    sentence = "The trace cannot be written to /nonexistent/trace: there is no folder /nonexistent; make it"
    assert err == f"pyvmm: {sentence}, or name another one.\n"


# Without a kernel


@pytest.fixture
def debian(monkeypatch):
    """Debian's guest by name only; what is run in its place is noted."""
    ran = []
    monkeypatch.setattr("pyvmm.lab.guests.kernel", lambda progress: "/Image")
    monkeypatch.setattr(
        "pyvmm.lab.guests.initrd", lambda full, progress: "/large.cpio" if full else "/small.cpio"
    )
    monkeypatch.setattr("pyvmm.cli.run._run_here", lambda config, *_, **__: ran.append(config) or 0)
    return lambda *words: (cli.main(["run", "--host=local", *words]), ran[-1])[1]


def test_debians_guest_is_the_small_one_unless_devices_need_drivers(debian):
    config = debian("--port=log,file=/tmp/log")
    assert (config.initrd, config.params, config.mem) == ("/small.cpio", "", 256 << 20)
    config = debian("--rng", "--params=quiet")
    assert (config.initrd, config.params, config.mem) == ("/large.cpio", "drivers=all quiet", 512 << 20)
    assert debian("--device=rng", "--mem=1G").mem == 1 << 30
    config = debian("--rng", "--initrd=/mine")
    assert (config.initrd, config.params) == ("/mine", "")
