# SPDX-License-Identifier: Apache-2.0
"""Pausing whole machines on a fake KVM, and devices with host I/O in flight."""

import os
import threading

import pytest
from fakes.guests import echo, flood, idle, prints, suspend
from fakes.kernel import call, reset, shutdown
from fakes.threads import Background, happens, in_time, read

from pyvmm import outcome, pausing
from pyvmm.errors import MachineError
from pyvmm.kvm import regs, uapi
from pyvmm.outcome import Outcome

TIME = regs.timer("time")
QUIT = Outcome(outcome.QUIT, "enough")


@pytest.fixture
def hasty(monkeypatch):
    """Nothing is waited for longer than a moment."""
    monkeypatch.setattr(pausing, "LIMIT", 0.0)


def ticking(it, cpus=1):
    """A started guest whose harts do nothing, and its first vCPU."""
    it.kernel.scripts = {cpu: [idle] for cpu in range(cpus)}
    it.machine.prepare()
    for cpu in range(cpus):
        it.kernel.vm.vcpus[cpu].mp_state = uapi.KVM_MP_STATE_RUNNABLE
    it.start()
    return it.kernel.vm.vcpus[0]


def events(it):
    """The names of the machine's events, as they come."""
    seen = []
    it.machine.subscribe(lambda event: seen.append(event["event"]))
    return seen


def test_pause_and_resume_change_the_state_and_are_told_of(run):
    it = run(cpus=2)
    seen = events(it)
    assert it.machine.state == "prepared"
    ticking(it, cpus=2)
    assert it.machine.state == "running"
    for _ in range(2):  # both are idempotent
        in_time(it.machine.pause)
        assert it.machine.paused
    for _ in range(2):
        in_time(it.machine.resume)
        assert it.machine.state == "running"
    it.machine.end(QUIT)
    it()
    assert it.machine.state == "ended"
    assert seen == ["started", "paused", "resumed", "ended"]


def test_paused_guest_runs_nothing_and_goes_on_where_it_was(run):
    it = run()
    stopped, go_on = threading.Event(), threading.Event()
    it.kernel.scripts = {0: [call(lambda vcpu: (stopped.set(), happens(go_on))), idle_once, *prints(b"on\n")]}
    it.start()
    happens(stopped)
    pause = Background(it.machine.pause)
    go_on.set()
    pause.result()
    assert it.machine.paused
    in_time(it.machine.resume)
    assert it().reason == outcome.POWEROFF
    assert it.output == b"on\n"


def idle_once(vcpu):
    """Waits for one kick."""
    return vcpu.wait_for_kick()


def test_guests_time_stands_still(run):
    it = run()
    vcpu = ticking(it)
    vcpu.registers[TIME] = 1000
    in_time(it.machine.pause)
    vcpu.registers[TIME] = 5000  # the host's clock goes on
    in_time(it.machine.resume)
    assert vcpu.registers[TIME] == 1000


def test_registers_and_memory_of_a_paused_guest_can_be_read(run):
    it = run(cpus=2)
    ticking(it, cpus=2)
    in_time(it.machine.pause)
    assert in_time(lambda: it.machine.registers(1))["pc"] == 0
    assert len(it.machine.read_memory(0x8000_0000, 16)) == 16


def test_input_waits_for_the_guest_and_keys_work_meanwhile(run):
    it = run([echo])
    it.start()
    keys = threading.Event()
    it.machine.on_input = lambda data: [bytes(data.replace(b"!", b"")), *(keys.set() or [] for _ in b"")]
    os.write(it.keys, b"a")
    assert read(it.reader, 1) == b"a"
    in_time(it.machine.pause)
    it.machine.on_input = lambda data: (keys.set(), [data])[1]
    os.write(it.keys, b"bq")
    happens(keys)
    assert not it.machine._outcomes
    in_time(it.machine.resume)
    assert it().reason == outcome.POWEROFF
    assert it.output == b"b"


def test_time_limit_ends_a_paused_guest(run):
    it = run(timeout="300ms")
    ticking(it)
    in_time(it.machine.pause)
    assert it().reason == outcome.TIMEOUT


