# SPDX-License-Identifier: Apache-2.0
"""What the lab reads out of apt, without running apt."""

from __future__ import annotations

import os

import pytest

from pyvmm.errors import ConfigError
from pyvmm.lab import packages

URIS = """\
'http://mirror.example/debian-security/dists/bookworm-security/InRelease' mirror_x 0
'http://other.example/repo/dists/nodistro/InRelease' other 0
'http://mirror.example/debian/dists/bookworm/InRelease' mirror_y 0
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror_z 0
"""


def test_mirror_is_the_archive_that_serves_the_machines_own_suite():
    assert packages.pick_mirror(URIS, "bookworm") == "http://mirror.example/debian"


def test_mirror_of_another_distribution_is_not_taken():
    assert packages.pick_mirror("'http://u.example/ubuntu/dists/noble/InRelease' u 0\n", "") is None


def test_mirror_named_by_the_environment_wins(monkeypatch):
    monkeypatch.setenv(packages.MIRROR_VARIABLE, "http://mine.example/debian/")
    assert packages.mirror() == "http://mine.example/debian"


def test_downloaded_file_of_a_version_with_epoch_has_apts_name():
    package = packages.Package("zlib1g", "1:1.3.dfsg", "riscv64", "pool/main/z/zlib/zlib1g.deb", "0" * 64)
    assert package.filename == "zlib1g_1%3a1.3.dfsg_riscv64.deb"


def test_complaint_is_the_first_error_without_prefix_and_stop():
    assert (
        packages.complaint("W: odd\nE: Failed to fetch x.\nE: Some index files failed.\n")
        == "Failed to fetch x"
    )


def test_complaint_of_a_silent_apt_says_so():
    assert packages.complaint("") == "apt failed and did not say why"


def test_slow_download_tells_how_far_it_is():
    lines = []
    with packages.slow_progress("downloading x", lines.append, interval=0) as descriptor:
        os.write(descriptor, b"dlstatus:1:12.3456:Retrieving file 1 of 8\npmstatus:x:1:y\n")
    assert lines == ["downloading x", "downloading x: 12%"]


def test_quick_download_says_nothing_more():
    lines = []
    with packages.slow_progress("downloading x", lines.append) as descriptor:
        os.write(descriptor, b"dlstatus:1:12.3456:Retrieving file 1 of 8\n")
    assert lines == ["downloading x"]


def test_machine_without_apt_is_told_what_is_missing(monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None if name == "dpkg-deb" else "/x")
    with pytest.raises(ConfigError, match="needs dpkg-deb, which this machine does not have"):
        packages.require_commands()


def test_private_configuration_keeps_the_machines_files_out_and_checks_dates(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_machine_settings", lambda: "")
    text = packages._apt_conf(tmp_path, "riscv64", expired_ok=False)
    assert f'Dir::Etc "{tmp_path}/etc";' in text
    assert 'Acquire::Check-Valid-Until "true";' in text
    assert 'Acquire::Check-Valid-Until "false";' in packages._apt_conf(tmp_path, "riscv64", expired_ok=True)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('Acquire::http::Proxy "http://proxy:3128";', True),
        ('Acquire::https::CaInfo "/etc/ssl/own.pem";', True),
        ('Acquire::http "";', False),
        ('Acquire::Check-Valid-Until "false";', False),
        ('Acquire::AllowInsecureRepositories "1";', False),
        ('Acquire::https::Verify-Peer "false";', True),
    ],
)
def test_only_settings_that_say_how_to_reach_a_mirror_are_kept(line, kept):
    assert bool(packages._KEPT_SETTINGS.match(line)) is kept
