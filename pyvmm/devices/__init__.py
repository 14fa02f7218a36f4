# SPDX-License-Identifier: Apache-2.0
"""Device models. They know offsets, integers and the protocols of ``base``; never KVM."""
