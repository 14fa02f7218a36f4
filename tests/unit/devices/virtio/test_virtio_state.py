# SPDX-License-Identifier: Apache-2.0
"""State of a device and its transport: plain data, with which another one goes on where the first stood."""

import json
import os
import struct

import pytest
from fakes.echo import Echo
from fakes.targets import TARGETS, DiskTarget, RngTarget
from fakes.transports import OnMmio, OnPci
from fakes.virtio import RAM

from pyvmm.devices.virtio import bits
from pyvmm.errors import ConfigError
from pyvmm.memory import MEMFD, GuestMemory

COMMAND, RUNNING = 0x04, bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK | bits.DRIVER_OK


@pytest.fixture
def memory():
    with GuestMemory() as memory:
        memory.add(RAM, 4 << 20, backing=MEMFD)
        yield memory


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request):
    return request.param


@pytest.fixture(params=[OnMmio, OnPci], ids=["mmio", "pci"])
def put(request, memory, packed):
    """Puts a device behind a transport, all in one memory."""
    made = []

    def put(device):
        made.append(request.param(device, packed=packed, memory=memory))
        return made[-1]

    yield put
    for rig in made:
        rig.__exit__()


def saved_by(rig):
    """What a file of it would hold, as text."""
    part = rig.transport.function if isinstance(rig, OnPci) else rig.transport
    with rig.core.lock:
        return json.dumps(part.state(), sort_keys=True)


def load(rig, text):
    """Into a machine that was just made."""
    on_pci = isinstance(rig, OnPci)
    part = rig.transport.function if on_pci else rig.transport
    if on_pci:
        rig.pci.at("00:01.0").command(0)
    with rig.core.lock:
        part.load_state(json.loads(text))
    if on_pci:
        part.settle()


def move(first, second):
    """State and driver go from one to the other, and the loop runs there."""
    text = saved_by(first)
    load(second, text)
    assert saved_by(second) == text
    second.drivers = first.drivers
    second.loop.run()


@pytest.fixture
def echoes(put):
    first, second = put(Echo()), put(Echo())
    first.start()
    return first, second


def ask(rig, words=b"hello"):
    token = rig.drivers[0].add_chain([words], [16])
    rig.kick()
    return rig.drivers[0].collect() == [(token, len(words), words)]


def test_driver_goes_on_after_any_number_of_requests(echoes):
    first, second = echoes
    for _ in range(21):  # more than once around the ring
        assert ask(first)
    move(first, second)
    assert second.status() == RUNNING
    for _ in range(21):
        assert ask(second, b"and again")


def test_chain_that_was_not_taken_yet_is_answered_without_another_kick(echoes):
    first, second = echoes
    ask(first)
    token = first.drivers[0].add_chain([b"waiting"], [16])
    move(first, second)
    assert second.drivers[0].collect() == [(token, 7, b"waiting")]
    assert second.interrupted()


def test_interrupt_that_was_not_acknowledged_stays_up(echoes):
    first, second = echoes
    ask(first)
    assert first.interrupted()
    move(first, second)
    assert second.interrupted()
    assert second.acknowledge() == 1
    assert not second.interrupted()


def test_queue_that_was_reset_comes_back(echoes):
    first, second = echoes
    ask(first)
    first.reset_queue(0)
    move(first, second)
    second.drivers[0].reset()
    second.set_up_queue(0, second.drivers[0].setup)
    assert ask(second)


def test_device_in_negotiation_goes_on_negotiating(echoes):
    first, second = echoes
    first.set_status(0)
    first.set_status(bits.ACKNOWLEDGE | bits.DRIVER)
    first.set_features(first.features())
    move(first, second)
    second.set_status(bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK)
    assert second.status() == bits.ACKNOWLEDGE | bits.DRIVER | bits.FEATURES_OK


def test_device_that_needs_a_reset_still_does_and_starts_after_it(echoes, memory):
    first, second = echoes
    first.drivers[0].add_raw([(1 << 63, 64, 0)])
    first.kick()
    assert first.status() & bits.NEEDS_RESET
    move(first, second)
    assert second.status() & bits.NEEDS_RESET
    for driver in second.drivers:
        driver.reset()
    second.start()
    assert ask(second)


def test_messages_go_where_the_driver_sent_them(memory, packed):
    with OnPci(Echo(), packed=packed, memory=memory) as first, OnPci(Echo(), memory=memory) as second:
        first.start()
        first.enable_msix()
        move(first, second)
        assert ask(second)
        assert second.lines.made[1].delivered == [(0x0800_0000, 0x41)]
        assert not second.interrupted()


