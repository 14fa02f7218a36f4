# SPDX-License-Identifier: Apache-2.0
"""Interrupts into, and doorbells out of, hand-made guests on real KVM."""

import os
import select

import pytest
from handmade import DEVICE

from pyvmm import layout
from pyvmm.errors import KvmError
from pyvmm.kvm import aia, regs, uapi
from pyvmm.kvm.coalesced import CAPACITY, FIRST, LAST, CoalescedRing
from pyvmm.kvm.routing import GsiRouting
from pyvmm.ring import Ring

pytestmark = pytest.mark.kvm

SOURCES = 31
SEIE = 1 << 9
EIDELIVERY, EITHRESHOLD, EIE0 = 0x70, 0x72, 0xC0


@pytest.fixture
def eventfd():
    fds = []

    def make():
        fds.append(os.eventfd(0, os.EFD_NONBLOCK))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


# The in-kernel AIA


def imsic(cpu):
    return layout.IMSIC_BASE + cpu * layout.IMSIC_STRIDE


@pytest.fixture
def make_aia(make_guest):
    """A guest with an initialised in-kernel AIA."""
    chips = []

    def make(cpus=1, **options):
        guest = make_guest(cpus=cpus)
        if not aia.available(guest.vm):
            pytest.skip("this host's KVM has no in-kernel AIA")
        chips.append(aia.Aia(guest.vm))
        guest.aia = chips[-1]
        guest.aia.configure(
            sources=SOURCES,
            hart_bits=(cpus - 1).bit_length(),
            aplic=layout.APLIC_BASE,
            imsics=[imsic(number) for number in range(cpus)],
            **options,
        )
        guest.aia.init()
        return guest

    yield make
    for chip in chips:
        chip.close()


def set_indirect(code, select_value, value):
    """Write an IMSIC register through siselect and sireg."""
    code.li("t1", select_value)
    code.csrw("siselect", "t1")
    code.li("t1", value)
    code.csrw("sireg", "t1")


def report_interrupts(code, identities):
    """Enable some identities, then store every stopei that comes in to the device, for ever."""
    set_indirect(code, EIDELIVERY, 1)
    set_indirect(code, EITHRESHOLD, 0)
    set_indirect(code, EIE0, sum(1 << identity for identity in identities))
    code.li("t1", SEIE)
    code.csrw("sie", "t1")
    code.label("wait")
    code.wfi()
    code.csrrw("a1", "stopei", "zero")
    code.beq("a1", "zero", "wait")
    code.sd("a1", 0, "t0")
    code.j("wait")


def stopei(identity):
    return 0, 8, identity << 16 | identity


def test_msi_reaches_a_waiting_guest(make_aia):
    guest = make_aia()
    report_interrupts(guest.code, [7, 9])
    guest.start()
    guest.vm.signal_msi(imsic(0), 7)
    assert guest.run_to_store() == stopei(7)
    guest.vm.signal_msi(imsic(0), 9)
    assert guest.run_to_store() == stopei(9)


def test_msi_to_an_address_of_nobody_is_dropped_in_silence(make_aia):
    guest = make_aia()
    guest.vm.signal_msi(imsic(5), 7)


def test_msi_with_an_identity_that_does_not_exist_says_so(make_aia):
    guest = make_aia(ids=63)
    with pytest.raises(KvmError, match="identity is beyond"):
        guest.vm.signal_msi(imsic(0), 64)
    with pytest.raises(KvmError, match="identity is 0"):
        guest.vm.signal_msi(imsic(0), 0)


def test_eventfd_behind_a_route_interrupts_the_guest_every_time(make_aia, eventfd):
    guest = make_aia()
    report_interrupts(guest.code, [5, 6])
    guest.start()
    routing = GsiRouting(guest.vm, SOURCES)
    fd = eventfd()
    gsi = routing.allocate(imsic(0), 5)
    routing.attach(gsi, fd)
    for _ in range(3):
        os.eventfd_write(fd, 1)
        assert guest.run_to_store() == stopei(5)
    routing.update(gsi, imsic(0), 6)
    os.eventfd_write(fd, 1)
    assert guest.run_to_store() == stopei(6)
    routing.detach(gsi, fd)
    routing.free(gsi)
    os.eventfd_write(fd, 1)
    assert os.eventfd_read(fd) == 1


def test_eventfd_that_serves_already_is_refused(make_aia, eventfd):
    guest = make_aia()
    routing = GsiRouting(guest.vm, SOURCES)
    fd = eventfd()
    routing.attach(routing.allocate(imsic(0), 5), fd)
    with pytest.raises(KvmError, match="already serves another"):
        routing.attach(routing.allocate(imsic(0), 6), fd)


