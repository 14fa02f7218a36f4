# SPDX-License-Identifier: Apache-2.0
"""Control of running guests from other processes: names, sockets, the protocol, and its client."""

from __future__ import annotations

from pyvmm.control.runfolder import Instance, claim
from pyvmm.outcome import FAILED, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.control.server import ControlServer
    from pyvmm.machine import Machine


class Reach:
    """How others reach a guest: a name, held at once, and sockets once ``open`` was called.

    For those who must know that they have the name before there is a machine. Raises what ``claim`` does.
    """

    def __init__(self, name: str | None = None) -> None:
        self._instance = claim(name)
        self._server: ControlServer | None = None

    @property
    def name(self) -> str:
        """The guest's name."""
        return self._instance.name

    def path(self, file: str) -> str:
        """The path of a file in the guest's folder."""
        return self._instance.path(file)

    def open(self, machine: Machine) -> None:
        """Serve the machine, which has been started. Raises HostError."""
        self._server = serve(machine, self._instance)

    def close(self) -> None:
        """Let clients hear of the end, and give the name back. After the machine was closed. Idempotent."""
        if self._server is not None:
            self._server.close()
        self._instance.release()


def serve(machine: Machine, name: str | Instance | None = None) -> ControlServer:
    """Let other processes control ``machine`` under ``name`` (vm1, vm2 and so on without one).

    ``name`` may also be what ``runfolder.claim`` returned. The result is a context manager; closing it gives
    the name back. Raises ConfigError when a running guest has the name, HostError.
    """
    from pyvmm.control.server import ControlServer

    def failed(error: BaseException) -> None:
        machine.end(Outcome(FAILED, str(error) or type(error).__name__, error=error))

    instance = name if isinstance(name, Instance) else claim(name)
    try:
        server = ControlServer(machine, instance, failed)
        server.start()
    except BaseException:
        instance.release()
        raise
    return server
