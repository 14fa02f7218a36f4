# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from pyvmm.errors import HostError
from pyvmm.testing.leases import Leases

GiB = 1 << 30


@pytest.fixture
def process(tmp_path):
    """Makes the leases of another process: locks of two descriptors are as those of two processes."""
    return lambda available=4 * GiB, most=None: Leases("lab:aia", available, most, tmp_path)


def test_context_ids_and_taps_are_given_once(process):
    one, two = process(), process()
    (first, held), (second, _) = one.cid(), two.cid()
    assert first != second
    assert one.tap()[0] != two.tap()[0]
    held.release()
    assert two.cid()[0] == first


def test_memory_is_given_until_the_host_has_no_more(process):
    held = process().memory(2 * GiB, 1)
    with pytest.raises(HostError, match="no memory"):
        process().memory(2 * GiB, 0)
    held.release()
    process().memory(2 * GiB, 0)


def test_guest_larger_than_the_host_is_let_through_alone(process):
    assert process(1 * GiB).memory(8 * GiB, 0)


def test_process_that_has_a_guest_never_waits_for_another(process):
    one, two = process(), process()
    assert one.memory(2 * GiB, 0)
    with pytest.raises(HostError):
        two.memory(3 * GiB, 0)
    assert one.memory(3 * GiB, 0)


def test_budget_is_what_the_first_guest_found(process):
    assert process(4 * GiB).memory(1 * GiB, 0)
    assert process(1 * GiB).memory(2 * GiB, 0)


def test_number_of_guests_is_bounded(process):
    held = process(most=1).memory(1, 0)
    with pytest.raises(HostError):
        process(most=1).memory(1, 0)
    held.release()


def test_waiting_ends_when_memory_is_given_back(process):
    held = process().memory(3 * GiB, 0)
    threading.Timer(0.1, held.release).start()
    assert process().memory(3 * GiB, 60)


def test_files_of_dead_processes_count_for_nothing(process, tmp_path):
    (tmp_path / "leases-lab-aia").mkdir()
    (tmp_path / "leases-lab-aia" / "memory-1-0").write_text(f"{4 * GiB} {4 * GiB}")
    process().memory(2 * GiB, 0)
    assert not (tmp_path / "leases-lab-aia" / "memory-1-0").exists()


def test_lease_released_twice_is_released_once(process):
    leases = process()
    name, held = leases.tap()
    held.release()
    held.release()
    assert leases.tap()[0] == name
