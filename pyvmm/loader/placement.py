# SPDX-License-Identifier: Apache-2.0
"""Where kernel, initrd and device tree go in guest memory: a pure function of their sizes.

The rules are Linux's (Documentation/arch/riscv/boot.rst, arch/riscv/mm/init.c):

- The kernel's place is given: by its header, relative to the start of RAM, or by its ELF segments.
- Nothing goes below it: kernels before 6.4 do not use that memory, and U-Boot has its first stack there.
- The device tree has at most 2 MiB and stays mapped as two 2 MiB pages, from the one that it starts in. The
  initrd is freed in whole pages after use, so neither shares a page with anything.
- Both stay below 4 GiB while they fit there, for 32-bit DMA masks and firmware; else within the 128 GiB from
  the start of RAM that Linux's smallest linear map (Sv39) covers.
"""

from __future__ import annotations

from pyvmm.errors import ConfigError

MIB = 1 << 20
PAGE = 4096
FDT_ALIGN = 2 * MIB
FDT_LIMIT = 2 * MIB

_4_GIB = 1 << 32
_LINEAR_MAP = 128 << 30


class Placement:
    """The addresses: ``kernel`` and ``initrd`` are half-open ranges (``initrd`` None when there is none)."""

    __slots__ = ("fdt", "initrd", "kernel")

    def __init__(self, kernel: tuple[int, int], initrd: tuple[int, int] | None, fdt: int) -> None:
        self.kernel = kernel
        self.initrd = initrd
        self.fdt = fdt


def place(
    ram_base: int, ram_size: int, kernel: tuple[int, int], initrd_size: int, fdt_size: int
) -> Placement:
    """Place an initrd (0 bytes: none) and a device tree beside the kernel's half-open range, all in bytes.

    Raises ConfigError, naming the memory that is enough, when they do not fit.
    """
    if fdt_size > FDT_LIMIT:
        raise ConfigError(
            f"The device tree takes {fdt_size} bytes, and Linux allows {FDT_LIMIT}; shorten --params."
        )
    ram_end = ram_base + ram_size
    linear_end = ram_base + _LINEAR_MAP
    for limit in (min(ram_end, _4_GIB), min(ram_end, linear_end)):
        for attempt in (_from_the_top, _packed):
            initrd, fdt = attempt(kernel[1], limit, initrd_size, fdt_size)
            if initrd >= _page_up(kernel[1]) and fdt + fdt_size <= limit:
                return Placement(kernel, (initrd, initrd + initrd_size) if initrd_size else None, fdt)
    raise ConfigError(_too_little(ram_base, ram_size, kernel, initrd_size, fdt_size))


def _from_the_top(_kernel_end: int, limit: int, initrd_size: int, fdt_size: int) -> tuple[int, int]:
    """The usual layout: the device tree in the highest 2 MiB slot that takes it, the initrd below it."""
    fdt = (limit - fdt_size) // FDT_ALIGN * FDT_ALIGN
    return (fdt - initrd_size) // PAGE * PAGE, fdt


def _packed(kernel_end: int, _limit: int, initrd_size: int, _fdt_size: int) -> tuple[int, int]:
    """Everything straight after the kernel: if this does not fit, nothing does."""
    initrd = _page_up(kernel_end)
    return initrd, _page_up(initrd + initrd_size)


def _page_up(address: int) -> int:
    return -(-address // PAGE) * PAGE


def _too_little(
    ram_base: int, ram_size: int, kernel: tuple[int, int], initrd_size: int, fdt_size: int
) -> str:
    _, fdt = _packed(kernel[1], 0, initrd_size, fdt_size)
    needed = fdt + fdt_size - ram_base
    if needed > _LINEAR_MAP:
        return f"Kernel and initrd take {needed >> 30} GiB, and Linux boots with at most {_LINEAR_MAP >> 30}."
    mib = -(-needed // MIB)
    return (
        f"Kernel, initrd and device tree need {mib} MiB of memory, and the guest has {ram_size / MIB:g}; "
        f"give it --mem {mib}M or more."
    )
