# SPDX-License-Identifier: Apache-2.0
"""Starting threads so that signals stay with the main thread.

Python runs signal handlers in the main thread only, and only once that thread runs bytecode. A SIGTERM
that the kernel hands to a vCPU thread would set a flag that nobody looks at while main sleeps in a lock.
Every other thread is therefore started with all signals blocked; the mask is set around the start,
because a thread inherits its creator's.
"""

from __future__ import annotations

import threading

from pyvmm.lean import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Run ``target`` on a new thread named ``name`` that receives no signal."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    try:
        thread.start()
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)
    return thread
