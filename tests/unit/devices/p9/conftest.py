# SPDX-License-Identifier: Apache-2.0
"""A folder with something beside it that must stay out of reach, a server, and a client of it."""

import os

import pytest
from fakes.p9client import P9Client, serve

from pyvmm.devices.p9.beneath import open_root
from pyvmm.devices.p9.fids import Budget
from pyvmm.devices.p9.server import Server

SECRET = b"not to be seen"


@pytest.fixture
def share(tmp_path):
    """The shared folder. Beside it is ``secret``, a file."""
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def make_server(share):
    """Makes servers of the folder; no descriptor may be left when they are closed."""
    before = set(os.listdir("/proc/self/fd"))
    servers = []

    def make(*, writable=True, limit=1000):
        servers.append(Server(open_root(str(share), "--9p"), writable=writable, budget=Budget(limit)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
        os.close(server.root)
    assert len(os.listdir("/proc/self/fd")) == len(before), "descriptors leaked"


@pytest.fixture(params=[True, False], ids=["patient", "at-once"])
def client(request, make_server):
    """A client of a writable server that has agreed on the protocol, once for each way of serving it."""
    client = P9Client(serve(make_server(), patient=request.param))
    client.root = client.start()
    return client


@pytest.fixture
def reader(make_server):
    """The same, of a read-only server."""
    client = P9Client(serve(make_server(writable=False)))
    client.root = client.start()
    return client
