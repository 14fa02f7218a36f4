# SPDX-License-Identifier: Apache-2.0
"""Parts of the standard library by their short way are those of the documented modules."""

import collections
import functools
import heapq
import queue
import runpy
import signal
import sys

from pyvmm import lean


def test_parts_are_those_of_the_documented_modules():
    assert lean.deque is collections.deque
    assert lean.partial is functools.partial
    assert (lean.heapify, lean.heappop, lean.heappush) == (heapq.heapify, heapq.heappop, heapq.heappush)
    assert (lean.Empty, lean.SimpleQueue) == (queue.Empty, queue.SimpleQueue)


def test_python_without_what_is_beneath_gets_the_documented_modules(monkeypatch):
    monkeypatch.setitem(sys.modules, "_queue", None)
    names = runpy.run_path(lean.__file__)
    assert (names["signals"], names["SimpleQueue"]) == (signal, queue.SimpleQueue)


def test_guest_starts_without_enumerations_of_signals():
    assert type(lean.signals.SIGTERM) is int
