# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.config import GiB, KiB, MachineConfig, MiB, format_size, parse_duration, parse_size
from pyvmm.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MiB),
        ("2G", 2 * GiB),
        ("256", 256 * MiB),
        (64, 64 * MiB),
        ("4096K", 4 * MiB),
        ("1GiB", GiB),
    ],
)
def test_parse_size_understands_units_and_bare_mebibytes(text, size):
    assert parse_size(text, "--mem") == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "12X", "0x10", "512 MB x", "²M"])
def test_parse_size_refuses_anything_else_naming_the_option(text):
    with pytest.raises(ConfigError, match=r"^--mem takes a size such as 512M"):
        parse_size(text, "--mem")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("7", 7.0), ("1.5s", 1.5)],
)
def test_parse_duration_understands_units(text, seconds):
    assert parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "-3s", "5 years", "inf", "nan"])
def test_parse_duration_refuses_anything_else(text):
    with pytest.raises(ConfigError, match=r"^--timeout takes a duration"):
        parse_duration(text, "--timeout")


@pytest.mark.parametrize(("size", "text"), [(512 * MiB, "512M"), (2 * GiB, "2G"), (4 * KiB, "4K"), (5, "5B")])
def test_format_size_uses_the_largest_unit_that_divides(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("mem", "0", "--mem takes a multiple of 4K above 0"),
        ("mem", "-5", "--mem takes a size"),
        ("mem", "3B", "--mem takes a multiple of 4K"),
        ("cpus", "0", "--cpus takes 1 to 128, not 0"),
        ("cpus", "129", "--cpus takes 1 to 128, not 129"),
        ("cpus", "two", "--cpus takes a whole number"),
        ("irqchip", "gic", "--irqchip takes one of auto, aia, aplic, plic"),
        ("console", "vga", "--console takes one of"),
        ("trace", "mmio,csr", "--trace takes one of mmio, sbi, irq"),
        ("mem_backend", "hugetlbfs", "--mem-backend takes anon, memfd or hugetlbfs:PATH"),
        ("timeout", "soon", "--timeout takes a duration"),
    ],
)
def test_config_refuses_a_bad_value_with_a_sentence(field, value, sentence):
    with pytest.raises(ConfigError) as caught:
        MachineConfig(**{field: value})
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("console", "words"),
    [
        ("auto", "console=hvc0 earlycon=sbi "),
        ("serial", "console=ttyS0 earlycon=sbi "),
        ("sbi", "earlycon=sbi keep_bootcon "),
        ("none", ""),
    ],
)
def test_command_line_gets_the_console_before_the_users_words(console, words):
    config = MachineConfig(params="quiet panic=1", console=console)
    assert config.command_line() == f"{words}quiet panic=1"


def test_firmware_gets_the_serial_console_by_itself():
    assert MachineConfig(firmware="u-boot.bin").console == "serial"


def test_console_is_serial_where_kernels_have_virtio_as_a_module():
    assert MachineConfig(kernel="Image", virtio_transport="mmio").console == "serial"
    assert MachineConfig(kernel="Image", virtio_transport="mmio", console="virtio").console == "virtio"


def test_guest_with_a_disk_and_no_initrd_boots_from_the_disk():
    assert "root=/dev/vda rw" in MachineConfig(disks=["disk.img"]).command_line()


@pytest.mark.parametrize("more", [{"initrd": "x"}, {"params": "root=/dev/vdb"}])
def test_guest_with_another_root_is_not_told_of_the_disk(more):
    assert "/dev/vda" not in MachineConfig(disks=["disk.img"], **more).command_line()


def test_devices_come_in_the_order_of_their_nouns_and_are_numbered():
    config = MachineConfig(rng=[""], disks=["a.img", "b.img,ro"], devices=["blk,c.img", "edu"])
    assert [request.name for request in config.devices] == ["blk0", "blk1", "rng0", "blk2", "edu0"]
    assert config.devices[1].settings.flag("ro")


def test_command_line_leaves_the_users_console_alone():
    assert MachineConfig(params="console=hvc0 quiet").command_line() == "console=hvc0 quiet"


def test_agent_is_the_first_process_and_has_a_port_at_its_socket():
    config = MachineConfig(kernel="Image", params="quiet", agent=True, ports=["mine,unix=/m"])
    assert config.command_line().endswith(" rdinit=/pyvmm-agent quiet")
    config.serve_agent("/run/agent.sock")
    port = config.devices[-1]
    assert (port.name, port.settings.text("name"), port.settings.text("unix")) == (
        "console1",
        "org.pyvmm.agent.0",
        "/run/agent.sock",
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"firmware": "u-boot.bin"}, "goes with --kernel"),
        ({"params": "rdinit=/x"}, "needs rdinit= for itself"),
    ],
)
def test_agent_that_could_not_start_is_refused(more, sentence):
    with pytest.raises(ConfigError, match=f"--agent {sentence}"):
        MachineConfig(agent=True, **more)


def test_balloon_as_large_as_the_guest_is_refused():
    with pytest.raises(ConfigError, match="all of the guest's 256M; choose a smaller balloon"):
        MachineConfig(balloon=["256M"])
    assert MachineConfig(balloon=["255M"], mem="256M").devices[0].kind == "balloon"


@pytest.mark.parametrize("noun", ["p9", "shares"])
def test_flag_is_not_taken_for_a_folders_tag(noun):
    with pytest.raises(ConfigError, match="tag takes a name"):
        MachineConfig(**{noun: ["dir,ro"]})
