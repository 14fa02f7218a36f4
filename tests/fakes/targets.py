# SPDX-License-Identifier: Apache-2.0
"""Every device with a host's end of its own, to be attacked: what a guest asks of it, what happens there.

``TARGETS[name](folder)`` makes one; nothing outside of ``folder`` may be touched through it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from pathlib import Path

from fakes import p9client
from fakes.echo import Echo
from fakes.tap import FakeTap
from fakes.vhost import FEATURES, FakeVhost
from fakes.vhostuser import FakeBackend
from fakes.virtio import make_services

from pyvmm.devices.console.file import FilePort
from pyvmm.devices.console.unixsocket import UnixPort
from pyvmm.devices.net.vhostnet import VhostNet
from pyvmm.devices.settings import parse
from pyvmm.devices.vhost.user import GET_VRING_BASE, SET_VRING_KICK, VhostUser
from pyvmm.devices.virtio.balloon import Balloon
from pyvmm.devices.virtio.blk import Blk
from pyvmm.devices.virtio.console import Console
from pyvmm.devices.virtio.fs import Fs
from pyvmm.devices.virtio.net import Net
from pyvmm.devices.virtio.p9 import P9
from pyvmm.devices.virtio.rng import Rng
from pyvmm.devices.virtio.vsock import VhostVsock, Vsock

SIZES = (0, 1, 2, 8, 11, 12, 13, 16, 60, 64, 100, 512, 513, 1024, 1526, 4096)
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
)


def number(rng, width=64):
    """A number of ``width`` bits, of a kind that breaks things."""
    value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(width)
    return value & (1 << width) - 1


def cut(rng, data):
    """``data`` in one to three pieces."""
    pieces = []
    while data and len(pieces) < 2 and rng.random() < 0.4:
        at = rng.randrange(len(data) + 1)
        pieces.append(data[:at])
        data = data[at:]
    return [piece for piece in (*pieces, data) if piece]


def opened(kind, body):
    return kind.open(parse(body, body, kind.SETTINGS, kind.POSITIONAL), make_services())


class Target:
    """``request`` is (readable pieces, sizes of writable ones) for a queue. ``happen``: at the host's end."""

    packed = True  # its queues may have that layout
    owns_buffers = True  # it writes to the buffers that it is offered, and nowhere else
    shared = False  # guest memory has to be in a file

    def __init__(self, device):
        self.device = device

    def request(self, rng, queue):
        return cut(rng, rng.randbytes(rng.choice(SIZES))), [
            rng.choice(SIZES) for _ in range(rng.randrange(3))
        ]

    def greeting(self):
        """(queue, readable, writable) that get a conversation going."""
        return []

    def happen(self, rng):
        """Nothing does."""

    def check(self):
        """Nothing at the host's end was damaged."""

    def close(self):
        """The device is closed already."""


class EchoTarget(Target):
    def __init__(self, folder):
        super().__init__(Echo())

    def happen(self, rng):
        if self.device.session is not None:
            self.device.answer()


