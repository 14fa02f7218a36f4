# SPDX-License-Identifier: Apache-2.0
"""A running machine as plain data: memory slots, bus map, routes, irqfds, ioeventfds, devices.

For people and programs that want to see how a guest's access reaches a device and how the answer gets back.
Numbers are ints; addresses are guest-physical.
"""

from __future__ import annotations

from pyvmm.kvm import uapi

TYPE_CHECKING = False
_REASONS = {
    uapi.KVM_EXIT_MMIO: "mmio",
    uapi.KVM_EXIT_RISCV_SBI: "sbi",
    uapi.KVM_EXIT_RISCV_CSR: "csr",
    uapi.KVM_EXIT_INTR: "interrupted",
    uapi.KVM_EXIT_SYSTEM_EVENT: "system-event",
    uapi.KVM_EXIT_FAIL_ENTRY: "fail-entry",
}

if TYPE_CHECKING:
    from pyvmm.backplane import Backplane
    from pyvmm.board import Board
    from pyvmm.devices.virtio.core import VirtioCore

    Report = dict[str, object]


def report(board: Board) -> Report:
    """Everything. Callable from any thread; each device is asked under its own lock."""
    routing = board.chip.routing
    plane = board.backplane
    return {
        "irqchip": board.chip.name,
        "slots": board.vm.memory_slots(),
        "bus": [
            {"base": where.base, "size": where.size, "name": name} for where, name in board.bus.describe()
        ],
        "unclaimed": board.bus.unclaimed.total,
        "exits": _exits(board),
        "accesses": board.bus.accesses(),
        "routes": [] if routing is None else routing.describe(),
        "ioeventfds": board.doorbells.describe(),
        "pci": _pci(plane),
        "virtio": {} if plane is None else {name: _virtio(at.core) for name, at in plane.virtio.items()},
    }


def _exits(board: Board) -> dict[str, int]:
    """How often the harts left the guest, by reason: all that KVM could not do without pyvmm."""
    return {
        name: count
        for reason, name in _REASONS.items()
        if (count := sum(thread.exits[reason] for thread in board.threads))
    }


def _pci(plane: Backplane | None) -> list[Report]:
    if plane is None or plane.pci is None:
        return []
    return [
        {
            "address": address,
            "name": function.name,
            "vendor": function.header.identity.vendor,
            "device": function.header.identity.device,
            "bars": [{"index": bar.index, "size": bar.size, "address": bar.address} for bar in function.bars],
        }
        for address, function in plane.pci.functions()
    ]


def _virtio(core: VirtioCore) -> Report:
    with core.lock:
        return {
            "device_id": core.device.DEVICE_ID,
            "status": core.status,
            "offered": core.offered,
            "features": core.driver_features,
            "broken": core.broken,
            "odd": core.odd + core.device.odd,
            "queues": core.describe_queues(),
        }


def to_text(found: Report) -> str:
    """``report`` as indented lines."""
    return "\n".join(_lines(found, ""))


def _lines(value: object, indent: str) -> list[str]:
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            if isinstance(inner, (dict, list)) and inner:
                lines += [f"{indent}{key}:", *_lines(inner, indent + "  ")]
            else:
                lines.append(f"{indent}{key}: {_scalar(key, inner)}")
        return lines
    assert isinstance(value, list)
    return [f"{indent}- {_row(item)}" for item in value]


def _row(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    return " ".join(f"{key}={_scalar(key, inner)}" for key, inner in item.items())


_IN_HEX = {
    "base", "size", "address", "host", "data", "vendor", "device", "offered", "features", "flags",
    "desc", "driver",
}  # fmt: skip


def _scalar(key: object, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key in _IN_HEX:
        return f"0x{value:x}"
    if isinstance(value, list):
        return f"[{' '.join(_row(inner) for inner in value)}]"
    return "-" if value is None or value == {} else str(value)
