# SPDX-License-Identifier: Apache-2.0
import errno
import grp
import os
import stat

import pytest
from fakes.kernel import FakeKernel

from pyvmm.errors import KvmUnavailable
from pyvmm.kvm import unavailable
from pyvmm.kvm.system import Kvm


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(unavailable, "_CPUINFO", str(path))
    return path


def refusal(**options):
    kernel = FakeKernel(**options)
    with pytest.raises(KvmUnavailable) as caught:
        Kvm(kernel=kernel)
    assert kernel.open_fds == []
    return str(caught.value)


def test_open_on_a_good_host_gives_version_twelve():
    with Kvm(kernel=FakeKernel()) as kvm:
        assert kvm.api_version() == 12


def test_open_on_another_architecture_says_so_even_though_it_has_kvm():
    assert "this host is x86_64" in refusal(machine="x86_64")


def test_open_without_a_node_on_another_architecture_blames_the_architecture():
    assert "this host is x86_64" in refusal(machine="x86_64", open_error=errno.ENOENT)


def test_open_without_a_node_on_a_cpu_without_h_says_so(cpuinfo):
    cpuinfo.write_text("processor\t: 0\nisa\t\t: rv64imafdc_zicsr_zihpm\n")
    assert "no hypervisor extension (its ISA is rv64imafdc_zicsr_zihpm)" in refusal(open_error=errno.ENOENT)


def test_open_without_a_node_on_a_cpu_with_h_names_the_module(cpuinfo):
    cpuinfo.write_text("isa\t\t: rv64imafdch_zicsr\n")
    assert "modprobe kvm" in refusal(open_error=errno.ENOENT)


def test_open_without_a_node_and_without_cpuinfo_names_the_module(cpuinfo):
    assert "modprobe kvm" in refusal(open_error=errno.ENODEV)


def test_open_without_permission_names_the_group(tmp_path):
    node = tmp_path / "kvm"
    node.touch(0o660)
    node.chmod(0o660)
    group = grp.getgrgid(os.stat(node).st_gid).gr_name
    error = unavailable.explain(str(node), PermissionError(errno.EACCES, "no"), "riscv64")
    assert f"usermod -aG {group} $USER" in str(error)
    assert error.errno == errno.EACCES


def test_open_without_permission_for_any_group_says_only_the_owner_may(tmp_path):
    node = tmp_path / "kvm"
    node.touch()
    node.chmod(stat.S_IRUSR | stat.S_IWUSR)
    error = unavailable.explain(str(node), PermissionError(errno.EACCES, "no"), "riscv64")
    assert "only its owner may" in str(error)


def test_open_that_fails_oddly_passes_the_reason_on():
    assert "Too many open files" in refusal(open_error=errno.EMFILE)


def test_open_of_a_node_that_is_not_kvms_says_so():
    assert "is not KVM's device node" in refusal(api_version=0)


def test_open_of_another_api_version_names_both():
    assert "speaks version 11" in refusal(api_version=11)


@pytest.mark.parametrize(
    ("isa", "has"),
    [
        ("rv64imafdch_zicbom", True),
        ("rv64imafdc_zbb_zkh", False),
        ("rv64imac", False),
        ("rv64imafdcvh", True),
    ],
)
def test_hypervisor_extension_is_looked_for_among_single_letters(isa, has):
    assert unavailable.has_hypervisor_extension(isa) is has


def test_create_vm_gives_a_machine_and_closing_gives_everything_back():
    kernel = FakeKernel()
    with Kvm(kernel=kernel) as kvm, kvm.create_vm() as vm:
        assert vm.create_vcpu(0).id == 0
        vm_fds = len(kernel.open_fds)
    assert vm_fds == 3
    assert len(kernel.open_fds) == 1
