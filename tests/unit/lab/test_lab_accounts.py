# SPDX-License-Identifier: Apache-2.0
"""Users and groups from base-passwd's and systemd's files."""

from __future__ import annotations

import pytest

from pyvmm.lab.accounts import Accounts

PASSWD = "root:*:0:0:root:/root:/bin/bash\nsync:*:4:65534:sync:/bin:/bin/sync\n"
GROUP = "root:*:0:\ntty:*:5:\n"


@pytest.fixture
def accounts():
    return Accounts(PASSWD, GROUP)


def lines(accounts, path):
    return accounts.files()[path].splitlines()


def test_root_needs_no_password_and_all_others_are_locked(accounts):
    shadow = [line.split(":")[:2] for line in lines(accounts, "etc/shadow")]
    assert shadow == [["root", ""], ["sync", "*"]]


def test_accounts_of_the_master_files_look_their_password_up(accounts):
    assert lines(accounts, "etc/passwd")[0] == "root:x:0:0:root:/root:/bin/bash"
    assert lines(accounts, "etc/group") == ["root:x:0:", "tty:x:5:"]


def test_user_without_number_gets_the_highest_free_one_and_a_group(accounts):
    accounts.add_sysusers('u! systemd-network - "systemd Network Management"\nu other -\n')
    assert lines(accounts, "etc/passwd")[-2:] == [
        "systemd-network:x:999:999:systemd Network Management:/:/usr/sbin/nologin",
        "other:x:998:998::/:/usr/sbin/nologin",
    ]
    assert lines(accounts, "etc/group")[-2:] == ["systemd-network:x:999:", "other:x:998:"]


def test_user_with_a_group_of_others_gets_no_group(accounts):
    accounts.add_sysusers("u _apt 42:65534 - /nonexistent /bin/sh\n")
    assert lines(accounts, "etc/passwd")[-1] == "_apt:x:42:65534::/nonexistent:/bin/sh"
    assert len(lines(accounts, "etc/group")) == 2


def test_account_that_exists_stays_as_it_is(accounts):
    before = accounts.files()
    accounts.add_sysusers("g tty 5 -\nu sync 4:65534 - /elsewhere /bin/sh\n")
    assert accounts.files() == before


def test_comments_and_lines_of_other_kinds_add_nothing(accounts):
    before = accounts.files()
    accounts.add_sysusers("# comment\n\nm root tty\nr - 500-900\n")
    assert accounts.files() == before
