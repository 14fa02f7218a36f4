# SPDX-License-Identifier: Apache-2.0
"""pyvmm: a virtual machine monitor for RISC-V, backed by KVM."""

__version__ = "0.1.0"
