# SPDX-License-Identifier: Apache-2.0
"""pyvmm: a virtual machine monitor for RISC-V, backed by KVM.

    with pyvmm.Machine(pyvmm.MachineConfig(kernel="Image", mem="512M"), output_fd=1) as vm:
        vm.start()
        print(vm.wait().reason)

docs/reference/library.md has the whole of it. Names are imported when they are first used: ``import pyvmm``
alone costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import MachineConfig
    from pyvmm.control.client import Control, ControlError, ControlGone
    from pyvmm.errors import ConfigError, HostError, KvmError, KvmUnavailable, MachineError, PyvmmError
    from pyvmm.guest.client import Completed, Guest
    from pyvmm.guest.protocol import GuestError
    from pyvmm.machine import Machine
    from pyvmm.outcome import Outcome

__version__ = "0.1.0"

__all__ = [
    "Completed",
    "ConfigError",
    "Control",
    "ControlError",
    "ControlGone",
    "Guest",
    "GuestError",
    "HostError",
    "KvmError",
    "KvmUnavailable",
    "Machine",
    "MachineConfig",
    "MachineError",
    "Outcome",
    "PyvmmError",
    "__version__",
]

if not TYPE_CHECKING:  # checkers know the names from above, and what is none of them
    _MODULES = {
        "Completed": "guest.client",
        "Control": "control.client",
        "ControlError": "control.client",
        "ControlGone": "control.client",
        "Guest": "guest.client",
        "GuestError": "guest.protocol",
        "Machine": "machine",
        "MachineConfig": "config",
        "Outcome": "outcome",
    }

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
        module = __import__(f"pyvmm.{_MODULES.get(name, 'errors')}", fromlist=[name])
        return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
