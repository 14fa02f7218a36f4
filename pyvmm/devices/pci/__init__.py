# SPDX-License-Identifier: Apache-2.0
"""PCI: a host bridge with configuration space in memory, and what functions on its bus are made of."""