def test_suspended_guest_is_paused_and_sleeps_on_afterwards(run):
    it = run([suspend(), *prints(b"awake\n")])
    board = it.machine.prepare()
    sleeping, begin = threading.Event(), board._suspension.begin
    board._suspension.begin = lambda hart: (begin(hart), sleeping.set())
    it.start()
    happens(sleeping)
    in_time(it.machine.pause)
    in_time(it.machine.resume)
    in_time(it.machine.registers)  # it still sleeps: nothing was printed, and it has not powered off
    assert it.machine.state == "running"
    os.write(it.keys, b"x")
    assert it().reason == outcome.POWEROFF
    assert it.output == b"awake\n"


@pytest.mark.parametrize(
    "act", ["pause", "resume", "reset", "registers", "balloon", "power_button", "inspect"]
)
def test_nothing_can_be_asked_before_the_start_or_after_the_end(run, act):
    it = run([shutdown()])
    it.machine.prepare()
    with pytest.raises(MachineError, match="has not been started"):
        getattr(it.machine, act)()
    it()
    with pytest.raises(MachineError, match="has ended"):
        getattr(it.machine, act)()


def test_paused_machine_closes(run):
    it = run(cpus=2)
    ticking(it, cpus=2)
    in_time(it.machine.pause)
    in_time(it.machine.close)
    assert it.kernel.open_fds == []


def test_machine_can_be_paused_and_resumed_from_many_threads_at_once(run):
    it = run(cpus=2)
    ticking(it, cpus=2)

    def hammer():
        for _ in range(10):
            it.machine.pause()
            it.machine.resume()

    for thread in [Background(hammer) for _ in range(4)]:
        thread.result()
    in_time(it.machine.resume)
    assert it.machine.state == "running"


def test_guest_that_ends_while_it_is_being_paused_has_ended(run):
    entered, asked = threading.Event(), threading.Event()
    it = run([call(lambda vcpu: (entered.set(), happens(asked))), shutdown()], cpus=2)
    it.start()
    happens(entered)
    pause = Background(it.machine.pause)
    asked.set()
    with pytest.raises(MachineError, match="has ended"):
        pause.result()
    assert it().reason == outcome.POWEROFF


def test_machine_that_is_closed_while_it_is_being_paused_closes(run, monkeypatch):
    busy, held, closing = threading.Event(), threading.Event(), threading.Event()
    it = run([call(lambda vcpu: (busy.set(), happens(held)))])
    release = it.machine._writer.release
    monkeypatch.setattr(it.machine._writer, "release", lambda: (release(), closing.set()))
    it.start()
    happens(busy)
    pause, close = Background(it.machine.pause), Background(it.machine.close)
    happens(closing)
    held.set()
    close.result()
    with pytest.raises(MachineError, match="has ended"):
        pause.result()


def test_reboot_that_the_guest_asks_for_comes_first_and_the_new_guest_is_paused(run):
    asked, rebooting, go_on = threading.Event(), threading.Event(), threading.Event()
    it = run(
        [call(lambda vcpu: it.kernel.scripts.update({0: [idle]})), call(lambda vcpu: happens(asked)), reset()]
    )
    it.on_note = lambda text: (rebooting.set(), happens(go_on)) if text == "the guest reboots" else None
    it.start()
    asked.set()
    happens(rebooting)
    assert it.machine.state == "rebooting"
    pause = Background(it.machine.pause)
    go_on.set()
    pause.result()
    assert len(it.kernel.vms) == 2
    assert it.machine.paused


@pytest.mark.parametrize("paused", [False, True])
def test_reset_starts_the_guest_anew_whatever_state_it_is_in(run, paused):
    it = run()
    seen = events(it)
    ticking(it)
    if paused:
        in_time(it.machine.pause)
    in_time(it.machine.reset)
    assert it.machine.state == "running"
    assert len(it.kernel.vms) == 2
    assert [vm.has_run for vm in it.kernel.vms][:1] == [True]
    assert seen[-2:] == ["rebooting", "rebooted"]


