# SPDX-License-Identifier: Apache-2.0
import errno
import mmap

import pytest

from pyvmm.errors import KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.ioctl import Fd, Kernel, address_of, out_buffer, request_name


def test_request_name_of_every_request_is_its_own():
    names = [request_name(getattr(uapi, name)) for name in uapi.IOCTLS]
    assert names == list(uapi.IOCTLS)


def test_request_name_of_a_stranger_is_its_number():
    assert request_name(0xABCD) == "ioctl 0x0000ABCD"


def test_ioctl_on_a_closed_descriptor_names_the_ioctl_and_the_errno():
    with pytest.raises(KvmError, match=r"KVM_CREATE_VM failed: .*\(EBADF\)") as caught:
        Kernel().ioctl(-1, uapi.KVM_CREATE_VM)
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_CREATE_VM", errno.EBADF)


def test_ioctl_error_carries_the_callers_hint():
    with pytest.raises(KvmError, match=r"; open it first$"):
        Kernel().ioctl(-1, uapi.KVM_CREATE_VM, 0, {errno.EBADF: "open it first"})


def test_ioctl_error_without_a_callers_hint_explains_what_is_general():
    class Forked(Kernel):
        def raw_ioctl(self, fd, request, argument=0):
            return -1

        def errno(self):
            return errno.EIO

    with pytest.raises(KvmError, match="fork"):
        Forked().ioctl(3, uapi.KVM_IRQFD)


def test_run_on_a_closed_descriptor_returns_minus_one_and_errno():
    kernel = Kernel()
    assert kernel.run(-1, uapi.KVM_RUN, 0) == -1
    assert kernel.errno() == errno.EBADF


def test_ioctl_passes_buffers_for_the_kernel_to_write():
    import fcntl
    import os
    import struct
    import termios

    reader, writer = os.pipe()
    os.write(writer, b"abc")
    buffer = out_buffer(4)
    assert Kernel().ioctl(reader, termios.FIONREAD, buffer) == 0
    assert struct.unpack("<i", buffer.raw) == (3,)
    assert fcntl.ioctl(reader, termios.FIONREAD, b"\0\0\0\0") == buffer.raw
    os.close(reader)
    os.close(writer)


def test_out_buffer_of_bytes_is_a_copy():
    data = b"\x01\x02"
    buffer = out_buffer(data)
    buffer[0] = b"\xff"
    assert data == b"\x01\x02"


def test_address_of_a_mapping_does_not_keep_it_from_closing():
    mapping = mmap.mmap(-1, 4096)
    assert address_of(mapping) % 4096 == 0
    mapping.close()


def test_fd_closes_once():
    closed = []

    class Recording(Kernel):
        def close(self, fd):
            closed.append(fd)

    with Fd(Recording(), 7) as thing:
        thing.close()
    assert closed == [7]
