# SPDX-License-Identifier: Apache-2.0
"""Clients of the control socket that send anything at all, beside one that behaves."""

import json
import os
import tempfile

import pytest
from fakes.controlled import Client, FakeMachine
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import control
from pyvmm.control import requests

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
names = st.sampled_from(sorted(set(requests.KINDS) - {"stop", "kill"})) | st.text(max_size=10)
parameters = sorted({name for kind in requests.KINDS.values() for name in (*kind.required, *kind.optional)})
requests_ = st.builds(
    lambda do, id, params: json.dumps({**params, "do": do, "id": id}).encode(),
    names,
    values,
    st.dictionaries(st.sampled_from(parameters) | st.text(max_size=5), values, max_size=3),
)
lines = requests_ | values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200)
streams = st.lists(lines, max_size=20).map(b"\n".join)


@pytest.fixture(scope="module")
def path():
    machine = FakeMachine()
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as folder:
        before = os.environ.get("PYVMM_RUN_DIR")
        os.environ["PYVMM_RUN_DIR"] = folder
        try:
            with control.serve(machine, "guest") as served:
                yield os.path.join(served.folder, "control.sock")
        finally:
            os.environ.pop("PYVMM_RUN_DIR")
            if before is not None:
                os.environ["PYVMM_RUN_DIR"] = before
    machine.close()


@pytest.fixture(scope="module")
def witness(path):
    client = Client(path)
    client.line()
    yield client
    client.close()


@settings(deadline=None)
@given(stream=streams, cut=st.integers(1, 1000), hang_up=st.booleans())
def test_whatever_a_client_sends_every_answer_is_a_line_and_others_are_served(
    path, witness, stream, cut, hang_up
):
    client = Client(path)
    try:
        for at in range(0, len(stream), cut):
            client.send(stream[at : at + cut])
        if hang_up:
            client.close()
        else:
            client.send(b'\n{"id":"last","do":"status"}\n')
            while (answer := client.line()).get("id") != "last":
                assert answer.keys() & {"ok", "event", "protocol"}
            assert answer["ok"]
    finally:
        client.close()
    assert witness.ask("status")["ok"]
