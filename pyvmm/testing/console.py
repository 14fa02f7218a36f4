# SPDX-License-Identifier: Apache-2.0
"""The console of a guest with pexpect's API."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pyvmm.testing.errors import ConsoleTimeout, GuestError
from pyvmm.testing.log import ConsoleLog
from pyvmm.testing.nearlines import near_lines

try:
    from pexpect import EOF, TIMEOUT
    from pexpect.spawnbase import SpawnBase
except ImportError as error:
    from pyvmm.errors import ConfigError

    raise ConfigError("The fixture console needs pexpect: install it with pip install pexpect.") from error

WINDOW = 16384
"""Characters that a pattern is searched in: no match can be longer."""
_CHUNK = 8192
_BEFORE_LIMIT = 1 << 20  # characters kept for ``before`` while something is awaited


class Behind(Protocol):
    """The guest behind a console."""

    log: ConsoleLog

    def write(self, data: bytes) -> None:
        """Type ``data``."""

    def request(self, do: str, **params: object) -> dict[str, Any]:
        """Ask pyvmm for something."""

    def fatal(self, awaited: str, waited: float | None) -> GuestError:
        """Why nothing can be awaited of it any more."""

    def panic_ends(self) -> bool:
        """Whether a panic is the end."""


class Console(SpawnBase):  # type: ignore[misc]  # pexpect has no types
    """pexpect's ``expect``, ``expect_exact``, ``send``, ``sendline`` and the rest for a guest's console.

    Text is UTF-8, what is not is replaced. A panic, a hang or an end while something is awaited raises
    GuestPanic, GuestHang or GuestExited at once, unless pexpect.EOF is among the patterns; nothing in time
    raises ConsoleTimeout, unless pexpect.TIMEOUT is. Time limits are scaled (``--vmm-timeout-scale``).
    """

    def __init__(self, guest: Behind, timeout: float, scale: float) -> None:
        super().__init__(
            timeout=timeout,
            maxread=_CHUNK,
            searchwindowsize=WINDOW,
            encoding="utf-8",
            codec_errors="replace",
        )
        self.closed = False
        self.delaybeforesend = None
        self.delayafterread = None
        self.scale = scale
        self.name = "console"
        self._before: Any = self.buffer_type()
        self._guest = guest

    @property
    def log(self) -> bytes:
        """The last MiB of what the guest printed, as it came."""
        return self._guest.log.raw

    def lines(self) -> list[str]:
        """The last lines that the guest printed."""
        return self._guest.log.lines()

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> str:
        """pexpect's way to the output: text, or EOF or TIMEOUT raised."""
        if timeout == -1:
            timeout = self.timeout
        data = self._guest.log.take(min(size, _CHUNK), timeout, self._guest.panic_ends)
        if data is None:
            raise TIMEOUT("nothing came")
        if not data:
            self.flag_eof = True
            raise EOF("the guest ended")
        text: str = self._decoder.decode(data)
        self._log(text, "read")
        self._bound()
        return text

    def forget(self) -> None:
        """What was printed so far is not to be expected any more."""
        self._guest.log.forget_pending()
        self._buffer = self.buffer_type()
        self._before = self.buffer_type()

    def _bound(self) -> None:
        """Under a flood, keep only the end of what came before a match."""
        if self._before.tell() > _BEFORE_LIMIT:
            before = self.buffer_type()
            before.write(self._before.getvalue()[-_BEFORE_LIMIT // 2 :])
            self._before = before

    def expect(self, pattern: Any, timeout: Any = -1, searchwindowsize: Any = -1) -> int:
        """As pexpect's: wait for a pattern, or one of several; returns which."""
        __tracebackhide__ = True
        return self.expect_list(self.compile_pattern_list(pattern), timeout, searchwindowsize)

    def expect_list(self, pattern_list: Any, timeout: Any = -1, searchwindowsize: Any = -1) -> int:
        """As pexpect's: patterns that are compiled already."""
        __tracebackhide__ = True
        inner = super().expect_list
        return self._awaiting(pattern_list, timeout, lambda s: inner(pattern_list, s, searchwindowsize))

    def expect_exact(self, pattern_list: Any, timeout: Any = -1, searchwindowsize: Any = -1) -> int:
        """As pexpect's: texts instead of patterns."""
        __tracebackhide__ = True
        inner = super().expect_exact
        single = isinstance(pattern_list, str) or pattern_list in (EOF, TIMEOUT)
        several = [pattern_list] if single else pattern_list
        return self._awaiting(several, timeout, lambda s: inner(several, s, searchwindowsize))

    def _awaiting(
        self, patterns: Sequence[Any], timeout: float | None, wait: Callable[[float | None], int]
    ) -> int:
        __tracebackhide__ = True
        awaited = " or ".join(_describe(pattern) for pattern in patterns)
        seconds = self.timeout if timeout == -1 else timeout
        started = time.monotonic()
        try:
            return wait(None if seconds is None else seconds * self.scale)
        except EOF:
            raise self._guest.fatal(awaited, time.monotonic() - started) from None
        except TIMEOUT:
            waited = time.monotonic() - started
            tail = self._guest.log.tail()
            texts = [text for text in map(_source, patterns) if isinstance(text, str)]
            scaled = f" ({seconds:g} s times {self.scale:g})" if self.scale != 1 and seconds else ""
            raise ConsoleTimeout(
                f"the console did not show {awaited} within {waited:.1f} s{scaled}",
                awaited=awaited,
                waited=waited,
                tail=tail,
                near=near_lines(tail, texts),
            ) from None

    def send(self, text: str | bytes) -> int:
        """Type ``text``; returns how many bytes that were."""
        data = text if isinstance(text, bytes) else text.encode()
        self._log(data.decode("utf-8", "replace"), "send")
        self._guest.write(data)
        return len(data)

    def sendline(self, text: str = "") -> int:
        """Type ``text`` and the return key."""
        return self.send(text + self.linesep)

    def sendcontrol(self, key: str) -> int:
        """Type a key with Ctrl, such as ``c``."""
        return self.send(bytes([ord(key.upper()) & 0x1F]))

    def sendbreak(self, key: str) -> None:
        """Linux's magic SysRq: a BREAK, then ``key``."""
        self._guest.request("sysrq", key=key)

    def isalive(self) -> bool:
        """Whether more output may come."""
        return not self.flag_eof

    def __str__(self) -> str:
        return "the guest's console"

    def __repr__(self) -> str:
        return "<Console>"


def _describe(pattern: Any) -> str:
    if pattern is EOF:
        return "its end"
    return "silence" if pattern is TIMEOUT else repr(_source(pattern))


def _source(pattern: Any) -> Any:
    """What a pattern was written as."""
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern
