# SPDX-License-Identifier: Apache-2.0
"""One vCPU: entering the guest, reading why it came back, answering, and its registers.

How an exit is answered. KVM does not finish an MMIO load, an SBI call or a CSR access when it exits: it does
so at the start of the *next* KVM_RUN, from what then lies in the run page. Until that happens the registers
show a PC that still points at the instruction, and a PC written by hand would be advanced by it. So before
registers are saved, shown to a debugger or rewritten, call :meth:`Vcpu.complete_exit`.

Threads. A vCPU is run by one thread, and nearly every ioctl on it takes the kernel's mutex for that vCPU:
called from elsewhere while the vCPU is inside KVM_RUN it waits until KVM_RUN returns. The exceptions, which
any thread may use at any time, are :meth:`Vcpu.interrupt` and :attr:`Vcpu.immediate_exit`.
"""

from __future__ import annotations

import ctypes
from errno import E2BIG, EAGAIN, EBUSY, EFAULT, EINTR, EINVAL, EIO, ENOENT, EOPNOTSUPP
from struct import Struct

from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.ioctl import Fd, address_of, out_buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.kvm.ioctl import Kernel

_PAGE = 4096
_KVM_RUN = uapi.KVM_RUN
_EXIT_REASON_WORD = uapi.RUN_EXIT_REASON_OFFSET // 4
# Words of struct kvm_run's MMIO part: phys_addr, data, len, and is_write in the low byte of the last.
_MMIO_ADDRESS = uapi.RUN_MMIO_OFFSET // 4
_MMIO_DATA = uapi.RUN_MMIO_DATA_OFFSET // 4
_MMIO_LENGTH, _MMIO_IS_WRITE = _MMIO_ADDRESS + 4, _MMIO_ADDRESS + 5
_U64 = (1 << 64) - 1
# Indexed by an access's length in bytes: the kernel leaves stale bytes behind the ones it stored.
_MASKS = tuple((1 << 8 * length) - 1 for length in range(9))

_unpack_mmio = uapi.RUN_MMIO.unpack_from
_pack_mmio_data = uapi.RUN_MMIO_DATA.pack_into
_SIGNAL_MASK = Struct("<IQ")  # struct kvm_signal_mask: the length, then the kernel's sigset_t unaligned
_INTERRUPT_SET = uapi.INTERRUPT.pack(uapi.KVM_INTERRUPT_SET)
_INTERRUPT_UNSET = uapi.INTERRUPT.pack(uapi.KVM_INTERRUPT_UNSET)

_RUN_HINTS = {
    EOPNOTSUPP: "the guest used an instruction that KVM cannot emulate (atomic, floating-point, vector or "
    "cache-block access to a device address), or jumped to an address without memory",
    EIO: "the guest made a misaligned access to a device address",
    EFAULT: "the host could not provide a page of guest memory",
}
_REGISTER_HINTS = {
    ENOENT: "this vCPU has no such register",
    EINVAL: "the host does not allow this value, or the register has another size",
    EBUSY: "the vCPU has run already: this can only be set before",
}