def test_wire_at_a_level_interrupts_until_it_is_lowered(make_aia):
    guest = make_aia()
    source, identity, level_high = 3, 11, 6
    for offset, value in (
        (0x0000, 1 << 8),  # domaincfg.IE
        (0x0004 + 4 * (source - 1), level_high),  # sourcecfg
        (0x3004 + 4 * (source - 1), identity),  # target: hart 0
        (0x1EDC, source),  # setienum
    ):
        guest.code.li("t1", layout.APLIC_BASE + offset)
        guest.code.li("t2", value)
        guest.code.sw("t2", 0, "t1")
    guest.code.sd("zero", 0, "t0")
    report_interrupts(guest.code, [identity])
    guest.start()
    guest.run_to_store()  # the kernel forgets a level that was raised before the source was configured
    guest.vm.irq_line(source, True)
    assert guest.run_to_store() == stopei(identity)
    in_clrip = 0x1D00
    assert guest.aia.aplic(in_clrip) == 1 << source
    guest.vm.irq_line(source, False)
    assert guest.aia.aplic(in_clrip) == 0


def test_wire_that_does_not_exist_says_so(make_aia):
    with pytest.raises(KvmError, match="no such source"):
        make_aia().vm.irq_line(SOURCES + 1, True)


def test_aia_registers_are_written_and_read(make_aia):
    guest = make_aia(cpus=2)
    guest.aia.set_aplic(0x0004, 6)
    guest.aia.set_imsic(1, EITHRESHOLD, 5)
    assert (guest.aia.aplic(0x0004), guest.aia.imsic(1, EITHRESHOLD)) == (6, 5)
    assert guest.aia.imsic(0, EITHRESHOLD) == 0


@pytest.mark.parametrize("mode", [aia.MODE_EMUL, aia.MODE_AUTO, aia.MODE_HWACCEL])
def test_every_mode_delivers_or_names_what_the_host_refuses(make_aia, mode):
    try:
        guest = make_aia(mode=mode, ids=63)
    except KvmError as error:
        assert f"refused CONFIG mode = {aia.MODE_NAMES[mode]}" in error.hint
        assert mode != aia.MODE_EMUL
        return
    report_interrupts(guest.code, [7])
    guest.start()
    guest.vm.signal_msi(imsic(0), 7)
    assert guest.run_to_store() == stopei(7)


def test_aia_configuration_that_the_kernel_refuses_names_the_step(make_guest):
    guest = make_guest(cpus=2)
    if not aia.available(guest.vm):
        pytest.skip("this host's KVM has no in-kernel AIA")
    chip = aia.Aia(guest.vm)
    pages = [imsic(0), imsic(1)]
    with pytest.raises(KvmError, match="refused CONFIG ids = 64"):
        chip.configure(sources=SOURCES, hart_bits=1, aplic=layout.APLIC_BASE, imsics=pages, ids=64)
    with pytest.raises(KvmError, match="refused ADDR APLIC = 0x123"):
        chip.configure(sources=SOURCES, hart_bits=1, aplic=0x123, imsics=pages)
    chip.configure(sources=SOURCES, hart_bits=0, aplic=layout.APLIC_BASE, imsics=pages)
    with pytest.raises(KvmError, match="refused CTRL INIT"):
        chip.init()
    chip.close()


def test_aia_after_a_vcpu_ran_is_refused(guest):
    if not aia.available(guest.vm):
        pytest.skip("this host's KVM has no in-kernel AIA")
    guest.start()
    guest.cpu.complete_exit()
    with pytest.raises(KvmError, match="has run already"):
        aia.Aia(guest.vm)


# Without it


def test_without_aia_there_is_no_line_and_no_message(guest):
    with pytest.raises(KvmError, match="no in-kernel interrupt controller"):
        guest.vm.irq_line(1, True)
    with pytest.raises(KvmError, match="no in-kernel AIA"):
        guest.vm.signal_msi(imsic(0), 1)


def test_external_line_wakes_a_guest_and_stays_until_it_is_cleared(guest):
    guest.code.li("t1", SEIE)
    guest.code.csrw("sie", "t1")
    guest.code.wfi()
    guest.code.csrr("a1", "sip")
    guest.code.sd("a1", 0, "t0")
    guest.code.csrr("a1", "sip")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    guest.cpu.interrupt(True)
    assert guest.run_to_store() == (0, 8, SEIE)
    guest.cpu.interrupt(False)
    assert guest.run_to_store() == (0, 8, 0)


def test_external_line_wakes_a_guest_from_another_thread(guest):
    guest.code.li("t1", SEIE)
    guest.code.csrw("sie", "t1")
    guest.code.sd("zero", 0, "t0")
    guest.code.wfi()
    guest.code.sd("t1", 8, "t0")
    guest.start()
    guest.run_to_store()
    thread = guest.in_thread(guest.cpu, lambda vcpu: (vcpu.run(), vcpu.mmio()))
    guest.cpu.interrupt(True)
    assert thread.result() == (uapi.KVM_EXIT_MMIO, (DEVICE + 8, 8, True, SEIE))


# Doorbells


