# SPDX-License-Identifier: Apache-2.0
"""Opening the host's device nodes on which devices stand, and what to do when one cannot be had."""

from __future__ import annotations

import os
from errno import EACCES, ENODEV, ENOENT, ENXIO, EPERM

from pyvmm.errors import ConfigError


def open_node(what: str, node: str, *, module: str, ask: str, flags: int = 0) -> int:
    """Open ``node`` to read and write; ``flags`` are further ones of open(2).

    Raises ConfigError with a sentence that begins with ``what``: ``module`` is the kernel's for such nodes,
    ``ask`` what those may do who have no access.
    """
    try:
        return os.open(node, os.O_RDWR | os.O_CLOEXEC | flags)
    except OSError as error:
        if error.errno in (ENOENT, ENODEV, ENXIO):
            say = f"{what} needs {node}, which this host does not have; load it with `modprobe {module}`."
        elif error.errno in (EACCES, EPERM):
            say = f"{what} is not allowed to open {node}; {ask}."
        else:
            say = f"{what} cannot open {node}: {error.strerror}."
        raise ConfigError(say) from error
