# SPDX-License-Identifier: Apache-2.0
"""Meeting other threads without sleeping: what is waited for is an event, and patience is for failures."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 30  # seconds; only ever waited for when a test fails


class AnnouncingCondition(threading.Condition):
    """A Condition that says when a thread begins to wait: ``waiting`` is set with the lock still held."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.set()
        return super().wait(timeout)


class Background:
    """Runs ``function`` on a thread of its own; ``result`` waits for it, and fails when it does not end."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "it does not end"
        if self._error is not None:
            raise self._error
        return self._value


def in_time(function: Callable[[], Any]) -> Any:
    """What ``function`` returns; fails when it blocks."""
    return Background(function).result()


def happens(event: threading.Event) -> None:
    """Wait for ``event``."""
    assert event.wait(PATIENCE), "it did not happen"


def read(fd: int, size: int) -> bytes:
    """What comes from a pipe or terminal, up to ``size`` bytes; fails when nothing does."""
    assert select.select([fd], [], [], PATIENCE)[0], "nothing came"
    return os.read(fd, size)
