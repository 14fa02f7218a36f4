# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (docs/architecture.md), what is private, and what the run path must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.kernels import image

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyvmm"

# Each unit (a module or package of pyvmm) and the units it may import. Two rules carry the design: devices
# never import kvm, and kvm never imports devices.
MAY_IMPORT = {
    "errors": set(),
    "layout": set(),
    "lean": set(),
    "nearest": set(),
    "attempts": set(),
    "unixlistener": set(),
    "threads": {"lean"},
    "hostfile": {"errors"},
    "configfiles": {"config", "devicelist", "errors", "hostfile"},
    "suspend": {"devices"},
    "outcome": set(),
    "config": {"devicelist", "errors", "guest", "layout"},
    "cpio": set(),
    "guest": {"cpio", "errors", "threads"},
    "devicelist": {"devices", "errors"},
    "backplane": {
        "attempts", "config", "devicelist", "devices", "devicetree", "errors", "layout", "memory", "mmio",
        "pcitree", "ring",
    },
    "inspection": {"backplane", "board", "devices", "kvm"},
    "doorbells": {"errors", "kvm"},
    "messages": {"devices", "errors", "kvm", "suspend"},
    "memory": {"errors"},
    "native": set(),
    "ring": {"errors", "native"},
    "_native_build": set(),
    "terminal": set(),
    "eventloop": {"lean", "threads"},
    "workers": {"lean", "threads"},
    "console": {"errors", "eventloop", "hostfile", "lean", "threads"},
    "fdt": set(),
    "isa": {"errors", "nearest"},
    "devicetree": {"fdt", "isa"},
    "pcitree": {"devices", "devicetree", "fdt", "layout"},
    "mmio": {"errors", "lean"},
    "devices": {
        "errors", "fdt", "hostfile", "lean", "memory", "mmio", "native", "nearest", "ring", "unixlistener",
    },
    "kvm": {"errors", "ring"},
    "sbi": {"errors"},
    "trace": {"devices"},
    "exittrace": {"kvm", "mmio", "runner", "sbi", "trace"},
    "messagetrace": {"devices", "kvm", "messages", "suspend", "trace"},
    "nativerun": {"kvm", "mmio", "native"},
    "runner": {
        "errors", "kvm", "lean", "mmio", "nativerun", "outcome", "sbi", "shortcut", "threads", "trace",
    },
    "shortcut": {"devices", "errors", "kvm", "ring"},
    "loader": {"errors", "guest", "layout", "memory", "threads"},
    "peripherals": {"config", "devices", "devicetree", "fdt", "layout"},
    "irqchip": {"kvm", "devices", "mmio", "devicetree", "layout", "errors"},
    "harts": {"kvm", "isa", "devicetree", "config", "errors", "nearest"},
    "handover": {
        "backplane", "config", "devicetree", "fdt", "hostfile", "irqchip", "kvm", "loader", "memory",
        "peripherals",
    },
    "board": {
        "attempts", "backplane", "config", "console", "devices", "devicetree", "doorbells", "errors",
        "eventloop", "exittrace", "handover", "harts", "irqchip", "kvm", "layout", "lean", "loader", "memory",
        "messages", "messagetrace", "mmio", "outcome", "peripherals", "ring", "runner", "sbi", "shortcut",
        "suspend", "trace",
    },
    "profiles": {"config", "devicelist", "devices", "errors", "nearest"},
    "preview": {
        "backplane", "config", "configfiles", "devicetree", "fdt", "harts", "irqchip", "isa", "kvm", "layout",
        "loader", "peripherals",
    },
    "gate": {"attempts", "devices", "lean"},
    "guestevents": set(),
    "pausing": {"attempts", "board", "errors", "gate", "lean", "runner", "workers"},
    "frontpanel": {"board", "config", "devices", "errors", "kvm"},
    "steering": {
        "board", "errors", "eventloop", "frontpanel", "gate", "guestevents", "inspection", "lean", "outcome",
        "pausing", "threads", "workers",
    },
    "machine": {
        "attempts", "board", "config", "configfiles", "console", "errors", "kvm", "lean", "outcome",
        "steering", "trace",
    },
    "control": {"errors", "eventloop", "machine", "nearest", "outcome", "threads", "unixlistener"},
    "lab": {"cpio", "errors"},
}  # fmt: skip
# The command line and the pytest plugin sit on top and may use everything; so may the package's front door.
TOP = {"cli", "pytest_plugin", "testing", "__init__", "__main__"}

# Private attributes of others that are used all the same: there is no other way to it, or it is ours.
FOREIGN = {
    "terminal.py": {"os._exit"},
    "testing/session.py": {"config._pyvmm_session"},
    "unixlistener.py": {"self._socket._accept"},
}

