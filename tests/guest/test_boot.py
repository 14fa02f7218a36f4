# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels on real RISC-V KVM, from `pyvmm run` to a shell, and every way in which they end."""

import hashlib

import pytest
from pexpect import TIMEOUT

CONTROLLERS = {"aia": "APLIC-MSI", "aplic": "APLIC-DIRECT", "plic": "SiFive PLIC"}


@pytest.mark.parametrize(
    ("kernel", "cpus", "mem", "console"),
    [
        ("6.12", 1, "128M", "virtio"),
        ("6.12", 2, "512M", "serial"),
        ("6.12", 4, "2G", "virtio"),
        ("7", 1, "2G", "serial"),
        ("7", 2, "128M", "virtio"),
        ("7", 4, "1G", "serial"),
    ],
)
def test_kernel_reaches_user_space_with_all_harts_and_the_right_controller(
    boot, has_aia, kernel, cpus, mem, console
):
    guest = boot(kernel=kernel, cpus=cpus, mem=mem, options=[f"--console={console}"])
    assert guest.run("nproc").strip() == str(cpus)
    # Each hart's user space reads the time without a trap (the vDSO uses rdtime).
    for hart in range(cpus):
        assert int(guest.run(f"taskset {1 << hart:x} date +%s")) > 1_700_000_000
    interrupts = guest.run("cat /proc/interrupts")
    (rtc,) = [line for line in interrupts.splitlines() if "rtc" in line]
    assert CONTROLLERS["aia" if has_aia else "plic"] in rtc
    wired = "ttyS0" if console == "serial" else "virtio0-output" if has_aia else "virtio0"
    (used,) = [line for line in interrupts.splitlines() if wired in line]
    assert sum(int(word) for word in used.split()[1 : 1 + cpus]) > 0
    assert int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 0
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.parametrize("chip", ["aplic", "plic"])
def test_user_space_controllers_serve_several_harts(boot, chip):
    guest = boot(cpus=2, options=[f"--irqchip={chip}", "--console=serial"])
    assert CONTROLLERS[chip] in guest.run("grep ttyS0 /proc/interrupts")
    number = guest.run("grep ttyS0 /proc/interrupts").split(":")[0].strip()
    guest.run(f"echo 2 > /proc/irq/{number}/smp_affinity")
    for _ in range(5):
        guest.run("echo the other hart takes interrupts now")
    uart = guest.run("grep ttyS0 /proc/interrupts").split()
    assert int(uart[2]) > 0
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


def test_emulated_imsic_works_too(boot, has_aia):
    if not has_aia:
        pytest.skip("this host has no AIA")
    guest = boot(options=["--irqchip=aia", "--aia-mode=emul", "--console=serial"])
    assert "APLIC-MSI" in guest.run("grep ttyS0 /proc/interrupts")
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


@pytest.mark.long
def test_serial_console_carries_files_both_ways_intact(boot):
    check_files_go_both_ways(boot(options=["--console=serial"]))


@pytest.mark.long
def test_virtio_console_carries_files_both_ways_intact(boot):
    check_files_go_both_ways(boot())


