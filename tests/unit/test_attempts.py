# SPDX-License-Identifier: Apache-2.0
import pytest

from pyvmm.attempts import attempt_all


def test_every_step_is_taken_and_the_first_failure_told():
    taken = []

    def fail(number):
        taken.append(number)
        raise OSError(number, "refused")

    with pytest.raises(OSError, match="refused") as caught:
        attempt_all((lambda: fail(1), lambda: taken.append(2), lambda: fail(3), lambda: taken.append(4)))
    assert taken == [1, 2, 3, 4]
    assert caught.value.errno == 1


def test_steps_may_be_made_one_by_one():
    left = [1, 2, 3]
    attempt_all(left.pop for _ in range(3))
    assert left == []
