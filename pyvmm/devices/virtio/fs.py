# SPDX-License-Identifier: Apache-2.0
"""virtio-fs (virtio 1.2, section 5.11): a folder of the host in the guest, served by virtiofsd.

virtiofsd is a program of its own that works the queues as a vhost-user back end, and keeps itself to the
folder (it changes its root, or uses namespaces). pyvmm only carries the driver's set-up to it.

``mount -t virtiofs TAG /mnt`` mounts it, and ``root=TAG rootfstype=virtiofs`` boots from it.

What a hostile guest can do: send virtiofsd anything. pyvmm reads none of it, and outlives virtiofsd.
"""

from __future__ import annotations

import os

from pyvmm.devices import settings as keys
from pyvmm.devices.vhost.rings import RemoteRings
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.errors import ConfigError
from pyvmm.mmio.regs import Reg, RegArray

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm.devices.settings import Settings
    from pyvmm.devices.vhost.virtiofsd import Virtiofsd
    from pyvmm.devices.virtio.device import Services
    from pyvmm.devices.virtio.session import ActiveQueue, Session

MAX_TAG = 36
REQUEST_QUEUES = 1  # of virtiofsd; the first queue is for requests that must not wait
QUEUE_SIZE = 1024


class Fs(VirtioDevice):
    """One folder. Without virtiofsd, when it has ended, every start of the device ends in NEEDS_RESET."""

    NAME = "fs"
    DEVICE_ID = 26
    SIZE = MAX_TAG + 4
    SETTINGS: ClassVar[dict[str, keys.Setting]] = {
        "dir": keys.path("folder of the host to share"),
        "tag": keys.tag("name under which the guest mounts it", default="share", most=MAX_TAG),
        "rw": keys.flag("let the guest change the folder"),
    }
    POSITIONAL = ("dir", "tag")
    #: virtiofsd maps guest memory, so that it must be in shared files.
    SHARED_MEMORY = True

    TAG = RegArray(0, 8, count=MAX_TAG, access="r")
    NUM_REQUEST_QUEUES = Reg(MAX_TAG, 32, access="r", reset=REQUEST_QUEUES)

    def __init__(self, tag: bytes, virtiofsd: Virtiofsd) -> None:
        """``virtiofsd`` is running; the device ends it."""
        super().__init__((QUEUE_SIZE,) * (1 + REQUEST_QUEUES))
        self._tag = tag.ljust(MAX_TAG, b"\0")
        self._virtiofsd = virtiofsd
        self._rings = RemoteRings(virtiofsd.connection, virtiofsd.kill)
        self.withheld = virtiofsd.connection.withheld
        self.reset()

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Look at the folder. Raises ConfigError."""
        path = settings.require("dir")
        if not os.path.isdir(path):
            wrong = "is not a folder" if os.path.exists(path) else "does not exist"
            raise ConfigError(f"{settings.what}: {path} {wrong}; give the folder to share.")

    @classmethod
    def open(cls, settings: Settings, services: Services) -> Fs:
        """Starts virtiofsd. Raises ConfigError: no such folder, no virtiofsd."""
        from pyvmm.devices.vhost.virtiofsd import start_virtiofsd

        del services
        cls.check(settings)
        virtiofsd = start_virtiofsd(settings.what, settings.require("dir"), writable=settings.flag("rw"))
        return cls(os.fsencode(settings.require("tag")), virtiofsd)

    def reset(self) -> None:
        """The tag is there from the start."""
        super().reset()
        self.TAG = list(self._tag)

    def activate(self, session: Session) -> None:
        """Hand the queues over."""
        self._session = session
        self._rings.start(session)

    def on_queue_stop(self, queue: ActiveQueue) -> None:
        """Take a queue back."""
        self._rings.stop_ring(self._session, queue.index)

    def stop(self) -> None:
        """Take all queues back."""
        self._rings.stop(self._session)
        del self._session

    def quiesce(self) -> None:
        """See VirtioDevice."""
        self._rings.quiesce()

    def go_on(self) -> None:
        """See VirtioDevice. Rings that run belong to the session there is."""
        self._rings.go_on()

    def close(self) -> None:
        """End virtiofsd."""
        self._virtiofsd.close()
