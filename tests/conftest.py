# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

import os
import signal

pytest_plugins = ["pytester"]

# A shell's background jobs ignore the keyboard's signals, nohup's SIGHUP; so would all programs that tests
# start.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Users have buffered streams, and what is left in a buffer matters at the exit.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes are no names: they may be other ones in each process (a gzip header holds the time)."""
    return argname if isinstance(val, bytes) and len(val) > 16 else None
