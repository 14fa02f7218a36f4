# SPDX-License-Identifier: Apache-2.0
"""The plugin's options with their values: from the command line, else the environment, else pytest's ini."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError


class Settings:
    """Checked values. Raises ConfigError with one sentence for a value that makes no sense."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.kernels = self._many("kernel")
        self.initrd = self._one("initrd")
        self.mem = self._one("mem")
        self.cpus = self._one("cpus")
        self.config_file = self._one("config")
        self.profile = self._one("profile")
        self.where = self._choice("host", ("auto", "local", "lab", "lab:aia", "lab:plic"))
        self.keep = self._choice("keep", ("failed", "all", "none"))
        self.console = self._choice("console", ("tail", "live", "off"))
        self.trace = self._one("trace")
        self.require_kvm = self._flag("require_kvm")
        self.interact = self._flag("interact")
        self.scale = self._number("timeout_scale")
        parallel = self._number("max_parallel")
        self.max_parallel = None if parallel is None else max(1, int(parallel))
        #: The id of this process among those of pytest-xdist; empty without it.
        self.worker = getattr(config, "workerinput", {}).get("workerid", "")
        self.artifacts = Path(self._one("artifacts") or config.rootpath / ".pyvmm" / session_name(config))
        self.artifacts = Path(os.path.abspath(config.invocation_params.dir / self.artifacts))

    def kernel_files(self) -> dict[str, str]:
        """The files of --vmm-kernel with their ids. Raises UsageError when there are none for a pattern."""
        files: list[str] = []
        for pattern in self.kernels:
            found = sorted(glob.glob(str(self._config.invocation_params.dir / os.path.expanduser(pattern))))
            if not found:
                raise pytest.UsageError(f"--vmm-kernel: there is no file {pattern}")
            files += [os.path.abspath(path) for path in found]
        return dict(zip(files, _ids(files), strict=True))

    def _text(self, name: str) -> str:
        given = self._config.getoption(f"vmm_{name}")
        if given is None:
            given = os.environ.get(f"VMM_{name.upper()}") or self._config.getini(f"vmm_{name}")
        return str(given or "").strip()

    def _one(self, name: str) -> str | None:
        return self._text(name) or None

    def _many(self, name: str) -> list[str]:
        given = self._config.getoption(f"vmm_{name}")
        return list(given) if given else self._text(name).split()

    def _choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._text(name) or choices[0]
        if value not in choices:
            raise ConfigError(f"{_spelling(name)} takes one of {', '.join(choices)}, not {value!r}.")
        return value

    def _flag(self, name: str) -> bool:
        if self._config.getoption(f"vmm_{name}"):
            return True
        return self._text(name).lower() in ("1", "true", "yes", "on")

    def _number(self, name: str) -> float | None:
        """None for ``auto``."""
        text = self._text(name) or "auto"
        try:
            number = None if text == "auto" else float(text)
        except ValueError:
            number = -1.0
        if number is not None and not number > 0:
            raise ConfigError(f"{_spelling(name)} takes a number above 0 or auto, not {text!r}.")
        return number


def _ids(files: list[str]) -> list[str]:
    """The names of the files, with as many folders as tell them apart."""
    depth = 1
    parts = [Path(path).parts for path in files]
    while len({one[-depth:] for one in parts}) < len(set(files)):
        depth += 1
    return ["/".join(one[-depth:]) for one in parts]


def _spelling(name: str) -> str:
    return f"--vmm-{name.replace('_', '-')}"


SESSION_KEY = pytest.StashKey[str]()


def session_name(config: pytest.Config) -> str:
    """The name of this run of pytest: the same in every worker of pytest-xdist."""
    given = getattr(config, "workerinput", {}).get("vmm_session")
    if given:
        return str(given)
    return config.stash.setdefault(SESSION_KEY, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