def test_store_on_an_ioeventfd_signals_it_without_an_exit(guest, eventfd):
    fd = eventfd()
    guest.vm.ioeventfd(fd, DEVICE + 0x50, 4)
    guest.code.li("a1", 3)
    guest.code.sw("a1", 0x50, "t0")
    guest.code.sw("a1", 0x50, "t0")
    guest.code.sw("a1", 0, "t0")
    guest.start()
    assert guest.run_to_store() == (0, 4, 3)
    assert select.select([fd], [], [], 0)[0] == [fd]
    assert os.eventfd_read(fd) == 2


def test_ioeventfd_with_a_value_or_a_width_lets_others_exit(guest, eventfd):
    fd = eventfd()
    guest.vm.ioeventfd(fd, DEVICE + 0x50, 4, datamatch=1)
    for value, store in ((1, "sw"), (2, "sw"), (1, "sh")):
        guest.code.li("a1", value)
        getattr(guest.code, store)("a1", 0x50, "t0")
    guest.start()
    assert guest.run_to_store() == (0x50, 4, 2)
    assert guest.run_to_store() == (0x50, 2, 1)
    assert os.eventfd_read(fd) == 1


def test_ioeventfd_of_any_width_takes_all_and_can_be_taken_back(guest, eventfd):
    fd = eventfd()
    guest.vm.ioeventfd(fd, DEVICE + 0x50, 0)
    for store in ("sb", "sh", "sw", "sd"):
        getattr(guest.code, store)("zero", 0x50, "t0")
    guest.code.sw("zero", 0, "t0")
    guest.start()
    assert guest.run_to_store() == (0, 4, 0)
    assert os.eventfd_read(fd) == 4
    guest.vm.ioeventfd(fd, DEVICE + 0x50, 0, deassign=True)
    with pytest.raises(KvmError, match="no such ioeventfd"):
        guest.vm.ioeventfd(fd, DEVICE + 0x50, 0, deassign=True)


def test_ioeventfd_taken_twice_says_so(guest, eventfd):
    guest.vm.ioeventfd(eventfd(), DEVICE, 4)
    with pytest.raises(KvmError, match="another eventfd waits"):
        guest.vm.ioeventfd(eventfd(), DEVICE, 4)


class Zone:
    """A coalesced zone of one byte, the first of the device."""

    def __init__(self, guest):
        atomic = Ring()
        address = guest.cpu.ring_address
        self.ring = CoalescedRing(address, atomic.load_acquire32, atomic.store_release32)
        guest.vm.register_coalesced_mmio(DEVICE, 1)

    def drain(self):
        return self.ring.drain(lambda data: data)


@pytest.fixture
def zone(guest):
    return Zone(guest)


def test_stores_in_a_coalesced_zone_are_in_the_ring_and_not_exits(guest, zone):
    for value in b"abc":
        guest.code.li("a1", value)
        guest.code.sb("a1", 0, "t0")
    guest.code.sb("zero", 8, "t0")
    guest.start()
    assert zone.drain() is None
    assert guest.run_to_store() == (8, 1, 0)
    assert zone.ring.page[LAST] == b"\3"
    assert zone.drain() == b"abc"
    assert zone.ring.page[FIRST] == b"\3"


def test_full_ring_lets_a_store_exit_and_loses_none(guest, zone):
    guest.code.li("a1", 0)
    guest.code.label("again")
    guest.code.sb("a1", 0, "t0")
    guest.code.addi("a1", "a1", 1)
    guest.code.j("again")
    guest.start()
    seen = b""
    for _ in range(3):
        exited = guest.run_to_store()[2]
        taken = zone.drain()
        assert len(taken) == CAPACITY - 1
        seen += taken + bytes((exited,))
    assert seen == bytes(number % 256 for number in range(3 * CAPACITY))


def test_loads_and_stores_across_a_zones_end_still_exit(guest, zone):
    guest.code.lb("a1", 0, "t0")
    guest.code.sh("zero", 0, "t0")
    guest.code.sd("zero", 0, "t0")
    guest.start()
    assert guest.cpu.run() == uapi.KVM_EXIT_MMIO
    assert guest.cpu.mmio()[:3] == (DEVICE, 1, False)
    assert guest.run_to_store() == (0, 2, 0)
    assert guest.run_to_store() == (0, 8, 0)


def test_zone_taken_back_makes_stores_exit_again(guest, zone):
    guest.vm.unregister_coalesced_mmio(DEVICE, 1)
    guest.code.sb("zero", 0, "t0")
    guest.start()
    assert guest.run_to_store() == (0, 1, 0)
    assert zone.drain() is None


def test_counter_for_the_guests_user_space_can_be_enabled_before_the_first_run(guest):
    guest.cpu.set_reg(regs.csr("scounteren"), 7)
    guest.code.csrr("a1", "scounteren")
    guest.code.sd("a1", 0, "t0")
    guest.start()
    assert guest.run_to_store()[2] & 7 == 7
