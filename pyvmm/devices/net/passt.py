# SPDX-License-Identifier: Apache-2.0
"""User-mode networking through passt: a network for the guest that needs no privileges.

passt is a program of its own. It speaks for the guest through ordinary sockets of the host, and answers its
DHCP, NDP and DNS. Between it and us is one stream socket, on which each frame follows its length (32 bits,
big-endian). passt has checked every checksum, or made it, but takes no segments larger than a frame.

It is started without --foreground: then it goes into the background when it is ready, and until then its
exit status and what it prints tell what is wrong. It ends when our end of the socket is closed, however we
ended.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time

from pyvmm.devices.net import bits as netbits
from pyvmm.devices.virtio.bits import feature_set
from pyvmm.devices.virtio.chain import gather, scatter, split
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "passt"
#: What passt announces by DHCP, too, unless told otherwise. With it, TCP comes in frames of 64 KiB.
MTU = 65520
_LENGTH = struct.Struct("!I")
_LARGEST = netbits.LARGEST_FRAME - netbits.HEADER_SIZE
_ROOM = 1 << 18  # bytes taken from the socket at once
_SOCKET_BUFFER = 1 << 22  # bytes
_HEADROOM = netbits.HEADER_SIZE - _LENGTH.size  # for a header in front of the first frame
_PATIENCE = 2.0  # seconds that passt has to end in
_SAID = 4096  # bytes of an explanation
#: Not ours to repeat: it comes first whenever there is no system log, or when root starts it.
_CHATTER = ("Failed to send", "Don't run as root", "Started as root")


class PasstPort:
    """The socket to passt. ``overflow``: see pair.Port."""

    spare = None  # it is a stream

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.fd = sock.fileno()
        #: What a frame's header says: the checksums are right, when the driver knows that.
        self.header = bytes(netbits.HEADER_SIZE)
        self._buffer = memoryview(bytearray(_ROOM))
        self._start = self._end = _HEADROOM  # of what was received and not taken yet
        self.overflow = self._buffer[:0]
        self._unsent = b""

    def receive(self, views: list[memoryview], room: int) -> int:
        """Copy the next frame behind a header of our own. Raises OSError; BlockingIOError: no whole frame."""
        del room
        while (size := self._whole_frame()) == 0:
            self._fill()
        at = self._start + _LENGTH.size
        self._start = end = at + size
        begin = at - netbits.HEADER_SIZE  # over the length, and the end of a frame that was taken before
        self._buffer[begin:at] = self.header
        frame = self._buffer[begin:end]
        self.overflow = frame[scatter(views, frame) :]
        return end - begin

    @property
    def in_hand(self) -> bool:
        """Whether a part of the stream was received and not taken yet."""
        return self._start < self._end

    def _whole_frame(self) -> int:
        """Size of the frame at the beginning of the buffer; 0 while it is incomplete."""
        have = self._end - self._start - _LENGTH.size
        if have < 0:
            return 0
        (size,) = _LENGTH.unpack_from(self._buffer, self._start)
        if not netbits.ETHERNET_HEADER <= size <= _LARGEST:
            raise ConnectionError(0, f"passt sent a frame of {size} bytes")
        return int(size) if size <= have else 0

    def _fill(self) -> None:
        """Receive more. What is incomplete moves to the front first, so that it will fit."""
        end = _HEADROOM + self._end - self._start
        self._buffer[_HEADROOM:end] = self._buffer[self._start : self._end]
        self._start, self._end = _HEADROOM, end
        count = self._socket.recv_into(self._buffer[end:])
        if not count:
            raise ConnectionError(0, "passt has ended")
        self._end = end + count

    def send(self, views: Sequence[memoryview]) -> bool:
        """Send a frame without its header. False: not now. Raises ConnectionError when passt has ended."""
        if not self.flush():
            return False
        rest = list(views)
        skip = netbits.HEADER_SIZE
        while skip >= len(rest[0]):
            skip -= len(rest.pop(0))
        rest[0] = rest[0][skip:]
        size = sum(map(len, rest))
        rest.insert(0, memoryview(_LENGTH.pack(size)))
        try:
            done = self._socket.sendmsg(rest)
        except BlockingIOError:
            return False
        if done < _LENGTH.size + size:
            self._unsent = gather(split(rest, done)[1])
        return True

    def flush(self) -> bool:
        """Send the rest of a frame; whether nothing is left of it. Raises ConnectionError."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """Hang up, and wait until passt does: until then it has the host's ports, which the next may need."""
        end = time.monotonic() + _PATIENCE
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self._socket.settimeout(left)
                if not self._socket.recv_into(self._buffer):  # what it still says is nobody's
                    break
        except OSError:  # it is gone, or does not go
            pass
        self._socket.close()


