# SPDX-License-Identifier: Apache-2.0
"""A hand-made guest of a few instructions on real RISC-V KVM, driven from the test itself."""

import signal
import threading

from fakes.asm import Asm

from pyvmm.kvm import regs, uapi
from pyvmm.kvm.system import Kvm
from pyvmm.memory import GuestMemory

RAM = 0x8000_0000
RAM_SIZE = 2 << 20
DEVICE = 0x1000_0000  # nothing is there: accesses exit
TIMEOUT = 30


class Guest:
    """A machine with some RAM and stopped vCPUs; ``guest.code`` is assembled to the start of RAM."""

    def __init__(self, cpus=1):
        self.kvm = Kvm()
        self.vm = self.kvm.create_vm()
        self.memory = GuestMemory()
        bank = self.memory.add(RAM, RAM_SIZE)
        self.vm.set_user_memory_region(0, RAM, RAM_SIZE, bank.host_address)
        self.vcpus = [self.vm.create_vcpu(number) for number in range(cpus)]
        self.cpu = self.vcpus[0]
        self.code = Asm(RAM)
        self.code.li("t0", DEVICE)

    def start(self):
        """Put the code into memory and the first vCPU at its beginning, as firmware leaves a hart."""
        self.memory.write(RAM, self.code.assemble())
        self.cpu.set_reg(regs.core("pc"), RAM)
        self.cpu.set_reg(regs.core("a0"), 0)

    def reg(self, name):
        return self.cpu.get_reg(regs.core(name))

    def run_to_store(self):
        """Run until a store to the device; returns its (offset, length, value)."""
        assert self.cpu.run() == uapi.KVM_EXIT_MMIO
        address, length, is_write, value = self.cpu.mmio()
        assert is_write
        return address - DEVICE, length, value

    def in_thread(self, vcpu, work):
        """Run ``work(vcpu)`` in a thread of its own; the result has ``kick()`` and ``result()``."""
        return VcpuThread(vcpu, work)

    def close(self):
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.kvm.close()
        self.memory.close()


class VcpuThread(threading.Thread):
    """A vCPU on its own thread."""

    def __init__(self, vcpu, work):
        super().__init__(daemon=True)
        self.vcpu, self.work, self.outcome = vcpu, work, None
        self.start()

    def run(self):
        try:
            self.outcome = (self.work(self.vcpu), None)
        except Exception as error:
            self.outcome = (None, error)

    def kick(self):
        self.vcpu.immediate_exit = True
        signal.pthread_kill(self.ident, signal.SIGUSR1)

    def result(self):
        """What ``work`` returned; its exception is raised here."""
        self.join(TIMEOUT)
        assert not self.is_alive(), "the guest did not come out"
        value, error = self.outcome
        if error:
            raise error
        return value
