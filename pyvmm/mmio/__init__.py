# SPDX-License-Identifier: Apache-2.0
"""The MMIO bus and the register maps that devices declare."""
