# SPDX-License-Identifier: Apache-2.0
"""``/dev/kvm`` itself: is it there, is it what we need, and the machines it makes."""

from __future__ import annotations

from pyvmm.errors import KvmError, KvmUnavailable
from pyvmm.kvm import uapi
from pyvmm.kvm.ioctl import Fd, Kernel
from pyvmm.kvm.vm import Vm


class Kvm(Fd):
    """An open ``/dev/kvm``. Raises KvmUnavailable, with what the user can do, when it cannot be used."""

    __slots__ = ()

    def __init__(self, path: str = "/dev/kvm", kernel: Kernel | None = None) -> None:
        kernel = kernel or Kernel()
        try:
            super().__init__(kernel, kernel.open(path))
        except OSError as error:
            from pyvmm.kvm import unavailable

            raise unavailable.explain(path, error, kernel.machine()) from error
        try:
            self._check(path)
        except BaseException:
            self.close()
            raise

    def _check(self, path: str) -> None:
        if self.kernel.machine() != "riscv64":
            from pyvmm.kvm import unavailable

            raise unavailable.wrong_machine(self.kernel.machine())
        try:
            version = self.api_version()
        except KvmError as error:
            raise KvmUnavailable(
                f"{path} is not KVM's device node: it does not answer KVM's calls"
            ) from error
        if version != uapi.KVM_API_VERSION:
            raise KvmUnavailable(f"{path} speaks version {version} of KVM's interface, pyvmm speaks 12 only")

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 since 2007."""
        return self.kernel.ioctl(self.fd, uapi.KVM_GET_API_VERSION)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on the system: 0 when absent, else a value that depends on the capability."""
        return self.kernel.ioctl(self.fd, uapi.KVM_CHECK_EXTENSION, capability)

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of a vCPU's run page and of the coalesced-MMIO ring behind it."""
        return self.kernel.ioctl(self.fd, uapi.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM. The machine type is 0: RISC-V has one kind."""
        size = self.vcpu_mmap_size()  # first: nothing is open yet when it fails
        return Vm(self.kernel, self.kernel.ioctl(self.fd, uapi.KVM_CREATE_VM), size)
