# SPDX-License-Identifier: Apache-2.0
"""How a run can end: each end has a reason, an exit code and one line that says it."""

from __future__ import annotations

POWEROFF = "poweroff"
REBOOT = "reboot"
PANIC = "panic"
TIMEOUT = "timeout"
HUNG = "hung"
QUIT = "quit"
KILLED = "killed"
SIGNAL = "signal"
OUTPUT_CLOSED = "output-closed"
FAILED = "failed"

EXIT_OK = 0
EXIT_TIMEOUT = 124
EXIT_USAGE = 125  # pyvmm or the user's request failed before or outside the guest
EXIT_NO_KVM = 126
EXIT_SIGNAL = 128  # plus the signal's number
EXIT_HUNG = 254  # KVM gave up on the guest, or it can never go on
EXIT_PANIC = 255

_CODES = {
    POWEROFF: EXIT_OK,
    REBOOT: EXIT_OK,
    QUIT: EXIT_OK,
    KILLED: EXIT_SIGNAL + 9,  # as if by SIGKILL
    PANIC: EXIT_PANIC,
    TIMEOUT: EXIT_TIMEOUT,
    HUNG: EXIT_HUNG,
    OUTPUT_CLOSED: EXIT_SIGNAL + 13,  # what a program killed by SIGPIPE reports
    FAILED: EXIT_USAGE,
}


class Outcome:
    """The end of a run. ``detail`` holds further lines (registers) for stderr; ``error`` a host failure."""

    __slots__ = ("detail", "error", "exit_code", "message", "reason")

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        signal: int = 0,
        detail: str = "",
        error: BaseException | None = None,
    ) -> None:
        self.reason = reason
        self.message = message
        self.exit_code = EXIT_SIGNAL + signal if reason == SIGNAL else _CODES[reason]
        self.detail = detail
        self.error = error
