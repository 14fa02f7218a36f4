# SPDX-License-Identifier: Apache-2.0
"""The hardware of one power cycle: memory, harts, interrupt controller, devices, and the guest in it.

The composition root: the only module that knows both KVM and the devices. It builds from the top down and
takes down in reverse. A reboot makes a new board; what outlives it (console, event loop) is handed in.
"""

from __future__ import annotations

from pyvmm import handover, harts, irqchip, layout, outcome, peripherals
from pyvmm.attempts import attempt_all
from pyvmm.backplane import Backplane, Slots
from pyvmm.devices.powerbutton import PowerButton
from pyvmm.devices.rtc import GoldfishRtc
from pyvmm.devices.virtio.device import Services
from pyvmm.doorbells import Doorbells
from pyvmm.errors import GuestAccessError, KvmError, PyvmmError
from pyvmm.eventloop import LoopClock
from pyvmm.kvm import regs, uapi
from pyvmm.kvm.system import Kvm
from pyvmm.lean import partial
from pyvmm.loader import Boot
from pyvmm.memory import ANONYMOUS, MEMFD, READ_ONLY, GuestMemory
from pyvmm.messages import KernelMsiLine
from pyvmm.mmio.bus import Bus
from pyvmm.outcome import Outcome
from pyvmm.ring import Ring
from pyvmm.runner import VcpuThread
from pyvmm.sbi import Sbi, SbiInput
from pyvmm.suspend import Suspension, WakingLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm import devicetree
    from pyvmm.config import MachineConfig
    from pyvmm.console.input import ConsoleInput
    from pyvmm.devices.base import IrqLine, Loop, Workers
    from pyvmm.devices.console.ports import Screen
    from pyvmm.devices.uart8250 import Uart8250
    from pyvmm.devices.virtio.console import Console
    from pyvmm.devices.virtio.device import VirtioDevice
    from pyvmm.kvm.ioctl import Kernel
    from pyvmm.kvm.vcpu import Vcpu
    from pyvmm.shortcut import SerialShortcut
    from pyvmm.trace import Trace

_BACKINGS = {"anon": ANONYMOUS, "memfd": MEMFD}


