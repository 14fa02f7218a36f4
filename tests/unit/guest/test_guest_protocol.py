# SPDX-License-Identifier: Apache-2.0
"""The two ends of the agent's protocol agree on its numbers, and the agent comes as an initramfs."""

import re
from pathlib import Path

import pytest

import pyvmm
from pyvmm import guest
from pyvmm.guest import protocol
from pyvmm.guest.fragment import fragment

HEADER = Path(pyvmm.__file__).parent / "guest/agent/protocol.h"
DEFINED = dict(re.findall(r"#define (\w+) (\d+)\b", HEADER.read_text()))
SIZES = {"HEADER_SIZE": protocol.HEADER.size, "START_SIZE": protocol.START_PAYLOAD.size}
RENAMED = {"PROTOCOL_VERSION": "VERSION", "FLAG_NEW_ROOT": "NEW_ROOT"}
OF_THE_AGENT = {"MAGIC_SIZE", "MAX_SPEC", "MAX_SESSIONS", "INPUT_WINDOW"}


@pytest.mark.parametrize("name", sorted(DEFINED.keys() - OF_THE_AGENT))
def test_number_is_the_same_in_c_and_in_python(name):
    ours = RENAMED.get(name) or name.removeprefix("KIND_").removeprefix("HOW_").removeprefix("STAGE_")
    assert int(DEFINED[name]) == SIZES.get(name, getattr(protocol, ours, None))


def test_port_has_the_name_that_the_agent_looks_for():
    assert f'#define PORT_NAME "{guest.PORT}"' in HEADER.read_text()


def test_fragment_is_an_archive_with_the_agent_that_another_may_follow():
    data = fragment()
    assert data[:6] == b"070701"
    assert b"pyvmm-agent\0" in data[:128]
    assert data.index(b"TRAILER!!!") > 4096
    assert len(data) % 4 == 0
