# SPDX-License-Identifier: Apache-2.0
import errno

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import aia, uapi

IMSIC, APLIC, PAGE = 0x2800_0000, 0x0C00_0000, 0x1000


@pytest.fixture
def make(machine):
    """(vm, device) of a machine with some vCPUs."""

    def make(vcpus=2, **options):
        vm = machine(**options)
        for number in range(vcpus):
            vm.create_vcpu(number)
        return vm, aia.Aia(vm)

    return make


def pages(count):
    return [IMSIC + PAGE * index for index in range(count)]


def test_available_follows_the_host(machine):
    assert aia.available(machine())
    assert not aia.available(machine(capabilities={uapi.KVM_CAP_IRQCHIP: 0}))


def test_configure_and_init_give_the_kernel_everything(make):
    vm, chip = make(vcpus=2)
    chip.configure(sources=31, hart_bits=1, aplic=APLIC, imsics=pages(2), mode=aia.MODE_EMUL, ids=63)
    chip.init()
    behind = vm.kernel.vm.aia
    assert behind.initialised
    assert behind.addresses == {0: APLIC, 1: IMSIC, 2: IMSIC + PAGE}
    assert [chip.config(name) for name in ("mode", "ids", "sources", "hart_bits")] == [0, 63, 31, 1]
    assert vm.kernel.vm.routes[-1] == (31, uapi.KVM_IRQ_ROUTING_IRQCHIP, 31)


def test_configure_without_mode_and_ids_keeps_the_hosts_defaults(make):
    _, chip = make(guest_files=True, ids_limit=256)
    chip.configure(sources=31, hart_bits=1, aplic=APLIC, imsics=pages(2))
    assert (chip.config("mode"), chip.config("ids")) == (aia.MODE_AUTO, 255)


def test_configure_hwaccel_without_guest_files_names_the_step(make):
    _, chip = make()
    with pytest.raises(KvmError, match="refused CONFIG mode = hwaccel") as caught:
        chip.configure(sources=31, hart_bits=1, aplic=APLIC, imsics=pages(2), mode=aia.MODE_HWACCEL)
    assert caught.value.errno == errno.EINVAL


def test_configure_too_many_ids_names_the_step(make):
    _, chip = make(ids_limit=256)
    with pytest.raises(KvmError, match="refused CONFIG ids = 2047"):
        chip.configure(sources=31, hart_bits=1, aplic=APLIC, imsics=pages(2), ids=2047)


def test_configure_address_off_a_page_names_the_step(make):
    _, chip = make()
    with pytest.raises(KvmError, match="refused ADDR APLIC = 0xc000001"):
        chip.configure(sources=31, hart_bits=1, aplic=APLIC + 1, imsics=pages(2))


def test_configure_page_of_a_vcpu_that_is_not_there_names_it(make):
    _, chip = make(vcpus=1)
    with pytest.raises(KvmError, match="ADDR IMSIC 1 = 0x28001000: there is no such attribute or vCPU"):
        chip.configure(sources=31, hart_bits=1, aplic=APLIC, imsics=pages(2))


def test_configure_without_sources_needs_no_aplic(make):
    vm, chip = make(vcpus=1)
    chip.configure(sources=0, hart_bits=0, aplic=0, imsics=pages(1))
    chip.init()
    assert vm.kernel.vm.routes == []


def test_init_with_harts_that_the_bits_cannot_tell_apart_is_refused(make):
    _, chip = make(vcpus=2)
    chip.configure(sources=31, hart_bits=0, aplic=APLIC, imsics=pages(2))
    with pytest.raises(KvmError, match="refused CTRL INIT"):
        chip.init()


def test_configure_after_init_is_too_late(make):
    _, chip = make(vcpus=1)
    chip.configure(sources=31, hart_bits=0, aplic=APLIC, imsics=pages(1))
    chip.init()
    with pytest.raises(KvmError, match="too late for CONFIG ids = 63"):
        chip.configure(sources=31, hart_bits=0, aplic=APLIC, imsics=pages(1), ids=63)


def test_second_device_is_refused(make):
    vm, _ = make()
    with pytest.raises(KvmError, match="already has one"):
        aia.Aia(vm)


def test_device_after_a_vcpu_ran_is_refused(machine):
    vm = machine()
    vm.create_vcpu(0).run()
    with pytest.raises(KvmError, match="a vCPU has run already"):
        aia.Aia(vm)


def test_registers_before_init_are_refused(make):
    _, chip = make()
    with pytest.raises(KvmError) as caught:
        chip.aplic(0)
    assert caught.value.errno == errno.ENODEV


def test_registers_after_init_keep_what_is_written(make):
    vm, chip = make(vcpus=1)
    chip.configure(sources=31, hart_bits=0, aplic=APLIC, imsics=pages(1))
    chip.init()
    chip.set_aplic(0x0004, 6)
    chip.set_imsic(0, 0xC0, 2**64 - 2)
    assert (chip.aplic(0x0004), chip.imsic(0, 0xC0)) == (6, 2**64 - 2)
    assert vm.kernel.vm.aia.imsic == {0xC0: 2**64 - 2}


def test_wire_and_message_after_init_reach_the_chip(make):
    vm, chip = make(vcpus=1)
    chip.configure(sources=31, hart_bits=0, aplic=APLIC, imsics=pages(1))
    chip.init()
    vm.irq_line(3, True)
    vm.signal_msi(0x1_2800_0000, 7)
    assert (vm.kernel.vm.lines, vm.kernel.vm.messages) == ([(3, 1)], [(0x1_2800_0000, 7)])
    with pytest.raises(KvmError, match="no such source"):
        vm.irq_line(32, True)


def test_close_gives_the_descriptor_back(make):
    vm, chip = make()
    before = len(vm.kernel.open_fds)
    chip.close()
    assert len(vm.kernel.open_fds) == before - 1


def test_has_attr_tells_what_there_is(make):
    _, chip = make()
    group = uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG
    assert chip.device.has_attr(group, uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS)
    assert not chip.device.has_attr(group, 99)
