# SPDX-License-Identifier: Apache-2.0
"""A fake /dev/kvm behind the :class:`pyvmm.kvm.ioctl.Kernel` seam, with the kernel's rules and errors.

    kernel = FakeKernel(script=[mmio_write(0x1000_0000, 1, 0x41), shutdown()])
    vm = Kvm(kernel=kernel).create_vm()

Guests are scripts of exits: one list for the first vCPU, or a dict from vCPU id to list. What user space
answered is in ``kernel.vm.vcpus[id].answers``; a script that is used up shuts the machine down. Eventfds are
real, so event loops work. A store inside of a coalesced zone is no exit while the ring has room; one that an
ioeventfd takes is played with ``vm.guest_store``. What the kernel was told is in ``vm.slots``, ``routes``,
``irqfds``, ``lines`` and ``messages``.

``in_c`` says whether vCPUs may be run from C, where the native module is there; a script that raises an
exception needs that they are not, as it cannot pass through C. ``interrupts_in_c`` says whether C may call
KVM_INTERRUPT: for one thread only, as it needs the GIL here.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import Any, NoReturn

from pyvmm.kvm import regs, uapi
from pyvmm.kvm.ioctl import Kernel

PAGE = 4096
U32, U64 = Struct("<I"), Struct("<Q")
FIRST_FAKE_FD = 1_000_000

DEFAULT_CAPABILITIES = {
    uapi.KVM_CAP_IRQCHIP: 1,
    uapi.KVM_CAP_USER_MEMORY: 1,
    uapi.KVM_CAP_NR_VCPUS: 4,
    uapi.KVM_CAP_NR_MEMSLOTS: 32767,
    uapi.KVM_CAP_MP_STATE: 1,
    uapi.KVM_CAP_COALESCED_MMIO: 1,
    uapi.KVM_CAP_SET_GUEST_DEBUG: 1,
    uapi.KVM_CAP_IRQ_ROUTING: 4096,
    uapi.KVM_CAP_IRQFD: 1,
    uapi.KVM_CAP_IOEVENTFD: 1,
    uapi.KVM_CAP_MAX_VCPUS: 1024,
    uapi.KVM_CAP_ONE_REG: 1,
    uapi.KVM_CAP_SIGNAL_MSI: 1,
    uapi.KVM_CAP_READONLY_MEM: 1,
    uapi.KVM_CAP_DEVICE_CTRL: 1,
    uapi.KVM_CAP_IMMEDIATE_EXIT: 1,
    uapi.KVM_CAP_VM_GPA_BITS: 59,
    uapi.KVM_CAP_USER_MEMORY2: 1,
}
DEFAULT_ISA = (
    *("a", "c", "d", "f", "i", "m", "svpbmt", "sstc", "svinval", "zihintpause", "zicbom", "zicboz", "zbb"),
    *("ssaia", "svnapot", "zba", "zbs", "zicntr", "zicsr", "zifencei", "zihpm", "smstateen", "zawrs", "zfa"),
)
SBI_ON = ("v01", "time", "ipi", "rfence", "srst", "hsm", "experimental", "vendor", "sta", "fwft")
SBI_OFF = ("dbcn", "susp", "mpxy")


_IOCTL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, use_errno=True)


def fail(number: int) -> NoReturn:
    """End a fake ioctl with -1 and this errno."""
    raise OSError(number, os.strerror(number))


# What a script is made of


class Exit:
    """One return of KVM_RUN: the reason and the run page's exit area, or an errno.

    ``answer`` is the format of what user space may leave at ``offset`` of the run page.
    """

    def __init__(
        self, reason: int, fill: bytes = b"", *, error: int = 0, answer: str | None = None, offset: int = 0
    ) -> None:
        self.reason, self.fill, self.error = reason, fill, error
        self.answer = None if answer is None else Struct(answer)
        self.offset = offset

    def __call__(self, vcpu: FakeVcpu) -> int | None:
        """Play it; returns the errno, or 0; None when the guest goes on."""
        if self.error != errno.EINTR:
            U32.pack_into(vcpu.page, uapi.RUN_EXIT_REASON_OFFSET, self.reason)
        vcpu.page[32 : 32 + len(self.fill)] = self.fill
        vcpu.pending = self if self.answer else None
        return self.error


class Store(Exit):
    """A store: an exit, unless it is noted down."""

    def __init__(self, address: int, length: int, value: int) -> None:
        data = (value & (1 << 8 * length) - 1) | (0xA5A5_A5A5_A5A5_A5A5 >> 8 * length << 8 * length)
        fill = uapi.RUN_MMIO.pack(address, data & 2**64 - 1, length, 1)
        super().__init__(uapi.KVM_EXIT_MMIO, fill, answer="")
        self.access = address, length, value

    def __call__(self, vcpu: FakeVcpu) -> int | None:
        if vcpu.vm.coalesce(*self.access):
            vcpu.registers[regs.core("pc")] += 4
            return None
        return super().__call__(vcpu)


def mmio_write(address: int, length: int, value: int) -> Exit:
    """A store; behind its bytes lies garbage, as the kernel leaves it."""
    return Store(address, length, value)


def mmio_read(address: int, length: int) -> Exit:
    """A load. The answer is recorded as an integer of ``length`` bytes."""
    fill = uapi.RUN_MMIO.pack(address, 0xDEAD_BEEF_DEAD_BEEF, length, 0)
    answer = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[length]
    return Exit(uapi.KVM_EXIT_MMIO, fill, answer=answer, offset=uapi.RUN_MMIO_DATA_OFFSET)


def sbi(extension: int, function: int, *arguments: int) -> Exit:
    """An SBI call. The answer is recorded as (error, value), signed; (-2, 0) when there was none."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    fill = uapi.RUN_SBI.pack(extension, function, *padded) + Struct("<qq").pack(-2, 0)
    return Exit(uapi.KVM_EXIT_RISCV_SBI, fill, answer="<qq", offset=uapi.RUN_SBI_RET_OFFSET)


