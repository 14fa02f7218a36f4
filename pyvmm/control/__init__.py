# SPDX-License-Identifier: Apache-2.0
"""Control of running guests from other processes: names, sockets, the protocol, and its client."""

from __future__ import annotations

from pyvmm.control.runfolder import Instance, claim
from pyvmm.outcome import FAILED, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.control.server import ControlServer
    from pyvmm.machine import Machine


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
    except BaseException:
        instance.release()
        raise
    server.start()
    return server
