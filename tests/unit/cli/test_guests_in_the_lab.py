# SPDX-License-Identifier: Apache-2.0
"""``pyvmm ps``, ``stop`` and the others on guests in lab hosts."""

import json
import os

import pytest


@pytest.fixture
def not_riscv(monkeypatch):
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*real[:4], "x86_64")))


def test_command_runs_in_the_only_lab_host_that_runs(not_riscv, run, lab):
    lab.running, lab.code = {"plic": ["vm1"]}, 124
    assert run("stop", "vm1", "--grace=5s")[0] == 124
    assert lab.commands == [("plic", ["stop", "--grace=5s", "--host=local", "--", "vm1"])]


def test_arguments_reach_the_lab_as_they_were_given(not_riscv, run, lab):
    lab.running = {"aia": ["vm1"]}
    assert run("balloon", "vm1", "-64M")[0] == 0
    assert run("debug", "regs", "--cpu", "1")[0] == 0
    assert run("attach")[0] == 0
    assert [words for _, words in lab.commands] == [
        ["balloon", "--host=local", "--", "vm1", "-64M"],
        ["debug", "--cpu=1", "--host=local", "--", "regs"],
        ["attach", "--host=local"],
    ]


def test_ps_merges_the_guests_of_every_place(not_riscv, run, lab, start):
    start("here")
    lab.running = {"aia": ["vm1"], "plic": ["vm1", "vm2"]}
    _, out, _ = run("ps")
    assert [row.split()[:3] for row in out.splitlines()] == [
        ["NAME", "WHERE", "STATE"],
        ["here", "local", "running"],
        ["vm1", "lab:aia", "running"],
        ["vm1", "lab:plic", "running"],
        ["vm2", "lab:plic", "running"],
    ]
    assert [one["where"] for one in json.loads(run("ps", "--json")[1])][-1] == "lab:plic"


def test_guest_is_found_wherever_it_runs(not_riscv, run, lab, start):
    machine = start("here")
    lab.running = {"aia": ["vm1"], "plic": ["vm2"]}
    assert run("pause", "here")[0] == 0
    assert machine.calls == ["pause"]
    assert run("pause", "vm2")[0] == 0
    assert lab.commands[-1] == ("plic", ["pause", "--host=local", "--", "vm2"])
    assert run("pause", "vm3")[2].startswith("pyvmm: No guest named vm3 is running. Did you mean vm")


def test_name_that_two_places_have_must_be_placed(not_riscv, run, lab):
    lab.running = {"aia": ["vm1"], "plic": ["vm1"]}
    sentence = "pyvmm: Guests named vm1 run in lab:aia and lab:plic: choose with --host.\n"
    assert run("pause", "vm1") == (125, "", sentence)
    assert run("pause", "vm1", "--host=lab:plic")[0] == 0
    assert lab.commands[-1] == ("plic", ["pause", "--host=local", "--", "vm1"])


def test_all_means_those_in_the_lab_too(not_riscv, run, lab, start):
    machine = start("here")
    lab.running = {"aia": ["vm1"]}
    assert run("pause", "--all")[0] == 0
    assert machine.calls == ["pause"]
    assert lab.commands == [("aia", ["pause", "--all", "--host=local"])]
    results = json.loads(run("resume", "--all", "--json")[1])
    assert [(one["name"], one.get("where")) for one in results] == [("here", None), ("vm1", "lab:aia")]


def test_no_lab_host_is_started_to_look_for_guests(not_riscv, run, lab):
    assert run("ps") == (0, "", "pyvmm: no guest is running\n")
    assert run("pause", "vm1")[2] == "pyvmm: No guest named vm1 is running. pyvmm ps lists those that are.\n"
    assert (
        run("ps", "--host=lab:aia")[2] == "pyvmm: There is no running host lab:aia, and so no guest in it.\n"
    )
    assert lab.commands == []
