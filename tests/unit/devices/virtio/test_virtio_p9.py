# SPDX-License-Identifier: Apache-2.0
"""virtio-9p under a driver: requests through the queue, flushes, resets, and what a user may ask for."""

import errno
import os
import struct

import pytest
from fakes.p9client import P9Client, P9Error, frame, serve
from fakes.virtio import Rig, make_services

from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.settings import parse
from pyvmm.devices.virtio import p9
from pyvmm.devices.virtio.p9 import MAX_JOBS, P9
from pyvmm.errors import ConfigError


def open_device(body, services=None):
    settings = parse(f"--9p {body}", body, P9.SETTINGS, P9.POSITIONAL)
    return P9.open(settings, services or make_services())


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "a").write_bytes(b"hello")
    return folder


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def rig(request, share):
    before = len(os.listdir("/proc/self/fd"))
    with Rig(open_device(f"{share},rw"), packed=request.param) as rig:
        rig.start()
        yield rig
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"


@pytest.fixture
def client(rig):
    def call(request, room):
        token = rig.drivers[0].add_chain([request[:9], request[9:]], [11, room - 11])
        rig.kick()
        [done] = rig.drivers[0].collect()
        assert done.token == token
        return done.data

    client = P9Client(call, room=8192)
    client.root = client.start()
    return client


def send(rig, request, room=4096):
    return rig.drivers[0].add_chain([request], [room])


def kinds(rig):
    """(token, type) of the answers that came."""
    return [(done.token, done.data[4]) for done in rig.drivers[0].collect()]


def test_file_is_read_and_written_through_the_queue(client, share):
    fid = client.open(client.root, b"a", flags=2)
    assert client.read(fid, count=4096) == b"hello"
    client.write(fid, b"J")
    assert (share / "a").read_bytes() == b"Jello"


def test_configuration_space_tells_the_tag(share):
    with Rig(open_device(f"{share},my-tag")) as rig:
        assert rig.device.read(0, 2) == 6
        assert bytes(rig.device.read(2 + at, 1) for at in range(6)) == b"my-tag"
        rig.reset()
        assert rig.device.read(0, 2) == 6
        assert rig.device.offered() == 1


def test_share_is_read_only_unless_asked(share):
    with Rig(open_device(str(share))) as rig:
        rig.start()
        send(rig, frame("version", 8192, b"9P2000.L"))
        send(rig, frame("attach", 1, 0xFFFF_FFFF, b"", b"", 0))
        send(rig, frame("mkdir", 1, b"d", 0o755, 0))
        rig.kick()
        answer = rig.drivers[0].collect()[-1].data
        assert struct.unpack("<IBHI", answer) == (11, 7, 1, errno.EROFS)


def test_chain_without_a_request_or_room_comes_back_empty(rig):
    driver = rig.drivers[0]
    tokens = [
        driver.add_chain([b"short"], [100]),
        driver.add_chain([], [100]),
        driver.add_chain([frame("clunk", 1)], []),
        driver.add_chain([frame("clunk", 1)], [10]),
        driver.add_chain([frame("flush", 1)], [6]),
    ]
    rig.kick()
    assert [(done.token, done.written) for done in driver.collect()] == [(token, 0) for token in tokens]
    assert rig.device.odd_requests == 5
    assert rig.broken == ""


def test_few_requests_are_with_the_workers_and_all_are_answered(rig, client):
    rig.workers.held = True
    for tag in range(8):
        send(rig, frame("statfs", client.root, tag=tag))
    rig.kick()
    assert len(rig.workers.jobs) == MAX_JOBS
    rig.workers.held = False
    rig.workers.release()
    rig.loop.run()
    assert len(rig.drivers[0].collect()) == 8


def test_requests_beyond_the_allowance_of_a_pass_are_with_the_workers(rig, client, monkeypatch):
    monkeypatch.setattr("pyvmm.devices.p9.allowance.STEPS", 3)
    rig.core.device._server.devices.local = True
    rig.workers.held = True
    for tag in range(5):
        send(rig, frame("getattr", client.root, 0, tag=tag), room=200)
    rig.kick()
    assert len(rig.drivers[0].collect()) == 3
    assert len(rig.workers.jobs) == 2
    send(rig, frame("getattr", client.root, 0), room=200)  # another pass
    rig.kick()
    assert len(rig.drivers[0].collect()) == 1
    rig.workers.held = False
    rig.workers.release()
    rig.loop.run()
    assert len(rig.drivers[0].collect()) == 2


def test_flush_of_a_finished_request_is_answered_at_once(rig, client):
    token = send(rig, frame("flush", 77, tag=5))
    rig.kick()
    [done] = rig.drivers[0].collect()
    assert (done.token, done.data) == (token, struct.pack("<IBH", 7, 109, 5))


