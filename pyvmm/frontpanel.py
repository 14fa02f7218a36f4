# SPDX-License-Identifier: Apache-2.0
"""The front panel of a running board: lamps to look at (registers, memory, counters), and a few switches."""

from __future__ import annotations

import threading

from pyvmm.config import format_size
from pyvmm.errors import GuestAccessError, MachineError
from pyvmm.kvm import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.board import Board
    from pyvmm.devices.virtio.balloon import Balloon

_SLICE = 0.05  # seconds between looks whether the guest has ended meanwhile
_LOOKS = 200  # of them for a vCPU to come out of the guest
_FRESH = 1.0  # seconds for the guest to say how its memory is
_BALLOON_ID = 5


def registers(board: Board, cpu: int, ended: Callable[[], bool]) -> dict[str, int]:
    """pc, the integer registers and the trap CSRs of a vCPU by name. Raises MachineError."""
    if not 0 <= cpu < len(board.threads):
        raise MachineError(f"The guest has no CPU {cpu}: its CPUs are 0 to {len(board.threads) - 1}.")
    thread = board.threads[cpu]
    found: list[dict[str, int]] = []
    done = threading.Event()

    def look() -> None:
        found.append(dump.values(thread.vcpu))
        done.set()

    thread.post(look)
    for _ in range(_LOOKS):
        if done.wait(_SLICE):
            return found[0]
        if ended() or not thread.alive:
            raise MachineError("The guest has ended.")
    raise MachineError(
        f"CPU {cpu} does not come out of what it does. Does somebody read the console's output?"
    )


def read_memory(board: Board, address: int, length: int) -> bytes:
    """Guest-physical memory. Raises MachineError for what is not RAM."""
    try:
        return board.memory.read(address, length)
    except GuestAccessError:
        banks = ", ".join(f"0x{bank.base:x} to 0x{bank.end - 1:x}" for bank in board.memory.banks)
        raise MachineError(
            f"{length} bytes at 0x{address:x} are not all in the guest's memory, which is {banks}."
        ) from None


def set_balloon(board: Board, size: int) -> None:
    """Ask the guest for so many bytes of its memory. Raises MachineError and ConfigError."""
    balloon = _balloon(board)
    memory = sum(bank.size for bank in board.memory.banks)
    if not 0 <= size <= memory:
        raise MachineError(
            f"A balloon can take from 0 to {format_size(memory)} from this guest, not {format_size(size)}."
        )
    balloon.set_target(size)


def ask_balloon(board: Board) -> Callable[[], dict[str, object]]:
    """Ask the guest how its memory is; what is returned waits for the answer, and needs no board to stay.

    It gives the bytes that are ``wanted`` from the guest, that it gave (``actual``), and what it says of its
    memory: of a guest that does not answer at once, as one that is paused, its last word.

    Raises MachineError.
    """
    device = _balloon(board)
    answered = threading.Event()
    asked = device.request_stats(lambda _statistics: answered.set())

    def answer() -> dict[str, object]:
        if asked:
            answered.wait(_FRESH)
        return {"wanted": device.target, "actual": device.actual, "statistics": device.stats()}

    return answer


def _balloon(board: Board) -> Balloon:
    for device in board.devices:
        if device.DEVICE_ID == _BALLOON_ID:
            return device  # type: ignore[return-value]  # told by its number: most guests never load the class
    raise MachineError("The guest has no balloon; start it with --balloon.")
