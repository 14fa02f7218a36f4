# SPDX-License-Identifier: Apache-2.0
"""Tap interfaces: the host's end of a virtio-net device (Linux, Documentation/networking/tuntap.rst).

A tap hands out one frame a read and takes one a write, each behind the 12-byte header of virtio-net, so that
checksums and segments can be left to whoever is able to do them. ``num_buffers`` in it is not the tap's: it
leaves those two bytes as they are.
"""

from __future__ import annotations

import os
import struct
from errno import EBUSY, EINVAL, EPERM

from pyvmm.devices.hostioctl import host_ioctl
from pyvmm.devices.hostnode import open_node
from pyvmm.devices.net import bits as netbits
from pyvmm.errors import ConfigError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.devices.hostioctl import Ioctl

NODE = "/dev/net/tun"
INTERFACES = "/sys/class/net"

# <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x4004_54CA, 0x4004_54D0, 0x4004_54D8
TUNSETQUEUE, TUNSETCARRIER = 0x4004_54D9, 0x4004_54E2
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU = 0x8913, 0x8914, 0x8922
IFF_UP = 1
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8

_FLAGS = struct.Struct("=16sH22x")  # struct ifreq with flags
_MTU = struct.Struct("=16si20x")  # with an int
_INT = struct.Struct("=i")

#: What the guest can take off the tap's hands, and the tap's word for it.
_OFFLOADS = (
    (netbits.GUEST_CSUM, TUN_F_CSUM),
    (netbits.GUEST_TSO4, TUN_F_TSO4),
    (netbits.GUEST_TSO6, TUN_F_TSO6),
    (netbits.GUEST_ECN, TUN_F_TSO_ECN),
)


class TapPort:
    """One queue of a tap. ``overflow`` is what of the last frame did not fit where it should have gone."""

    in_hand = False  # what was not read is the tap's

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.spare = bytearray(netbits.LARGEST_FRAME)
        self._spare = memoryview(self.spare)
        self.overflow = self._spare[:0]

    def receive(self, views: list[memoryview], room: int) -> int:
        """Read a frame into ``views`` of ``room`` bytes; its size with the header. Raises OSError."""
        count = os.readv(self.fd, [*views, self._spare])
        self.overflow = self._spare[: max(0, count - room)]
        return count

    def send(self, views: Sequence[memoryview]) -> bool:
        """Send a frame. False: not now, but when the descriptor is writable. Raises OSError."""
        try:
            os.writev(self.fd, views)
        except BlockingIOError:
            return False
        return True

    def flush(self) -> bool:
        """Nothing is ever left behind."""
        return True

    def close(self) -> None:
        """Leave the queue."""
        os.close(self.fd)


class Tap:
    """A tap interface with one port a queue pair. See :func:`open_tap`."""

    features = netbits.TAP_FEATURES

    def __init__(self, name: str, ports: list[TapPort], ioctl: Ioctl = host_ioctl) -> None:
        self.name = name
        self.ports = ports
        self._ioctl = ioctl
        self._attached = len(ports)

    def set_offloads(self, features: int) -> None:
        """What the guest takes: frames without checksum, larger than the MTU. Raises OSError."""
        flags = sum(flag for bit, flag in _OFFLOADS if features >> bit & 1)
        self._ioctl(self.ports[0].fd, TUNSETOFFLOAD, flags)

    def set_pairs(self, count: int) -> None:
        """Spread incoming frames over the first ``count`` queues. Raises OSError."""
        for port in self.ports[self._attached : count]:
            self._ioctl(port.fd, TUNSETQUEUE, _FLAGS.pack(b"", IFF_ATTACH_QUEUE))
            self._attached += 1
        for port in reversed(self.ports[count : self._attached]):
            self._ioctl(port.fd, TUNSETQUEUE, _FLAGS.pack(b"", IFF_DETACH_QUEUE))
            self._attached -= 1

    def set_link(self, up: bool) -> None:
        """Show the host a cable that is plugged in, or is not. Hosts before Linux 5.0 do not see it."""
        try:
            self._ioctl(self.ports[0].fd, TUNSETCARRIER, _INT.pack(up))
        except OSError:
            pass

    def close(self) -> None:
        """Leave the interface; one that was made for us is gone with that."""
        while self.ports:
            self.ports.pop().close()


