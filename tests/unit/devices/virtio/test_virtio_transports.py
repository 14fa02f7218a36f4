# SPDX-License-Identifier: Apache-2.0
"""What virtio-mmio and virtio-pci do alike, and what each does its own way."""

import ctypes
import os

import pytest
from fakes.echo import Echo
from fakes.native import needs_native
from fakes.transports import HIGH, MMIO_BASE, MSIX_BAR, NO_VECTOR, OnMmio, OnPci

from pyvmm.devices.virtio import bits, pcicaps


@pytest.fixture(params=[OnMmio, OnPci], ids=["mmio", "pci"])
def made(request):
    with request.param(Echo()) as made:
        yield made


@pytest.fixture(params=[OnMmio, OnPci], ids=["mmio", "pci"])
def at_once(request):
    """Queue 0 is for a driver that spins."""
    device = Echo()
    device.at_once = (0,)
    with request.param(device) as made:
        yield made


@pytest.fixture
def mmio():
    with OnMmio(Echo()) as made:
        yield made


def use_a_chain(made):
    made.drivers[0].add_chain([b"x"], [1])
    made.kick()


@pytest.fixture
def pci():
    with OnPci(Echo()) as made:
        yield made


def test_features_on_offer_are_those_of_device_and_ring(made):
    assert made.features() == bits.TRANSPORT_FEATURES | 1 << 3


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("kind", [OnMmio, OnPci], ids=["mmio", "pci"])
def test_chain_goes_through_and_interrupts_until_acknowledged(kind, packed):
    with kind(Echo(), packed=packed) as made:
        made.start()
        token = made.drivers[0].add_chain([b"through"], [8])
        made.kick()
        assert made.drivers[0].collect() == [(token, 7, b"through")]
        assert made.interrupted()
        assert made.acknowledge() == 1
        assert not made.interrupted()


def test_doorbell_that_kvm_caught_works_the_queue(made):
    made.start()
    token = made.drivers[0].add_chain([b"bell"], [4])
    os.eventfd_write(made.doorbells[0].fd, 1)
    made.loop.run()
    assert made.drivers[0].collect() == [(token, 4, b"bell")]


def test_queue_for_a_driver_that_spins_is_worked_before_the_store_is_over(at_once):
    made = at_once
    made.start()
    assert [bell.address is None for bell in made.doorbells] == [True, False]
    made.loop.run = lambda: None  # what the I/O thread would do does not happen
    token = made.drivers[0].add_chain([b"now"], [3])
    made.kick()
    assert made.drivers[0].collect() == [(token, 3, b"now")]
    assert made.interrupted()


def test_broken_ring_of_a_driver_that_spins_is_reported(at_once):
    made = at_once
    made.start()
    made.drivers[0].add_raw([(0, 16, 0)])  # not memory
    made.kick()
    assert made.core.broken
    made.kick()
    made.start()


def test_reset_is_over_when_the_store_is(made):
    made.start()
    made.set_status(0)
    assert made.status() == 0
    assert made.device.stopped == 1


def test_wire_of_mmio_pulses_again_only_once_its_reason_was_acknowledged(mmio):
    mmio.start()
    use_a_chain(mmio)
    use_a_chain(mmio)
    assert mmio.line.pulses == 1
    mmio.acknowledge()
    use_a_chain(mmio)
    assert mmio.line.pulses == 2


def test_wire_of_mmio_pulses_for_each_reason_and_each_is_acknowledged_alone(mmio):
    mmio.start()
    use_a_chain(mmio)
    mmio.device.config_changed()
    assert (mmio.line.pulses, mmio.read(0x60)) == (2, 3)
    mmio.write(0x64, 1)
    assert mmio.read(0x60) == 2
    use_a_chain(mmio)
    assert (mmio.line.pulses, mmio.read(0x60)) == (3, 3)


@needs_native
def test_interrupt_registers_of_mmio_are_one_word_for_python_and_for_the_c(mmio):
    mmio.start()
    mmio.transport.answer_directly(mmio.mapping)
    direct = mmio.bus.direct._shared.all[0]
    function = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p
    )(direct.answer)
    data = ctypes.c_uint64()

    def access(offset, length, is_write):
        return function(direct.context, offset, length, is_write, ctypes.addressof(data))

    use_a_chain(mmio)
    assert (access(0, 4, 0), data.value) == (1, 1)
    for odd in ((0, 4, 1), (4, 4, 0), (0, 2, 0), (2, 2, 0), (4, 2, 1), (0, 8, 0)):
        assert access(*odd) == 0
    data.value = 2
    assert (access(4, 4, 1), mmio.read(0x60)) == (1, 1)
    data.value = 1
    assert (access(4, 4, 1), mmio.read(0x60)) == (1, 0)