def csr(number: int, new_value: int = 0, write_mask: int = 0) -> Exit:
    """A CSR access. The answer is recorded as an integer."""
    fill = uapi.RUN_CSR.pack(number, new_value, write_mask)
    return Exit(uapi.KVM_EXIT_RISCV_CSR, fill, answer="<Q", offset=uapi.RUN_CSR_RET_OFFSET)


def system_event(kind: int, *data: int) -> Exit:
    """A system event with its data words."""
    padded = (*data, *[0] * 16)[:16]
    return Exit(uapi.KVM_EXIT_SYSTEM_EVENT, uapi.RUN_SYSTEM_EVENT.pack(kind, len(data), *padded))


def shutdown(reason: int = 0) -> Exit:
    """The guest powers off through SBI SRST."""
    return system_event(uapi.KVM_SYSTEM_EVENT_SHUTDOWN, reason)


def reset(reason: int = 0) -> Exit:
    """The guest reboots through SBI SRST."""
    return system_event(uapi.KVM_SYSTEM_EVENT_RESET, reason)


def fail_entry(reason: int = 1, cpu: int = 0) -> Exit:
    """No IMSIC guest file was free."""
    return Exit(uapi.KVM_EXIT_FAIL_ENTRY, uapi.RUN_FAIL_ENTRY.pack(reason, cpu))


def debug() -> Exit:
    """An ebreak with guest debug on."""
    return Exit(uapi.KVM_EXIT_DEBUG)


def failure(number: int) -> Exit:
    """KVM_RUN fails, as with an instruction it cannot emulate (EOPNOTSUPP)."""
    return Exit(uapi.KVM_EXIT_UNKNOWN, error=number)


def interrupted() -> Exit:
    """A signal ends KVM_RUN. The kernel does not touch the exit reason in the page."""
    return Exit(uapi.KVM_EXIT_INTR, error=errno.EINTR)


def wait_for_kick() -> Callable[[FakeVcpu], int]:
    """The guest sits in WFI until somebody sets immediate_exit or sends a signal that KVM_RUN unblocks."""
    return FakeVcpu.wait_for_kick


def call(function: Callable[[FakeVcpu], object]) -> Callable[[FakeVcpu], int | None]:
    """Run ``function(vcpu)`` on the vCPU's thread, then go on with the script."""

    def step(vcpu: FakeVcpu) -> None:
        function(vcpu)

    return step


Step = Callable[["FakeVcpu"], int | None]
Script = Iterable[Step] | Mapping[int, Iterable[Step]]


# The seam


