# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back end on a thread: it maps the guest's memory and works its rings, shouting back.

It answers a chain with its readable bytes in upper case. What it was told is in ``told`` as (request, body).
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import threading

from pyvmm.devices.virtio.chain import gather, scatter
from pyvmm.devices.virtio.queue import QueueSetup, make_queue
from pyvmm.memory import RAM, Bank, GuestMemory
from pyvmm.ring import Ring

FEATURES = 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 5


class FakeBackend:
    """``socket`` is the front end's. ``misbehave`` maps a request to what happens instead of an answer:
    "hang up", "refuse", "wrong" (another message's answer), "short", or "silence".
    """

    def __init__(self, *, features=FEATURES, protocol=PROTOCOL_FEATURES, misbehave=None, own=None):
        self.socket, self._own = (None, own) if own else socket.socketpair()
        self.features, self.protocol = features, protocol
        self.misbehave = misbehave or {}
        self.told = []
        self.ended = False  # by RemoteRings' ``end``
        self._memory = GuestMemory()
        self._regions = []
        self._rings = {}
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def join(self):
        """Wait until the front end hangs up."""
        self._thread.join()

    def close(self):
        """End the thread. Idempotent."""
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.close(self._stop)
        self._stop = -1
        self.socket.close()

    def end(self):
        """What RemoteRings calls to be rid of it."""
        self.ended = True
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)
            self._thread.join()

    def requests(self):
        return [request for request, _ in self.told]

    def _main(self):
        try:
            while self._wait():
                pass
        finally:
            self._own.close()
            for ring in self._rings.values():
                ring.close()
            self._memory.close()

    def _wait(self):
        poller = select.poll()
        kicks = {ring.kick: ring for ring in self._rings.values() if ring.enabled}
        for fd in (self._stop, self._own.fileno(), *kicks):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll()]
        if self._stop in ready:
            return False
        for fd in ready:
            if fd in kicks:
                kicks[fd].work(self._memory)
        return self._own.fileno() not in ready or self._message()

    def _message(self):
        head, rights, _, _ = self._own.recvmsg(12, socket.CMSG_SPACE(4 * 8))
        if not head:
            return False
        fds = array.array("i")
        for _, _, data in rights:
            fds.frombytes(data)
        request, flags, size = struct.unpack("=III", head)
        body = self._own.recv(size) if size else b""
        self.told.append((request, body))
        what = self.misbehave.get(request)
        if what == "hang up":
            for fd in fds:
                os.close(fd)
            return False
        answer = self._do(request, body, fds)
        if answer is None and flags & 8:
            answer = struct.pack("=Q", what == "refuse")
        if answer is not None and what != "silence":
            answer = answer[:-1] if what == "short" else answer
            self._own.send(struct.pack("=III", request + (what == "wrong"), 5, len(answer)) + answer)
        return True

    def _do(self, request, body, fds):
        if request in (1, 15):
            return struct.pack("=Q", self.features if request == 1 else self.protocol)
        if request == 5:
            self._map(body, fds)
        elif request in (8, 9, 10, 11, 18):
            index = struct.unpack_from("=I", body)[0]
            ring = self._rings.setdefault(index, FakeRing())
            if request == 11:
                ring.stop()
                return struct.pack("=II", index, ring.base)
            ring.tell(request, body, self._guest_address)
        elif request in (12, 13):
            self._rings[body[0]].lend(request, fds[0])
        return None

    def _map(self, body, fds):
        for ring in self._rings.values():
            ring.stop()
        self._memory.close()
        self._regions = list(struct.iter_unpack("=QQQQ", body[8:]))
        banks = []
        for (base, size, _, offset), fd in zip(self._regions, fds, strict=True):
            mapping = mmap.mmap(fd, size, offset=offset)
            os.close(fd)
            banks.append(Bank(base, size, RAM, mapping=mapping, offset=0, fd=-1, page=mmap.PAGESIZE))
        self._memory._banks = tuple(banks)
        self._memory._find_main()

    def _guest_address(self, host):
        for base, size, start, _ in self._regions:
            if start <= host < start + size:
                return base + host - start
        raise AssertionError(f"0x{host:x} is in no region")


class FakeRing:
    """One ring of it."""

    def __init__(self):
        self.kick = self.call = -1
        self.enabled = False
        self.base = 0
        self._queue = None

    def tell(self, request, body, guest_address):
        if request == 8:
            self._size = struct.unpack("=II", body)[1]
        elif request == 10:
            self.base = struct.unpack("=II", body)[1]
        elif request == 9:
            _, _, desc, used, avail, _ = struct.unpack("=IIQQQQ", body)
            self._setup = QueueSetup(self._size, *map(guest_address, (desc, avail, used)), indirect=True)
        else:
            self.enabled = bool(struct.unpack("=II", body)[1])

    def lend(self, request, fd):
        name = "kick" if request == 12 else "call"
        if getattr(self, name) >= 0:
            os.close(getattr(self, name))
        setattr(self, name, fd)

    def work(self, memory):
        os.eventfd_read(self.kick)
        if self._queue is None:
            self._queue = make_queue(memory, Ring(), self._setup)
            self._queue.load_state({"available": self.base, "used": self.base, "signalled": self.base})
        while (chain := self._queue.pop()) is not None:
            written = scatter(chain.writable, gather(chain.readable).upper())
            self._queue.complete(chain, written)
        os.eventfd_write(self.call, 1)

    def stop(self):
        self.enabled = False
        if self._queue is not None:
            self.base = self._queue.state()["available"]
            self._queue.close()
        self._queue = None

    def close(self):
        self.stop()
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)


def wait(rig, condition):
    """Run a Rig's loop until ``condition`` holds; fail when nothing happens any more."""
    rig.loop.run()
    while not condition():
        poller = select.poll()
        for watch in rig.loop.watches:
            poller.register(watch.fd, watch.events)
        assert poller.poll(20_000), "nothing happens"
        rig.loop.run()