def test_reset_takes_the_interrupt_down(made):
    made.start()
    made.drivers[0].add_chain([b"x"], [1])
    made.kick()
    made.set_status(0)
    assert not made.interrupted()


@pytest.mark.parametrize(
    "reset",
    [lambda made: made.transport.reset(), lambda made: made.set_status(0)],
    ids=["machine", "driver"],
)
@pytest.mark.parametrize("kind", [OnMmio, OnPci], ids=["mmio", "pci"])
def test_what_a_device_finishes_at_a_reset_leaves_no_interrupt(kind, reset):
    class Finishing(Echo):
        def finish(self):
            self._answer()

    with kind(Finishing()) as made:
        made.start()
        token = made.drivers[1].add_chain([b"x"], [1])
        made.kick(1)
        reset(made)
        assert made.drivers[1].collect() == [(token, 1, b"x")]
        assert not made.interrupted()
        assert made.acknowledge() == 0


def test_device_works_again_after_a_reset(made):
    made.start()
    made.set_status(0)
    for driver in made.drivers:
        driver.reset()
    made.start()
    token = made.drivers[1].add_chain([b"x"], [1])
    made.kick(1)
    made.device.answer()
    made.loop.run()
    assert made.drivers[1].collect() == [(token, 1, b"x")]


def test_queue_is_reset_alone_and_set_up_again(made):
    made.start()
    made.reset_queue(0)
    driver = made.drivers[0]
    driver.reset()
    made.set_up_queue(0, driver.setup)
    token = driver.add_chain([b"x"], [1])
    made.kick()
    assert driver.collect() == [(token, 1, b"x")]


def test_configuration_space_is_the_devices(made):
    assert made.config(0, 4) == 0x1234_5678
    assert made.config(4, 1) == 0x9A
    assert made.config(0x40, 4) == 0


def test_broken_ring_is_reported_by_status_and_interrupt(made):
    made.start()
    made.drivers[0].add_raw([(0x10, 4, 0)])
    made.kick()
    assert made.status() & bits.NEEDS_RESET
    assert made.interrupted()
    assert made.acknowledge() == 2


def test_configuration_change_interrupts_with_a_reason_of_its_own(made):
    made.start()
    with made.core.lock:
        made.device.config_changed()
    assert made.acknowledge() == 2


def test_closing_closes_the_device_and_the_doorbells(made):
    made.start()
    made.transport.close()
    assert made.device.closed == 1
    assert all(bell.closed for bell in made.doorbells)


def test_mmio_identifies_itself(mmio):
    assert [mmio.read(offset) for offset in (0, 4, 8)] == [0x7472_6976, 2, 4]


def test_mmio_doorbells_tell_queues_by_value(mmio):
    assert [(bell.address, bell.size, bell.value) for bell in mmio.doorbells] == [
        (MMIO_BASE + 0x50, 4, 0),
        (MMIO_BASE + 0x50, 4, 1),
    ]


def test_mmio_queue_ready_zero_disables_a_queue(mmio):
    mmio.start()
    mmio.write(0x30, 0)
    assert mmio.read(0x44) == 1
    mmio.write(0x44, 0)
    assert mmio.read(0x44) == 0


def test_mmio_has_no_shared_memory(mmio):
    mmio.write(0xAC, 5)
    assert mmio.read(0xB0) == mmio.read(0xB4) == 0xFFFF_FFFF


def test_pci_doorbells_follow_the_bar(pci):
    assert [bell.address for bell in pci.doorbells] == [HIGH + 0x3000, HIGH + 0x3004]
    config = pci.pci.at("00:01.0")
    config.write(0x10, 4, (HIGH + 0x8000) & 0xFFFF_FFFF)
    assert [bell.address for bell in pci.doorbells] == [HIGH + 0xB000, HIGH + 0xB004]
    config.write(0x04, 2, 0)
    assert [bell.address for bell in pci.doorbells] == [None, None]


