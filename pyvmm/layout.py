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

# PCI (ECAM and windows) keeps 0x3000_0000 to RAM_BASE.
RAM_BASE = 0x8000_0000

# Sources announced to the guest. Emulated IMSIC files cannot enable identities whose number modulo 64
# is above 31, so wired sources, MSI-X vectors and IPIs together stay small.
NR_SOURCES = 31
MAX_CPUS = 128


def aplic_size(harts: int) -> int:
    """Bytes of an APLIC in direct mode: its domain and one IDC a hart, in whole pages."""
    return (APLIC_SIZE + APLIC_IDC_SIZE * harts + 0xFFF) & ~0xFFF
