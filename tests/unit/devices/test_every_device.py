# SPDX-License-Identifier: Apache-2.0
"""What holds for every device that declares its registers. A new one needs a line in ``FACTORIES``, or, when
it is for virtio, in ``fakes.targets``: which there are is found out, so that none can be forgotten.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import tracemalloc
from threading import Lock

import pytest
from fakes.clock import FakeClock
from fakes.lines import RecordingLine, RecordingMsiLines, RecordingSignal, RecordingSink
from fakes.loop import FakeLoop, FakeWorkers
from fakes.pci import Probe
from fakes.targets import TARGETS
from fakes.transports import OnMmio, OnPci

import pyvmm.devices
from pyvmm.devices import KINDS, device_kind
from pyvmm.devices.aplic import Aplic
from pyvmm.devices.edu import Edu
from pyvmm.devices.pci.bar import Bar
from pyvmm.devices.pci.capability import Capability
from pyvmm.devices.pci.function import PciFunction
from pyvmm.devices.pci.header import Header, Identity
from pyvmm.devices.pci.msi import Msi
from pyvmm.devices.pci.msix import Msix, MsixTable
from pyvmm.devices.pci.registers import PackedRegisters
from pyvmm.devices.plic import Plic
from pyvmm.devices.pliccore import PlicCore
from pyvmm.devices.rtc import GoldfishRtc
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.uartline import UartLine
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pci import VirtioPci
from pyvmm.devices.virtio.pcicaps import NotifyCapability, StructureCapability, WindowCapability
from pyvmm.devices.virtio.powerkey import PowerKey
from pyvmm.memory import GuestMemory
from pyvmm.mmio.regs import RegArray, RegisterDevice


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
    Plic: lambda: Plic(PlicCore(RecordingSignal(), sources=40, harts=3)),
    GoldfishRtc: lambda: GoldfishRtc(RecordingLine(), FakeClock(10**18)),
    Uart8250: lambda: Uart8250(RecordingLine(), RecordingSink()),
    Edu: make_edu,
    PowerKey: lambda: PowerKey(Lock()),
    Header: lambda: make_function().header,
    Msi: lambda: make_capability(Msi(RecordingMsiLines())),
    Msix: lambda: make_capability(Msix(1, RecordingMsiLines(), bar=0)),
    MsixTable: lambda: MsixTable(70, RecordingMsiLines()),
    StructureCapability: lambda: make_capability(StructureCapability(1, 0, 0x1000, 0x38)),
    NotifyCapability: lambda: make_capability(NotifyCapability(0, 0x3000, 8, 4)),
    WindowCapability: lambda: make_capability(WindowCapability(0, 0x1000, Probe())),
}
#: Behind which others are, with a device that echoes.
TRANSPORTS = {VirtioMmio: OnMmio, VirtioPci: OnPci}
VIRTIO = {device_kind(name): TARGETS[name] for name in KINDS if name in TARGETS}
EVERY = (*FACTORIES, *TRANSPORTS, *VIRTIO)
#: What others are made of.
ABSTRACT = {VirtioDevice, Capability, PackedRegisters, UartLine}
#: Registers that hold what the device was made with.
MADE_WITH_VALUES = {*VIRTIO, StructureCapability, NotifyCapability}

SIZES = (1, 2, 4, 8)
PATTERNS = (0, (1 << 64) - 1, 0xAAAA_AAAA_AAAA_AAAA, 0x5555_5555_5555_5555)


@pytest.fixture(params=EVERY, ids=lambda kind: kind.NAME)
def kind(request):
    return request.param


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes devices of a kind, each with a host's end of its own."""
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    endings = []

    def make(kind):
        if kind in FACTORIES:
            return FACTORIES[kind]()
        if kind in TRANSPORTS:
            rig = TRANSPORTS[kind](TARGETS["echo"](".").device)
            endings.append(rig.__exit__)
            return rig.transport
        folder = tmp_path / str(len(endings))
        folder.mkdir()
        target = VIRTIO[kind](folder.name)
        endings.append(target.close)
        endings.append(target.device.close)
        return target.device

    yield make
    for end in reversed(endings):
        end()