def test_pci_capabilities_name_every_structure(pci):
    found = pci.capabilities()
    assert set(found) == {-1, 1, 2, 3, 4, 5}
    assert found[pcicaps.NOTIFY_CFG] == (0x3000, 8)
    assert found[pcicaps.DEVICE_CFG] == (0x2000, 8)


def test_pci_without_messages_has_no_msix_and_uses_the_wire():
    with OnPci(Echo(), msi=False) as pci:
        assert -1 not in pci.capabilities()
        pci.start()
        pci.drivers[0].add_chain([b"x"], [1])
        pci.kick()
        assert pci.interrupted()


def test_pci_with_msix_sends_the_queues_message_and_no_wire(pci):
    pci.start()
    pci.enable_msix()
    pci.drivers[1].add_chain([b"x"], [1])
    pci.kick(1)
    pci.device.answer()
    pci.loop.run()
    assert pci.lines.made[2].delivered == [(0x0800_0000, 0x42)]
    assert not pci.interrupted()
    assert pci.acknowledge() == 0


def test_pci_queue_without_a_vector_sends_nothing(pci):
    pci.start()
    pci.enable_msix()
    pci.write(0x16, 0, 2)
    pci.write(0x1A, NO_VECTOR, 2)
    pci.drivers[0].add_chain([b"x"], [1])
    pci.kick()
    assert not any(line.delivered for line in pci.lines.made)


@pytest.mark.parametrize("vector", [3, 0x7FFF, 0xFFFE])
def test_pci_vector_that_does_not_exist_reads_back_as_none(pci, vector):
    pci.write(0x10, vector, 2)
    pci.write(0x16, 0, 2)
    pci.write(0x1A, vector, 2)
    assert pci.read(0x10, 2) == pci.read(0x1A, 2) == NO_VECTOR


def test_pci_masked_vector_is_kept_and_delivered_when_unmasked(pci):
    pci.start()
    pci.enable_msix()
    pci.bus.write(MSIX_BAR + 16 + 12, 4, 1)
    pci.drivers[0].add_chain([b"x"], [1])
    pci.kick()
    assert pci.lines.made[1].delivered == []
    assert pci.bus.read(MSIX_BAR + 0x800, 8) == 2
    pci.bus.write(MSIX_BAR + 16 + 12, 4, 0)
    assert pci.lines.made[1].delivered == [(0x0800_0000, 0x41)]


def window(pci):
    """Configuration space, and where in it the window is."""
    config = pci.pci.at("00:01.0")
    at = config.read(0x34, 1)
    while not (config.read(at, 1) == 9 and config.read(at + 3, 1) == pcicaps.PCI_CFG):
        at = config.read(at + 1, 1)
    return config, at


def test_pci_registers_can_be_reached_through_configuration_space(pci):
    config, at = window(pci)
    config.write(at + 4, 1, 0)
    config.write(at + 8, 4, 0x14)
    config.write(at + 12, 4, 1)
    config.write(at + 16, 4, bits.ACKNOWLEDGE)
    assert config.read(at + 16, 4) == pci.status() == bits.ACKNOWLEDGE
    config.write(at + 8, 4, 0xFFFF_FFFF)
    assert config.read(at + 16, 4) == 0
    config.write(at + 4, 1, 2)
    assert config.read(at + 16, 4) == 0


def test_pci_window_takes_accesses_of_the_length_that_was_chosen(pci):
    config, at = window(pci)

    def choose(offset, length):
        config.write(at + 8, 4, offset)
        config.write(at + 12, 4, length)

    choose(0x14, 1)
    config.write(at + 16, 1, bits.ACKNOWLEDGE)
    assert config.read(at + 16, 1) == pci.status() == bits.ACKNOWLEDGE
    config.write(at + 16, 2, 0)  # another length, and another lane
    config.write(at + 17, 1, 0)
    assert (config.read(at + 16, 2), config.read(at + 17, 1)) == (0, 0)
    assert pci.status() == bits.ACKNOWLEDGE
    choose(0x10, 2)
    assert config.read(at + 16, 2) == 0xFFFF  # no vector
    choose(0x08, 4)
    config.write(at + 16, 4, 1)
    assert config.read(at + 16, 4) == 1


def test_pci_window_is_named_in_the_trace_whatever_the_length(pci):
    _, at = window(pci)
    names = {pci.transport.function.decode(at + 16, size, False, 1)[0] for size in (1, 2, 4)}
    assert len(names) == 1
    assert "DATA" in names.pop()
