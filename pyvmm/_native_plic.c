// SPDX-License-Identifier: Apache-2.0
//
// The core of the PLIC: PlicCore of pyvmm/devices/pliccore.py, method by method, for pyvmm/devices/nativeplic.py.
// Compiled into the native module. No object of Python's is used here, and the GIL is not needed.
//
// That is what it is for: the run loop answers claims and completions itself (pyvmm_plic_answer_1) while other threads
// have the GIL. So the device's lock, which is Python's, guards nothing here. The core has a lock of its own, which
// every function takes once and holds to its end, also for the calls of KVM_INTERRUPT: harts see changes in the order
// in which they happened. Whoever waits for it may have the GIL, hence nothing that is called here may need that.
//
// The lock is a mutex, which makes waiting threads sleep. One that spins would never be given back where a thread that
// waits has a realtime priority, and one that was preempted has the lock. All zero is an unlocked one in glibc and
// in musl.
//
// The guest chooses contexts, numbers and values. Python checks contexts, by the register map, and the sources of
// wires and priorities; the rest is checked here before it becomes a bit.

#ifdef Py_PYTHON_H // else _native_python.h has what is used of it
#include <pthread.h>
#endif
#include <stddef.h>
#include <stdint.h>

enum { PLIC_WORDS = 16, PLIC_PRIORITIES = 8, PLIC_CONTEXT_STRIDE = 0x1000, PLIC_ENABLE_STRIDE = 0x80 };

// What is used of <linux/kvm.h>.
static const unsigned long KVM_INTERRUPT = 0x4004AE86;
static const uint32_t KVM_INTERRUPT_SET = -1, KVM_INTERRUPT_UNSET = -2;

typedef int ioctl_function(int fd, unsigned long request, ...);

// Bit i of every bitmap is source i.
typedef uint64_t plic_bits[PLIC_WORDS];

// The following are also in nativeplic.py, `_Context` and `_Shared`. With them, the number in the name of
// pyvmm_plic_answer_1 must change: then a module that was built before is not taken for one that fits.

struct plic_context {
	plic_bits enabled;
	uint32_t threshold;
	uint32_t asserted;
	int32_t fd; // of the vCPU; -1 once that may be closed
};
_Static_assert(sizeof(struct plic_context) == 144, "_Context");

struct plic {
	union {
		pthread_mutex_t lock;
		uint64_t room[8];
	};
	ioctl_function *ioctl;
	struct plic_context *contexts;
	uint32_t nr_contexts;
	uint32_t sources;
	uint32_t words; // of 64 bits that the sources take
	int32_t error; // errno of a KVM_INTERRUPT that failed, until somebody was told
	plic_bits edge, level, pending, claimed, latched;
	plic_bits above[PLIC_PRIORITIES]; // above[t]: sources whose priority is above t
};
_Static_assert(offsetof(struct plic, ioctl) == 64 && sizeof(struct plic) == 96 + 13 * sizeof(plic_bits), "_Shared");

static uint64_t plic_bit(uint32_t number)
{
	return 1ull << number % 64;
}

// The sources that there are, in a word of 64.
static uint64_t plic_valid(const struct plic *plic, uint32_t word)
{
	uint64_t valid = word + 1 < plic->words ? UINT64_MAX : UINT64_MAX >> (63 - plic->sources % 64);

	return word ? valid : valid & ~1ull;
}

static int plic_output(const struct plic *plic, const struct plic_context *context)
{
	const uint64_t *above = plic->above[context->threshold];

	for (uint32_t word = 0; word < plic->words; word++)
		if (plic->pending[word] & context->enabled[word] & above[word])
			return 1;
	return 0;
}

// Bring every context's output in line with its state.
static void plic_notify(struct plic *plic)
{
	for (uint32_t i = 0; i < plic->nr_contexts; i++) {
		struct plic_context *context = &plic->contexts[i];
		uint32_t asserted = plic_output(plic, context);

		if (asserted == context->asserted)
			continue;
		context->asserted = asserted;
		if (plic->ioctl(context->fd, KVM_INTERRUPT, asserted ? &KVM_INTERRUPT_SET : &KVM_INTERRUPT_UNSET) < 0)
			plic->error = errno;
	}
}

// The gateway of a source saw its wire rise.
static void plic_request(struct plic *plic, uint32_t word, uint64_t bit)
{
	if (plic->claimed[word] & bit) {
		plic->latched[word] |= bit & plic->edge[word];
	} else if (!(plic->pending[word] & bit)) {
		plic->pending[word] |= bit;
		plic_notify(plic);
	}
}

// The source of highest priority, the lowest of equals; 0 when all have priority 0.
static uint32_t plic_best(const struct plic *plic, const struct plic_context *context)
{
	for (int threshold = PLIC_PRIORITIES - 1; threshold >= 0; threshold--) {
		for (uint32_t word = 0; word < plic->words; word++) {
			uint64_t found = plic->pending[word] & context->enabled[word] & plic->above[threshold][word];

			if (found)
				return 64 * word + __builtin_ctzll(found);
		}
	}
	return 0;
}

