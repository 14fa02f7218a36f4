# SPDX-License-Identifier: Apache-2.0
"""Commands and files in a running guest: the agent that runs there, and the client that talks to it.

The agent is a program of a few KB (``agent/``, in C; ``agent.riscv64`` is what it compiles to), given to the
guest in front of its initramfs. It talks over a virtio-console port of its own;
docs/reference/agent-protocol.md says how.
"""

from __future__ import annotations

#: The virtio-console port that the agent looks for.
PORT = "org.pyvmm.agent.0"
#: Where the agent lies in the initramfs.
PROGRAM = "pyvmm-agent"
#: The word of the kernel's command line that makes it the first process.
PARAMETER = f"rdinit=/{PROGRAM}"
