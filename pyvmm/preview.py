# SPDX-License-Identifier: Apache-2.0
"""A machine as far as it can be known without KVM: its device tree, and what is wrong with its configuration.

Where the host would decide, a plain one is assumed: rv64imafdc with Sstc and Ssaia, Sv39, a 10 MHz timebase.
"""

from __future__ import annotations

from pyvmm import backplane, configfiles, devicetree, harts, irqchip, isa, layout, peripherals
from pyvmm.fdt import flatten
from pyvmm.kvm import regs
from pyvmm.loader import Boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import MachineConfig

_IMSIC_IDS = 255


def tree(config: MachineConfig) -> devicetree.Tree:
    """The device tree of ``config`` on a plain host: the same for the same options. Raises ConfigError."""
    names = _extensions(config)
    kind = irqchip.candidates(config.irqchip, ssaia="ssaia" in names)[0]
    wired, imsic = _controllers(kind, config.cpus)
    plan = devicetree.build(
        devicetree.Cpu(names),
        config.cpus,
        [(layout.RAM_BASE, config.mem)],
        wired,
        imsic,
        devices=[place.describe() for place in peripherals.wanted(config)],
        chosen=devicetree.Chosen(config.command_line(), peripherals.stdout(config)),
    )
    backplane.describe(plan, backplane.Slots(config), layout.RAM_BASE + config.mem)
    return plan


def describe(config: MachineConfig) -> dict[str, object]:
    """``config`` as plain data, everything resolved: sizes in bytes, durations in seconds."""
    fields = {key: getattr(config, key) for key in config.__slots__ if key != "devices"}
    return {
        "schema_version": 1,
        "config": {**fields, "trace": list(config.trace)},
        "command_line": config.command_line(),
        "platform": [
            {"name": place.name, "base": place.base, "size": place.size, "irq": place.irq}
            for place in peripherals.wanted(config)
        ],
        "devices": [
            {"name": request.name, "kind": request.kind, "settings": request.settings.values()}
            for request in config.devices
        ],
    }


def check(config: MachineConfig) -> None:
    """Raise ConfigError for what would fail on any host: names, files, placement. Changes nothing."""
    blob = check_machine(config)
    with Boot(
        layout.RAM_BASE,
        config.mem,
        kernel=config.kernel,
        initrd=config.initrd,
        firmware=config.firmware,
        agent=config.agent,
    ) as boot:
        boot.place(len(blob))


def check_machine(config: MachineConfig) -> bytes:
    """The device tree blob. Raises ConfigError as ``check`` does, but for what there is to boot."""
    for request in config.devices:
        request.model.check(request.settings)
    configfiles.check(config)
    return flatten(tree(config).root)


def _extensions(config: MachineConfig) -> list[str]:
    offered = {name: name in (*isa.DEFAULT, "ssaia") for name in regs.ISA_EXTENSIONS}
    return harts.select(config).apply(offered).names


def _controllers(kind: str, cpus: int) -> tuple[devicetree.Plic | devicetree.Aplic, devicetree.Imsic | None]:
    if kind == "plic":
        return devicetree.Plic(layout.PLIC_BASE, layout.PLIC_SIZE, layout.NR_SOURCES), None
    if kind == "aplic":
        return devicetree.Aplic(layout.APLIC_BASE, layout.aplic_size(cpus), layout.NR_SOURCES), None
    aplic = devicetree.Aplic(layout.APLIC_BASE, layout.APLIC_SIZE, layout.NR_SOURCES)
    return aplic, devicetree.Imsic(layout.IMSIC_BASE, _IMSIC_IDS)