class FakeKernel(Kernel):
    """Every system call ``pyvmm.kvm`` makes. ``vm`` is the newest machine, ``calls`` the requests so far."""

    def __init__(
        self,
        script: Script = (),
        *,
        capabilities: Mapping[int, int] | None = None,
        isa: Iterable[str] = DEFAULT_ISA,
        machine: str = "riscv64",
        api_version: int = 12,
        open_error: int = 0,
        guest_files: bool = False,
        ids_limit: int = 2048,
        in_c: bool = True,
        interrupts_in_c: bool = False,
    ) -> None:
        self._run_from_c = _IOCTL(self._called_from_c) if in_c else None
        self._interrupts_in_c = interrupts_in_c
        self.scripts = dict(script) if isinstance(script, Mapping) else {0: list(script)}
        self.capabilities = {**DEFAULT_CAPABILITIES, **(capabilities or {})}
        self.isa = tuple(isa)
        self.guest_files = guest_files
        self.ids_limit = ids_limit
        self.calls: list[str] = []
        self.vms: list[FakeVm] = []
        self._machine, self._api_version, self._open_error = machine, api_version, open_error
        self._objects: dict[int, FakeObject] = {}
        self._numbers = itertools.count(FIRST_FAKE_FD)
        self._errno = threading.local()

    @property
    def vm(self) -> FakeVm:
        return self.vms[-1]

    @property
    def open_fds(self) -> list[int]:
        """Descriptors that were not closed."""
        return sorted(self._objects)

    def machine(self) -> str:
        return self._machine

    def open(self, path: str) -> int:
        if self._open_error:
            raise OSError(self._open_error, os.strerror(self._open_error), path)
        return self.add(FakeSystem(self, self._api_version))

    def close(self, fd: int) -> None:
        if fd >= FIRST_FAKE_FD:
            del self._objects[fd]
        else:
            os.close(fd)

    def mmap(self, fd: int, size: int) -> mmap.mmap:
        vcpu = self._objects[fd]
        assert isinstance(vcpu, FakeVcpu)
        vcpu.page = mmap.mmap(-1, size)
        return vcpu.page

    def raw_ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        self.calls.append(next((n for n in uapi.IOCTLS if getattr(uapi, n) == request), hex(request)))
        return self._answer(fd, request, argument)

    def run(self, fd: int, request: int, argument: int) -> int:
        return self._answer(fd, request, argument)

    def run_address(self) -> int:
        return ctypes.cast(self._run_from_c, ctypes.c_void_p).value or 0  # of None it is 0

    def interrupt_address(self) -> int:
        return self.run_address() if self._interrupts_in_c else 0

    def _called_from_c(self, fd: int, request: int, argument: int) -> int:
        try:
            result = self.run(fd, request, argument)
        except BaseException:  # it cannot pass through C
            traceback.print_exc()
            result, self._errno.value = -1, errno.ENOTRECOVERABLE
        if result < 0:
            ctypes.set_errno(self._errno.value)
        return result

    def errno(self) -> int:
        return int(self._errno.value)

    def _answer(self, fd: int, request: int, argument: Any) -> int:
        try:
            if fd not in self._objects:
                fail(errno.EBADF)
            handler = self._objects[fd].ioctls.get(request)
            return (handler or _not_this_kind)(argument) or 0
        except OSError as error:
            self._errno.value = error.errno
            return -1

    def add(self, thing: FakeObject) -> int:
        fd = next(self._numbers)
        self._objects[fd] = thing
        return fd


def _not_this_kind(_: Any) -> NoReturn:
    fail(errno.ENOTTY)


class FakeObject:
    """Something behind a descriptor: request number -> method."""

    ioctls: dict[int, Callable[[Any], int | None]]


def taken(argument: Any, struct: Struct) -> tuple[Any, ...]:
    """The struct an ioctl was given."""
    raw = ctypes.string_at(argument, struct.size) if isinstance(argument, int) else bytes(argument)
    return struct.unpack_from(raw)


def given(argument: Any, data: bytes) -> None:
    """Write back into an ioctl's buffer, or to an address inside its struct."""
    ctypes.memmove(argument, data, len(data))


class FakeSystem(FakeObject):
    """/dev/kvm."""

    def __init__(self, kernel: FakeKernel, api_version: int) -> None:
        self.kernel = kernel
        self.ioctls = {
            uapi.KVM_GET_API_VERSION: lambda _: api_version or fail(errno.ENOTTY),
            uapi.KVM_CHECK_EXTENSION: lambda cap: kernel.capabilities.get(cap, 0),
            uapi.KVM_GET_VCPU_MMAP_SIZE: lambda _: 2 * PAGE,
            uapi.KVM_CREATE_VM: self.create_vm,
        }

    def create_vm(self, _: int) -> int:
        vm = FakeVm(self.kernel)
        self.kernel.vms.append(vm)
        return self.kernel.add(vm)


class Slot:
    """A memory slot."""

    def __init__(self, flags: int, gpa: int, size: int, host_address: int) -> None:
        self.flags, self.gpa, self.size, self.host_address = flags, gpa, size, host_address
        self.dirty = 0