class Passt:
    """The host's end of a user-mode network. See :func:`start_passt`."""

    features = feature_set(netbits.GUEST_CSUM)
    name = ""

    def __init__(self, port: PasstPort) -> None:
        self.ports = [port]

    def set_offloads(self, features: int) -> None:
        """Tell a driver that knows the word that it need not check what passt sends."""
        trusted = features >> netbits.GUEST_CSUM & 1
        flags = netbits.F_DATA_VALID if trusted else 0
        self.ports[0].header = bytes([flags]) + bytes(netbits.HEADER_SIZE - 1)

    def set_pairs(self, count: int) -> None:
        """There is one."""

    def set_link(self, up: bool) -> None:
        """passt does not care."""

    def close(self) -> None:
        """Hang up: passt ends then."""
        while self.ports:
            self.ports.pop().close()


def start_passt(what: str, arguments: Sequence[str], program: str = PROGRAM) -> Passt:
    """Start passt. Raises ConfigError, with a sentence that begins with ``what``."""
    path = find_program(program)
    if path is None:
        raise ConfigError(
            f"{what} needs the program {program}, which is not on PATH; install it "
            "(on Debian: apt install passt)."
        )
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):  # the more fits in, the fewer wake-ups; the host has a limit of its own
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    said, say = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = _run(path, arguments, theirs.fileno(), say)
        if status:
            raise ConfigError(f"{what}: passt did not start: {_explanation(said)}")
    except OSError as error:
        ours.close()
        raise ConfigError(f"{what}: {path} cannot be run: {error.strerror}.") from error
    except ConfigError:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(said)
        os.close(say)
    return Passt(PasstPort(ours))


def publish_arguments(published: str | None) -> list[str]:
    """passt's arguments for ports of the host that lead into the guest.

    ``[ADDRESS/]HOST[:GUEST][/udp]``, several joined by ``+``; at 127.0.0.1 unless there is an address. Raises
    ValueError, which says what is taken.
    """
    arguments = []
    taken = set()
    for item in published.split("+") if published else []:
        parts = item.split("/")
        option = "-t"
        if parts[-1] in ("tcp", "udp"):
            option = "-u" if parts.pop() == "udp" else "-t"
        address = parts.pop(0) if len(parts) == 2 else "127.0.0.1"
        ports = "".join(parts).split(":")
        if len(parts) != 1 or len(ports) > 2 or not all(map(_is_port, ports)) or not _is_address(address):
            raise ValueError("[ADDRESS/]HOST[:GUEST][/udp], several joined by +, such as 2222:22+8080:80")
        if (option, address, int(ports[0])) in taken:
            raise ValueError("each port of the host once")
        taken.add((option, address, int(ports[0])))
        arguments += [option, f"{address}/{ports[0]}:{ports[-1]}"]
    for option in ("-t", "-u"):  # otherwise passt would choose some
        if option not in arguments:
            arguments += [option, "none"]
    return arguments


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except OSError:
            continue
        return True
    return False


def find_program(name: str) -> str | None:
    """Where a program is on PATH (shutil.which would cost its import)."""
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _run(path: str, arguments: Sequence[str], connection: int, stderr: int) -> int:
    """Run passt until it is in the background; its exit status. Raises OSError."""
    number = 4 if connection == 3 else 3  # dup2 onto itself might leave it close-on-exec
    child = os.posix_spawn(
        path,
        [path, "--quiet", "--fd", str(number), *arguments],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
            (os.POSIX_SPAWN_DUP2, connection, number),
        ],
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM),
    )
    return os.waitpid(child, 0)[1]


def _explanation(said: int) -> str:
    """What passt said last, as the end of a sentence."""
    try:
        text = os.read(said, _SAID).decode(errors="replace")
    except BlockingIOError:
        text = ""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_CHATTER)]
    return lines[-1].rstrip(".") + "." if lines else "it does not say why."
