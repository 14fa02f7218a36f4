# SPDX-License-Identifier: Apache-2.0
"""What happens to a machine, told to whoever wants to hear of it.

An event is a dict: ``event`` is its name, ``time`` the machine's uptime in seconds. The names are
``started``, ``paused``, ``resumed``, ``rebooting``, ``rebooted``, ``panic`` (with ``message``) and ``ended``
(with ``reason``, ``exit_code`` and ``message``).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Event = dict[str, object]
    Listener = Callable[[Event], None]


class Events:
    """Those who listen, and the one clock of a machine. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self._began: float | None = None
        #: When the guest was first started, in seconds since the Unix epoch; None before.
        self.started_at: float | None = None

    def begin(self) -> None:
        """The guest is started for the first time: its uptime counts from now."""
        self._began = time.monotonic()
        self.started_at = time.time()
        self.emit("started")

    def uptime(self) -> float:
        """Seconds since ``begin``, pauses and reboots included; 0 before it."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every event, on whatever thread; it must not wait.

        Returns what ends that, which is idempotent.
        """

        def heard(event: Event) -> None:
            listener(event)

        self._listeners = (*self._listeners, heard)

        def unsubscribe() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not heard)

        return unsubscribe

    def emit(self, name: str, **facts: object) -> None:
        """Tell everybody."""
        for listener in self._listeners:
            listener({"event": name, "time": round(self.uptime(), 6), **facts})
