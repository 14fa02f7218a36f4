# SPDX-License-Identifier: Apache-2.0
import os
import tempfile

import pytest
from fakes.controlled import Client, FakeMachine

from pyvmm import control


@pytest.fixture(autouse=True)
def run_folder(monkeypatch):
    """A folder of running guests of the test's own, with a short name: it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-", dir="/tmp") as folder:
        monkeypatch.setenv("PYVMM_RUN_DIR", os.path.join(folder, "run"))
        yield os.path.join(folder, "run")


@pytest.fixture
def machine():
    machine = FakeMachine()
    yield machine
    machine.close()


@pytest.fixture
def server(machine):
    with control.serve(machine, "guest") as server:
        yield server


@pytest.fixture
def connect(server):
    """Connects clients to one of the guest's sockets."""
    clients = []

    def make(socket="control.sock"):
        clients.append(Client(os.path.join(server.folder, socket)))
        if socket == "control.sock":
            clients[-1].greeting = clients[-1].line()
        return clients[-1]

    yield make
    for client in clients:
        client.close()
