# SPDX-License-Identifier: Apache-2.0
"""The escape keys of an interactive console, and what they do to the machine."""

from __future__ import annotations

from pyvmm import outcome, terminal
from pyvmm.cli.say import show
from pyvmm.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.console.input import Item
    from pyvmm.machine import Machine


class Keys:
    """Sits between the terminal and the guest (``Machine.on_input``)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._keys = terminal.EscapeKeys()

    def filter(self, data: bytes) -> list[Item]:
        """What of ``data`` is meant for the guest, in order; obeys the rest."""
        items: list[Item] = []
        for typed in self._keys.feed(data):
            if isinstance(typed, bytes):
                items.append(typed)
            elif typed == terminal.BREAK:
                items.append(self._machine.break_item)
            else:
                self._obey(typed)
        return items

    def _obey(self, command: str) -> None:
        if command == terminal.QUIT:
            self._machine.end(Outcome(outcome.QUIT, "ended by Ctrl-A x"))
        elif command == terminal.HELP:
            show(terminal.HELP_TEXT)
        elif command == terminal.TRACE:
            self._machine.toggle_trace()
