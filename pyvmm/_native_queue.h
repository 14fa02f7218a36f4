// SPDX-License-Identifier: Apache-2.0
//
// What the module's C has in common that works on virtqueues: where a queue is, where the device stands in it, and
// the walk over a buffer's descriptors. The functions are _native_queue.c's. None of them needs the GIL, but for those
// that take apart what a function is bound to, and what a walk is told to call.

#ifndef PYVMM_NATIVE_QUEUE_H
#define PYVMM_NATIVE_QUEUE_H

#include <stddef.h>
#include <stdint.h>

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4, DESC_F_AVAIL = 1 << 7, DESC_F_USED = 1 << 15 };

struct descriptor {
	uint64_t address;
	uint32_t length;
	union {
		struct {
			uint16_t id, flags;
		} packed;
		struct {
			uint16_t flags, next;
		} split;
	};
};
_Static_assert(sizeof(struct descriptor) == 16, "virtio 1.2, 2.7.5 and 2.8.13");

// The following two are also in Python, in memory that the functions keep. With them the numbers in the names of
// pyvmm_queue_1 and pyvmm_frames_1 must change.

// `_Shared` of nativequeue.py.
struct queue {
	uint64_t descriptors, driver, device; // host addresses of the areas
	uint64_t base, length, main; // of the main bank of RAM: guest address, bytes, host address
	uint32_t size;
	uint8_t packed, event_idx, indirect, open;
};
_Static_assert(sizeof(struct queue) == 56, "_Shared");

// `Position` of position.py, which the twin in Python goes on from.
struct position {
	uint32_t next, used;
	uint32_t wrap, used_wrap; // packed
	uint32_t seen; // split
	int32_t in_flight; // packed
	uint32_t signalled; // split: the used index of the last should_interrupt
	uint32_t unsignalled; // packed: slots given back since then
};
_Static_assert(sizeof(struct position) == 32, "Position");

// The first two of what functions for a queue are bound to, and how many that are.
enum { QUEUE, POSITION, BOUND_QUEUE };

// A walk over the descriptors of one buffer, and what is known of the buffer afterwards.
struct walk {
	// Called for each piece, which begins at `start` in the main bank; `writes` is DESC_F_WRITE or 0. Returns 1, or 0
	// when the buffer is Python's, or -1 with an exception.
	int (*add)(struct walk *walk, uint64_t start, uint32_t length, int writes);
	int takes_empty; // pieces without bytes are passed over; else the buffer is Python's
	int writes; // the last piece was writable
	uint64_t bytes;
	uint32_t head, slots;
};

#pragma GCC visibility push(hidden)

struct position *pyvmm_queue_position(PyObject *bound);

// NULL with an exception when the queue is closed: its memory may be gone.
const struct queue *pyvmm_queue_of(PyObject *bound);

// A tuple of functions, which keep what they are bound to.
PyObject *pyvmm_bound_functions(PyObject *bound, PyMethodDef *methods, Py_ssize_t count);

// Whether there is a buffer; -1 when the ring makes no sense, which is Python's to say.
int pyvmm_queue_look(const struct queue *queue, struct position *position);

// Walks over the buffer that is there. Returns what `add` does; nothing of the queue has changed.
int pyvmm_queue_walk(const struct queue *queue, const struct position *position, struct walk *walk);

// Goes on to the next buffer: this one was taken.
void pyvmm_queue_step(const struct queue *queue, struct position *position, uint32_t slots);

// Writes a used descriptor but for its flags, which it returns, or a used element. The driver does not look at it yet.
uint16_t pyvmm_queue_use(const struct queue *queue, struct position *position, uint32_t head, uint32_t slots,
			 uint32_t written);

// Shows the driver what was used: of a packed ring the descriptor at `at`.
void pyvmm_queue_publish(const struct queue *queue, const struct position *position, uint32_t at, uint16_t flags);

#pragma GCC visibility pop

#endif
