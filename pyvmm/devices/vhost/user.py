# SPDX-License-Identifier: Apache-2.0
"""vhost-user: the half of a virtio device that another process works, by messages on a Unix socket.

It is vhost (pyvmm.devices.vhost.kernel) with messages for ioctls: what QEMU's documentation calls the front
end is here. The back end maps guest memory, which therefore has to be in shared files, and is lent two
eventfds a ring: one with the driver's notifications, one that interrupts the guest.
"""

from __future__ import annotations

import socket
import struct

from pyvmm.devices.vhost.structs import U64, VRING_STATE, memory_table, vring_addresses
from pyvmm.devices.virtio import bits
from pyvmm.errors import HostError
from pyvmm.memory import RAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.virtio.queue import QueueSetup
    from pyvmm.memory import GuestMemory

# Requests of the front end.
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 15, 16, 18

# Flags of a message.
_VERSION, _REPLY, _NEED_REPLY = 0x1, 0x4, 0x8
_VERSION_MASK = 0x3

# Feature bits: of the device, and of the protocol.
F_LOG_ALL, F_PROTOCOL_FEATURES = 26, 30
PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK = 0, 3

MAX_REGIONS = 8
#: Seconds a back end has for an answer. It answers at once unless it hangs, or the host does.
PATIENCE = 20.0

_HEADER = struct.Struct("=III")  # request, flags, size of what follows
_LARGEST_ANSWER = 4096


class VhostUser:
    """One connection to a back end: a method a message, which returns when it was answered.

    Whatever goes wrong is a HostError that says so, beginning with ``name``, and the connection is of no more
    use then. One thread at a time.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Agree on features. ``sock`` is taken over."""
        self._socket = sock
        self.name = name
        self._need_reply = 0
        sock.settimeout(PATIENCE)
        self.features = self._ask_u64(GET_FEATURES)
        if not bits.has(self.features, F_PROTOCOL_FEATURES) or not bits.has(self.features, bits.F_VERSION_1):
            raise HostError(
                f"{name} is too old: it does not know virtio 1 and vhost-user's protocol features."
            )
        wanted = bits.feature_set(PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK)
        protocol = self._ask_u64(GET_PROTOCOL_FEATURES) & wanted
        self._set(SET_PROTOCOL_FEATURES, U64.pack(protocol))
        if bits.has(protocol, PROTOCOL_F_REPLY_ACK):
            self._need_reply = _NEED_REPLY
        self._set(SET_OWNER)

    @property
    def fd(self) -> int:
        """The socket's descriptor: EPOLLRDHUP on it means that the back end is gone."""
        return self._socket.fileno()

    @property
    def withheld(self) -> int:
        """Features of rings and transports that must not be offered: the back end does not know them.

        Packed rings neither: their base has wrap counters in it, which ``start_ring`` does not tell.
        """
        return bits.TRANSPORT_FEATURES & ~self.features | bits.feature_set(bits.F_RING_PACKED)

    def set_features(self, features: int) -> None:
        """What was negotiated with the driver."""
        features &= self.features & ~bits.feature_set(F_LOG_ALL)
        self._set(SET_FEATURES, U64.pack(features | bits.feature_set(F_PROTOCOL_FEATURES)))

    def set_memory(self, memory: GuestMemory) -> None:
        """The guest's RAM."""
        banks = [bank for bank in memory.banks if bank.kind == RAM]
        if len(banks) > MAX_REGIONS or any(bank.fd < 0 for bank in banks):
            raise HostError(f"{self.name} needs guest memory that can be shared; use --mem-backend memfd.")
        self._set(SET_MEM_TABLE, memory_table(banks), [bank.fd for bank in banks])

    def start_ring(
        self, index: int, setup: QueueSetup, memory: GuestMemory, base: int, kick: int, call: int
    ) -> None:
        """Let the back end work split ring ``index`` from the available index ``base`` on."""
        addresses = vring_addresses(index, setup, memory)
        self._set(SET_VRING_NUM, VRING_STATE.pack(index, setup.size))
        self._set(SET_VRING_BASE, VRING_STATE.pack(index, base))
        self._set(SET_VRING_ADDR, addresses)
        self._set(SET_VRING_CALL, U64.pack(index), [call])
        self._set(SET_VRING_KICK, U64.pack(index), [kick])
        self._set(SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    def stop_ring(self, index: int) -> int:
        """Take ring ``index`` back; the available index where the back end stands."""
        answer = self._ask(GET_VRING_BASE, VRING_STATE.pack(index, 0))
        if len(answer) != VRING_STATE.size:
            raise HostError(f"{self.name} answered {len(answer)} bytes for the state of a ring.")
        return int(VRING_STATE.unpack(answer)[1])

    def wait_for_end(self) -> None:
        """Wait until the back end hung up. One that is killed does so after it let go of guest memory."""
        try:
            while self._socket.recv(_LARGEST_ANSWER):
                pass
        except OSError:  # reset, or too late
            pass

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    # Messages

    def _ask_u64(self, request: int) -> int:
        answer = self._ask(request)
        if len(answer) != U64.size:
            raise HostError(f"{self.name} answered request {request} with {len(answer)} bytes.")
        return int(U64.unpack(answer)[0])

    def _ask(self, request: int, body: bytes = b"") -> bytes:
        self._send(request, 0, body)
        return self._receive(request)

    def _set(self, request: int, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        self._send(request, self._need_reply, body, fds)
        if self._need_reply and self._receive(request) != bytes(U64.size):
            raise HostError(f"{self.name} refused vhost-user request {request}.")

    def _send(self, request: int, flags: int, body: bytes, fds: Sequence[int] = ()) -> None:
        message = _HEADER.pack(request, _VERSION | flags, len(body)) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        try:
            sent = self._socket.sendmsg([message], rights)
            self._socket.sendall(message[sent:])
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, request: int) -> bytes:
        answered, flags, size = _HEADER.unpack(self._receive_exactly(_HEADER.size))
        if answered != request or not flags & _REPLY or flags & _VERSION_MASK != _VERSION:
            raise HostError(f"{self.name} does not keep to vhost-user: request {request} got {answered}.")
        if size > _LARGEST_ANSWER:
            raise HostError(f"{self.name} answered request {request} with {size} bytes.")
        return self._receive_exactly(size)

    def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except OSError as error:
                raise self._lost(error) from error
            if not more:
                raise HostError(f"{self.name} has ended.")
            data += more
        return data

    def _lost(self, error: OSError) -> HostError:
        if isinstance(error, TimeoutError):
            return HostError(f"{self.name} does not answer.")
        return HostError(f"{self.name} has ended.", error.errno or 0)