class FakeVm(FakeObject):
    """A virtual machine."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.slots: dict[int, Slot] = {}
        self.vcpus: dict[int, FakeVcpu] = {}
        self.aia: FakeAia | None = None
        self.routes: list[tuple[int, ...]] = []
        self.irqfds: dict[int, int] = {}
        self.ioeventfds: dict[tuple[int, int, int | None], int] = {}
        self.zones: list[tuple[int, int]] = []
        self._ring_lock = threading.Lock()  # between vCPUs; user space writes another word
        self.lines: list[tuple[int, int]] = []
        self.messages: list[tuple[int, int]] = []
        self.enabled: list[tuple[int, ...]] = []
        self.ioctls = {
            uapi.KVM_CHECK_EXTENSION: lambda cap: kernel.capabilities.get(cap, 0),
            uapi.KVM_SET_USER_MEMORY_REGION: self.set_region,
            uapi.KVM_SET_USER_MEMORY_REGION2: self.set_region2,
            uapi.KVM_GET_DIRTY_LOG: self.get_dirty_log,
            uapi.KVM_CLEAR_DIRTY_LOG: self.clear_dirty_log,
            uapi.KVM_CREATE_VCPU: self.create_vcpu,
            uapi.KVM_CREATE_DEVICE: self.create_device,
            uapi.KVM_IRQ_LINE: self.irq_line,
            uapi.KVM_SIGNAL_MSI: self.signal_msi,
            uapi.KVM_SET_GSI_ROUTING: self.set_gsi_routing,
            uapi.KVM_IRQFD: self.irqfd,
            uapi.KVM_IOEVENTFD: self.ioeventfd,
            uapi.KVM_REGISTER_COALESCED_MMIO: self.register_zone,
            uapi.KVM_UNREGISTER_COALESCED_MMIO: self.unregister_zone,
            uapi.KVM_ENABLE_CAP: self.enable_cap,
        }

    @property
    def has_run(self) -> bool:
        return any(vcpu.has_run for vcpu in self.vcpus.values())

    # Memory

    def set_region2(self, argument: Any) -> None:
        if not self.kernel.capabilities.get(uapi.KVM_CAP_USER_MEMORY2):
            fail(errno.ENOTTY)
        slot, flags, gpa, size, host, _, _ = taken(argument, uapi.USERSPACE_MEMORY_REGION2)
        self._set(slot, Slot(flags, gpa, size, host))

    def set_region(self, argument: Any) -> None:
        slot, flags, gpa, size, host = taken(argument, uapi.USERSPACE_MEMORY_REGION)
        self._set(slot, Slot(flags, gpa, size, host))

    def _set(self, number: int, new: Slot) -> None:
        old = self.slots.get(number)
        if number >= 32767 or (new.gpa | new.size | new.host_address) % PAGE:
            fail(errno.EINVAL)
        if new.size == 0:
            if old is None:
                fail(errno.EINVAL)
            del self.slots[number]
            return
        self._check_change(old, new)
        if new.gpa + new.size > 1 << self.kernel.capabilities[uapi.KVM_CAP_VM_GPA_BITS]:
            fail(errno.EFAULT)
        others = (slot for key, slot in self.slots.items() if key != number)
        if any(slot.gpa < new.gpa + new.size and new.gpa < slot.gpa + slot.size for slot in others):
            fail(errno.EEXIST)
        self.slots[number] = new

    def _check_change(self, old: Slot | None, new: Slot) -> None:
        """An existing slot may only move or change its dirty-log flag."""
        if old is None:
            return
        readonly = (old.flags ^ new.flags) & uapi.KVM_MEM_READONLY
        if readonly or (old.size, old.host_address) != (new.size, new.host_address):
            fail(errno.EINVAL)

    def get_dirty_log(self, argument: Any) -> None:
        number, bitmap = taken(argument, uapi.DIRTY_LOG)
        slot = self._logged(number)
        given(bitmap, slot.dirty.to_bytes((slot.size // PAGE + 63) // 64 * 8, "little"))
        slot.dirty = 0

    def clear_dirty_log(self, argument: Any) -> None:
        number, pages, first, bitmap = taken(argument, uapi.CLEAR_DIRTY_LOG)
        slot = self._logged(number)
        if first % 64:
            fail(errno.EINVAL)
        bits = int.from_bytes(ctypes.string_at(bitmap, (pages + 63) // 64 * 8), "little")
        slot.dirty &= ~(bits << first)

    def _logged(self, number: int) -> Slot:
        slot = self.slots.get(number)
        if slot is None or not slot.flags & uapi.KVM_MEM_LOG_DIRTY_PAGES:
            fail(errno.ENOENT)
        return slot

    # vCPUs and devices

    def create_vcpu(self, number: int) -> int:
        if number >= self.kernel.capabilities[uapi.KVM_CAP_MAX_VCPUS]:
            fail(errno.EINVAL)
        if number in self.vcpus:
            fail(errno.EEXIST)
        vcpu = FakeVcpu(self, number, self.kernel.scripts.get(number, ()))
        self.vcpus[number] = vcpu
        return self.kernel.add(vcpu)

    def create_device(self, argument: Any) -> None:
        kind, _, flags = taken(argument, uapi.CREATE_DEVICE)
        if kind != uapi.KVM_DEV_TYPE_RISCV_AIA or not self.kernel.capabilities.get(uapi.KVM_CAP_IRQCHIP):
            fail(errno.ENODEV)
        if flags & uapi.KVM_CREATE_DEVICE_TEST:
            return
        if self.aia:
            fail(errno.EEXIST)
        if self.has_run:
            fail(errno.EBUSY)
        self.aia = FakeAia(self)
        given(argument, uapi.CREATE_DEVICE.pack(kind, self.kernel.add(self.aia), flags))

    # Interrupts and doorbells

    def irq_line(self, argument: Any) -> None:
        irq, level = taken(argument, uapi.IRQ_LEVEL)
        if self.aia is None:
            fail(errno.ENXIO)
        if not self.aia.initialised:
            fail(errno.EBUSY)
        if not 1 <= irq <= self.aia.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS]:
            fail(errno.ENODEV)
        self.lines.append((irq, level))

    def signal_msi(self, argument: Any) -> None:
        low, high, data, _, _ = taken(argument, uapi.MSI)
        if self.aia is None or data > self.aia.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS]:
            fail(errno.EINVAL)
        if data == 0 or low % PAGE not in (0, 4):
            fail(errno.ENODEV)
        self.messages.append((high << 32 | low, data))

    def set_gsi_routing(self, argument: Any) -> None:
        count, _ = taken(argument, uapi.IRQ_ROUTING)
        size, at = uapi.IRQ_ROUTING_MSI.size, uapi.IRQ_ROUTING_ENTRIES_OFFSET
        entries = [argument[at + i * size : at + (i + 1) * size] for i in range(count)]
        if self.aia is None or count > 4096:
            fail(errno.EINVAL)
        self.routes = [self._route(entry) for entry in entries]

    def _route(self, entry: bytes) -> tuple[int, ...]:
        """(gsi, KVM_IRQ_ROUTING_IRQCHIP, pin) or (gsi, KVM_IRQ_ROUTING_MSI, address, data)."""
        gsi, kind, *rest = uapi.IRQ_ROUTING_MSI.unpack(entry)
        if gsi >= 4096 or kind not in (uapi.KVM_IRQ_ROUTING_IRQCHIP, uapi.KVM_IRQ_ROUTING_MSI):
            fail(errno.EINVAL)
        if kind == uapi.KVM_IRQ_ROUTING_MSI:
            _, low, high, data, _ = rest
            return gsi, kind, high << 32 | low, data
        _, _, _, irqchip, pin = uapi.IRQ_ROUTING_IRQCHIP.unpack(entry)
        if irqchip or pin >= 1024:
            fail(errno.EINVAL)
        return gsi, kind, pin

    def irqfd(self, argument: Any) -> None:
        fd, gsi, flags, _ = taken(argument, uapi.IRQFD)
        if flags & uapi.KVM_IRQFD_FLAG_DEASSIGN:
            if self.irqfds.get(fd) == gsi:
                del self.irqfds[fd]
        elif fd in self.irqfds:
            fail(errno.EBUSY)
        else:
            self.irqfds[fd] = gsi

    def ioeventfd(self, argument: Any) -> None:
        match, address, length, fd, flags = taken(argument, uapi.IOEVENTFD)
        key = (address, length, match if flags & uapi.KVM_IOEVENTFD_FLAG_DATAMATCH else None)
        if length not in (0, 1, 2, 4, 8) or (length == 0 and key[2] is not None):
            fail(errno.EINVAL)
        if flags & uapi.KVM_IOEVENTFD_FLAG_DEASSIGN:
            if self.ioeventfds.pop(key, None) is None:
                fail(errno.ENOENT)
        elif key in self.ioeventfds:
            fail(errno.EEXIST)
        else:
            self.ioeventfds[key] = fd

    def register_zone(self, argument: Any) -> None:
        address, size, pio = taken(argument, uapi.COALESCED_MMIO_ZONE)
        if not self.kernel.capabilities.get(uapi.KVM_CAP_COALESCED_MMIO):
            fail(errno.ENOTTY)
        if pio:
            fail(errno.EINVAL)
        self.zones.append((address, size))

    def unregister_zone(self, argument: Any) -> None:
        address, size, _ = taken(argument, uapi.COALESCED_MMIO_ZONE)
        self.zones = [z for z in self.zones if not (address <= z[0] and sum(z) <= address + size)]

    def enable_cap(self, argument: Any) -> None:
        (
            capability,
            flags,
            *arguments,
        ) = taken(argument, uapi.ENABLE_CAP)
        if flags or not self.kernel.capabilities.get(capability):
            fail(errno.EINVAL)
        self.enabled.append((capability, *arguments))

    def guest_store(self, address: int, length: int, value: int) -> bool:
        """A store that the kernel may handle by itself: True when an ioeventfd or a zone took it."""
        for (at, size, match), fd in self.ioeventfds.items():
            if at == address and size in (0, length) and match in (None, value):
                os.eventfd_write(fd, 1)
                return True
        return self.coalesce(address, length, value)

    def coalesce(self, address: int, length: int, value: int) -> bool:
        """A store that a zone may take: True when it is in the ring."""
        if not any(at <= address and address + length <= at + size for at, size in self.zones):
            return False
        page = next(iter(self.vcpus.values())).page
        capacity = (PAGE - uapi.COALESCED_MMIO_ENTRIES_OFFSET) // uapi.COALESCED_MMIO.size
        with self._ring_lock:
            first, last = uapi.COALESCED_MMIO_RING.unpack_from(page, PAGE)
            if (last + 1) % capacity == first:
                return False
            at = PAGE + uapi.COALESCED_MMIO_ENTRIES_OFFSET + last * uapi.COALESCED_MMIO.size
            uapi.COALESCED_MMIO.pack_into(page, at, address, length, 0, value)
            U32.pack_into(page, PAGE + 4, (last + 1) % capacity)
        return True


class FakeVcpu(FakeObject):
    """A vCPU: its script, its registers, and what user space did to it."""

    page: mmap.mmap

    def __init__(self, vm: FakeVm, number: int, script: Iterable[Step]) -> None:
        self.vm = vm
        self.id = number
        self.index = len(vm.vcpus)
        self.script = deque(script)
        self.answers: list[Any] = []
        self.interrupts: list[bool] = []
        self.guest_debug = False
        self.signal_mask: int | None = None
        self.has_run = False
        self.pending: Exit | None = None
        self.mp_state = uapi.KVM_MP_STATE_STOPPED if self.index else uapi.KVM_MP_STATE_RUNNABLE
        self.registers = default_registers(vm.kernel.isa)
        self.ioctls = {
            uapi.KVM_RUN: self.run,
            uapi.KVM_INTERRUPT: self.interrupt,
            uapi.KVM_GET_ONE_REG: self.get_one_reg,
            uapi.KVM_SET_ONE_REG: self.set_one_reg,
            uapi.KVM_GET_REG_LIST: self.get_reg_list,
            uapi.KVM_GET_MP_STATE: lambda argument: given(argument, U32.pack(self.mp_state)),
            uapi.KVM_SET_MP_STATE: self.set_mp_state,
            uapi.KVM_SET_GUEST_DEBUG: self.set_guest_debug,
            uapi.KVM_SET_SIGNAL_MASK: self.set_signal_mask,
        }

    # Running

    def run(self, _: int) -> None:
        self.has_run = True
        self._complete()
        if self._kicked():
            fail(errno.EINTR)
        if self.mp_state == uapi.KVM_MP_STATE_STOPPED:
            self.wait_for_kick()
            fail(errno.EINTR)
        error: int | None = None
        while error is None:
            step = self.script.popleft() if self.script else shutdown()
            error = step(self)
        if error:
            fail(error)

    def wait_for_kick(self) -> int:
        """Sit until somebody kicks. The fake polls for it, the real kernel does not have to."""
        while not self._kicked():
            time.sleep(0.001)
        return errno.EINTR

    def _kicked(self) -> bool:
        """immediate_exit, or a signal that is pending for this thread and that KVM_RUN would unblock."""
        if self.page[uapi.RUN_IMMEDIATE_EXIT_OFFSET]:
            return True
        blocked = self.signal_mask
        return blocked is not None and any(not blocked >> (n - 1) & 1 for n in signal.sigpending())

    def _complete(self) -> None:
        """What the kernel does first: take the answer, once, and step over the instruction."""
        if self.pending is None or self.pending.answer is None:
            return
        answer = self.pending.answer.unpack_from(self.page, self.pending.offset)
        if answer:
            self.answers.append(answer[0] if len(answer) == 1 else answer)
        self.registers[regs.core("pc")] += 4
        self.pending = None

    # State

    def interrupt(self, argument: Any) -> None:
        self.interrupts.append(taken(argument, U32)[0] == uapi.KVM_INTERRUPT_SET)

    def set_guest_debug(self, argument: Any) -> None:
        self.guest_debug = bool(taken(argument, U32)[0] & uapi.KVM_GUESTDBG_ENABLE)

    def set_signal_mask(self, argument: Any) -> None:
        length, self.signal_mask = taken(argument, Struct("<IQ"))
        if length != 8:
            fail(errno.EINVAL)

    def set_mp_state(self, argument: Any) -> None:
        (state,) = taken(argument, U32)
        if state not in (uapi.KVM_MP_STATE_RUNNABLE, uapi.KVM_MP_STATE_STOPPED):
            fail(errno.EINVAL)
        self.mp_state = state

    def get_reg_list(self, argument: Any) -> None:
        (room,) = taken(argument, U64)
        given(argument, U64.pack(len(self.registers)))
        if room < len(self.registers):
            fail(errno.E2BIG)
        given(ctypes.byref(argument, 8), b"".join(U64.pack(register) for register in self.registers))

    def get_one_reg(self, argument: Any) -> None:
        register, address = taken(argument, uapi.ONE_REG)
        given(address, self._value(register).to_bytes(register_size(register), "little"))

    def _value(self, register: int) -> int:
        kind, subtype, word = register & 0xFF00_0000, register & 0xFF_0000, register & 0xFFFF
        multi = {
            uapi.KVM_REG_RISCV_ISA_EXT: regs.isa_extension,
            uapi.KVM_REG_RISCV_SBI_EXT: regs.sbi_extension,
        }
        if subtype == uapi.KVM_REG_RISCV_ISA_MULTI_EN and kind in multi:
            return self._word(multi[kind], kind, word)
        return self.registers[self._known(register)]

    def _word(self, single: Callable[[str], int], kind: int, word: int) -> int:
        names = regs.ISA_EXTENSIONS if kind == uapi.KVM_REG_RISCV_ISA_EXT else regs.SBI_EXTENSIONS
        if word * 64 >= len(names):
            fail(errno.ENOENT)
        on = (self.registers.get(single(name), 0) << i for i, name in enumerate(names[word * 64 :][:64]))
        return sum(on)

    def _known(self, register: int) -> int:
        """The id, or the kernel's error for one that is not there or has another size."""
        if register in self.registers:
            return register
        mask = ~uapi.KVM_REG_SIZE_MASK
        same = any(known & mask == register & mask for known in self.registers)
        fail(errno.EINVAL if same else errno.ENOENT)

    def set_one_reg(self, argument: Any) -> None:
        register, address = taken(argument, uapi.ONE_REG)
        value = int.from_bytes(ctypes.string_at(address, register_size(register)), "little")
        old = self.registers[self._known(register)]
        kind, name = regs.name(register).partition(".")[::2]
        if kind == "isa" and value != old:
            self._check_isa(name, value)
        if kind == "sbi" and self.has_run:
            fail(errno.EBUSY)
        if kind == "config" and value != old and (self.has_run or "size" in name):
            fail(errno.EINVAL if "size" in name else errno.EBUSY)
        if register == regs.timer("frequency") and value != old:
            fail(errno.EINVAL)
        if register == regs.timer("state") and value == uapi.KVM_RISCV_TIMER_STATE_OFF:
            fail(errno.EINVAL)
        self.registers[register] = value

    def _check_isa(self, name: str, value: int) -> None:
        if self.has_run:
            fail(errno.EBUSY)
        if value > 1 or name not in regs.ISA_CAN_BE_TURNED_OFF:
            fail(errno.EINVAL)


