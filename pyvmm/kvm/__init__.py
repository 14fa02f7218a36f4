# SPDX-License-Identifier: Apache-2.0
"""The binding to ``/dev/kvm``: mechanism only, one method an ioctl."""