static uint32_t plic_claim(struct plic *plic, const struct plic_context *context)
{
	uint32_t number = plic_best(plic, context);

	if (number) {
		plic->pending[number / 64] &= ~plic_bit(number);
		plic->claimed[number / 64] |= plic_bit(number);
		plic_notify(plic);
	}
	return number;
}

static void plic_complete(struct plic *plic, const struct plic_context *context, uint32_t number)
{
	uint32_t word = number / 64;
	uint64_t bit = plic_bit(number);

	if (number > plic->sources || !(bit & context->enabled[word] & plic->claimed[word]))
		return;
	plic->claimed[word] &= ~bit;
	if (bit & (plic->latched[word] | (plic->level[word] & ~plic->edge[word]))) {
		plic->latched[word] &= ~bit;
		plic_request(plic, word, bit);
	}
}

// Ends what took the lock. Returns the errno that there is to tell of, once, or 0.
static int plic_unlock(struct plic *plic)
{
	int error = plic->error;

	plic->error = 0;
	pthread_mutex_unlock(&plic->lock);
	return error;
}

// For the run loop, where that has a `direct_function`: 32-bit accesses to claim registers, the first of which is at
// offset 0. Returns 1, or 0 when it is Python's and nothing changed: whatever is odd, and the access after a
// KVM_INTERRUPT that failed, for Python to raise that.
int pyvmm_plic_answer_1(void *core, uint64_t offset, uint32_t length, int is_write, uint64_t *data)
{
	struct plic *plic = core;
	const struct plic_context *context;
	int answered;

	if (length != sizeof(uint32_t) || offset % PLIC_CONTEXT_STRIDE ||
	    offset / PLIC_CONTEXT_STRIDE >= plic->nr_contexts)
		return 0;
	context = &plic->contexts[offset / PLIC_CONTEXT_STRIDE];
	pthread_mutex_lock(&plic->lock);
	answered = !plic->error;
	if (answered && is_write)
		plic_complete(plic, context, (uint32_t)*data);
	else if (answered)
		*data = plic_claim(plic, context);
	pthread_mutex_unlock(&plic->lock);
	return answered;
}

// The methods of PlicCore, which Python calls. Those that may change an output return what plic_unlock does.

int pyvmm_plic_drive(struct plic *plic, uint32_t number, int level)
{
	uint32_t word = number / 64;
	uint64_t bit = plic_bit(number);

	pthread_mutex_lock(&plic->lock);
	if (!(plic->level[word] & bit) == !!level) {
		plic->level[word] ^= bit;
		if (level)
			plic_request(plic, word, bit);
	}
	return plic_unlock(plic);
}

int pyvmm_plic_pulse(struct plic *plic, uint32_t number)
{
	uint32_t word = number / 64;
	uint64_t bit = plic_bit(number);
	int rises;

	pthread_mutex_lock(&plic->lock);
	rises = !(plic->level[word] & bit);
	plic->level[word] &= ~bit;
	if (rises)
		plic_request(plic, word, bit);
	return plic_unlock(plic);
}

// Returns the number, or the errno made negative.
int pyvmm_plic_claim(struct plic *plic, uint32_t context)
{
	uint32_t number;
	int error;

	pthread_mutex_lock(&plic->lock);
	number = plic_claim(plic, &plic->contexts[context]);
	error = plic_unlock(plic);
	return error ? -error : (int)number;
}

int pyvmm_plic_complete(struct plic *plic, uint32_t context, uint32_t number)
{
	pthread_mutex_lock(&plic->lock);
	plic_complete(plic, &plic->contexts[context], number);
	return plic_unlock(plic);
}

static void plic_index(struct plic *plic, uint32_t number, uint32_t priority)
{
	for (uint32_t threshold = 0; threshold < PLIC_PRIORITIES; threshold++) {
		uint64_t *above = &plic->above[threshold][number / 64];

		*above = priority > threshold ? *above | plic_bit(number) : *above & ~plic_bit(number);
	}
}

int pyvmm_plic_set_priority(struct plic *plic, uint32_t number, uint32_t priority)
{
	pthread_mutex_lock(&plic->lock);
	plic_index(plic, number, priority);
	plic_notify(plic);
	return plic_unlock(plic);
}

int pyvmm_plic_set_threshold(struct plic *plic, uint32_t context, uint32_t threshold)
{
	pthread_mutex_lock(&plic->lock);
	plic->contexts[context].threshold = threshold % PLIC_PRIORITIES;
	plic_notify(plic);
	return plic_unlock(plic);
}

