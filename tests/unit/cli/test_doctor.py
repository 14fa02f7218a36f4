# SPDX-License-Identifier: Apache-2.0
"""``pyvmm doctor``: what it finds on hosts of all kinds, and its exit code."""

import json
import os
from functools import partial

import pytest
from fakes.kernel import FakeKernel

from pyvmm import cli
from pyvmm.kvm import system, uapi

NO_AIA = {uapi.KVM_CAP_IRQCHIP: 0}


@pytest.fixture
def doctor(monkeypatch, capfd):
    """Runs it on a host of type ``machine`` with this KVM: (exit code, check -> its finding)."""
    real = os.uname()

    def run(*words, machine="riscv64", kernel=None):
        monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], machine)))
        kernel = kernel or FakeKernel()
        monkeypatch.setattr(system, "Kvm", partial(system.Kvm, kernel=kernel))
        code = cli.main(["doctor", "--json", *words])
        assert kernel.open_fds == []
        return code, {check["name"]: check for check in json.loads(capfd.readouterr().out)}

    return run


def test_host_whose_kvm_works_is_described(doctor):
    code, found = doctor()
    assert code == 0
    assert {found[name]["state"] for name in ("kvm", "cpus", "isa", "sbi", "in-kernel AIA")} == {"ok"}
    assert found["cpus"]["found"].startswith("up to ")
    assert "sstc" in found["isa"]["found"].split()


def test_host_without_kvm_is_code_126_and_a_sentence(doctor):
    code, found = doctor(kernel=FakeKernel(open_error=2))
    assert (code, found["kvm"]["state"]) == (126, "fail")
    assert found["kvm"]["found"].startswith("/dev/kvm does not exist: ")


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--strict"], 126)])
def test_what_is_missing_is_a_warning_unless_it_is_strict(doctor, words, code):
    got, found = doctor(*words, kernel=FakeKernel(capabilities=NO_AIA))
    assert (got, found["in-kernel AIA"]["state"]) == (code, "warn")
    assert found["in-kernel AIA"]["advice"]


@pytest.mark.parametrize(("machine", "state", "code"), [("x86_64", "warn", 0), ("aarch64", "fail", 126)])
def test_other_machines_have_the_lab_or_nothing(doctor, machine, state, code):
    got, found = doctor(machine=machine)
    assert (got, found["host"]["state"]) == (code, state)


def test_advice_is_below_what_was_found(monkeypatch, capfd):
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], "x86_64")))
    assert cli.main(["doctor"]) == 0
    lines = capfd.readouterr().out.splitlines()
    at = lines.index("warn host: x86_64 has no RISC-V KVM")
    assert lines[at + 1].startswith("     -> guests run in the lab")