@pytest.mark.parametrize("ahead", [0, MAX_JOBS], ids=["running", "waiting"])
def test_flush_is_answered_after_the_request_it_is_for(rig, client, ahead):
    rig.workers.held = True
    for _ in range(ahead):
        send(rig, frame("statfs", client.root, tag=1))
    request = send(rig, frame("statfs", client.root, tag=50))
    flush = send(rig, frame("flush", 50, tag=51))
    rig.kick()
    assert rig.drivers[0].collect() == []
    rig.workers.held = False
    rig.workers.release()
    rig.loop.run()
    assert kinds(rig)[ahead:] == [(request, 9), (flush, 109)]


def test_reset_waits_for_requests_and_forgets_every_fid(rig, client):
    rig.workers.held = True
    send(rig, frame("statfs", client.root))
    rig.kick()
    with rig.core.lock:
        after = rig.core.write_status(0)
    rig.workers.held = False
    rig.workers.release()
    after()
    rig.loop.run()
    rig.drivers[0].reset()
    rig.start()
    token = send(rig, frame("statfs", client.root))
    rig.kick()
    [done] = rig.drivers[0].collect()
    assert done.token == token
    assert struct.unpack_from("<I", done.data, 7)[0] == errno.EPROTO


def test_queue_reset_drops_requests_and_the_queue_works_again(rig, client):
    rig.workers.held = True
    for _ in range(5):
        send(rig, frame("statfs", client.root))
    rig.kick()
    with rig.core.lock:
        rig.core.queue_select = 0
        after = rig.core.disable_queue()
    rig.workers.held = False
    rig.workers.release()
    after()
    rig.loop.run()
    driver = rig.drivers[0]
    driver.reset()
    with rig.core.lock:
        for name in ("size", "desc", "driver", "device"):
            rig.core.set_queue(name, getattr(driver.setup, name))
        rig.core.enable_queue()
    assert client.getattr(client.root)["qid_type"] == 0x80


def test_guest_forgetting_to_clunk_leaks_nothing_over_a_reset(rig, client):
    for _ in range(50):
        client.walk(client.root, b"a")
    many = len(os.listdir("/proc/self/fd"))
    rig.reset()
    assert len(os.listdir("/proc/self/fd")) == many - 51


def test_errors_of_the_host_reach_the_guest(client):
    with pytest.raises(P9Error) as caught:
        client.walk(client.root, b"none")
    assert caught.value.code == errno.ENOENT


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOTCONN])
def test_folder_that_is_gone_makes_the_device_need_a_reset(share, monkeypatch, code):
    def gone(root):
        raise OSError(code, os.strerror(code))

    with Rig(open_device(str(share))) as rig:
        with monkeypatch.context() as patch:
            patch.setattr("pyvmm.devices.p9.server.Devices", gone)
            rig.start()
        assert rig.broken == f"the shared folder cannot be reached: {os.strerror(code)}"
        rig.reset()
        rig.drivers[0].reset()
        rig.start()
        token = send(rig, frame("version", 8192, b"9P2000.L"))
        rig.kick()
        assert kinds(rig) == [(token, 101)]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", r"--9p  needs dir="),
        ("{}/none", r"/none does not exist; give the folder to share"),
        ("{}/a", r"/a is not a folder; give the folder to share"),
        ("{},tag-that-is-longer-than-thirty-two-bytes", r"tag takes a name of at most 32 bytes, not"),
        ("/proc", r"/proc holds processes, not files"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_sentence(share, body, sentence):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=sentence):
        open_device(body.format(share))
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_twice_is_harmless(share):
    device = open_device(str(share))
    device.close()
    device.close()


@pytest.mark.parametrize(
    ("soft", "hard", "privileged", "fids"),
    [
        (1024, 4096, False, 4096 - 256),
        (1024, 4096, True, (1 << 18) - 256),
        (1024, 1 << 20, False, (1 << 18) - 256),
        (1 << 20, 1 << 20, False, (1 << 20) - 256),
        (-1, -1, False, (1 << 18) - 256),
        (64, 64, False, 256),
    ],
)
def test_descriptors_for_fids_are_as_many_as_the_host_allows(monkeypatch, soft, hard, privileged, fids):
    limits = [soft, hard]

    def setrlimit(which, wanted):
        if wanted[1] > limits[1] >= 0 and not privileged:
            raise ValueError("not allowed to raise maximum limit")
        limits[:] = wanted

    monkeypatch.setattr("resource.getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr("resource.setrlimit", setrlimit)
    budget = p9._budget.__wrapped__()
    count = 0
    while budget.take():
        count += 1
    assert count == fids


def test_devices_share_the_descriptors_there_are(share):
    budget = Budget(3)
    roots = [open_root(str(share), "--9p") for _ in range(2)]
    with (
        Rig(P9(roots[0], b"one", writable=False, budget=budget)) as one,
        Rig(P9(roots[1], b"two", writable=False, budget=budget)) as other,
    ):
        one.start()
        other.start()
        sessions = [P9Client(serve(rig.device._server)) for rig in (one, other)]
        first, second = [client.start() for client in sessions]
        sessions[0].walk(first)
        with pytest.raises(P9Error, match="Too many open files"):
            sessions[1].walk(second)
        one.reset()
        sessions[1].walk(second)
