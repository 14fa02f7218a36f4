// SPDX-License-Identifier: Apache-2.0
//
// INTERRUPT_STATUS and INTERRUPT_ACK of virtio over MMIO (virtio 1.2, section 4.2.2): a direct_function of
// _native_run.c, for pyvmm/devices/virtio/mmio.py, which sets bits of the same word, and answers all that is odd.

#include <stdint.h>

enum { INTERRUPT_STATUS = 0, INTERRUPT_ACK = 4 };

int pyvmm_virtio_status(void *status, uint64_t offset, uint32_t length, int is_write, uint64_t *data)
{
	if (length != sizeof(uint32_t))
		return 0;
	if (offset == INTERRUPT_STATUS && !is_write)
		*data = __atomic_load_n((uint32_t *)status, __ATOMIC_ACQUIRE);
	else if (offset == INTERRUPT_ACK && is_write)
		__atomic_fetch_and((uint32_t *)status, ~(uint32_t)*data, __ATOMIC_ACQ_REL);
	else
		return 0;
	return 1;
}
