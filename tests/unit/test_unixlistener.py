# SPDX-License-Identifier: Apache-2.0
import os
import socket
import stat

import pytest

from pyvmm.unixlistener import UnixListener


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "sock")


def test_clients_are_accepted_one_by_one_and_none_is_waited_for(path):
    listener = UnixListener(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert listener.accept() is None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        fd = listener.accept()
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
        client.sendall(b"x")
        assert os.read(fd, 1) == b"x"
        os.close(fd)
    assert listener.accept() is None
    listener.close()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)


def test_path_that_cannot_be_had_leaves_no_descriptor(path):
    UnixListener(path).close()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Address already in use"):
        UnixListener(path)
    assert os.listdir("/proc/self/fd") == before