# Slow to import on an emulated RISC-V host, where a second of start-up is all there is.
HEAVY = {
    "argparse", "asyncio", "contextlib", "dataclasses", "enum", "heapq", "inspect", "json", "logging",
    "pathlib", "queue", "random", "re", "shutil", "signal", "subprocess", "tempfile", "tomllib", "traceback",
    "typing",
}  # fmt: skip

# What a guest with a console needs once it runs, if ever: none of it may be loaded before.
LATE = {
    "pyvmm.devicelist",
    "pyvmm.devices.console.control",
    "pyvmm.devices.virtio.activation",
    "pyvmm.devices.virtio.chain",
    "pyvmm.devices.virtio.corestate",
    "pyvmm.devices.virtio.queue",
    "pyvmm.devices.virtio.session",
    "pyvmm.guest",
    "pyvmm.hostfile",
    "pyvmm.mmio.regaccess",
    "pyvmm.mmio.regstate",
    "pyvmm.nearest",
    "pyvmm.pausing",
}

# What `pyvmm run` loads with a disk and a network, whatever the host and the kernel.
RUN_PATH = (
    "pyvmm.cli.run",
    "pyvmm.control",
    "pyvmm.devices.pci.host",
    "pyvmm.devices.plic",
    "pyvmm.devices.virtio.blk",
    "pyvmm.devices.virtio.console",
    "pyvmm.devices.virtio.net",
    "pyvmm.devices.disk.opening",
    "pyvmm.devices.virtio.packed",
    "pyvmm.devices.virtio.pci",
    "pyvmm.devices.virtio.rng",
    "pyvmm.devices.virtio.split",
    "pyvmm.kvm.aia",
    "pyvmm.kvm.routing",
    "pyvmm.kvm.system",
    "pyvmm.machine",
    "pyvmm.pcitree",
)


def unit_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Units of pyvmm that a file imports, wherever in the file."""
    package = ("pyvmm", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            unit = rest.partition(".")[0]
            if top == "pyvmm" and unit in UNITS:
                yield unit


def own_private_names(tree):
    """What the classes of a module keep to themselves: the classes of one module know each other."""
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef):
            for node in ast.walk(owner):
                if isinstance(node, ast.FunctionDef):
                    yield node.name
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_itself(node):
                    yield node.attr


def of_itself(node):
    return ast.unparse(node.value) in {"self", "cls", "super()", "type(self)"}


def foreign_private_accesses(path):
    """Uses of attributes that are private to another module, as the file writes them."""
    tree = ast.parse(path.read_text())
    own = set(own_private_names(tree))
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
        and not of_itself(node)
    }


UNITS = {unit_of(path) for path in PACKAGE.rglob("*.py")}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if unit_of(path) not in TOP)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_its_layer_may(path):
    unit = unit_of(path)
    extra = set(imports_of(path)) - MAY_IMPORT[unit] - {unit}
    assert not extra, f"{unit} must not import {sorted(extra)}"


def test_every_unit_has_a_place_in_the_table():
    assert {unit_of(path) for path in SOURCES} == set(MAY_IMPORT)


def test_no_module_uses_what_is_private_to_another():
    found = {str(path.relative_to(PACKAGE)): foreign_private_accesses(path) for path in PACKAGE.rglob("*.py")}
    assert {name: accesses for name, accesses in found.items() if accesses} == FOREIGN


def test_running_a_guest_loads_nothing_heavy():
    # In a process of its own: pytest has loaded everything. The modules are those that `pyvmm run` loads.
    code = f"import sys, {', '.join(RUN_PATH)}\nprint('\\n'.join(sys.modules))"
    code = f"import sys; sys.path.append({str(ROOT)!r})\n{code}"
    command = [sys.executable, "-I", "-S", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert HEAVY.isdisjoint(loaded), sorted(HEAVY & set(loaded))


def test_first_entry_into_a_guest_waits_for_nothing_that_can_come_later(tmp_path):
    kernel = tmp_path / "Image"
    kernel.write_bytes(image())
    code = f"""
import sys
sys.path[:0] = {str(ROOT)!r}, {str(ROOT / "tests")!r}
from fakes.kernel import FakeKernel, call, shutdown
from pyvmm.config import MachineConfig
from pyvmm.machine import Machine

fake = FakeKernel([call(lambda _: print(*sys.modules)), shutdown()])
with Machine(MachineConfig(kernel={str(kernel)!r}, console="virtio"), kernel=fake) as machine:
    machine.start()
    machine.wait()
"""
    command = [sys.executable, "-I", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "pyvmm.devices.virtio.console" in loaded
    assert LATE.isdisjoint(loaded), sorted(LATE & set(loaded))


def test_every_source_file_carries_the_licence():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    bare = [
        str(path) for path in files if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]
    ]
    assert not bare
