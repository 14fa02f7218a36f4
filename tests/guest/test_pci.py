# SPDX-License-Identifier: Apache-2.0
"""The PCI bus as Linux sees it."""

COMPLAINTS = ("can't", "failed", "invalid", "conflict", "error", "bogus", "exceeds", "no compatible")


def test_bus_is_well_formed_for_lspci_and_the_kernel(boot, has_aia):
    guest = boot(full=True, options=["--rng", "--device=edu"])
    for slot in ("01.0", "02.0", "03.0"):
        shown = guest.run(f"lspci -vv -s {slot}")
        assert "Interrupt: pin A routed to IRQ" in shown or "MSI-X: Enable+" in shown
        assert "Region 0: Memory at" in shown
        assert "<unassigned>" not in shown
        assert "<ignored>" not in shown
        assert "!!!" not in shown
    virtio = guest.run("lspci -vv -s 01.0")
    assert "Device 1af4:1043 (rev 01)" in virtio  # virtio console; lspci has no list of names here
    for structure in ("CommonCfg", "ISR", "DeviceCfg", "Notify"):
        assert f"VirtIO: {structure}" in virtio
    assert ("MSI-X: Enable+" in virtio) == has_aia
    said = guest.run("dmesg | grep -i pci").lower()
    assert "host bridge to bus 0000:00" in said
    assert not [line for line in said.splitlines() if any(word in line for word in COMPLAINTS)]
    guest.sendline("poweroff -f")
    assert guest.end() == (0, "the guest powered off")
