# SPDX-License-Identifier: Apache-2.0
"""Virtqueues of either layout whose buffers are taken and given back in C, where the native module was built.

Two thirds and more of the work for a disk or a network card is the ring: descriptors unpacked and checked,
views made, flags written. ``_native_queue.c`` does that as ``PackedQueue`` and ``SplitQueue`` do, its twins.
They go on from the same ``Position``: each buffer is taken by the one or, when there is anything unusual
about it, by the other. Guests and devices see no difference (docs/adr/0017).
"""

from __future__ import annotations

import ctypes

from pyvmm import native
from pyvmm.devices.virtio.chain import Chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.virtio.packed import PackedQueue
    from pyvmm.devices.virtio.queue import Frames, QueueSetup, Virtqueue
    from pyvmm.devices.virtio.split import SplitQueue
    from pyvmm.memory import GuestMemory

MAKER = "pyvmm_queue_1"
FRAMES_MAKER = "pyvmm_frames_1"


class _Shared(ctypes.Structure):
    """``struct queue`` of _native_queue.h."""

    _fields_ = (
        ("descriptors", ctypes.c_uint64),
        ("driver", ctypes.c_uint64),
        ("device", ctypes.c_uint64),
        ("base", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("main", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("packed", ctypes.c_uint8),
        ("event_idx", ctypes.c_uint8),
        ("indirect", ctypes.c_uint8),
        ("open", ctypes.c_uint8),
    )


class _NativeFrames:
    """See Frames."""

    __slots__ = ("receive", "send")

    def __init__(
        self,
        functions: tuple[
            Callable[[int, bytearray, bool, int, int], tuple[int, int, int, int, int, int]],
            Callable[[int, int], tuple[int, int, int]],
        ],
    ) -> None:
        self.receive, self.send = functions


class NativeQueue:
    """See Virtqueue, and the module. ``twin`` does what is rare."""

    __slots__ = (
        "_shared", "_twin", "_views", "complete", "complete_all", "event_idx", "frames", "pause_notify",
        "pop", "resume_notify", "should_interrupt", "size",
    )  # fmt: skip

    pop: Callable[[], Chain | None]
    complete: Callable[[Chain, int], None]
    complete_all: Callable[[list[tuple[Chain, int]]], None]
    should_interrupt: Callable[[], bool]
    pause_notify: Callable[[], None]
    resume_notify: Callable[[], bool]

    def __init__(
        self,
        twin: PackedQueue | SplitQueue,
        memory: GuestMemory,
        setup: QueueSetup,
        make: Callable[[tuple[object, ...]], tuple[Callable[..., object], ...]],
    ) -> None:
        base, length, view, read_only = memory.main
        self._views = view[:], read_only[:]  # while they are there, the bank is
        self._twin, self.size, self.event_idx = twin, twin.size, twin.event_idx
        self._shared = _Shared(
            *(memory.host_address(address, 1) for address in (setup.desc, setup.driver, setup.device)),
            base,
            length,
            memory.host_address(base, length),
            twin.size,
            setup.packed,
            setup.event_idx,
            setup.indirect,
            True,
        )
        # As _native_queue.c takes it apart; the last two keep what the first two are the addresses of.
        bound = (
            ctypes.addressof(self._shared),
            ctypes.addressof(twin.position),
            *self._views,
            Chain,
            twin.pop,
            twin.resume_notify,
            "head",
            "slots",
            "readable",
            "writable",
            self._shared,
            twin.position,
        )
        names = "pop", "complete", "complete_all", "should_interrupt", "pause_notify", "resume_notify"
        for name, function in zip(names, make(bound), strict=True):
            setattr(self, name, function)
        make_frames = native.maker(FRAMES_MAKER)
        self.frames: Frames | None = None if make_frames is None else _NativeFrames(make_frames(bound))

    def close(self) -> None:
        """See Virtqueue. The functions raise ValueError from then on."""
        self._shared.open = False
        for view in self._views:
            view.release()
        self._twin.close()

    def state(self) -> dict[str, int]:
        """See Virtqueue."""
        return self._twin.state()

    def load_state(self, state: dict[str, int]) -> None:
        """See Virtqueue."""
        self._twin.load_state(state)


def in_c(twin: PackedQueue | SplitQueue, memory: GuestMemory, setup: QueueSetup) -> Virtqueue:
    """The queue that does in C what ``twin`` does; ``twin`` itself where that cannot be."""
    make = native.maker(MAKER)
    return twin if make is None else NativeQueue(twin, memory, setup, make)
