# SPDX-License-Identifier: Apache-2.0
"""Selection and naming of ISA extensions."""

import pytest

from pyvmm import isa
from pyvmm.errors import ConfigError
from pyvmm.kvm.regs import ISA_EXTENSIONS

HOST = dict.fromkeys(("i", "m", "a", "f", "d", "c", "sstc", "zbb", "zicsr"), True) | {
    "h": False,
    "svadu": False,
}


def select(isa_text="host", cpu_type="max", disabled=()):
    return isa.select(isa_text, cpu_type, disabled, ISA_EXTENSIONS)


def test_apply_by_default_changes_nothing_and_lists_what_is_on():
    plan = select().apply(HOST)
    assert plan.writes == []
    assert plan.names == ["i", "m", "a", "f", "d", "c", "zicsr", "zbb", "sstc"]


def test_apply_minus_switches_off_and_no_longer_lists():
    plan = select("host,-sstc").apply(HOST)
    assert plan.writes == [("sstc", False)]
    assert "sstc" not in plan.names


def test_apply_plus_switches_on_what_is_off():
    plan = select("+svadu").apply(HOST)
    assert plan.writes == [("svadu", True)]
    assert "svadu" in plan.names


def test_apply_disable_option_wins_over_isa_and_ignores_case():
    assert select("host,+zbb", disabled=["ZBB"]).apply(HOST).writes == [("zbb", False)]


def test_apply_last_word_for_an_extension_wins():
    assert select("-zbb,+zbb").apply(HOST).writes == []


def test_apply_minimal_keeps_the_base_and_what_is_listed():
    plan = select(cpu_type="min,zbb").apply(HOST)
    assert plan.names == ["i", "m", "a", "f", "d", "c", "zbb"]
    assert sorted(plan.writes) == [("sstc", False), ("zicsr", False)]


def test_apply_minimal_does_not_ask_for_what_the_host_lacks():
    assert select(cpu_type="min").apply(HOST | {"d": False}).names == ["i", "m", "a", "f", "c"]


def test_apply_extension_that_is_not_offered_is_refused():
    with pytest.raises(ConfigError, match="does not offer zba to guests"):
        select("+zba").apply(HOST)


def test_apply_never_gives_the_hypervisor_extension():
    plan = select().apply(HOST | {"h": True})
    assert plan.writes == [("h", False)]
    assert "h" not in plan.names


def test_refused_addition_is_an_error():
    with pytest.raises(ConfigError, match=r"KVM refuses to enable svadu .*\+svadu"):
        isa.Plan.refused("svadu", True)


def test_refused_removal_is_a_remark():
    assert "sstc" in isa.Plan.refused("sstc", False)


@pytest.mark.parametrize(
    "options", [{"isa_text": "host,+zbbb"}, {"cpu_type": "min,zbbb"}, {"disabled": ["zbbb"]}]
)
def test_select_unknown_extension_is_refused_with_the_nearest_name(options):
    with pytest.raises(ConfigError, match=r"no ISA extension 'zbbb'\. Did you mean zbb\?"):
        select(**options)


@pytest.mark.parametrize("text", ["", "zbb", "max", "rv64gc", "host,,zbb"])
def test_select_isa_that_is_not_a_list_of_changes_is_refused(text):
    with pytest.raises(ConfigError, match="--isa takes host"):
        select(text)


@pytest.mark.parametrize("text", ["", "medium", "zbb"])
def test_select_unknown_cpu_type_is_refused(text):
    with pytest.raises(ConfigError, match="--cpu-type takes max, or min"):
        select(cpu_type=text)


@pytest.mark.parametrize("name", ["i", "m", "a"])
def test_select_without_the_base_is_refused(name):
    with pytest.raises(ConfigError, match=f"extension {name} cannot be turned off"):
        select(disabled=[name])


def test_select_hypervisor_extension_is_refused():
    with pytest.raises(ConfigError, match="hypervisor"):
        select("+h")


def test_canonical_orders_letters_then_z_by_category_then_s_then_x():
    names = [
        "xtheadba",
        "svinval",
        "sstc",
        "zvbb",
        "ztso",
        "zba",
        "zca",
        "zfa",
        "zacas",
        "zicsr",
        "zicntr",
        "v",
        "c",
        "d",
        "f",
        "a",
        "m",
        "i",
    ]
    assert isa.canonical(names) == [
        *("i", "m", "a", "f", "d", "c", "v"),
        *("zicntr", "zicsr", "zacas", "zfa", "zca", "zba", "ztso", "zvbb"),
        *("sstc", "svinval", "xtheadba"),
    ]  # fmt: skip


def test_isa_string_joins_letters_and_separates_the_rest():
    assert isa.isa_string(["zicsr", "c", "i", "m", "sstc", "a"]) == "rv64imac_zicsr_sstc"


def test_default_is_known_to_kvm_and_canonical():
    assert set(isa.DEFAULT) <= set(ISA_EXTENSIONS)
    assert list(isa.DEFAULT) == isa.canonical(isa.DEFAULT)


def test_every_extension_of_kvm_has_a_rank():
    assert sorted(isa.canonical(ISA_EXTENSIONS)) == sorted(ISA_EXTENSIONS)
    assert isa.canonical(ISA_EXTENSIONS)[:8] == ["i", "m", "a", "f", "d", "c", "v", "h"]