class DiskTarget(Target):
    SIZE = 1 << 18
    options = "rw"

    def __init__(self, folder):
        self.path = os.path.join(folder, "disk.img")
        Path(self.path).write_bytes(b"disk" * (self.SIZE // 4))
        super().__init__(opened(Blk, f"{self.path},{self.options},queues=2"))

    def request(self, rng, queue):
        kind = rng.choice((0, 0, 1, 1, 4, 8, 11, 13, number(rng, 32)))
        sector = rng.choice((0, 1, 8, self.SIZE // 512 - 1, self.SIZE // 512, number(rng)))
        header = struct.pack("<IIQ", kind, number(rng, 32), sector)
        if kind in (11, 13):
            payload = b"".join(
                struct.pack("<QII", rng.choice((0, 8, 511, number(rng))), rng.choice((1, 8, number(rng, 32))),
                            rng.choice((0, 0, 1, number(rng, 32))))
                for _ in range(rng.choice((1, 1, 2, 33)))
            )  # fmt: skip
        else:
            payload = rng.randbytes(rng.choice((512, 4096, *SIZES))) if kind == 1 else b""
        sizes = [rng.choice((512, 4096, *SIZES))] if kind in (0, 8) else []
        return cut(rng, header + payload), [*sizes, rng.choice((1, 1, 1, 0, 2))]

    def check(self):
        assert os.path.getsize(self.path) == self.SIZE


class ReadOnlyDiskTarget(DiskTarget):
    options = "ro"

    def check(self):
        assert Path(self.path).read_bytes() == b"disk" * (self.SIZE // 4)


class NetTarget(Target):
    """With two queue pairs on the socketpairs that stand for a tap."""

    vhost = False

    def __init__(self, folder):
        self.tap = FakeTap(2)
        self.kernels = [FakeVhost(), FakeVhost()] if self.vhost else []
        vhosts = [kernel.make(VhostNet) for kernel in self.kernels]
        super().__init__(Net(self.tap.end, b"\x52\x54\0\0\0\1", vhosts=vhosts))

    def request(self, rng, queue):
        if queue == 4:
            command = rng.choice((b"\1\1", b"\4\0", b"\5\0", rng.randbytes(2)))
            body = rng.choice((b"\1\0", b"\2\0", struct.pack("<Q", number(rng)), rng.randbytes(6)))
            return cut(rng, command + body), [rng.choice((0, 1, 1, 2))]
        if queue % 2:
            header = rng.choice((bytes(12), rng.randbytes(12)))
            return cut(rng, header + rng.randbytes(rng.choice(SIZES))), []
        return [], [rng.choice(SIZES) for _ in range(rng.randrange(1, 4))]

    def happen(self, rng):
        what = rng.randrange(5)
        far = rng.choice(self.tap.far)
        if what == 0:
            self.device.set_link(rng.random() < 0.7)
        elif what == 1:
            while select.select([far], [], [], 0)[0] and far.recv(1 << 17):
                pass
        else:
            try:
                far.send(bytes(12) + rng.randbytes(rng.choice((*SIZES, 65000))))
            except OSError:  # it is full, or nobody is there
                pass

    def close(self):
        self.tap.close()


class KernelNetTarget(NetTarget):
    vhost = True
    packed = False

    def happen(self, rng):
        ring = rng.choice(rng.choice(self.kernels).rings)
        if rng.random() < 0.1 and ring.error >= 0:
            os.eventfd_write(ring.error, 1)
        elif rng.random() < 0.5 and ring.call >= 0:
            os.eventfd_write(ring.call, 1)
        else:
            ring.base = rng.getrandbits(16)
            super().happen(rng)


class Screen:
    """A Screen that takes everything, and is full now and then."""

    def __init__(self):
        self.waiting = []
        self.bytes = 0

    def write(self, data):
        self.bytes += len(data)
        return (lambda: None) if self.bytes % 3 == 0 else None

    def when_room(self, callback):
        self.waiting.append(callback)

    def drain(self):
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class ConsoleTarget(Target):
    def __init__(self, folder):
        self.screen = Screen()
        self.path, self.file = os.path.join(folder, "s"), os.path.join(folder, "log")
        self.ports = [UnixPort("chat", self.path), FilePort("log", self.file)]
        self.clients = []
        super().__init__(Console(self.screen, self.ports))

    def request(self, rng, queue):
        if queue % 2 == 0:
            return [], [rng.choice((64, 64, *SIZES))]
        if queue == 3:
            port, event = rng.choice((0, 1, 2, 3, number(rng, 32))), rng.choice((0, 3, 6, 6, number(rng, 16)))
            message = struct.pack("<IHH", port, event, rng.choice((0, 1, 1, number(rng, 16))))
            return cut(rng, message + rng.choice((b"", b"more"))), []
        return super().request(rng, queue)

    def greeting(self):
        """Both ports are opened, and have room."""
        room = [(queue, [], [64]) for queue in (0, 2, 2, 2, 4, 6) for _ in range(2)]
        words = [(0xFFFF_FFFF, 0, 1)] + [(port, event, 1) for port in range(3) for event in (3, 6)]
        return [(1, [b"hello"], []), *room, *((3, [struct.pack("<IHH", *word)], []) for word in words)]

    def happen(self, rng):
        what = rng.randrange(8)
        if what == 0 and len(self.clients) < 4:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(self.path)
            self.clients.append(client)
        elif what == 1:
            self.screen.drain()
        elif what == 2:
            self.device.resize(rng.getrandbits(16), rng.getrandbits(16))
        elif what == 3:
            self.device.receive(rng.randbytes(rng.choice(SIZES)))
        elif self.clients and what == 4:
            self.clients.pop(rng.randrange(len(self.clients))).close()
        elif what == 5 and rng.random() < 0.1:
            self.device.send_break()
        elif self.clients:
            self._talk(rng, rng.choice(self.clients))

    @staticmethod
    def _talk(rng, client):
        try:
            client.send(rng.randbytes(rng.choice(SIZES)))
            client.recv(1 << 16)
        except OSError:
            pass

    def close(self):
        for closing in (*self.ports, *self.clients):
            closing.close()
        os.truncate(self.file, 0)


class RngTarget(Target):
    def __init__(self, folder):
        super().__init__(Rng())


class SlowRngTarget(Target):
    def __init__(self, folder):
        super().__init__(Rng(1000))


class BalloonTarget(Target):
    owns_buffers = False

    def __init__(self, folder):
        super().__init__(Balloon(1 << 20))

    def request(self, rng, queue):
        if queue == 3:
            return [], [rng.choice((4096, 8192, *SIZES))]
        pages = [
            rng.choice((0x80000 + rng.randrange(0x100), 0x80400, rng.getrandbits(32))) for _ in range(20)
        ]
        return cut(rng, struct.pack("<20I", *pages)[: rng.choice((80, 40, 79, 10))]), []

    def happen(self, rng):
        if rng.random() < 0.5:
            self.device.set_target(rng.getrandbits(40))
        else:
            self.device.request_stats(lambda stats: None)


NAMES = (
    b"",
    b".",
    b"..",
    b"a",
    b"b",
    b"folder",
    b"link",
    b"up",
    b"../outside",
    b"/etc",
    b"x" * 300,
    b"a\0b",
    b"\xff",
)


class P9Target(Target):
    """In a folder beside one that must not be reached, with a symbolic link to it."""

    def __init__(self, folder):
        self.outside = Path(folder, "outside")
        self.outside.mkdir(exist_ok=True)
        share = Path(folder, "share")
        (share / "folder").mkdir(parents=True, exist_ok=True)
        (self.outside / "secret").write_bytes(b"secret")
        (share / "a").write_bytes(b"a" * 5000)
        if not os.path.lexists(share / "up"):
            os.symlink("../outside", share / "up")
        super().__init__(opened(P9, f"{share},tag,rw"))

    def request(self, rng, queue):
        name = rng.choice(("walk", "walk", "lopen", *p9client.REQUESTS))
        _, letters = p9client.REQUESTS[name]
        values = [self._value(rng, letter) for letter in letters]
        if name == "version" and rng.random() < 0.8:
            values = [8192, b"9P2000.L"]
        elif name == "attach" and rng.random() < 0.8:
            values = [rng.randrange(4), p9client.NOFID, b"", b"", 0]
        frame = bytearray(p9client.frame(name, *values, tag=rng.randrange(8)))
        if rng.random() < 0.2:
            frame[rng.randrange(len(frame))] = rng.getrandbits(8)
        if rng.random() < 0.05:
            struct.pack_into("<I", frame, 0, number(rng, 32))
        return cut(rng, bytes(frame)), [rng.choice((11, 512, 4096, 4096, *SIZES))]

    def greeting(self):
        """The session, and a few fids: the folder, a file, a link out of it."""
        words = [("version", 8192, b"9P2000.L"), ("attach", 0, p9client.NOFID, b"", b"", 0)]
        words += [("walk", 0, fid, [name]) for fid, name in enumerate((b"a", b"folder", b"up"), 1)]
        words += [("lopen", 1, 2), ("walk", 0, 4, [])]
        return [(0, [p9client.frame(*word)], [512]) for word in words]

    @staticmethod
    def _value(rng, letter):
        if letter == "s":
            return rng.choice(NAMES)
        if letter == "*":
            return [rng.choice(NAMES) for _ in range(rng.randrange(4))]
        if letter == "d":
            return rng.randbytes(rng.choice(SIZES))
        width = 8 * struct.calcsize(f"<{letter}")
        return rng.randrange(5) if rng.random() < 0.8 else number(rng, width)

    def check(self):
        assert [entry.name for entry in os.scandir(self.outside)] == ["secret"]
        assert (self.outside / "secret").read_bytes() == b"secret"


class VsockTarget(Target):
    packed = False

    def __init__(self, folder):
        self.kernel = FakeVhost(FEATURES)
        super().__init__(Vsock(self.kernel.make(VhostVsock), 3))

    def happen(self, rng):
        ring = rng.choice(self.kernel.rings)
        if rng.random() < 0.1 and ring.error >= 0:
            os.eventfd_write(ring.error, 1)
        elif ring.call >= 0:
            os.eventfd_write(ring.call, 1)
        ring.base = rng.getrandbits(16)


class DeafBackend(FakeBackend):
    """A back end that answers messages and leaves rings alone: they are virtiofsd's to guard."""

    def _wait(self):
        poller = select.poll()
        for fd in (self._stop, self._own.fileno()):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll()]
        return self._stop not in ready and self._message()


class FsTarget(Target):
    """``Virtiofsd`` itself, too: ``connection``, ``kill`` and ``close``."""

    packed = False
    shared = True

    def __init__(self, folder):
        self.backend = DeafBackend()
        self.connection = VhostUser(self.backend.socket, "virtiofsd")
        super().__init__(Fs(b"tag", self))

    def happen(self, rng):
        if rng.random() < 0.02:
            self.backend.misbehave[rng.choice((GET_VRING_BASE, SET_VRING_KICK))] = rng.choice(
                ("refuse", "hang up")
            )

    def kill(self):
        self.backend.end()

    def close(self):
        self.connection.close()
        self.backend.close()


TARGETS = {
    "echo": EchoTarget,
    "blk": DiskTarget,
    "blk-ro": ReadOnlyDiskTarget,
    "net": NetTarget,
    "vhost-net": KernelNetTarget,
    "console": ConsoleTarget,
    "rng": RngTarget,
    "rng-rate": SlowRngTarget,
    "balloon": BalloonTarget,
    "9p": P9Target,
    "vsock": VsockTarget,
    "fs": FsTarget,
}