class Board:
    """Built by the constructor, which loads the guest too; runs from ``start`` until ``close``.

    Raises ConfigError, HostError, KvmError or KvmUnavailable, and leaves nothing behind then.
    """

    def __init__(
        self,
        config: MachineConfig,
        loop: Loop,
        workers: Workers,
        output: Screen,
        note: Callable[[str], None],
        trace: Trace | None,
        kernel: Kernel | None = None,
    ) -> None:
        self._config = config
        self._loop = loop
        self._services = Services(loop, workers)
        self._output = output
        self._note = note
        self._trace = trace
        self._kernel = kernel
        self._closers: list[Callable[[], object]] = []
        self.threads: list[VcpuThread] = []
        self._input: ConsoleInput | None = None
        self._suspension = Suspension(self._has_unacknowledged)
        self._sbi_input = SbiInput(self._input_room)
        self.bus = Bus()
        self.memory = GuestMemory()
        self._sbi = Sbi(self.memory, output.write, self._sbi_input.take, self._suspend)
        self._untrace: list[Callable[[], None]] = []  # what ends showing exits, while they are shown
        self._uart: Uart8250 | None = None
        self._serial: SerialShortcut | None = None
        self._power: PowerButton | None = None
        self._console: Console | None = None
        self.backplane: Backplane | None = None
        try:
            self._build()
        except BaseException:
            try:
                self.close()
            except PyvmmError:
                pass  # what went wrong first is what the caller should hear
            raise

    # Building

    def _build(self) -> None:
        config = self._config
        boot = Boot(
            layout.RAM_BASE,
            config.mem,
            kernel=config.kernel,
            initrd=config.initrd,
            firmware=config.firmware,
            agent=config.agent,
        )
        with boot:
            kvm = Kvm(config.dev, self._kernel)
            self._closers.append(kvm.close)
            backing = _BACKINGS.get(config.mem_backend) or config.mem_backend.partition(":")[2]
            self._closers.append(self.memory.close)
            self.memory.add(layout.RAM_BASE, config.mem, backing=backing)
            cpu = self._create_harts(kvm)
            boot.begin(self.memory)
            self._register_memory()
            self._add_peripherals()
            self._plug_devices()
            handover.load(config, boot, cpu, self.chip, self.memory, self.vcpus[0])

    def _create_harts(self, kvm: Kvm) -> devicetree.Cpu:
        """VM, vCPUs and interrupt controller, the latter the first of the candidates that KVM accepts."""
        ssaia = harts.select(self._config).wants("ssaia", True)
        kinds = irqchip.candidates(self._config.irqchip, ssaia=ssaia)
        for kind in kinds:
            mark = len(self._closers)
            try:
                return self._try_harts(kvm, kind)
            except irqchip.IrqChipRefused as refusal:
                if kind == kinds[-1]:
                    raise
                self._note(str(refusal))
                self._close_down_to(mark)
        raise AssertionError("there is always a candidate")

    def _try_harts(self, kvm: Kvm, kind: str) -> devicetree.Cpu:
        self.vm = kvm.create_vm()
        self._closers.append(self.vm.close)
        self.doorbells = Doorbells(self.vm)
        self.vcpus, cpu = harts.create(self.vm, self._config, self._note)
        self._closers += [vcpu.close for vcpu in self.vcpus]
        self.chip = irqchip.create(kind, self.vm, self.vcpus, self.bus, aia_mode=self._config.aia_mode)
        self._closers.append(self.chip.close)
        self._note(f"interrupt controller: {self.chip.name}")
        return cpu

    def _register_memory(self) -> None:
        for slot, bank in enumerate(self.memory.banks):
            flags = uapi.KVM_MEM_READONLY if bank.kind is READ_ONLY else 0
            self.vm.set_user_memory_region(slot, bank.base, bank.size, bank.host_address, flags)

    def _add_peripherals(self) -> None:
        for place in peripherals.wanted(self._config):
            line = self._line(place.name, place.irq, place.edge)
            device: Uart8250 | GoldfishRtc | PowerButton
            if place is peripherals.UART:
                device = self._make_uart(line, place.base)
            elif place is peripherals.RTC:
                device = GoldfishRtc(line, LoopClock(self._loop))
            else:
                device = self._power = PowerButton(
                    line, self.memory, self._services, self.doorbells, place.base
                )
            self._closers.append(partial(_end, device))  # no timer of this board may fire into the next
            self.bus.map(place.base, place.size, device, name=place.name)

    def _make_uart(self, line: IrqLine, base: int) -> Uart8250:
        from pyvmm.devices.uart8250 import Uart8250
        from pyvmm.shortcut import SerialShortcut

        self._uart = uart = Uart8250(line, self._output, on_room=self._input_room)
        self._serial = SerialShortcut(uart, base, self.vm, self.vcpus[0], self._loop, self._post)
        self._closers.append(self._serial.close)
        return uart

    def _plug_devices(self) -> None:
        """The virtio console first, then what the user asked for, in the order of the configuration."""
        config = self._config
        slots = Slots(config)
        if not (slots.pci or slots.mmio):
            return
        ring = Ring()
        self._note(f"ring operations: {ring.backend}")
        self.backplane = plane = Backplane(
            self.bus,
            slots,
            self.memory,
            ring,
            self._services,
            line=self._line,
            doorbells=self.doorbells,
            msi_line=None if self.chip.routing is None else self._msi_line,
            ram_end=self.memory.banks[-1].end,
        )
        self._closers.append(plane.close)
        if config.console == "virtio":
            from pyvmm.devices.virtio.console import Console

            self._console = Console(self._output, (), self._input_room)
            plane.plug("console", self._console)
        for request in config.devices:
            plane.add(request)

    def _msi_line(self, name: str, vector: int) -> KernelMsiLine:
        routing = self.chip.routing
        assert routing is not None
        parts = self.vm, routing, self._loop, self._suspension
        if self._trace is not None and "irq" in self._trace.kinds:
            from pyvmm.messagetrace import TracedMsiLine

            return TracedMsiLine(*parts, name=f"{name}.msi{vector}", trace=self._trace)
        return KernelMsiLine(*parts)

    def _line(self, name: str, number: int, edge: bool) -> IrqLine:
        line: IrqLine = WakingLine(self.chip.line(number, edge=edge), self._suspension)
        if self._trace is not None and "irq" in self._trace.kinds:
            from pyvmm.trace import TracedLine

            line = TracedLine(line, name, self._trace)
        return line

    # Running

    def connect(
        self,
        source: ConsoleInput | None,
        on_end: Callable[[Outcome], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Say where console input comes from and who hears of the end. Before ``start``."""
        self._input = source
        self._on_end = on_end
        self.threads = [
            VcpuThread(vcpu, self.bus, self._sbi, self._serial, on_end=on_end, on_error=on_error)
            for vcpu in self.vcpus
        ]

    def start(self) -> None:
        """Begin to run the guest. The other harts' threads wait in KVM until the guest starts them."""
        if self._trace is not None:
            self.trace_exits(self._trace)
        self.listen(True)
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """Stop the guest and release everything. Idempotent; not from a vCPU's thread."""
        self.listen(False)
        self._suspension.release()
        for thread in self.threads:
            thread.request_stop()
        for thread in self.threads:
            thread.join()
        self.threads = []
        self._close_down_to(0)

    def _close_down_to(self, mark: int) -> None:
        """Run every closer above ``mark``, the last one first."""
        attempt_all(self._closers.pop() for _ in range(len(self._closers) - mark))

    def listen(self, wanted: bool) -> None:
        """Take console input from now on, or leave it with the host. Callable from any thread."""
        if self._input is not None:
            self._input.connect(self._consume if wanted else None)

    @property
    def devices(self) -> list[VirtioDevice]:
        """The virtio devices."""
        plane = self.backplane
        return [] if plane is None else [transport.core.device for transport in plane.virtio.values()]

    @property
    def time(self) -> int:
        """What the guest's clock shows, in ticks: one for all harts. Only while no vCPU runs."""
        return self.vcpus[0].get_reg(regs.timer("time"))

    @time.setter
    def time(self, ticks: int) -> None:
        self.vcpus[0].set_reg(regs.timer("time"), ticks)

    def _has_unacknowledged(self) -> bool:
        parts = self._power, self.backplane
        return any(part is not None and part.has_unacknowledged() for part in parts)

    def _suspend(self) -> None:
        """The hart whose thread this is called on goes to sleep with the whole machine."""
        for thread in self.threads:
            if thread.is_current:
                self._suspension.begin(thread)

    def power_button(self) -> None:
        """Press the power key. Raises MachineError when the guest does not watch it."""
        assert self._power is not None  # every board has one
        self._power.press()

    def trace_exits(self, trace: Trace) -> None:
        """Show exits from now on, every access to a device among them, or no more: as ``trace.enabled`` says.

        Idempotent. For one trace, and one thread at a time.
        """
        if not trace.enabled:
            while self._untrace:
                self._untrace.pop()()
        elif not self._untrace:
            from pyvmm import exittrace

            if "mmio" in trace.kinds:
                self.bus.direct.stop(trace)
                self._untrace.append(partial(self.bus.direct.resume, trace))
                if self._serial is not None:
                    self._serial.stop(trace)
                    self._untrace.append(partial(self._serial.resume, trace))
            for thread in self.threads:
                self._untrace.append(exittrace.install(thread, self.bus, self._sbi, trace))

    def _post(self, task: Callable[[], None]) -> None:
        """Run ``task`` on a vCPU's thread."""
        for thread in self.threads[:1]:
            thread.post(task)

    def send_break(self) -> bool:
        """What SysRq begins with, on the console; False when it cannot take it now."""
        console = self._uart or self._console
        return console is None or console.send_break()

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has this size now. Callable from any thread."""
        if self._console is not None:
            self._console.resize(columns, rows)

    def check_alive(self) -> None:
        """End the run if a hart can never go on: it runs, untranslated, where there is no memory.

        A guest that jumped to nowhere before it had set up traps faults for ever without leaving KVM.
        """
        for thread in self.threads:
            thread.post(lambda vcpu=thread.vcpu: self._check_hart(vcpu))  # type: ignore[misc]

    def _check_hart(self, vcpu: Vcpu) -> None:
        if vcpu.mp_state != uapi.KVM_MP_STATE_RUNNABLE or vcpu.get_reg(regs.csr("satp")):
            return
        pc = vcpu.get_reg(regs.core("pc"))
        try:
            self.memory.read(pc, 2)
        except GuestAccessError:
            from pyvmm.kvm import dump

            where = f"CPU {vcpu.id} runs at 0x{pc:x}, where there is no memory"
            self._on_end(
                Outcome(outcome.HUNG, f"the guest cannot go on: {where}", detail=dump.registers(vcpu))
            )

    def _consume(self, data: bytes) -> int:
        """Console input, on the loop's thread; how much was taken."""
        self._suspension.wake()
        console = self._uart or self._console
        if console is not None:
            return console.receive(data)
        return self._sbi_input.receive(data)

    def _input_room(self) -> None:
        """On a vCPU's thread with a device's lock held: only schedules."""
        if self._input is not None:
            self._loop.call_soon(self._input.offer)


def _end(device: Uart8250 | GoldfishRtc | PowerButton) -> None:
    try:
        if isinstance(device, PowerButton):
            device.close()
            return
        with device.lock:
            device.reset()
    except KvmError:
        pass  # KVM declared the machine dead, and takes no wire down any more