def open_tap(
    what: str, name: str | None, queues: int, mtu: int | None, ioctl: Ioctl = host_ioctl, node: str = NODE
) -> Tap:
    """Open the tap ``name``, or make one. Raises ConfigError, with a sentence that begins with ``what``.

    One that exists is left as its owner set it up. A new one is brought up, with this ``mtu``; an address, or
    a bridge, is up to the user.
    """
    exists = name is not None and os.path.exists(f"{INTERFACES}/{name}")
    multi = _is_multi_queue(what, name, queues) if exists else queues > 1
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi else 0)
    tap = Tap(name or "tap%d", [], ioctl)
    try:
        for _ in range(queues):
            fd = open_node(
                what, node, module="tun", ask="ask for read and write access to it", flags=os.O_NONBLOCK
            )
            tap.ports.append(TapPort(fd))
            _attach(what, tap, flags, exists)
        if not exists:
            _bring_up(what, tap, mtu, ioctl)
    except BaseException:
        tap.close()
        raise
    tap._attached = queues
    return tap


def _is_multi_queue(what: str, name: str | None, queues: int) -> bool:
    """Whether the existing interface is for several queues. Raises ConfigError when it cannot be used."""
    try:
        with open(f"{INTERFACES}/{name}/tun_flags", encoding="ascii") as file:
            flags = int(file.read(), 0)
    except (OSError, ValueError):
        flags = 0
    if not flags & IFF_TAP:
        raise ConfigError(f"{what}: {name} is not a tap interface; name one, or let one be made.")
    if queues > 1 and not flags & IFF_MULTI_QUEUE:
        raise ConfigError(
            f"{what}: {name} was made for one queue; leave out queues=, "
            f"or make it with `ip tuntap add {name} mode tap multi_queue`."
        )
    return bool(flags & IFF_MULTI_QUEUE)


def _attach(what: str, tap: Tap, flags: int, exists: bool) -> None:
    """Make the port that was opened last a queue of the interface."""
    fd = tap.ports[-1].fd
    try:
        answer = tap._ioctl(fd, TUNSETIFF, _FLAGS.pack(tap.name.encode(), flags))
        tap._ioctl(fd, TUNSETVNETHDRSZ, _INT.pack(netbits.HEADER_SIZE))
    except OSError as error:
        raise ConfigError(f"{what}{_refusal(tap.name, exists, error)}") from error
    tap.name = _FLAGS.unpack(answer)[0].rstrip(b"\0").decode()  # the kernel may have chosen the number


def _refusal(name: str, exists: bool, error: OSError) -> str:
    """The rest of the sentence for a tap that could not be had."""
    if error.errno == EPERM and exists:
        return f": {name} belongs to another user; `ip tuntap add {name} mode tap user $USER` makes it yours."
    if error.errno == EPERM:
        shown = "tap0" if "%" in name else name
        return (
            f" may not make a network interface; let root make it with "
            f"`ip tuntap add {shown} mode tap user $USER`, and name it with tap={shown}."
        )
    if error.errno == EBUSY:
        return f": {name} is in use by another program; end that, or name another one."
    if error.errno == EINVAL:
        return f": {name} cannot be a tap interface with these settings; name another one."
    return f": {name} cannot be used: {error.strerror}."


def _bring_up(what: str, tap: Tap, mtu: int | None, ioctl: Ioctl) -> None:
    import socket

    name = tap.name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fd = any_socket.fileno()
        try:
            if mtu is not None:
                ioctl(fd, SIOCSIFMTU, _MTU.pack(name, mtu))
            answer = ioctl(fd, SIOCGIFFLAGS, _FLAGS.pack(name, 0))
            assert isinstance(answer, bytes)
            ioctl(fd, SIOCSIFFLAGS, _FLAGS.pack(name, _FLAGS.unpack(answer)[1] | IFF_UP))
        except OSError as error:
            raise HostError(
                f"{what} cannot bring {tap.name} up: {error.strerror}.", error.errno or 0
            ) from error