def test_guest_kept_after_its_panic_is_panicked_until_it_is_reset(run):
    panicked = threading.Event()
    it = run([*prints(b"---[ end Kernel panic - not syncing: x ]---\n"), idle], on_panic="wait")
    it.machine.subscribe(lambda event: panicked.set() if event["event"] == "panic" else None)
    it.start()
    happens(panicked)
    assert it.machine.state == "panicked"
    in_time(it.machine.pause)
    assert it.machine.state == "paused"
    in_time(it.machine.resume)
    assert it.machine.state == "panicked"
    it.kernel.scripts = {0: [idle]}
    in_time(it.machine.reset)
    assert it.machine.state == "running"


def test_reset_restarts_even_when_the_guests_own_reboots_end_the_run(run):
    it = run(on_reboot="exit")
    ticking(it)
    in_time(it.machine.reset)
    assert it.machine.state == "running"


def test_cpu_that_does_not_stop_fails_the_pause_and_the_guest_goes_on(run, hasty):
    held, busy = threading.Event(), threading.Event()
    it = run([call(lambda vcpu: (busy.set(), happens(held))), *prints(b"on\n")])
    it.start()
    happens(busy)
    with pytest.raises(MachineError, match="CPU 0 did not stop within 0 s"):
        in_time(it.machine.pause)
    assert it.machine.state == "running"
    held.set()
    assert it().reason == outcome.POWEROFF
    assert it.output == b"on\n"


def test_host_that_does_not_finish_fails_the_pause_and_the_guest_goes_on(run, hasty):
    it = run()
    vcpu = ticking(it)
    begun, held, done, late = (threading.Event() for _ in range(4))
    it.machine._workers.submit(lambda: (begun.set(), happens(held), done.set()))
    happens(begun)
    with pytest.raises(MachineError, match="did not finish its disk and file I/O"):
        in_time(it.machine.pause)
    held.set()
    happens(done)
    it.machine._gate.call_soon(late.set)
    happens(late)
    assert it.machine.state == "running"
    assert vcpu.registers[TIME] == 0


def test_work_in_flight_is_finished_and_its_result_waits(run, monkeypatch):
    it = run()
    ticking(it)
    begun, held, heard, later = (threading.Event() for _ in range(4))

    def job():
        begun.set()
        happens(held)
        it.machine._gate.call_soon(heard.set)

    it.machine._workers.submit(job)
    happens(begun)
    hold = it.machine._workers.hold
    monkeypatch.setattr(it.machine._workers, "hold", lambda: (hold(), held.set()))
    in_time(it.machine.pause)
    it.machine._workers.submit(later.set)
    passed = threading.Event()
    it.machine._loop.call_soon(passed.set)
    happens(passed)
    assert not heard.is_set()
    assert not later.is_set()
    in_time(it.machine.resume)
    happens(heard)
    happens(later)


def test_reset_of_a_paused_guest_lets_its_devices_finish(run):
    it = run()
    ticking(it)
    later = threading.Event()
    in_time(it.machine.pause)
    it.machine._workers.submit(later.set)
    in_time(it.machine.reset)
    happens(later)


def test_devices_with_other_halves_are_quiesced_and_go_on(run):
    it = run([idle], rng=[""])
    board = it.machine.prepare()
    seen = []
    (device,) = board.devices
    device.quiesce = lambda: seen.append(("quiesce", it.machine._gate._open))
    device.go_on = lambda: seen.append(("go on", it.machine._gate._open))
    ticking(it)
    in_time(it.machine.pause)
    in_time(it.machine.resume)
    assert seen == [("quiesce", False), ("go on", False)]


def test_devices_that_were_not_quiesced_hear_nothing_of_a_pause_that_failed(run, hasty):
    """They may be at work: only while everything stands still are their halves touched from here."""
    held, busy = threading.Event(), threading.Event()
    it = run([call(lambda vcpu: (busy.set(), happens(held)))], rng=[""])
    seen = []
    (device,) = it.machine.prepare().devices
    device.quiesce = lambda: seen.append("quiesce")
    device.go_on = lambda: seen.append("go on")
    it.start()
    happens(busy)
    with pytest.raises(MachineError, match="CPU 0 did not stop"):
        in_time(it.machine.pause)
    held.set()
    it()
    assert seen == []


