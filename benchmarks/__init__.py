# SPDX-License-Identifier: Apache-2.0
"""How fast and how large pyvmm is, as ratios to peers measured in the same run: see docs/performance.md.

``python -m benchmarks`` measures here where there is RISC-V KVM, else in the lab.
"""