// Words of 32 bits, as registers have them.
int pyvmm_plic_set_enabled(struct plic *plic, uint32_t context, uint32_t word, uint32_t value)
{
	uint64_t *enabled = &plic->contexts[context].enabled[word / 2];
	uint32_t shift = word % 2 * 32;

	pthread_mutex_lock(&plic->lock);
	*enabled &= ~((uint64_t)UINT32_MAX << shift);
	if (word / 2 < plic->words)
		*enabled |= (uint64_t)value << shift & plic_valid(plic, word / 2);
	plic_notify(plic);
	return plic_unlock(plic);
}

uint32_t pyvmm_plic_enabled(struct plic *plic, uint32_t context, uint32_t word)
{
	uint64_t enabled;

	pthread_mutex_lock(&plic->lock);
	enabled = plic->contexts[context].enabled[word / 2];
	pthread_mutex_unlock(&plic->lock);
	return enabled >> word % 2 * 32;
}

// Another `direct_function`, for loads of enable bits: Linux looks at one before each completion.
int pyvmm_plic_answer_enable(void *core, uint64_t offset, uint32_t length, int is_write, uint64_t *data)
{
	struct plic *plic = core;
	uint64_t context = offset / PLIC_ENABLE_STRIDE;

	if (length != sizeof(uint32_t) || offset % sizeof(uint32_t) || is_write || context >= plic->nr_contexts)
		return 0;
	*data = pyvmm_plic_enabled(plic, context, offset % PLIC_ENABLE_STRIDE / sizeof(uint32_t));
	return 1;
}

uint32_t pyvmm_plic_pending(struct plic *plic, uint32_t word)
{
	uint64_t pending;

	pthread_mutex_lock(&plic->lock);
	pending = plic->pending[word / 2];
	pthread_mutex_unlock(&plic->lock);
	return pending >> word % 2 * 32;
}

void pyvmm_plic_set_edge(struct plic *plic, uint32_t number)
{
	pthread_mutex_lock(&plic->lock);
	plic->edge[number / 64] |= plic_bit(number);
	pthread_mutex_unlock(&plic->lock);
}

int pyvmm_plic_reset(struct plic *plic)
{
	pthread_mutex_lock(&plic->lock);
	for (uint32_t word = 0; word < plic->words; word++) {
		plic->pending[word] = plic->level[word] & ~plic->edge[word];
		plic->claimed[word] = plic->latched[word] = 0;
		for (uint32_t threshold = 0; threshold < PLIC_PRIORITIES; threshold++)
			plic->above[threshold][word] = 0;
		for (uint32_t i = 0; i < plic->nr_contexts; i++)
			plic->contexts[i].enabled[word] = 0;
	}
	for (uint32_t i = 0; i < plic->nr_contexts; i++)
		plic->contexts[i].threshold = 0;
	plic_notify(plic);
	return plic_unlock(plic);
}

// What is to be saved, into a core of the same make that nobody uses.
void pyvmm_plic_save(struct plic *plic, struct plic *into)
{
	pthread_mutex_lock(&plic->lock);
	for (uint32_t word = 0; word < plic->words; word++) {
		into->level[word] = plic->level[word];
		into->pending[word] = plic->pending[word];
		into->claimed[word] = plic->claimed[word];
		into->latched[word] = plic->latched[word];
		for (uint32_t i = 0; i < plic->nr_contexts; i++)
			into->contexts[i].enabled[word] = plic->contexts[i].enabled[word];
	}
	pthread_mutex_unlock(&plic->lock);
}

// The other way round, and priorities (one for every number) and thresholds.
int pyvmm_plic_load(struct plic *plic, const struct plic *from, const uint8_t *priorities)
{
	pthread_mutex_lock(&plic->lock);
	for (uint32_t word = 0; word < plic->words; word++) {
		uint64_t valid = plic_valid(plic, word);

		plic->level[word] = from->level[word] & valid;
		plic->pending[word] = from->pending[word] & valid;
		plic->claimed[word] = from->claimed[word] & valid;
		plic->latched[word] = from->latched[word] & valid;
		for (uint32_t i = 0; i < plic->nr_contexts; i++)
			plic->contexts[i].enabled[word] = from->contexts[i].enabled[word] & valid;
	}
	for (uint32_t i = 0; i < plic->nr_contexts; i++)
		plic->contexts[i].threshold = from->contexts[i].threshold % PLIC_PRIORITIES;
	for (uint32_t number = 1; number <= plic->sources; number++)
		plic_index(plic, number, priorities[number]);
	plic_notify(plic);
	return plic_unlock(plic);
}

// From here on the vCPUs' descriptors may belong to something else.
void pyvmm_plic_close(struct plic *plic)
{
	pthread_mutex_lock(&plic->lock);
	for (uint32_t i = 0; i < plic->nr_contexts; i++)
		plic->contexts[i].fd = -1;
	pthread_mutex_unlock(&plic->lock);
}