def register_size(register: int) -> int:
    return 1 << ((register & uapi.KVM_REG_SIZE_MASK) >> uapi.KVM_REG_SIZE_SHIFT)


def default_registers(isa: Iterable[str]) -> dict[int, int]:
    """The registers of a fresh vCPU."""
    registers = {regs.config(name): 0 for name in uapi.CONFIG_REGISTERS}
    registers[regs.config("zicbom_block_size")] = registers[regs.config("zicboz_block_size")] = 64
    registers[regs.config("satp_mode")] = 10
    registers |= {regs.core(name): 0 for name in (*uapi.CORE_REGISTERS, "mode")}
    registers[regs.core("mode")] = uapi.KVM_RISCV_MODE_S
    registers |= {regs.csr(name): 0 for name in uapi.CSR_REGISTERS}
    registers |= {
        regs.timer("frequency"): 10_000_000,
        regs.timer("time"): 0,
        regs.timer("compare"): 2**64 - 1,
        regs.timer("state"): 0,
    }
    registers |= {regs.fp_d(index): 0 for index in range(33)}
    registers |= {regs.isa_extension(name): 1 for name in isa}
    registers |= {regs.sbi_extension(name): 1 for name in SBI_ON}
    return registers | {regs.sbi_extension(name): 0 for name in SBI_OFF}