class Vcpu(Fd):
    """A vCPU's file descriptor and its run page."""

    __slots__ = ("_page", "_run", "_words", "id", "page_address", "ring_address")

    def __init__(self, kernel: Kernel, fd: int, vcpu_id: int, mmap_size: int) -> None:
        super().__init__(kernel, fd)
        self.id = vcpu_id
        self._run = kernel.run
        try:
            self._page = kernel.mmap(fd, mmap_size)
        except OSError as error:
            self.close()
            raise HostError(f"cannot map the run page of vCPU {vcpu_id}: {error.strerror}") from error
        self._words = memoryview(self._page).cast("I")
        #: Address of the run page.
        self.page_address = address_of(self._page)
        #: Address of the coalesced-MMIO ring, one for the whole machine, seen through every vCPU.
        self.ring_address = self.page_address + uapi.KVM_COALESCED_MMIO_PAGE_OFFSET * _PAGE

    def close(self) -> None:
        """Unmap the run page and close the vCPU. Its thread must have left :meth:`run`."""
        if self.fd >= 0 and hasattr(self, "_words"):
            self._words.release()
            self._page.close()
        super().close()

    # Running

    def run(self) -> int:
        """KVM_RUN: run the guest until it needs user space; returns the exit reason.

        KVM_EXIT_INTR when a signal or ``immediate_exit`` ended it: the kernel then leaves the *previous*
        reason in the run page (and needs it there to complete that exit), so it is not read. Raises KvmError
        when the kernel gives up on the guest's instruction; PC still points at it.
        """
        if self._run(self.fd, _KVM_RUN, 0) == 0:
            return self._words[_EXIT_REASON_WORD]
        return self.stopped(self.kernel.errno())

    def stopped(self, errno: int) -> int:
        """What :meth:`run` makes of a KVM_RUN that failed."""
        if errno in (EINTR, EAGAIN):
            return uapi.KVM_EXIT_INTR
        raise KvmError("KVM_RUN", errno, _RUN_HINTS.get(errno, ""))

    @property
    def immediate_exit(self) -> bool:
        """Whether :meth:`run` returns KVM_EXIT_INTR instead of entering the guest.

        The kernel looks once, at the start of KVM_RUN. To kick a vCPU out of the guest set this first and
        then signal its thread: whichever of the two it meets, it comes out. The vCPU's own thread clears it.
        """
        return self._page[uapi.RUN_IMMEDIATE_EXIT_OFFSET] != 0

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self._page[uapi.RUN_IMMEDIATE_EXIT_OFFSET] = value

    def set_signal_mask(self, blocked: Iterable[int]) -> None:
        """KVM_SET_SIGNAL_MASK: the signals that the thread blocks while it is inside :meth:`run`.

        A signal blocked outside and not inside ends the run, stays pending, and is taken with sigtimedwait: a
        kick that cannot be lost.
        """
        mask = sum(1 << (number - 1) for number in set(blocked))
        self.kernel.ioctl(self.fd, uapi.KVM_SET_SIGNAL_MASK, _SIGNAL_MASK.pack(8, mask))

    def complete_exit(self) -> None:
        """Finish a pending MMIO, SBI or CSR exit without entering the guest; harmless when none is pending.

        For the vCPU's own thread. It counts as the first run, which freezes the vCPU's ISA. A kick that comes
        in meanwhile is absorbed: look at your requests afterwards.
        """
        self.immediate_exit = True
        try:
            self.run()
        finally:
            self.immediate_exit = False

    # Exits: each pair is valid after run() returned the reason in its name

    def mmio(self) -> tuple[int, int, bool, int]:
        """KVM_EXIT_MMIO: (address, length in bytes, is a store, value stored or 0 for a load)."""
        address, data, length, is_write = _unpack_mmio(self._page, uapi.RUN_MMIO_OFFSET)
        if is_write:
            return address, length, True, data & _MASKS[length]
        return address, length, False, 0

    def answer_mmio(self, length: int, value: int) -> None:
        """What the guest's load gets: the low ``length`` bytes of ``value``. KVM extends the sign."""
        _pack_mmio_data(self._page, uapi.RUN_MMIO_DATA_OFFSET, value & _MASKS[length])

    def answer_known(self, answers: dict[int, int]) -> bool:
        """KVM_EXIT_MMIO: answer a load of one byte at an address in ``answers``; False for any other access.

        Looks at as little memory as it can: where address spaces are emulated, that is what exits cost.
        """
        words = self._words
        if words[_MMIO_LENGTH] == 1 and not words[_MMIO_IS_WRITE] & 0xFF:
            value = answers.get(words[_MMIO_ADDRESS] | words[_MMIO_ADDRESS + 1] << 32)
            if value is not None:
                words[_MMIO_DATA] = value
                return True
        return False

    def sbi(self) -> tuple[int, int, tuple[int, ...]]:
        """KVM_EXIT_RISCV_SBI: (extension id from a7, function id from a6, six arguments from a0..a5)."""
        values = uapi.RUN_SBI.unpack_from(self._page, uapi.RUN_SBI_OFFSET)
        return values[0], values[1], values[2:]

    def answer_sbi(self, error: int, value: int) -> None:
        """What the call returns in a0 (an SBI error, negative, or 0) and a1. Unanswered it is (-2, 0)."""
        uapi.RUN_SBI_RET.pack_into(self._page, uapi.RUN_SBI_RET_OFFSET, error & _U64, value & _U64)

    def csr(self) -> tuple[int, int, int]:
        """KVM_EXIT_RISCV_CSR: (number, new value, mask of the bits to be written)."""
        number, new_value, write_mask = uapi.RUN_CSR.unpack_from(self._page, uapi.RUN_CSR_OFFSET)
        return number, new_value, write_mask

    def answer_csr(self, old: int) -> None:
        """The CSR's value from before the access: the kernel puts it into the destination register."""
        uapi.RUN_CSR_RET.pack_into(self._page, uapi.RUN_CSR_RET_OFFSET, old & _U64)

    def system_event(self) -> tuple[int, tuple[int, ...]]:
        """KVM_EXIT_SYSTEM_EVENT: (type, data); for shutdown and reset data[0] is the SRST reason."""
        kind, count, *data = uapi.RUN_SYSTEM_EVENT.unpack_from(self._page, uapi.RUN_SYSTEM_EVENT_OFFSET)
        return kind, tuple(data[:count])

    def fail_entry(self) -> tuple[int, int]:
        """KVM_EXIT_FAIL_ENTRY: (hardware reason, host CPU). On RISC-V: no IMSIC guest file was free there."""
        reason, cpu = uapi.RUN_FAIL_ENTRY.unpack_from(self._page, uapi.RUN_FAIL_ENTRY_OFFSET)
        return reason, cpu

    # State

    def get_reg(self, register: int) -> int:
        """KVM_GET_ONE_REG of an id from ``pyvmm.kvm.regs``, as an unsigned integer."""
        buffer = out_buffer(_register_size(register))
        self._one_reg(uapi.KVM_GET_ONE_REG, register, buffer)
        return int.from_bytes(buffer.raw, "little")

    def set_reg(self, register: int, value: int) -> None:
        """KVM_SET_ONE_REG; ``value`` is cut to the register's size."""
        size = _register_size(register)
        buffer = out_buffer((value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
        self._one_reg(uapi.KVM_SET_ONE_REG, register, buffer)

    def _one_reg(self, request: int, register: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
        argument = uapi.ONE_REG.pack(register, ctypes.addressof(buffer))
        if self.kernel.raw_ioctl(self.fd, request, argument) < 0:
            from pyvmm.kvm import regs

            errno = self.kernel.errno()
            name = "KVM_GET_ONE_REG" if request == uapi.KVM_GET_ONE_REG else "KVM_SET_ONE_REG"
            hint = _REGISTER_HINTS.get(errno)
            raise KvmError(name, errno, f"register {regs.name(register)}" + (f": {hint}" if hint else ""))

    def reg_list(self) -> list[int]:
        """KVM_GET_REG_LIST: ids of every register this vCPU has. The order is not one for restoring."""
        count = 0
        while True:
            buffer = out_buffer(uapi.REG_LIST.pack(count) + bytes(8 * count))
            if self.kernel.raw_ioctl(self.fd, uapi.KVM_GET_REG_LIST, buffer) == 0:
                (count,) = uapi.REG_LIST.unpack_from(buffer)
                return list(memoryview(buffer.raw).cast("Q")[1 : 1 + count])
            errno = self.kernel.errno()
            (wanted,) = uapi.REG_LIST.unpack_from(buffer)
            if errno != E2BIG or wanted <= count:
                raise KvmError("KVM_GET_REG_LIST", errno)
            count = wanted

    @property
    def mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_RUNNABLE or KVM_MP_STATE_STOPPED."""
        buffer = out_buffer(uapi.MP_STATE.size)
        self.kernel.ioctl(self.fd, uapi.KVM_GET_MP_STATE, buffer)
        state: int = uapi.MP_STATE.unpack(buffer.raw)[0]
        return state

    @mp_state.setter
    def mp_state(self, state: int) -> None:
        self.kernel.ioctl(self.fd, uapi.KVM_SET_MP_STATE, uapi.MP_STATE.pack(state))

    def interrupt(self, asserted: bool) -> None:
        """KVM_INTERRUPT: drive the hart's S-external line, for a user-space interrupt controller.

        Any thread, also while the vCPU runs. Setting kicks the vCPU out of the guest or out of WFI; clearing
        takes effect at its next entry. The guest cannot clear the line itself.
        """
        self.kernel.ioctl(self.fd, uapi.KVM_INTERRUPT, _INTERRUPT_SET if asserted else _INTERRUPT_UNSET)

    def set_guest_debug(self, enabled: bool) -> None:
        """KVM_SET_GUEST_DEBUG: whether the guest's ``ebreak`` leaves with KVM_EXIT_DEBUG, from the next run.

        PC then stays at the ``ebreak``. There is no single step on RISC-V.
        """
        control = uapi.KVM_GUESTDBG_ENABLE if enabled else 0
        self.kernel.ioctl(self.fd, uapi.KVM_SET_GUEST_DEBUG, uapi.GUEST_DEBUG.pack(control))


def _register_size(register: int) -> int:
    """Bytes of a register, which its id tells."""
    return 1 << ((register & uapi.KVM_REG_SIZE_MASK) >> uapi.KVM_REG_SIZE_SHIFT)
