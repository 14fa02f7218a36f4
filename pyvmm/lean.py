# SPDX-License-Identifier: Apache-2.0
"""Small parts of large modules: what a start needs of collections, functools, heapq, queue and signal.

CPython has these parts in modules of C, beneath those that document them; importing the latter takes a sixth
of the time from exec to the guest. ``signal``, for one, makes enumerations of its constants, and looks
numbers up in them at every call. Another Python may lack what is beneath, and gets the large modules.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signals
    from collections import deque
    from functools import partial
    from heapq import heapify, heappop, heappush
    from queue import Empty, SimpleQueue
else:
    try:
        import _signal as signals
        from _collections import deque
        from _functools import partial
        from _heapq import heapify, heappop, heappush
        from _queue import Empty, SimpleQueue
    except ImportError:
        import signal as signals
        from collections import deque
        from functools import partial
        from heapq import heapify, heappop, heappush
        from queue import Empty, SimpleQueue

__all__ = ["Empty", "SimpleQueue", "deque", "heapify", "heappop", "heappush", "partial", "signals"]
