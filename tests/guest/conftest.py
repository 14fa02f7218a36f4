# SPDX-License-Identifier: Apache-2.0
"""Hand-made guests on real RISC-V KVM, and Debian's under `pyvmm run`."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from booted import PATIENCE, PYVMM, BootedGuest
from handmade import TIMEOUT, Guest

from pyvmm.kvm import uapi
from pyvmm.kvm.system import Kvm

#: Begun first, so that what runs files side by side ends with short ones.
_LONGEST = ("test_p9.py", "test_boot.py", "test_blk.py", "test_exec.py", "test_pause.py", "test_balloon.py")


def pytest_collection_modifyitems(items):
    """Files that take long come first."""
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def make_guest(real_kvm):
    """Makes guests, and closes them. A guest that hangs is interrupted: run() then returns KVM_EXIT_INTR."""
    guests = []
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGUSR1, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT, 1)

    def make(**options):
        guests.append(Guest(**options))
        return guests[-1]

    yield make
    signal.setitimer(signal.ITIMER_REAL, 0)
    for guest in guests:
        guest.close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def guest(make_guest):
    """A guest with one vCPU."""
    return make_guest()


@pytest.fixture(scope="session")
def real_kvm():
    """Tests that boot something need it; there is no second choice."""
    if os.uname().machine != "riscv64":
        pytest.skip("needs real RISC-V KVM: run them with scripts/guest-tests")
    assert os.path.exists("/dev/kvm"), "this RISC-V host has no /dev/kvm"


@pytest.fixture(scope="session")
def has_aia(real_kvm):
    """Whether this host's KVM has an in-kernel AIA."""
    with Kvm() as kvm:
        return bool(kvm.check_extension(uapi.KVM_CAP_IRQCHIP))


@pytest.fixture
def boot(real_kvm):
    """Boots a guest: Debian's kernel of a series with a busybox shell, or firmware.

    ``full``: with modules for devices, and programs for file systems. ``programs``: with those of programs/.
    ``command``: what to run instead of `pyvmm run`.
    """
    from pyvmm.lab import guests

    booted = []

    def make(
        *,
        kernel="7",
        cpus=1,
        mem=None,
        params="quiet",
        firmware=None,
        options=(),
        shell=True,
        full=False,
        programs=False,
        command=None,
    ):
        mem = mem or ("512M" if full else "256M")
        files = guest_programs() if programs else None
        program = ["--firmware", firmware] if firmware else ["--kernel", str(guests.kernel(kernel))]
        if not firmware:
            program += [
                "--initrd",
                str(guests.initrd(kernel, full=full, programs=files)),
                f"--params={params}",
            ]
        guest = BootedGuest([*program, f"--cpus={cpus}", f"--mem={mem}", *options], command)
        booted.append(guest)
        if shell:
            guest.wait_for_shell()
        return guest

    yield make
    for guest in booted:
        guest.close()


def guest_programs():
    """The directory of what programs/ is compiled to."""
    from pyvmm.lab.programs import programs

    return programs(Path(__file__).parent / "programs")


@pytest.fixture
def uboot():
    """Debian's U-Boot for S mode."""
    from pyvmm.lab import guests

    return str(guests.uboot())


@pytest.fixture
def start_pyvmm(real_kvm):
    """Starts `pyvmm run` with pipes for its output; ended at the end of the test."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [*PYVMM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_pyvmm(start_pyvmm):
    """Runs `pyvmm run` to its end: a CompletedProcess with text."""

    def run(*arguments):
        process = start_pyvmm(*arguments)
        output, errors = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, output.decode(), errors.decode())

    return run


@pytest.fixture
def hugetlbfs(real_kvm, tmp_path):
    """A hugetlbfs mount with 64 pages of 2 MiB reserved."""
    if os.geteuid():
        pytest.skip("mounting hugetlbfs needs root")
    Path("/proc/sys/vm/compact_memory").write_text("1")
    pages = Path("/proc/sys/vm/nr_hugepages")
    before = pages.read_text()
    pages.write_text("72")
    assert int(pages.read_text()) >= 64, "this host cannot give 64 huge pages"
    subprocess.run(["mount", "-t", "hugetlbfs", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)
    pages.write_text(before)
