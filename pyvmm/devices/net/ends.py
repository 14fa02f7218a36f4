# SPDX-License-Identifier: Apache-2.0
"""What a user may say about a network card, and the host's end of its cable."""

from __future__ import annotations

import os

from pyvmm.devices import settings as values
from pyvmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from pyvmm.devices.net.pair import Port
    from pyvmm.devices.net.vhostnet import VhostNet
    from pyvmm.devices.settings import Settings

    class HostEnd(Protocol):
        """The host's end of the cable: a port a queue pair. The methods raise OSError."""

        #: Bits that it adds to what the card offers.
        features: int
        #: The interface's on the host; empty when it has none.
        name: str

        @property
        def ports(self) -> Sequence[Port]:
            """One for each queue pair; none once it is closed."""

        def set_offloads(self, features: int) -> None:
            """Which of the GUEST features the guest uses."""

        def set_pairs(self, count: int) -> None:
            """Use so many ports for incoming frames."""

        def set_link(self, up: bool) -> None:
            """Whether the cable is plugged in."""

        def close(self) -> None:
            """Unplug it for good. Idempotent."""


_MOST_PAIRS = 16
_SMALLEST_MTU, _LARGEST_MTU = 68, 65535
_NAME_LIMIT = 15  # of an interface: IFNAMSIZ without the NUL
_HEX = frozenset("0123456789abcdefABCDEF")


def _parse_mac(value: str) -> str:
    parts = value.split(":")
    if len(parts) != 6 or any(len(part) != 2 or not set(part) <= _HEX for part in parts):
        raise ValueError("six bytes such as 52:54:00:12:34:56")
    if int(parts[0], 16) & 1 or not any(int(part, 16) for part in parts):
        raise ValueError("the address of one card (its first byte is even, and not all are 0)")
    return value.lower()


def _parse_interface(value: str) -> str:
    plain = value.isascii() and value.isprintable() and not set(value) & set(" /:%")
    if not 0 < len(value) <= _NAME_LIMIT or not plain:
        raise ValueError(f"the name of a network interface, of up to {_NAME_LIMIT} characters")
    return value


def _parse_publish(value: str) -> str:
    from pyvmm.devices.net.passt import publish_arguments

    publish_arguments(value)
    return value


SETTINGS = {
    "mode": values.choice("user: through passt; tap: an interface of the host", "user", "tap"),
    "tap": values.Setting(
        _parse_interface, "the tap interface; without it, or when there is none such, one is made"
    ),
    "mac": values.Setting(_parse_mac, "the card's address, such as 52:54:00:12:34:56"),
    "vhost": values.choice(
        "whether the host's kernel moves the frames of a tap", "auto", "on", "off", default="auto"
    ),
    "queues": values.number("queue pairs, of a tap", 1, _MOST_PAIRS, default=1),
    "mtu": values.number("largest packet, in bytes; of user 65520 by itself", _SMALLEST_MTU, _LARGEST_MTU),
    "publish": values.Setting(_parse_publish, "[ADDRESS/]HOST[:GUEST][/udp], several joined by +"),
    "id": values.text("name of the device, from which its address is made"),
    "link": values.choice("whether the cable is plugged in", "on", "off", default="on"),
}


def _mode(settings: Settings) -> str:
    return settings.text("mode") or ("tap" if settings.text("tap") else "user")


def check(settings: Settings) -> None:
    """Raise ConfigError for settings that do not go together."""
    if _mode(settings) == "tap":
        if settings.text("publish") is not None:
            raise ConfigError(
                f"{settings.what}: publish= is for mode=user; a tap's guest is in reach without it."
            )
        return
    if settings.text("tap") is not None:
        raise ConfigError(f"{settings.what}: tap= is for mode=tap; leave out one of user and tap=.")
    if settings.text("vhost") == "on":
        raise ConfigError(f"{settings.what}: vhost=on is for mode=tap; passt moves the frames itself.")
    if settings.number("queues") != 1:
        raise ConfigError(f"{settings.what}: queues= is for mode=tap; passt has one connection.")


def open_end(settings: Settings) -> tuple[HostEnd, list[VhostNet]]:
    """What the user asked for, and the kernel's half of the card if it has one. Raises ConfigError."""
    check(settings)
    if _mode(settings) == "tap":
        return _open_tap(settings)
    return _open_user(settings), []


def _open_user(settings: Settings) -> HostEnd:
    from pyvmm.devices.net import passt

    arguments = passt.publish_arguments(settings.text("publish"))
    return passt.start_passt(settings.what, [*arguments, "--mtu", str(mtu_of(settings))])


def _open_tap(settings: Settings) -> tuple[HostEnd, list[VhostNet]]:
    from pyvmm.devices.net.tap import open_tap
    from pyvmm.devices.net.vhostnet import open_vhost_net

    queues = settings.number("queues") or 1
    wish = settings.text("vhost")
    vhosts: list[VhostNet] = []
    if wish != "off":
        try:
            vhosts = open_vhost_net(settings.what, queues)
        except ConfigError:
            if wish == "on":
                raise
    try:
        return open_tap(settings.what, settings.text("tap"), queues, settings.number("mtu")), vhosts
    except BaseException:
        for vhost in vhosts:
            vhost.close()
        raise


def mtu_of(settings: Settings) -> int | None:
    """What the driver is told of the largest packet; None: nothing, and it takes Ethernet's."""
    mtu = settings.number("mtu")
    if mtu is None and _mode(settings) == "user":
        from pyvmm.devices.net.passt import MTU

        return MTU
    return mtu


def mac_of(settings: Settings, interface: str) -> bytes:
    """The address given, or one made of names: the same every time, and locally administered.

    ``interface`` is the name of the host's end, by which two guests of one host differ.
    """
    given = settings.text("mac")
    if given is not None:
        return bytes.fromhex(given.replace(":", ""))
    from binascii import crc32

    own = settings.text("id") or settings.name
    name = f"{_host_id()}/{_mode(settings)}/{interface}/{own}"
    return b"\x52\x56" + crc32(os.fsencode(name)).to_bytes(4, "big")


def _host_id() -> str:
    """What tells this host from others on one network."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return os.uname().nodename
