# SPDX-License-Identifier: Apache-2.0
"""The platform devices of a machine: which ones a configuration asks for, and where they live."""

from __future__ import annotations

from pyvmm import devicetree, layout
from pyvmm.devices.powerbutton import PowerButton
from pyvmm.devices.rtc import GoldfishRtc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.config import MachineConfig
    from pyvmm.fdt import Node


class Peripheral:
    """A device's place: ``name`` on the bus and in the trace, ``node`` in the device tree.

    ``properties`` adds those of its kind to its node. ``edge``: its wire is taken by its rising
    edges, and else by its level.
    """

    __slots__ = ("alias", "base", "edge", "irq", "name", "node", "properties", "size")

    def __init__(
        self,
        properties: Callable[[Node], None],
        *,
        name: str,
        node: str,
        base: int,
        size: int,
        irq: int,
        alias: str | None = None,
        edge: bool = False,
    ) -> None:
        self.properties = properties
        self.name = name
        self.node = node
        self.base = base
        self.size = size
        self.irq = irq
        self.alias = alias
        self.edge = edge

    def describe(self) -> devicetree.Device:
        """For the device tree; needs no instance of the device."""
        trigger = devicetree.EDGE_RISING if self.edge else devicetree.LEVEL_HIGH
        return devicetree.Device(
            self.node, self.base, self.size, self.irq, self.properties, alias=self.alias, trigger=trigger
        )


def _uart_properties(node: Node) -> None:
    from pyvmm.devices.uart8250 import Uart8250  # few machines have one

    Uart8250.describe(node)


UART = Peripheral(
    _uart_properties,
    name="uart",
    node="serial",
    base=layout.UART_BASE,
    size=layout.UART_SIZE,
    irq=layout.UART_IRQ,
    alias="serial0",
)
RTC = Peripheral(
    GoldfishRtc.describe,
    name="rtc",
    node="rtc",
    base=layout.RTC_BASE,
    size=layout.RTC_SIZE,
    irq=layout.RTC_IRQ,
)
POWER = Peripheral(
    PowerButton.describe,
    name="power",
    node="virtio",
    base=layout.POWER_BASE,
    size=layout.POWER_SIZE,
    irq=layout.POWER_IRQ,
    edge=True,  # as virtio-mmio has it
)


def wanted(config: MachineConfig) -> list[Peripheral]:
    """What ``config`` asks for. Clock and power button are always there."""
    return [UART, RTC, POWER] if config.console == "serial" else [RTC, POWER]


def stdout(config: MachineConfig) -> str | None:
    """What /chosen/stdout-path names: the serial console's alias and line settings."""
    return f"{UART.alias}:115200n8" if config.console == "serial" else None
