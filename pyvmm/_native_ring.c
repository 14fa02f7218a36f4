// SPDX-License-Identifier: Apache-2.0
//
// The ordered operations of pyvmm/ring.py. Compiled into the native module. Arguments are of register size, which is
// what ctypes passes quickest; the compiler narrows them.

#include <stdint.h>

#define ORDERED(bits)                                                                         \
    uint##bits##_t pyvmm_load_acquire##bits(uintptr_t address)                                \
    {                                                                                         \
        return __atomic_load_n((uint##bits##_t *)address, __ATOMIC_ACQUIRE);                  \
    }                                                                                         \
    void pyvmm_store_release##bits(uintptr_t address, uintptr_t value)                        \
    {                                                                                         \
        __atomic_store_n((uint##bits##_t *)address, (uint##bits##_t)value, __ATOMIC_RELEASE); \
    }                                                                                         \
    uint##bits##_t pyvmm_peer##bits(uintptr_t address)                                        \
    {                                                                                         \
        __atomic_thread_fence(__ATOMIC_SEQ_CST);                                              \
        return __atomic_load_n((uint##bits##_t *)address, __ATOMIC_ACQUIRE);                  \
    }                                                                                         \
    uint16_t pyvmm_rearm##bits(uintptr_t address, uintptr_t value, uintptr_t peer)            \
    {                                                                                         \
        __atomic_store_n((uint##bits##_t *)address, (uint##bits##_t)value, __ATOMIC_RELAXED); \
        __atomic_thread_fence(__ATOMIC_SEQ_CST);                                              \
        return __atomic_load_n((uint16_t *)peer, __ATOMIC_ACQUIRE);                           \
    }

uint32_t pyvmm_set_bits32(uintptr_t address, uintptr_t bits)
{
	return __atomic_fetch_or((uint32_t *)address, (uint32_t)bits, __ATOMIC_ACQ_REL);
}

uint32_t pyvmm_clear_bits32(uintptr_t address, uintptr_t bits)
{
	return __atomic_fetch_and((uint32_t *)address, ~(uint32_t)bits, __ATOMIC_ACQ_REL);
}

ORDERED(16)
ORDERED(32)