def test_bars_are_where_they_were(memory):
    with OnPci(Echo(), memory=memory) as first, OnPci(Echo(), memory=memory) as second:
        config = first.pci.at("00:01.0")
        config.command(0)
        config.place(2, 0x4567_8000)
        config.command(6)
        move(first, second)
        assert second.pci.mapped() == first.pci.mapped()
        assert second.doorbells[1].address == first.doorbells[1].address != 0


def test_session_that_was_there_ends_first(echoes):
    first, second = echoes
    second.drivers = first.drivers
    text = saved_by(first)
    load(second, text)
    load(second, text)
    assert second.device.stopped == 1
    second.loop.run()
    assert ask(second)


@pytest.mark.parametrize("target", [DiskTarget, RngTarget])
def test_real_device_answers_the_driver_it_was_given(put, tmp_path, target):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = put(target(tmp_path / "a").device), put(target(tmp_path / "b").device)
    first.start()
    move(first, second)
    second.drivers[0].add_chain([bytes(16)], [512, 1])
    second.kick()
    (done,) = second.drivers[0].collect()
    assert done.written == 513
    assert target is not DiskTarget or done.data == b"disk" * 128 + b"\0"


@pytest.mark.parametrize("name", TARGETS)
def test_every_device_loads_what_it_saved(put, tmp_path, monkeypatch, packed, name):
    if packed and not TARGETS[name].packed:
        pytest.skip("its other half knows the split layout only")
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    os.mkdir("a")
    os.mkdir("b")
    targets = TARGETS[name]("a"), TARGETS[name]("b")
    first, second = (put(target.device) for target in targets)
    first.start()
    for index, readable, writable in targets[0].greeting():
        first.drivers[index].add_chain(readable, writable)
        first.kick(index)
    with first.core.lock:
        first.device.stop()  # only then is known how far a kernel's half has come
        first.device.stop = lambda: None
    text = saved_by(first)
    load(second, text)
    assert saved_by(second) == text
    assert second.status() == RUNNING
    second.loop.run()
    assert second.status() == RUNNING
    for rig, target in zip((first, second), targets, strict=True):
        rig.set_status(0)
        target.close()


def test_console_input_goes_on_and_ports_say_whether_somebody_is_there(put, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("a")
    os.mkdir("b")
    targets = TARGETS["console"]("a"), TARGETS["console"]("b")
    first, second = (put(target.device) for target in targets)
    first.start()
    for index, readable, writable in targets[0].greeting():
        first.drivers[index].add_chain(readable, writable)
        first.kick(index)
    first.drivers[2].collect()
    for _ in range(8):  # room for all there is to be told, and more
        first.drivers[2].add_chain([], [64])
    first.kick(2)
    first.drivers[2].collect()
    move(first, second)
    told = [done.data for done in second.drivers[2].collect()]
    assert told == [struct.pack("<IHH", 1, 6, 0), struct.pack("<IHH", 2, 6, 1)]
    assert second.device.receive(b"ls") == 2
    assert [done.data for done in second.drivers[0].collect()] == [b"ls"]
    for rig, target in zip((first, second), targets, strict=True):
        rig.set_status(0)
        target.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("queues"),
        lambda state: state.update(more=1),
        lambda state: state.update(status="ready"),
        lambda state: state.update(status=True),
        lambda state: state.update(queues=[]),
        lambda state: state.update(queues=5),
        lambda state: state["queues"][0].update(desc="0"),
        lambda state: state["queues"][1].pop("size"),
        lambda state: state.update(rings=[{}]),
        lambda state: state.update(rings=[]),
        lambda state: state["rings"][0].update(used=None),
        lambda state: state["rings"][0].clear(),
        lambda state: state.update(device=[]),
        lambda state: state["device"].pop("LOW"),
    ],
)
def test_damaged_state_is_refused_and_leaves_the_device_reset(echoes, damage):
    first, second = echoes
    with first.core.lock:
        state = first.core.state()
    damage(state)
    with pytest.raises(ConfigError, match="saved state of echo"), second.core.lock:
        second.core.load_state(state)
    assert second.status() == 0
    second.drivers = first.drivers
    for driver in second.drivers:
        driver.reset()
    second.start()
    assert ask(second)
