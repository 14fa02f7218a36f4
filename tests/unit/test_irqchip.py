# SPDX-License-Identifier: Apache-2.0
import errno

import pytest
from fakes.kernel import FakeAia, FakeKernel, fail
from fakes.native import needs_native
from fakes.plic import answer_directly

from pyvmm import devicetree, irqchip, layout
from pyvmm.errors import ConfigError, KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.system import Kvm
from pyvmm.mmio.bus import Bus, Mapping


class Host:
    """A virtual machine with harts on a fake KVM."""

    def __init__(self, harts, **options):
        self.kernel = FakeKernel(**options)
        kvm = Kvm(kernel=self.kernel)
        self.vm = kvm.create_vm()
        self.vcpus = [self.vm.create_vcpu(number) for number in range(harts)]
        self.bus = Bus()
        self._opened = [*self.vcpus, self.vm, kvm]

    def create(self, kind, aia_mode="auto"):
        chip = irqchip.create(kind, self.vm, self.vcpus, self.bus, aia_mode=aia_mode)
        self._opened.insert(0, chip)
        return chip

    @property
    def aia(self):
        return self.kernel.vm.aia

    def close(self):
        for thing in self._opened:
            thing.close()
        assert self.kernel.open_fds == []


@pytest.fixture
def host():
    made = []

    def make(harts=1, **options):
        made.append(Host(harts, **options))
        return made[-1]

    yield make
    for it in made:
        it.close()


@pytest.mark.parametrize(
    ("wanted", "ssaia", "kinds"),
    [
        ("auto", True, ("aia", "plic")),
        ("auto", False, ("plic",)),
        ("aia", True, ("aia",)),
        ("aplic", False, ("aplic",)),
        ("plic", True, ("plic",)),
    ],
)
def test_candidates(wanted, ssaia, kinds):
    assert irqchip.candidates(wanted, ssaia=ssaia) == kinds


def test_aia_needs_the_harts_half_of_it():
    with pytest.raises(ConfigError, match="needs the extension ssaia"):
        irqchip.candidates("aia", ssaia=False)


@pytest.mark.parametrize(("harts", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7)])
def test_aia_tells_as_many_harts_apart_as_there_are(host, harts, bits):
    it = host(harts)
    it.create("aia")
    assert it.aia.initialised
    assert it.aia.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_HART_BITS] == bits


def test_aia_is_where_the_device_tree_says(host):
    it = host(3)
    chip = it.create("aia")
    assert it.aia.addresses == {
        uapi.KVM_DEV_RISCV_AIA_ADDR_APLIC: layout.APLIC_BASE,
        uapi.KVM_DEV_RISCV_AIA_ADDR_IMSIC: layout.IMSIC_BASE,
        uapi.KVM_DEV_RISCV_AIA_ADDR_IMSIC + 1: layout.IMSIC_BASE + 0x1000,
        uapi.KVM_DEV_RISCV_AIA_ADDR_IMSIC + 2: layout.IMSIC_BASE + 0x2000,
    }
    assert it.aia.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS] == layout.NR_SOURCES
    assert (chip.wired.base, chip.wired.size, chip.wired.sources) == (
        layout.APLIC_BASE,
        layout.APLIC_SIZE,
        layout.NR_SOURCES,
    )
    assert (chip.imsic.base, chip.imsic.ids) == (layout.IMSIC_BASE, 2047)
    assert it.bus.describe() == []


@pytest.mark.parametrize(("mode", "value"), [("auto", 2), ("emul", 0), ("hwaccel", 1)])
def test_aia_mode_is_the_one_asked_for_or_the_hosts(host, mode, value):
    it = host(guest_files=True)
    it.create("aia", mode)
    assert it.aia.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_MODE] == value


def test_aia_that_is_refused_half_way_says_the_step_and_leaves_nothing(host):
    it = host()
    before = it.kernel.open_fds
    with pytest.raises(
        irqchip.IrqChipRefused, match=r"refused CONFIG mode = hwaccel.*use --irqchip plic or aplic"
    ):
        it.create("aia", "hwaccel")
    assert it.kernel.open_fds == before


def test_aia_that_cannot_be_initialised_leaves_nothing(host, monkeypatch):
    monkeypatch.setattr(FakeAia, "_init", lambda *args: fail(errno.EINVAL))
    it = host()
    before = it.kernel.open_fds
    with pytest.raises(irqchip.IrqChipRefused, match="refused CTRL INIT"):
        it.create("aia")
    assert it.kernel.open_fds == before


def test_wire_into_the_kernel_tells_it_of_changes_only(host):
    it = host()
    line = it.create("aia").line(5)
    for level in (False, True, True, False, False, True):
        line.set(level)
    assert line.number == 5
    assert it.kernel.vm.lines == [(5, 1), (5, 0), (5, 1)]


def test_pulse_into_the_kernel_is_up_and_down(host):
    it = host()
    it.create("aia").line(6).pulse()
    assert it.kernel.vm.lines == [(6, 1), (6, 0)]


# What a guest does to let source 3 interrupt hart 1.
PLIC_SETUP = [(4 * 3, 1), (0x2000 + 0x80, 1 << 3)]
APLIC_SETUP = [(0, 0x100), (4 * 3, 6), (0x3000 + 4 * 3, 1 << 18 | 1), (0x1EDC, 3), (0x4020, 1)]


@pytest.mark.parametrize(
    ("kind", "base", "setup", "described"),
    [
        ("plic", layout.PLIC_BASE, PLIC_SETUP, devicetree.Plic),
        ("aplic", layout.APLIC_BASE, APLIC_SETUP, devicetree.Aplic),
    ],
)
def test_emulated_controller_interrupts_the_right_hart(host, kind, base, setup, described):
    it = host(3)
    chip = it.create(kind)
    for offset, value in setup:
        it.bus.write(base + offset, 4, value)
    chip.line(3).set(True)
    vcpus = it.kernel.vm.vcpus
    assert vcpus[1].interrupts[-1]
    assert True not in (*vcpus[0].interrupts, *vcpus[2].interrupts)
    assert isinstance(chip.wired, described)
    assert chip.imsic is None
    [(where, name)] = it.bus.describe()
    assert (where.base, where.size, name) == (chip.wired.base, chip.wired.size, kind)


@needs_native
def test_claims_of_the_plic_are_answered_directly(host, monkeypatch):
    places = []
    monkeypatch.setattr(Mapping, "answer_directly", lambda mapping, *place: places.append(place))
    it = host(3, interrupts_in_c=True)
    chip = it.create("plic")
    for offset, value in PLIC_SETUP:
        it.bus.write(layout.PLIC_BASE + offset, 4, value)
    chip.line(3).set(True)
    (first, size, function, core), enables = places
    assert (first, size) == (0x20_0004, 0x2004)
    assert enables[:2] == (0x2000, 0x180)
    assert answer_directly(function, core, 0x1000, 4, False, 0) == 3
    assert [vcpu.interrupts for vcpu in it.kernel.vm.vcpus.values()] == [[], [True, False], []]


@needs_native
def test_wire_that_rises_after_the_plic_was_closed_interrupts_nobody(host):
    it = host(3, interrupts_in_c=True)
    chip = it.create("plic")
    for offset, value in PLIC_SETUP:
        it.bus.write(layout.PLIC_BASE + offset, 4, value)
    chip.close()
    with pytest.raises(KvmError, match="KVM_INTERRUPT failed"):
        chip.line(3).set(True)
    assert [vcpu.interrupts for vcpu in it.kernel.vm.vcpus.values()] == [[], [], []]
