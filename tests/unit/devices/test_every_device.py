# SPDX-License-Identifier: Apache-2.0
"""What holds for every device that declares its registers. A new device needs one line in ``FACTORIES``."""

from __future__ import annotations

import tracemalloc

import pytest
from fakes.clock import FakeClock
from fakes.lines import RecordingLine, RecordingMsiLines, RecordingSignal, RecordingSink
from fakes.loop import FakeLoop, FakeWorkers
from fakes.pci import Probe

from pyvmm.devices import device_types
from pyvmm.devices.aplic import Aplic
from pyvmm.devices.edu import Edu
from pyvmm.devices.pci.bar import Bar
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Header, Identity
from pyvmm.devices.pci.msi import Msi
from pyvmm.devices.pci.msix import Msix, MsixTable
from pyvmm.devices.plic import Plic
from pyvmm.devices.rtc import GoldfishRtc
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.memory import GuestMemory
from pyvmm.mmio.regs import RegArray


def make_edu():
    workers = FakeWorkers()
    workers.held = True
    return Edu(GuestMemory(), FakeLoop(), workers, RecordingMsiLines())


def make_function(capability=None):
    """A function whose registers are all zero at power-on."""
    function = PciFunction("zero", Identity(0, 0, 0), pin=0)
    for index in range(6):
        function.add_bar(Bar(index, 0x1000, Probe()))
    if capability is not None:
        function.add_capability(capability)
    return function


def make_capability(capability):
    make_function(capability)
    return capability


FACTORIES = {
    Aplic: lambda: Aplic(RecordingSignal(), sources=40, harts=3),
    Plic: lambda: Plic(RecordingSignal(), sources=40, harts=3),
    GoldfishRtc: lambda: GoldfishRtc(RecordingLine(), FakeClock(10**18)),
    Uart8250: lambda: Uart8250(RecordingLine(), RecordingSink()),
    Edu: make_edu,
    Header: lambda: make_function().header,
    Msi: lambda: make_capability(Msi(RecordingMsiLines())),
    Msix: lambda: make_capability(Msix(1, RecordingMsiLines(), bar=0)),
    MsixTable: lambda: MsixTable(70, RecordingMsiLines()),
}
SIZES = (1, 2, 4, 8)
PATTERNS = (0, (1 << 64) - 1, 0xAAAA_AAAA_AAAA_AAAA, 0x5555_5555_5555_5555)


@pytest.fixture(params=FACTORIES, ids=lambda kind: kind.NAME)
def kind(request):
    return request.param


def make(kind):
    return FACTORIES[kind]()


def elements(device, register):
    count = device._counts.get(register.name, register.count)
    return sorted({0, min(1, count - 1), count - 1})


def offsets(device):
    """Every offset near a register, and the ends of the device."""
    found = {0, device.SIZE - 1}
    for register in device.registers():
        for index in elements(device, register):
            start = register.offset + index * register.stride
            found.update(range(max(start - 9, 0), min(start + register.size + 9, device.SIZE)))
    return sorted(found)


def readable_mask(kind, offset):
    """Bits that a register readable at ``offset`` implements; 0 where there is none."""
    masks = [
        register.mask for register in kind.registers() if "r" in register.access and reaches(register, offset)
    ]
    return max(masks, default=0)


def reaches(register, offset):
    return register.locate(offset, register.size) is not None


def test_every_device_type_is_covered():
    assert set(FACTORIES) == set(device_types())


def test_reset_values_read_back(kind):
    device = make(kind)
    checked = 0
    for register in device.registers():
        if register.stored and "r" in register.access and register.on_read is None and register.when is None:
            for index in elements(device, register):
                offset = register.offset + index * register.stride
                assert device.read(offset, register.size) == register.reset
                checked += 1
    assert checked


def test_reserved_bits_stick_at_zero(kind):
    shape = make(kind)
    for register in shape.registers():
        for index in elements(shape, register):
            device = make(kind)
            offset = register.offset + index * register.stride
            device.write(offset, register.size, (1 << register.width) - 1)
            readable = readable_mask(kind, offset)
            assert not readable or device.read(offset, register.size) & ~readable == 0


def test_every_access_returns_a_value_of_its_size(kind):
    device = make(kind)
    for value in PATTERNS:
        for offset in offsets(device):
            for size in SIZES:
                device.write(offset, size, value & (1 << 8 * size) - 1)
                assert 0 <= device.read(offset, size) < 1 << 8 * size
    assert device.odd > 0


def test_no_value_makes_a_device_allocate_much(kind):
    """A number from the guest must not become a bit before it was checked: 1 << 0xFFFF_FFFF is half a GiB."""
    device = make(kind)
    for offset in offsets(device):
        device.write(offset, 4, 0xFFFF_FFFF)  # everything enabled, and the accesses compiled
    tracemalloc.start()
    try:
        for offset in offsets(device):
            device.write(offset, 4, 0xFFFF_FFFF)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_every_access_can_be_decoded(kind):
    device = make(kind)
    for offset in offsets(device):
        for size in SIZES:
            for is_write in (False, True):
                name, fields = device.decode(offset, size, is_write, (1 << 8 * size) - 1)
                assert name
                assert isinstance(fields, str)


def test_lock_is_free_after_every_access(kind):
    device = make(kind)
    for offset in offsets(device):
        with device.lock:
            device.write(offset, 4, 0xFFFF_FFFF)
            device.read(offset, 4)
    assert not device.lock.locked()


def test_state_round_trips_after_every_register_was_written(kind):
    device = make(kind)
    for offset in offsets(device):
        device.write(offset, 4, 0x1234_5677)
        device.write(offset, 1, 0x77)
    saved = device.state()
    other = make(kind)
    other.load_state(saved)
    assert other.state() == saved
    for register in device.registers():
        if register.stored and isinstance(register, RegArray):
            assert saved[register.name] is not getattr(device, register.name)


def test_state_is_made_of_plain_values(kind):
    def plain(value):
        return all(map(plain, value)) if isinstance(value, list) else type(value) in (int, bool, bytes)

    assert all(plain(value) for value in make(kind).state().values())


def test_reset_undoes_everything(kind):
    device = make(kind)
    fresh = device.state()
    for offset in offsets(device):
        device.write(offset, 4, 0xFFFF_FFFF)
        device.write(offset, 1, 0xFF)
    assert device.state() != fresh
    with device.lock:
        device.reset()
    assert device.state() == fresh


def test_documentation_of_hostile_guests_is_there(kind):
    module = __import__(kind.__module__, fromlist=["__doc__"])
    assert "hostile guest" in module.__doc__
    assert "lock" in kind.__doc__.lower()


@pytest.mark.parametrize("kind", [GoldfishRtc, Uart8250])
def test_describe_names_a_compatible(kind):
    node = {}
    make(kind).describe(node)
    assert node["compatible"]
