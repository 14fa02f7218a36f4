# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm import cli
from pyvmm.lab import host, sync


@pytest.fixture
def lab(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sync, "pack", lambda names, with_pyvmm: ("/tar", "name"))
    return host.Lab("aia")


def test_guests_in_the_lab_have_their_sockets_there_whatever_the_machine_says(lab, monkeypatch):
    """A folder of the machine's is reached by 9P there, which carries neither sockets nor locks."""
    monkeypatch.setenv("PYVMM_RUN_DIR", "/home/me/guests")
    monkeypatch.setenv("PYVMM_OTHER", "passed on")
    command = lab._command(["true"], "/", None, ())
    assert "export PYVMM_RUN_DIR=/run/pyvmm;" in command
    assert "export PYVMM_OTHER='passed on';" in command


def test_forwarding_that_is_interrupted_while_it_begins_is_undone(lab, monkeypatch, tmp_path):
    undone = tmp_path / "undone"
    undone.mkdir()

    def forward(local, remote):
        if local == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(lab, "forward", forward)
    monkeypatch.setattr(lab, "cancel_command", lambda local, remote: ["touch", str(undone / local)])
    with pytest.raises(KeyboardInterrupt), lab.forwarding([("a", "x"), ("b", "x"), ("c", "x")]):
        pass
    assert sorted(path.name for path in undone.iterdir()) == ["a", "b"]


def test_host_that_is_being_built_or_booted_is_starting(lab, capsys):
    before = lab.status()
    with lab._locked():
        during = lab.status()
        cli.main(["lab", "status", "--flavour=aia"])
    assert before == {"flavour": "aia", "running": False, "starting": False}
    assert during == {"flavour": "aia", "running": False, "starting": True}
    assert capsys.readouterr().out == "aia: being started\n"


def test_stop_leaves_no_files(lab, tmp_path):
    (tmp_path / "pyvmm" / "aia.console").write_text("OpenSBI")
    assert not lab.stop()
    assert list((tmp_path / "pyvmm").iterdir()) == []
