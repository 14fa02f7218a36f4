# SPDX-License-Identifier: Apache-2.0
"""virtio-balloon with Linux's driver: what the host holds of a guest, and what the guest says."""

import ctypes
import os
import queue

import pytest
from booted import PATIENCE

from pyvmm import outcome
from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome

MIB = 1 << 20
PAGE = 4096


class BalloonGuest:
    """A guest with 512 MiB in this process, with its shell and its balloon."""

    def __init__(self, machine, board, keys, screen):
        self.balloon = board.backplane.virtio["balloon0"].device
        self._machine = machine
        self._bank = board.memory.banks[0]
        self._keys, self._screen = keys, screen
        self._commands = 0

    def run(self, command):
        """Run a shell command; returns what it printed. Its status must be 0."""
        self._commands += 1
        os.write(self._keys, f"{command}; echo DONE''{self._commands}:$?\n".encode())
        seen = self.read_until(f"DONE{self._commands}:0\r\n".encode(), f"DONE{self._commands}:".encode())
        return seen.decode().rpartition(f"DONE''{self._commands}:$?\r\n")[2]

    def read_until(self, wanted, end=None):
        seen = b""
        while wanted not in seen:
            data = os.read(self._screen, 65536)
            assert data, seen
            seen += data
            if end is not None and end in seen and seen.endswith(b"\n"):
                assert wanted in seen, seen
        return seen[: seen.index(end or wanted)]

    def resident(self):
        """Bytes of the guest's memory that the host holds."""
        vector = (ctypes.c_ubyte * (self._bank.size // PAGE))()
        mincore = ctypes.CDLL(None).mincore
        mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        assert mincore(self._bank.host_address, self._bank.size, vector) == 0
        return sum(bytes(vector)) * PAGE

    def wait_until(self, condition):
        """Look again and again, each time after the guest has done something."""
        for _ in range(PATIENCE * 5):
            if condition():
                return
            self.run("sleep 0.2")
        raise AssertionError("it never came to that")

    def fill(self, size):
        """Have the guest use ``size`` MiB; returns their checksum."""
        self.run(f"dd if=/dev/urandom of=/mnt/fill bs=1M count={size} 2>/dev/null")
        return self.run("md5sum </mnt/fill")

    def free(self, name):
        """A line of /proc/meminfo, in bytes."""
        return int(self.run(f"awk '/^{name}:/ {{print $2}}' /proc/meminfo")) << 10


@pytest.fixture
def balloon_guest(real_kvm):
    """Boots a guest with these options; its driver is not loaded yet."""
    from pyvmm.lab import guests

    opened, machines = [], []

    def make(setting="", transport="pci", **options):
        opened.extend((*os.pipe(), *os.pipe()))
        input_fd, keys, screen, output_fd = opened[-4:]
        config = MachineConfig(
            kernel=str(guests.kernel()),
            initrd=str(guests.initrd(full=True)),
            params="quiet",
            mem="512M",
            balloon=[setting],
            virtio_transport=transport,
            **options,
        )
        machine = Machine(config, input_fd=input_fd, output_fd=output_fd)
        machines.append(machine)
        board = machine.prepare()
        machine.start()
        guest = BalloonGuest(machine, board, keys, screen)
        guest.read_until(b"~ # ")
        guest.run("modprobe virtio_mmio 2>/dev/null; mount -t tmpfs -o size=95% none /mnt")
        return guest

    yield make
    for machine in machines:
        machine.end(Outcome(outcome.QUIT, "the test is over"))
        machine.close()
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize(
    ("transport", "chip"),
    [("pci", "auto"), pytest.param("pci", "plic", marks=pytest.mark.long), ("mmio", "auto")],
)
def test_memory_falls_and_rises_by_what_is_asked(balloon_guest, transport, chip):
    guest = balloon_guest(transport=transport, irqchip=chip)
    balloon = guest.balloon
    guest.run("modprobe virtio_balloon")
    before = guest.free("MemTotal")
    kept = guest.fill(50)
    balloon.set_target(256 * MIB)
    guest.wait_until(lambda: balloon.actual == 256 * MIB)
    assert guest.resident() < (512 - 256 + 8) * MIB
    assert before - guest.free("MemTotal") == 256 * MIB
    assert balloon.discarded >= 256 * MIB
    assert guest.run("md5sum </mnt/fill") == kept
    balloon.set_target(0)
    guest.wait_until(lambda: balloon.actual == 0)
    assert guest.free("MemTotal") == before
    guest.fill(350)
    assert guest.resident() > 350 * MIB
    assert balloon.odd == 0


def test_first_target_is_met_when_the_driver_comes(balloon_guest):
    guest = balloon_guest("128M")
    assert guest.balloon.actual == 0
    guest.run("modprobe virtio_balloon")
    guest.wait_until(lambda: guest.balloon.actual == 128 * MIB)


@pytest.mark.long
def test_free_pages_are_reported_and_go_back_to_the_host(balloon_guest):
    guest = balloon_guest()
    guest.run("modprobe virtio_balloon")
    guest.fill(300)
    full = guest.resident()
    guest.run("rm /mnt/fill")
    guest.wait_until(lambda: guest.resident() < full - 200 * MIB)
    kept = guest.fill(300)
    assert guest.run("md5sum </mnt/fill") == kept


@pytest.mark.long
def test_statistics_are_the_guests_own(balloon_guest):
    guest = balloon_guest()
    guest.run("modprobe virtio_balloon")
    answers = queue.SimpleQueue()

    def ask():
        assert guest.balloon.request_stats(answers.put)
        return answers.get(timeout=PATIENCE)

    first = ask()
    assert first["total"] == guest.free("MemTotal")
    assert 0 < first["free"] < first["total"]
    guest.fill(100)
    second = ask()
    assert second["free"] < first["free"] - 50 * MIB
    assert abs(second["free"] - guest.free("MemFree")) < 16 * MIB


@pytest.mark.long
def test_guest_out_of_memory_takes_the_balloon_back_when_it_may(balloon_guest):
    guest = balloon_guest("320M,deflate-on-oom")
    guest.run("modprobe virtio_balloon")
    guest.wait_until(lambda: guest.balloon.actual == 320 * MIB)
    kept = guest.fill(250)
    assert guest.run("md5sum </mnt/fill") == kept
    assert guest.balloon.actual < 320 * MIB
