# SPDX-License-Identifier: Apache-2.0
"""The guest's physical address map and wired interrupt numbers: one table, hardly any logic.

Sizes and addresses are bytes. Interrupt numbers are PLIC or APLIC source numbers; 0 does not exist.
The map follows kvmtool's where it has one (low 2 GiB for devices, RAM from 0x8000_0000).
"""

# Interrupt controllers: one window, whichever of them the machine has.
PLIC_BASE, PLIC_SIZE = 0x0800_0000, 0x0400_0000
IMSIC_BASE, IMSIC_STRIDE = 0x0800_0000, 0x1000  # one page a hart, in hart order; up to 128 harts
APLIC_BASE = 0x0C00_0000  # 0x4000 of registers, then in direct mode 32 bytes an IDC
APLIC_SIZE = 0x4000
APLIC_IDC_SIZE = 32

# Platform devices: one page each.
UART_BASE, UART_SIZE, UART_IRQ = 0x1000_0000, 0x1000, 1
RTC_BASE, RTC_SIZE, RTC_IRQ = 0x1001_0000, 0x1000, 2
POWER_BASE, POWER_SIZE, POWER_IRQ = 0x1001_1000, 0x1000, 7

# virtio-mmio: a page and a source each.
VIRTIO_BASE, VIRTIO_SIZE, VIRTIO_IRQ, VIRTIO_SLOTS = 0x1002_0000, 0x1000, 8, 56

# PCI: configuration space of one bus; the windows for BARs, of which the one for 64-bit BARs lies above RAM
# (pci_high_base); the sources that INTA to INTD end in. Addresses on the bus are the guest-physical ones, but
# for the I/O window's, which count from 0.
PCI_ECAM_BASE, PCI_ECAM_SIZE = 0x3000_0000, 0x10_0000
PCI_IO_BASE, PCI_IO_SIZE = 0x3F00_0000, 0x1_0000
PCI_LOW_BASE, PCI_LOW_SIZE = 0x4000_0000, 0x4000_0000
PCI_HIGH_SIZE = 0x8000_0000  # Linux complains of 4 GiB or more
PCI_IRQS = (3, 4, 5, 6)

RAM_BASE = 0x8000_0000

# What a guest can address on every host: the least a G-stage (Sv39x4) translates.
GUEST_END = 1 << 41

# Sources announced to the guest: what the smallest IMSIC file has identities for. A guest takes an identity
# for those it uses, lowest first; emulated IMSIC files can enable only those whose number modulo 64 is below
# 32, so a hart with more than 31 wires, MSI-X vectors and IPIs in use needs a host with guest files.
NR_SOURCES = 63
MAX_CPUS = 128


def aplic_size(harts: int) -> int:
    """Bytes of an APLIC in direct mode: its domain and one IDC a hart, in whole pages."""
    return (APLIC_SIZE + APLIC_IDC_SIZE * harts + 0xFFF) & ~0xFFF


def pci_high_base(ram_end: int) -> int | None:
    """Where the window for 64-bit BARs begins, or None when ``ram_end`` leaves no room for it."""
    base = max(-(-ram_end // PCI_HIGH_SIZE) * PCI_HIGH_SIZE, 1 << 32)
    return base if base + PCI_HIGH_SIZE <= GUEST_END else None
