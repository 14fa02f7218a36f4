# SPDX-License-Identifier: Apache-2.0
"""`pyvmm exec` with real guests, and the agent under a Linux of its own."""

import gzip
import lzma
import os
import signal
import subprocess
import sys
import threading

import pytest
from booted import PATIENCE

from pyvmm.control.runfolder import find
from pyvmm.guest.client import Guest

EXEC = [sys.executable, "-m", "pyvmm", "exec", "--host=local"]
MIB = 1 << 20


@pytest.fixture
def start_exec(real_kvm):
    """Starts `pyvmm exec`; ended at the end of the test. Words up to ``--`` are options."""
    started = []

    def start(*words, stdin=subprocess.PIPE):
        process = subprocess.Popen(
            [*EXEC, *words], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_exec(start_exec):
    """Runs `pyvmm exec` to its end: (exit code, standard output, standard error)."""

    def run(*words, data=b""):
        process = start_exec(*words)
        out, err = process.communicate(data, timeout=2 * PATIENCE)
        return process.returncode, out, err.decode()

    return run


# Without anything but the command: Debian's kernel, and busybox


def test_outputs_and_status_are_the_commands(run_exec):
    code, out, err = run_exec("--", "sh", "-c", "uname -m; echo err >&2; cat; exit 7", data=b"in\0\xff")
    assert (code, out, err) == (7, b"riscv64\nin\0\xff", "err\n")


@pytest.mark.long
def test_megabyte_goes_through_unchanged(run_exec):
    data = os.urandom(MIB)
    assert run_exec("--", "cat", data=data) == (0, data, "")


@pytest.mark.long
def test_command_that_is_not_there_is_127(run_exec):
    assert run_exec("--", "nosuch", "x") == (127, b"", "pyvmm: nosuch was not found in the guest.\n")


def test_panic_during_the_command_is_255_and_shown(run_exec):
    code, out, err = run_exec("--", "sh", "-c", "echo before; sleep 1; echo c >/proc/sysrq-trigger")
    assert (code, out) == (255, b"before\n")
    assert "sysrq triggered crash" in err
    assert "pyvmm: the guest panicked: " in err.splitlines()[-1]


@pytest.mark.long
def test_power_off_during_the_command_is_125(run_exec):
    code, _, err = run_exec("--", "poweroff", "-f")
    assert code == 125
    assert err.splitlines()[-1] == "pyvmm: the guest powered off, and the command had not ended"


@pytest.mark.long
def test_time_limit_is_124(run_exec):
    code, out, _ = run_exec("--timeout=20s", "--", "sh", "-c", "echo up; sleep 1000")
    assert (code, out) == (124, b"up\n")


@pytest.mark.long
def test_interrupt_goes_to_the_command_first(start_exec):
    process = start_exec(
        "--", "sh", "-c", "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 1; done"
    )
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (9, b"caught\n")


# With devices


def test_devices_have_their_drivers_before_the_command(run_exec, tmp_path):
    (tmp_path / "file").write_text("of the host\n")
    script = "head -c 8 /dev/hwrng | wc -c; mount -t 9p src /mnt && cat /mnt/file; "
    script += "ip route | grep -c default; hostname; cat /proc/sys/kernel/sysrq /proc/1/comm"
    out = b"8\nof the host\n1\nguest\n1\npyvmm-init\n"
    devices = ["--rng", "-n", "user", f"--9p={tmp_path},src"]
    assert run_exec(*devices, "--", "sh", "-c", script) == (0, out, "")


def test_disk_without_a_file_system_is_told_and_125(run_exec, tmp_path):
    (tmp_path / "empty.img").write_bytes(bytes(MIB))
    code, out, err = run_exec(f"--disk={tmp_path}/empty.img", "--", "true")
    assert (code, out) == (125, b"")
    assert "init: /dev/vda has no ext4 file system to be the root" in err
    assert err.splitlines()[-1] == "pyvmm: the guest powered off, and the command had not ended"


@pytest.mark.long
def test_root_that_never_appears_is_told_and_125(run_exec):
    code, out, err = run_exec("--rng", "-p", "root=/dev/vda", "--", "true")
    assert (code, out) == (125, b"")
    assert "init: there is no /dev/vda to be the root" in err


# Whatever the guest starts from


def xz(data):
    return lzma.compress(data, preset=0, check=lzma.CHECK_CRC32)  # Linux knows no other


@pytest.mark.long
@pytest.mark.parametrize("compress", [gzip.compress, xz], ids=["gzip", "xz"])
@pytest.mark.parametrize("kernel", ["6.12", "7"])
def test_initramfs_of_the_users_is_used_however_it_is_compressed(run_exec, tmp_path, kernel, compress):
    from pyvmm.lab import guests

    initrd = tmp_path / "initrd"
    initrd.write_bytes(compress(guests.initrd(kernel).read_bytes()))
    machine = [f"--kernel={guests.kernel(kernel)}", f"--initrd={initrd}"]
    # Its own init is done: it gave the guest its name.
    words = ["cat", "/proc/sys/kernel/hostname", "/proc/1/comm"]
    assert run_exec(*machine, "--", *words) == (0, b"guest\ninit\n", "")


def test_first_command_waits_for_the_mounts_of_an_init_that_tells_nothing(run_exec, tmp_path):
    from pyvmm.lab import guests

    initrd = tmp_path / "initrd"
    initrd.write_bytes(guests.initrd().read_bytes().replace(b"pyvmm-setup\0", b"other-setup\0"))
    machine = [f"--kernel={guests.kernel()}", f"--initrd={initrd}"]
    script = "cat </dev/null && ls -d /sys/class && cat /proc/1/comm"
    assert run_exec(*machine, "--", "sh", "-c", script) == (0, b"/sys/class\ninit\n", "")


@pytest.fixture
def image(real_kvm):
    from pyvmm.lab import rootfs

    return rootfs.image()


SYSTEM = [
    "sh",
    "-c",
    ". /etc/os-release; echo $ID; cat /proc/1/comm; touch /made; stat -fc %T /tmp; findmnt -no FSTYPE /",
]


@pytest.mark.long
def test_disk_is_the_root_without_its_services(run_exec, image):
    code, out, err = run_exec(f"--disk={image},ro", "--", *SYSTEM)
    assert (code, out.split()) == (0, [b"debian", b"pyvmm-init", b"tmpfs", b"ext4"])
    assert "Read-only file system" in err


@pytest.mark.long
def test_folder_is_the_root_and_cannot_be_changed(run_exec, image, tmp_path):
    if os.geteuid():
        pytest.skip("mounting the image needs root")
    subprocess.run(["modprobe", "ext4"], check=False)  # where it is not built in
    subprocess.run(["mount", "-t", "ext4", "-o", "loop,ro", image, tmp_path], check=True)
    try:
        code, out, err = run_exec(f"--rootfs={tmp_path}", "--", *SYSTEM)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (code, out.split()) == (0, [b"debian", b"pyvmm-init", b"tmpfs", b"9p"])
    assert "Read-only file system" in err


@pytest.mark.long
def test_what_is_written_to_a_folder_is_there_afterwards(run_exec, start_exec, tmp_path):
    (tmp_path / "root").mkdir()
    from pyvmm.lab import guests

    fill = (
        "modprobe 9pnet_virtio; modprobe 9p; mount -t 9p -o trans=virtio share /mnt && cp -a /bin /mnt/ && "
    )
    fill += "cd /mnt && mkdir proc sys dev run tmp"
    machine = ["--mem=512M", f"--initrd={guests.initrd(full=True)}", f"--9p={tmp_path}/root,share,rw"]
    assert run_exec(*machine, "--", "sh", "-c", fill)[0] == 0
    assert run_exec(f"--rootfs={tmp_path}/root,rw", "--", "sh", "-c", "echo kept >/file")[0] == 0
    assert (tmp_path / "root/file").read_text() == "kept\n"


# The agent's socket, as the tests' fixtures use it


@pytest.fixture
def agent(boot):
    """A guest with the agent under `pyvmm run`: (console, client)."""
    console = boot(options=["--agent", "--name=agent-test"], shell=False)
    console.expect("agent-test: ")
    console.wait_for_shell()
    with Guest.connect(find("agent-test").path("agent.sock")) as guest:
        guest.wait_ready(PATIENCE)
        yield console, guest


def test_commands_and_files_do_not_mix_with_the_console_or_each_other(agent):
    console, guest = agent
    data = os.urandom(MIB)
    guest.put(data, "/tmp/data", mode=0o600)
    assert guest.get("/tmp/data") == data
    assert guest.run("stat -c %a /tmp/data").stdout == b"600\n"
    results = {}

    def one(number):
        results[number] = guest.run(f"sleep 1; echo {number}; echo e{number} >&2; exit {number}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    assert console.run("echo on the console").strip() == "on the console"
    for thread in threads:
        thread.join(PATIENCE)
    assert {number: (it.status, it.stdout, it.stderr) for number, it in results.items()} == {
        number: (number, b"%d\n" % number, b"e%d\n" % number) for number in range(1, 9)
    }


def test_next_client_is_served_and_the_last_ones_commands_are_gone(agent):
    console, guest = agent
    guest.start("echo $$ >/tmp/pid; sleep 1000")
    console.run("until [ -s /tmp/pid ]; do usleep 10000; done")
    guest.close()
    console.run("while [ -e /proc/$(cat /tmp/pid) ]; do usleep 10000; done")
    with Guest.connect(find("agent-test").path("agent.sock")) as other:
        assert other.run("echo again").stdout == b"again\n"
        other.power_off()
        assert console.end()[0] == 0


def test_rebooted_guest_has_an_agent_again(agent):
    console, _ = agent
    console.sendline("reboot -f")
    console.wait_for_shell()
    with Guest.connect(find("agent-test").path("agent.sock")) as other:
        assert other.run("echo again").stdout == b"again\n"
