# SPDX-License-Identifier: Apache-2.0
"""The monitor's protocol against a scripted peer, and finding a process again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab import qemu


@pytest.fixture
def peer(tmp_path):
    """A QMP server that answers each request with the next list of lines, and records the requests."""
    path = tmp_path / "qmp"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    requests = []
    threads = []

    def serve(*replies):
        def work():
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as stream:
                stream.write('{"QMP": {}}\n')
                stream.flush()
                for lines in ([{"return": {}}], *replies):
                    requests.append(json.loads(stream.readline()))
                    stream.write("".join(json.dumps(line) + "\n" for line in lines))
                    stream.flush()

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return path

    yield serve, requests
    for thread in threads:
        thread.join(10)
    server.close()


def test_monitor_negotiates_then_returns_the_result_past_events(peer):
    serve, requests = peer
    path = serve([{"event": "STOP"}, {"return": {"status": "running"}}])
    with qemu.Monitor(path) as monitor:
        assert monitor.execute("query-status", x=1) == {"status": "running"}
    assert requests == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "query-status", "arguments": {"x": 1}},
    ]


def test_monitor_refusal_is_an_error_with_qemus_words(peer):
    serve, _ = peer
    path = serve([{"error": {"desc": "is mounted"}}])
    with qemu.Monitor(path) as monitor, pytest.raises(HostError, match="refuses migrate: is mounted"):
        monitor.execute("migrate")


def test_monitor_that_ends_is_an_error(peer):
    serve, _ = peer
    with qemu.Monitor(serve([])) as monitor, pytest.raises(HostError, match="QEMU ended during quit"):
        monitor.execute("quit")


def test_monitor_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(HostError, match="does not answer"):
        qemu.Monitor(tmp_path / "none")


def test_unknown_flavour_names_those_there_are():
    with pytest.raises(ConfigError, match="there are aia and plic"):
        qemu.flavour("gic")


def test_start_time_tells_a_living_process_from_one_that_ended():
    assert qemu.start_time(os.getpid()) > 0
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert qemu.start_time(process.pid) == 0
    process.wait()
