# SPDX-License-Identifier: Apache-2.0
"""``--dry-run``: the machine that would run, for people and for programs. Starts nothing, needs no KVM."""

from __future__ import annotations

from pyvmm import preview
from pyvmm.cli import debian
from pyvmm.config import MachineConfig, format_size
from pyvmm.profiles import KEYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_DEBIAN = "Debian's, as no kernel was named"


def dry_run(values: Mapping[str, object]) -> int:
    """Print the machine of parsed options, as their ``dry_run`` says; returns the exit code.

    Raises ConfigError for what would keep the guest from starting on any host.
    """
    fields = {key: value for key, value in values.items() if key in KEYS}
    named = "kernel" in fields or "firmware" in fields
    if not named:
        debian.settle(fields)
        fields = {"initrd": _DEBIAN, **fields, "kernel": _DEBIAN}
    config = MachineConfig(**fields)  # type: ignore[arg-type]  # checked field by field there
    if named:
        preview.check(config)
    else:  # Debian's is fetched, or built, when the guest is to run
        preview.check_machine(config)
    if values["dry_run"] == "json":
        import json

        print(json.dumps(_without_debian(preview.describe(config)), indent=2))
    else:
        print("\n".join(_lines(config)))
    return 0


def _without_debian(found: dict[str, object]) -> dict[str, object]:
    """``found`` with null for what was not named."""
    fields = found["config"]
    assert isinstance(fields, dict)
    return {**found, "config": {key: None if fields[key] == _DEBIAN else fields[key] for key in fields}}


def _lines(config: MachineConfig) -> list[str]:
    found = preview.describe(config)
    fields, platform, devices = found["config"], found["platform"], found["devices"]
    assert isinstance(fields, dict) and isinstance(platform, list) and isinstance(devices, list)
    shown = {**fields, "mem": format_size(config.mem)}
    if config.timeout is not None:
        shown["timeout"] = f"{config.timeout:g}s"
    lines = [f"{key:<18}{_text(shown[key])}" for key in KEYS if key in shown]
    lines += ["", f"{'command line':<18}{_text(found['command_line'])}", ""]
    lines += [f"{one['name']:<18}at 0x{one['base']:x}, interrupt {one['irq']}" for one in platform]
    if config.console == "virtio":
        lines.append(f"{'console':<18}virtio console")
    lines += [f"{one['name']:<18}{_settings(one['settings'])}".rstrip() for one in devices]
    return lines


def _settings(values: Mapping[str, object]) -> str:
    return " ".join(f"{key}={_text(value)}" for key, value in values.items() if value is not None)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(value) or "-"
    return "-" if value in (None, "") else str(value)