def found(base=RegisterDevice):
    """Every class below ``base`` in the package."""
    for below in base.__subclasses__():
        if below.__module__.startswith("pyvmm.devices."):
            yield below
            yield from found(below)


def elements(device, register):
    count = device._counts.get(register.name, register.count)
    return sorted({0, min(1, count - 1), count - 1})


def offsets(device):
    """Every offset near a register, and the ends of the device; beyond them, too, where transports reach."""
    found = {0, max(device.SIZE - 1, 0)}
    if isinstance(device, VirtioDevice):
        found |= {device.SIZE, device.SIZE + 8, 0xEF8}
    if isinstance(device, VirtioPci):
        found |= {0x1000, 0x2000, 0x2004, 0x2FF8, 0x3000, 0x3004, 0x3FF8}
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


def test_every_device_is_covered():
    for module in pkgutil.walk_packages(pyvmm.devices.__path__, "pyvmm.devices."):
        importlib.import_module(module.name)
    assert set(found()) - ABSTRACT == set(EVERY)
    assert {device_kind(name) for name in KINDS} <= set(EVERY)


def test_reset_values_read_back(kind, make):
    device = make(kind)
    for register in device.registers():
        if register.stored and "r" in register.access and register.on_read is None and register.when is None:
            for index in elements(device, register):
                offset = register.offset + index * register.stride
                value = device.read(offset, register.size)
                if kind in MADE_WITH_VALUES:
                    held = getattr(device, register.name)
                    assert value == (held[index] if isinstance(register, RegArray) else held)
                else:
                    assert value == register.reset


def test_reserved_bits_stick_at_zero(kind, make):
    shape = make(kind)
    for register in shape.registers():
        for index in elements(shape, register):
            device = make(kind)
            offset = register.offset + index * register.stride
            device.write(offset, register.size, (1 << register.width) - 1)
            readable = readable_mask(kind, offset)
            assert not readable or device.read(offset, register.size) & ~readable == 0


def test_every_access_returns_a_value_of_its_size(kind, make):
    device = make(kind)
    for value in PATTERNS:
        for offset in offsets(device):
            for size in SIZES:
                device.write(offset, size, value & (1 << 8 * size) - 1)
                assert 0 <= device.read(offset, size) < 1 << 8 * size
    assert device.odd > 0


def test_no_value_makes_a_device_allocate_much(kind, make):
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


def test_every_access_can_be_decoded(kind, make):
    device = make(kind)
    for offset in offsets(device):
        for size in SIZES:
            for is_write in (False, True):
                name, fields = device.decode(offset, size, is_write, (1 << 8 * size) - 1)
                assert name
                assert isinstance(fields, str)


def test_lock_is_free_after_every_access(kind, make):
    device = make(kind)
    for offset in offsets(device):
        with device.lock:
            device.write(offset, 4, 0xFFFF_FFFF)
            device.read(offset, 4)
    assert not device.lock.locked()


def test_state_round_trips_after_every_register_was_written(kind, make):
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


def test_state_is_made_of_plain_values(kind, make):
    state = make(kind).state()
    assert json.loads(json.dumps(state)) == state


def test_reset_undoes_everything(kind, make):
    device = make(kind)
    fresh = device.state()
    for offset in offsets(device):
        device.write(offset, 4, 0xFFFF_FFFF)
        device.write(offset, 1, 0xFF)
    assert device.state() != fresh or kind not in FACTORIES or kind in MADE_WITH_VALUES
    with device.lock:
        device.reset()
    assert device.state() == fresh


def test_documentation_of_hostile_guests_is_there(kind):
    module = __import__(kind.__module__, fromlist=["__doc__"])
    assert "hostile guest" in (module.__doc__ + kind.__doc__).lower()
    assert any("lock" in (base.__doc__ or "").lower() for base in kind.__mro__ if base is not RegisterDevice)


@pytest.mark.parametrize("kind", [GoldfishRtc, Uart8250])
def test_describe_names_a_compatible(kind, make):
    node = {}
    make(kind).describe(node)
    assert node["compatible"]
