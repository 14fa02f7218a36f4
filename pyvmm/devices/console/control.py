# SPDX-License-Identifier: Apache-2.0
"""The control queues of a virtio console with named ports (virtio 1.2, section 5.3.6.2).

``hear`` and ``tell`` are called inside the session. What a port has to be told waits as flags in the device.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.devices.console.ports import next_chain
from pyvmm.devices.virtio.chain import gather, scatter
from pyvmm.devices.virtio.console import TELL_ADD, TELL_CONSOLE, TELL_NAME, TELL_OPEN, TELL_RESIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.devices.console.ports import Port
    from pyvmm.devices.virtio.console import Console
    from pyvmm.devices.virtio.session import ActiveQueue

_MESSAGE = Struct("<IHH")  # port, event, value
_SIZE = Struct("<HH")
_DEVICE_READY, _PORT_ADD, _PORT_READY, _CONSOLE_PORT, _RESIZE, _PORT_OPEN, _PORT_NAME = 0, 1, 3, 4, 5, 6, 7

# By the bit of the flag that asks for it.
_EVENTS = (_PORT_ADD, _CONSOLE_PORT, _PORT_NAME, _RESIZE, _PORT_OPEN)


def hear(device: Console, queue: ActiveQueue) -> None:
    """Take the driver's messages from ``queue``."""
    for chain in queue.chains():
        message = gather(chain.readable, _MESSAGE.size)
        queue.complete(chain, 0)
        if device.multiport and len(message) == _MESSAGE.size:
            _obey(device, *_MESSAGE.unpack(message))
        else:
            device.odd += 1


def _obey(device: Console, number: int, event: int, value: int) -> None:
    if event == _DEVICE_READY:
        for index, port in enumerate(device.ports):
            device.to_tell[index] |= TELL_ADD if value and port is not None else 0
        return
    port = device.ports[number] if number < len(device.ports) else None
    if port is None:
        device.odd += 1
    elif event == _PORT_READY:
        _port_ready(device, number, port, bool(value))
    elif event == _PORT_OPEN:
        device.guest_open[number] = bool(value)
        port.guest_opened(bool(value))
    else:
        device.odd += 1


def _port_ready(device: Console, number: int, port: Port, ready: bool) -> None:
    device.to_tell[number] = 0
    if ready and port is device.screen_port:
        device.to_tell[number] = TELL_CONSOLE | TELL_OPEN | (TELL_RESIZE if device.columns else 0)
    elif ready:
        device.to_tell[number] = TELL_NAME | TELL_OPEN
        if not device.ready[number]:
            device.attach(number, port)
    elif device.ready[number] and port is not device.screen_port:
        port.detach()
    device.ready[number] = ready


def tell(device: Console, queue: ActiveQueue) -> None:
    """Send what there is to be told, as far as the driver has buffers for it in ``queue``."""
    for number, port in enumerate(device.ports):
        while port is not None and device.to_tell[number]:
            chain = next_chain(queue)
            if chain is None:
                return
            bit = (device.to_tell[number] & -device.to_tell[number]).bit_length() - 1
            device.to_tell[number] &= ~(1 << bit)
            queue.complete(chain, scatter(chain.writable, _message(device, number, port, _EVENTS[bit])))
            if _EVENTS[bit] == _PORT_OPEN:
                port.announced()


def _message(device: Console, number: int, port: Port, event: int) -> bytes:
    header = _MESSAGE.pack(number, event, int(port.open) if event == _PORT_OPEN else 1)
    if event == _PORT_NAME:
        return header + port.name.encode()
    if event == _RESIZE:
        return header + _SIZE.pack(device.columns, device.rows)
    return header