def test_device_that_cannot_go_on_is_told_of_once_and_holds_up_nothing_else(run):
    it = run(rng=[""])
    stopped, go_on, heard, worked = (threading.Event() for _ in range(4))
    it.kernel.scripts = {0: [call(lambda vcpu: (stopped.set(), happens(go_on))), idle_once, *prints(b"on\n")]}
    (device,) = it.machine.prepare().devices

    def break_down():
        raise OSError(5, "the other half has gone")

    device.go_on = break_down
    it.start()
    happens(stopped)
    seen = events(it)
    pause = Background(it.machine.pause)
    go_on.set()
    pause.result()
    it.machine._gate.call_soon(heard.set)
    it.machine._workers.submit(worked.set)
    with pytest.raises(
        MachineError, match=r"goes on, but not all of it: \[Errno 5\] the other half has gone"
    ):
        in_time(it.machine.resume)
    happens(heard)
    happens(worked)
    assert it().reason == outcome.POWEROFF
    assert it.output == b"on\n"
    assert seen == ["paused", "resumed", "ended"]


def test_machine_whose_devices_are_not_watched_again_still_closes(run, monkeypatch):
    it = run()
    ticking(it)
    in_time(it.machine.pause)
    monkeypatch.setattr(it.machine._gate, "open", refuse)
    with pytest.raises(OSError, match="No space left"):
        in_time(it.machine.close)
    assert it.kernel.open_fds == []


def refuse():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("act", ["pause", "power_button", "inspect", "reset"])
def test_reboot_that_a_reader_holds_up_is_waited_for_only_so_long(run, monkeypatch, act):
    monkeypatch.setattr("pyvmm.machine._PATIENCE", 0.0)
    monkeypatch.setattr("pyvmm.steering.PATIENCE", 0.01)
    monkeypatch.setattr("pyvmm.steering.RESET_LIMIT", 0.01)
    it = run(cpus=2)
    waiting, rebooting, room = threading.Event(), threading.Event(), threading.Event()
    writer = it.machine._writer
    monkeypatch.setattr(writer, "_wait_for_room", lambda: (waiting.set(), happens(room)))
    it.on_note = lambda text: rebooting.set() if text == "the guest reboots" else None
    it.kernel.scripts = {0: [call(lambda vcpu: happens(waiting)), reset()], 1: [flood]}
    it.machine.prepare()
    it.kernel.vm.vcpus[1].mp_state = uapi.KVM_MP_STATE_RUNNABLE
    it.start()
    happens(rebooting)
    with pytest.raises(MachineError, match=r"is being restarted.*Does somebody read the console's output\?"):
        in_time(getattr(it.machine, act))
    room.set()
    it.machine.end(QUIT)
    in_time(it.machine.close)


def test_reset_that_fails_says_that_the_guest_has_ended(run, image):
    it = run()
    ticking(it)
    os.unlink(image)
    with pytest.raises(MachineError, match="has ended"):
        in_time(it.machine.reset)


def test_listener_that_was_taken_away_hears_no_more(run):
    it = run()
    seen = []
    unsubscribe = it.machine.subscribe(seen.append)
    unsubscribe()
    unsubscribe()
    ticking(it)
    assert seen == []


def test_end_is_told_once_with_its_reason_and_a_panic_before(run):
    text = b"Kernel panic - not syncing: oops\r\n---[ end Kernel panic - not syncing: oops ]---\r\n"
    it = run([*prints(text), idle])
    seen = []
    it.machine.subscribe(seen.append)
    it()
    assert [event["event"] for event in seen] == ["started", "panic", "ended"]
    assert seen[1]["message"] == "Kernel panic - not syncing: oops"
    assert (seen[2]["reason"], seen[2]["exit_code"]) == ("panic", 255)