def check_files_go_both_ways(guest):
    data = bytes(range(33, 127)) * 175  # 16 KiB of printable text
    lines = [data[at : at + 64].decode() for at in range(0, len(data), 64)]
    guest.sendline("stty -echo; echo RE''ADY; cat > /tmp/typed; stty echo")
    guest.expect("READY")
    for line in lines:
        guest.sendline(line)
    guest.send("\x04")
    expected = hashlib.md5("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert guest.run("md5sum /tmp/typed").split()[0] == expected
    guest.run("seq 1 22500 > /tmp/numbers")  # 128 KiB with the terminal's carriage returns
    printed = guest.run("cat /tmp/numbers", timeout=600)
    assert printed.split() == [str(number) for number in range(1, 22501)]
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


def test_harts_stop_and_start_again_at_run_time(boot):
    guest = boot(cpus=2)
    online = "/sys/devices/system/cpu/cpu1/online"
    for _ in range(3):
        assert guest.run(f"echo 0 > {online}; nproc").strip().endswith("1")
        assert guest.run(f"echo 1 > {online}; nproc").strip().endswith("2")
        assert int(guest.run("taskset 2 date +%s")) > 1_700_000_000
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


def test_suspended_guest_is_woken_by_a_key(boot):
    guest = boot(params="loglevel=7")
    guest.sendline("echo mem > /sys/power/state && echo wo''ken")
    guest.expect("suspend entry")
    while guest.expect_any("woken", TIMEOUT, timeout=1):
        guest.send("\r")
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


def test_reboot_starts_the_guest_again(boot):
    guest = boot()
    guest.run("touch /tmp/before")
    guest.sendline("reboot -f")
    guest.expect("BusyBox")
    guest.wait_for_shell()
    assert guest.run("ls /tmp").strip() == ""
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")


@pytest.mark.long
def test_reboot_ends_the_run_when_asked_to(boot):
    guest = boot(options=["--on-reboot=exit"])
    guest.sendline("reboot -f")
    assert guest.end() == (0, "the guest asked for a reboot")


def test_panic_is_recognised(boot):
    guest = boot()
    guest.sendline("echo c > /proc/sysrq-trigger")
    assert guest.end() == (255, "the guest panicked: Kernel panic - not syncing: sysrq triggered crash")


@pytest.mark.long
def test_panic_that_reboots_is_recognised(boot):
    guest = boot(params="panic=1")
    guest.sendline("echo c > /proc/sysrq-trigger")
    code, message = guest.end()
    assert code == 255
    assert message.startswith("the guest panicked and rebooted: Kernel panic - not syncing")


@pytest.mark.long
@pytest.mark.parametrize("console", ["virtio", "serial"])
def test_break_and_a_key_reach_sysrq(boot, console):
    guest = boot(params="sysrq_always_enabled", options=[f"--console={console}"])
    guest.send("\x01bh")
    guest.expect("sysrq: HELP")
    guest.send("\x01x")
    assert guest.end() == (0, "ended by Ctrl-A x")


@pytest.mark.long
def test_console_on_sbi_prints_the_kernels_messages(boot):
    guest = boot(options=["--console=sbi"], params="", shell=False)
    guest.expect("Run /init as init process")
    guest.send("\x01x")
    assert guest.end()[0] == 0


@pytest.mark.long
def test_uboot_reaches_its_prompt(boot, uboot):
    guest = boot(firmware=uboot, shell=False)
    guest.expect("Hit any key to stop autoboot")
    guest.send("\r")
    guest.expect("=> ")
    guest.sendline("poweroff")
    assert guest.end()[0] == 0


@pytest.mark.long
@pytest.mark.parametrize("isa", ["host,-zicbom,-zicboz", "host,-svadu"])
def test_extension_that_is_turned_off_is_gone_for_the_guest(boot, isa):
    guest = boot(options=[f"--isa={isa}"])
    shown = guest.run("grep -m1 isa /proc/cpuinfo")
    assert not any(f"_{word[1:]}" in shown for word in isa.split(",")[1:])
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


@pytest.mark.long
def test_minimal_cpu_boots(boot):
    # With Sstc: without it guests stall at times on the emulated host (docs/lab.md).
    guest = boot(options=["--cpu-type=min,sstc"])
    assert "rv64imafdc" in guest.run("grep -m1 isa /proc/cpuinfo").replace("_", "")
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


@pytest.mark.long
def test_memory_from_a_memfd_boots(boot):
    guest = boot(options=["--mem-backend=memfd"])
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0


@pytest.mark.long
def test_memory_from_hugetlbfs_boots(boot, hugetlbfs):
    guest = boot(mem="128M", options=[f"--mem-backend=hugetlbfs:{hugetlbfs}"])
    guest.sendline("poweroff -f")
    assert guest.end()[0] == 0