class FakeAia(FakeObject):
    """The in-kernel AIA's attributes, with the order the kernel demands."""

    def __init__(self, vm: FakeVm) -> None:
        self.vm = vm
        self.initialised = False
        self.config = {
            uapi.KVM_DEV_RISCV_AIA_CONFIG_MODE: 2 if vm.kernel.guest_files else 0,
            uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS: vm.kernel.ids_limit - 1,
            uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS: 0,
            uapi.KVM_DEV_RISCV_AIA_CONFIG_HART_BITS: 0,
        }
        self.addresses: dict[int, int] = {}
        self.aplic: dict[int, int] = {}
        self.imsic: dict[int, int] = {}
        self.ioctls = {
            uapi.KVM_SET_DEVICE_ATTR: self.set_attr,
            uapi.KVM_GET_DEVICE_ATTR: self.get_attr,
            uapi.KVM_HAS_DEVICE_ATTR: self.has_attr,
        }

    def has_attr(self, argument: Any) -> None:
        _, group, attr, _ = taken(argument, uapi.DEVICE_ATTR)
        if group == uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG and attr not in self.config:
            fail(errno.ENXIO)

    def set_attr(self, argument: Any) -> None:
        _, group, attr, address = taken(argument, uapi.DEVICE_ATTR)
        setters: dict[int, Callable[[int, int], None]] = {
            uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG: self._set_config,
            uapi.KVM_DEV_RISCV_AIA_GRP_ADDR: self._set_address,
            uapi.KVM_DEV_RISCV_AIA_GRP_CTRL: self._init,
            uapi.KVM_DEV_RISCV_AIA_GRP_APLIC: self._set_register(self.aplic),
            uapi.KVM_DEV_RISCV_AIA_GRP_IMSIC: self._set_register(self.imsic),
        }
        setters[group](attr, address)

    def get_attr(self, argument: Any) -> None:
        _, group, attr, address = taken(argument, uapi.DEVICE_ATTR)
        if group == uapi.KVM_DEV_RISCV_AIA_GRP_CONFIG:
            given(address, U32.pack(self.config[attr]))
        elif group == uapi.KVM_DEV_RISCV_AIA_GRP_ADDR:
            given(address, U64.pack(self.addresses.get(attr, 2**64 - 1)))
        elif not self.initialised:
            fail(errno.ENODEV)
        elif group == uapi.KVM_DEV_RISCV_AIA_GRP_APLIC:
            given(address, U32.pack(self.aplic.get(attr, 0)))
        else:
            given(address, U64.pack(self.imsic.get(attr, 0)))

    def _set_config(self, attr: int, address: int) -> None:
        (value,) = taken(address, U32)
        if self.initialised:
            fail(errno.EBUSY)
        if attr not in self.config:
            fail(errno.ENXIO)
        bad = {
            uapi.KVM_DEV_RISCV_AIA_CONFIG_MODE: value > 2 or (value > 0 and not self.vm.kernel.guest_files),
            uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS: value < 63
            or value & 63 != 63
            or value >= self.vm.kernel.ids_limit,
            uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS: value >= min(1024, self.vm.kernel.ids_limit),
            uapi.KVM_DEV_RISCV_AIA_CONFIG_HART_BITS: value >= 16,
        }
        if bad[attr]:
            fail(errno.EINVAL)
        self.config[attr] = value

    def _set_address(self, attr: int, address: int) -> None:
        (value,) = taken(address, U64)
        if self.initialised:
            fail(errno.EBUSY)
        if attr > len(self.vm.vcpus):
            fail(errno.ENXIO)
        if value % PAGE:
            fail(errno.EINVAL)
        self.addresses[attr] = value

    def _init(self, _: int, __: int) -> None:
        if self.initialised:
            fail(errno.EBUSY)
        sources = self.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_SRCS]
        pages = [self.addresses.get(uapi.KVM_DEV_RISCV_AIA_ADDR_IMSIC + i) for i in range(len(self.vm.vcpus))]
        harts = PAGE << self.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_HART_BITS]
        if sources > self.config[uapi.KVM_DEV_RISCV_AIA_CONFIG_IDS]:
            fail(errno.EINVAL)
        if sources and uapi.KVM_DEV_RISCV_AIA_ADDR_APLIC not in self.addresses:
            fail(errno.EINVAL)
        if None in pages or len({page // harts for page in pages if page is not None}) > 1:
            fail(errno.EINVAL)
        self.initialised = True
        pins = range(sources + 1) if sources else ()
        self.vm.routes = [(pin, uapi.KVM_IRQ_ROUTING_IRQCHIP, pin) for pin in pins]

    def _set_register(self, bank: dict[int, int]) -> Callable[[int, int], None]:
        def store(attr: int, address: int) -> None:
            if not self.initialised:
                fail(errno.ENODEV)
            (bank[attr],) = taken(address, U32 if bank is self.aplic else U64)

        return store
