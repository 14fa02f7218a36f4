# SPDX-License-Identifier: Apache-2.0
"""An emulated RISC-V KVM host, for machines that are not RISC-V."""
