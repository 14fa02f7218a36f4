// SPDX-License-Identifier: Apache-2.0
//
// A virtqueue's buffers taken and given back: PackedQueue and SplitQueue, method by method, for
// pyvmm/devices/virtio/nativequeue.py. Compiled into the native module, for the limited API; Python.h or
// _native_python.h comes first.
//
// A buffer is either taken here as a whole, or left to Python's `pop` with nothing changed. So whatever is rare is
// left to Python: all that the driver may not do, buffers outside of the main bank of RAM, tables that are nowhere.
//
// The rings and the tables are the guest's, which may change them at any time. Each descriptor is copied once, the
// copy is checked, and every walk is bounded. What counts, the positions and the number in flight, is not there.
// Whatever is called may let go of the GIL for a while. The device's lock, which its callers hold, keeps others away
// from the queue; what the functions are bound to keeps the objects.

#include "_native_queue.h"

// Of _native_ring.c.
uint16_t pyvmm_load_acquire16(uintptr_t address);
void pyvmm_store_release16(uintptr_t address, uintptr_t value);
void pyvmm_store_release32(uintptr_t address, uintptr_t value);
uint16_t pyvmm_peer16(uintptr_t address);
uint32_t pyvmm_peer32(uintptr_t address);
uint16_t pyvmm_rearm16(uintptr_t address, uintptr_t value, uintptr_t peer);
uint16_t pyvmm_rearm32(uintptr_t address, uintptr_t value, uintptr_t peer);

enum { EVENT_FLAGS_ENABLE, EVENT_FLAGS_DISABLE, EVENT_FLAGS_DESC }; // of a packed ring
enum { AVAIL_F_NO_INTERRUPT = 1, USED_F_NO_NOTIFY = 1 }; // of a split one
enum { MAX_INDIRECT = 1024 };
static const uint64_t MAX_BYTES = 1ull << 32;

// After QUEUE and POSITION. With these, the number in the name of pyvmm_queue_1 must change.
enum { VIEW = BOUND_QUEUE, READ_ONLY, CHAIN, POP, RESUME_NOTIFY, HEAD, SLOTS, READABLE, WRITABLE };

// What `pop` makes of a buffer: a view of each piece.
struct views {
	struct walk walk;
	PyObject *bound, *readable, *writable;
};

struct position *pyvmm_queue_position(PyObject *bound)
{
	return PyLong_AsVoidPtr(PyTuple_GetItem(bound, POSITION));
}

const struct queue *pyvmm_queue_of(PyObject *bound)
{
	const struct queue *queue = PyLong_AsVoidPtr(PyTuple_GetItem(bound, QUEUE));

	if (queue->open)
		return queue;
	PyErr_SetString(PyExc_ValueError, "the virtqueue is closed");
	return NULL;
}

// A ring is aligned, and most tables are: then each field is read in one piece.
static struct descriptor copied(uint64_t table, uint32_t index)
{
	const char *from = (const char *)(uintptr_t)table + sizeof(struct descriptor) * index;
	struct descriptor copy;

	if (table % 8)
		__builtin_memcpy(&copy, from, sizeof copy);
	else
		__builtin_memcpy(&copy, __builtin_assume_aligned(from, 8), sizeof copy);
	__asm__ volatile("" : : : "memory"); // what was read is not read again
	return copy;
}

// view[start : start + length]
static PyObject *part(PyObject *view, uint64_t start, uint64_t length)
{
	PyObject *first = PyLong_FromUnsignedLongLong(start), *end = PyLong_FromUnsignedLongLong(start + length);
	PyObject *slice = first && end ? PySlice_New(first, end, NULL) : NULL;
	PyObject *found = slice ? PyObject_GetItem(view, slice) : NULL;

	Py_XDECREF(first);
	Py_XDECREF(end);
	Py_XDECREF(slice);
	return found;
}

// Whether all of it is in the main bank; where it begins there.
static int in_main(const struct queue *queue, const struct descriptor *buffer, uint64_t *start)
{
	*start = buffer->address - queue->base;
	return *start <= queue->length && buffer->length <= queue->length - *start;
}

static int add_view(struct walk *walk, uint64_t start, uint32_t length, int writes)
{
	struct views *views = (struct views *)walk;
	PyObject *view = part(PyTuple_GetItem(views->bound, writes ? VIEW : READ_ONLY), start, length);
	int failed;

	if (!view)
		return -1;
	failed = PyList_Append(writes ? views->writable : views->readable, view);
	Py_DECREF(view);
	return failed ? -1 : 1;
}

// The following return 1, or 0 when it is Python's, or -1 with an exception.

static int add_buffer(const struct queue *queue, struct walk *walk, const struct descriptor *buffer, int writes)
{
	uint64_t start;

	if (!buffer->length)
		return walk->takes_empty;
	if (!in_main(queue, buffer, &start) || (!writes && walk->writes))
		return 0;
	walk->bytes += buffer->length;
	walk->writes = writes;
	return walk->add(walk, start, buffer->length, writes);
}

// Where the indirect table that `head` names lies, and how many entries it has.
static int table_of(const struct queue *queue, const struct descriptor *head, uint64_t *table, uint32_t *entries)
{
	uint64_t start;

	*entries = head->length / sizeof *head;
	if (!queue->indirect || !*entries || head->length % sizeof *head)
		return 0;
	if ((*entries > queue->size && *entries > MAX_INDIRECT) || !in_main(queue, head, &start))
		return 0;
	*table = queue->main + start;
	return 1;
}

// An indirect table of a packed ring is a chain to its end: NEXT means nothing in it.
static int take_table(const struct queue *queue, struct walk *walk, const struct descriptor *head)
{
	uint32_t entries, index;
	uint64_t table;
	int done = table_of(queue, head, &table, &entries);

	for (index = 0; done > 0 && index < entries; index++) {
		struct descriptor buffer = copied(table, index);

		if (buffer.packed.flags & DESC_F_INDIRECT)
			return 0;
		done = add_buffer(queue, walk, &buffer, buffer.packed.flags & DESC_F_WRITE);
	}
	return done;
}

static int take_packed(const struct queue *queue, const struct position *position, struct walk *walk)
{
	uint32_t at = position->next;
	struct descriptor buffer;
	int done;

	do {
		buffer = copied(queue->descriptors, at);
		walk->slots++;
		walk->head = buffer.packed.id;
		if (buffer.packed.flags & DESC_F_INDIRECT) {
			if (walk->slots > 1 || buffer.packed.flags & DESC_F_NEXT)
				return 0;
			return take_table(queue, walk, &buffer);
		}
		done = add_buffer(queue, walk, &buffer, buffer.packed.flags & DESC_F_WRITE);
		if (done <= 0)
			return done;
		at = at + 1 < queue->size ? at + 1 : 0;
	} while (buffer.packed.flags & DESC_F_NEXT && walk->slots < queue->size);
	return !(buffer.packed.flags & DESC_F_NEXT);
}

static int take_split(const struct queue *queue, const struct position *position, struct walk *walk)
{
	uint32_t at = position->next & (queue->size - 1), entries = queue->size, count = 0, index;
	uint64_t table = queue->descriptors;
	struct descriptor buffer;
	int done, inner = 0;

	index = walk->head = *(volatile const uint16_t *)(uintptr_t)(queue->driver + 4 + 2 * at);
	walk->slots = 1;
	while (count++ < entries) {
		if (index >= entries)
			return 0;
		buffer = copied(table, index);
		if (buffer.split.flags & DESC_F_INDIRECT) {
			if (inner || buffer.split.flags & DESC_F_NEXT || !table_of(queue, &buffer, &table, &entries))
				return 0;
			inner = 1;
			index = 0;
			count = 0;
			continue;
		}
		done = add_buffer(queue, walk, &buffer, buffer.split.flags & DESC_F_WRITE);
		if (done <= 0 || !(buffer.split.flags & DESC_F_NEXT))
			return done;
		index = buffer.split.next;
	}
	return 0;
}

int pyvmm_queue_walk(const struct queue *queue, const struct position *position, struct walk *walk)
{
	int done = (queue->packed ? take_packed : take_split)(queue, position, walk);

	if (done <= 0)
		return done;
	if (walk->bytes > MAX_BYTES)
		return 0;
	return !queue->packed || position->in_flight + (int64_t)walk->slots <= queue->size;
}

// Whether there is a buffer; -1 when the index makes no sense, which is Python's to say.
static int saw(const struct queue *queue, struct position *position, uint16_t seen)
{
	uint16_t held = position->next - position->used, more = seen - position->next;

	if (more && more + held > queue->size)
		return -1;
	position->seen = seen;
	return more != 0;
}

static uintptr_t flags_at(const struct queue *queue, uint32_t at)
{
	return queue->descriptors + sizeof(struct descriptor) * at + offsetof(struct descriptor, packed.flags);
}

static int is_available(const struct position *position, uint16_t flags)
{
	return (flags & (DESC_F_AVAIL | DESC_F_USED)) == (position->wrap ? DESC_F_AVAIL : DESC_F_USED);
}

// Pairs with the driver's barrier before it makes a buffer available.
int pyvmm_queue_look(const struct queue *queue, struct position *position)
{
	if (queue->packed)
		return is_available(position, pyvmm_load_acquire16(flags_at(queue, position->next)));
	if (position->next != position->seen)
		return 1;
	return saw(queue, position, pyvmm_load_acquire16(queue->driver + 2));
}

static void advance(const struct queue *queue, uint32_t *at, uint32_t *wrap, uint32_t slots)
{
	*at += slots;
	if (*at >= queue->size) {
		*at -= queue->size;
		*wrap ^= 1;
	}
}

void pyvmm_queue_step(const struct queue *queue, struct position *position, uint32_t slots)
{
	if (queue->packed) {
		position->in_flight += slots;
		advance(queue, &position->next, &position->wrap, slots);
	} else {
		position->next = (uint16_t)(position->next + 1);
	}
}

static PyObject *make_chain(const struct queue *queue, struct position *position, const struct views *views)
{
	const struct walk *walk = &views->walk;
	PyObject *chain = PyObject_CallFunction(PyTuple_GetItem(views->bound, CHAIN), "IOOI", walk->head,
						views->readable, views->writable, walk->slots);

	if (chain)
		pyvmm_queue_step(queue, position, walk->slots);
	return chain;
}

static PyObject *pop(PyObject *bound, PyObject *Py_UNUSED(nothing))
{
	const struct queue *queue = pyvmm_queue_of(bound);
	struct position *position = pyvmm_queue_position(bound);
	struct views views = { .walk = { .add = add_view, .takes_empty = 1 }, .bound = bound };
	PyObject *chain = NULL;
	int done;

	if (!queue)
		return NULL;
	done = pyvmm_queue_look(queue, position);
	if (!done)
		return Py_BuildValue("");
	if (done < 0)
		return PyObject_CallNoArgs(PyTuple_GetItem(bound, POP));
	views.readable = PyList_New(0);
	views.writable = PyList_New(0);
	if (views.readable && views.writable) {
		done = pyvmm_queue_walk(queue, position, &views.walk);
		if (done > 0)
			chain = make_chain(queue, position, &views);
		else if (!done)
			chain = PyObject_CallNoArgs(PyTuple_GetItem(bound, POP));
	}
	Py_XDECREF(views.readable);
	Py_XDECREF(views.writable);
	return chain;
}

// Returns 0, or -1 with an exception.
static int number_of(PyObject *value, uint32_t *number)
{
	unsigned long found = value ? PyLong_AsUnsignedLong(value) : 0;

	if (!value || PyErr_Occurred())
		return -1;
	*number = found;
	if (*number == found)
		return 0;
	PyErr_SetString(PyExc_OverflowError, "more than 32 bits");
	return -1;
}

// Likewise.
static int attribute_of(PyObject *object, PyObject *name, uint32_t *number)
{
	PyObject *value = PyObject_GetAttr(object, name);
	int failed = number_of(value, number);

	Py_XDECREF(value);
	return failed;
}

// Likewise.
static int clear(PyObject *object, PyObject *attribute)
{
	PyObject *list = PyObject_GetAttr(object, attribute);
	int failed = !list || PyList_SetSlice(list, 0, PyList_Size(list), NULL);

	Py_XDECREF(list);
	return failed ? -1 : 0;
}

uint16_t pyvmm_queue_use(const struct queue *queue, struct position *position, uint32_t head, uint32_t slots,
			 uint32_t written)
{
	uint16_t flags = (position->used_wrap ? DESC_F_AVAIL | DESC_F_USED : 0) | (written ? DESC_F_WRITE : 0);

	if (queue->packed) {
		uint16_t *ident = (uint16_t *)flags_at(queue, position->used) - 1;
		uint32_t *length = (uint32_t *)ident - 1;

		*length = written;
		*ident = head;
		advance(queue, &position->used, &position->used_wrap, slots);
		position->in_flight -= slots;
		position->unsignalled += slots;
	} else {
		uint32_t *element =
			(uint32_t *)(uintptr_t)(queue->device + 4 + 8 * (position->used & (queue->size - 1)));

		element[0] = head;
		element[1] = written;
		position->used = (uint16_t)(position->used + 1);
	}
	return flags;
}

void pyvmm_queue_publish(const struct queue *queue, const struct position *position, uint32_t at, uint16_t flags)
{
	if (queue->packed)
		pyvmm_store_release16(flags_at(queue, at), flags);
	else
		pyvmm_store_release16(queue->device + 2, position->used);
}

// pyvmm_queue_use for a Chain. Returns 0, or -1 with an exception.
static int use_chain(PyObject *bound, const struct queue *queue, struct position *position, PyObject *chain,
		     PyObject *written, uint16_t *flags)
{
	uint32_t bytes, head, slots;

	if (number_of(written, &bytes) || attribute_of(chain, PyTuple_GetItem(bound, HEAD), &head) ||
	    attribute_of(chain, PyTuple_GetItem(bound, SLOTS), &slots))
		return -1;
	*flags = pyvmm_queue_use(queue, position, head, slots, bytes);
	return clear(chain, PyTuple_GetItem(bound, READABLE)) || clear(chain, PyTuple_GetItem(bound, WRITABLE));
}

static PyObject *complete(PyObject *bound, PyObject *arguments)
{
	const struct queue *queue = pyvmm_queue_of(bound);
	struct position *position = pyvmm_queue_position(bound);
	uint32_t at = position->used;
	PyObject *chain, *written;
	uint16_t flags;

	if (!queue || !PyArg_ParseTuple(arguments, "OO", &chain, &written) ||
	    use_chain(bound, queue, position, chain, written, &flags))
		return NULL;
	pyvmm_queue_publish(queue, position, at, flags);
	return Py_BuildValue("");
}

// The driver looks at a packed ring in order, so the flags of the first one are what tells it of all.
static PyObject *complete_all(PyObject *bound, PyObject *completions)
{
	const struct queue *queue = pyvmm_queue_of(bound);
	struct position *position = pyvmm_queue_position(bound);
	uint32_t first = position->used;
	uint16_t flags, first_flags = 0;
	Py_ssize_t count, index;

	if (!queue)
		return NULL;
	count = PyList_Size(completions);
	if (count < 0)
		return NULL;
	for (index = 0; index < count; index++) {
		PyObject *completion = PyList_GetItem(completions, index), *chain, *written;
		uint32_t at = position->used;

		if (!completion || !PyArg_ParseTuple(completion, "OO", &chain, &written) ||
		    use_chain(bound, queue, position, chain, written, &flags))
			return NULL;
		if (!index)
			first_flags = flags;
		else if (queue->packed)
			pyvmm_queue_publish(queue, position, at, flags);
	}
	if (count || !queue->packed)
		pyvmm_queue_publish(queue, position, first, first_flags);
	return Py_BuildValue("");
}

// Whether going from `before` to `now` passed `event`: free-running 16-bit counters (2.7.10).
static int wants_event(uint16_t event, uint16_t now, uint16_t before)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static int packed_wants_interrupt(const struct queue *queue, struct position *position)
{
	uint32_t count = position->unsignalled, event, mode, at;

	if (!count)
		return 0;
	position->unsignalled = 0;
	event = pyvmm_peer32(queue->driver);
	mode = event >> 16;
	if (!queue->event_idx || mode != EVENT_FLAGS_DESC)
		return mode != EVENT_FLAGS_DISABLE;
	at = event & 0x7FFF;
	if ((event >> 15 & 1) != position->used_wrap) // in the lap before
		at -= queue->size;
	return wants_event(at, position->used, position->used - (count < queue->size ? count : queue->size));
}

static int split_wants_interrupt(const struct queue *queue, struct position *position)
{
	uint16_t before = position->signalled, word;

	if (before == position->used)
		return 0;
	position->signalled = position->used;
	word = pyvmm_peer16(queue->event_idx ? queue->driver + 4 + 2 * queue->size : queue->driver);
	return queue->event_idx ? wants_event(word, position->used, before) : !(word & AVAIL_F_NO_INTERRUPT);
}

static PyObject *should_interrupt(PyObject *bound, PyObject *Py_UNUSED(nothing))
{
	const struct queue *queue = pyvmm_queue_of(bound);

	if (!queue)
		return NULL;
	return PyBool_FromLong((queue->packed ? packed_wants_interrupt : split_wants_interrupt)(queue,
											       pyvmm_queue_position(bound)));
}

static void suppress_notifications(const struct queue *queue)
{
	if (queue->packed)
		pyvmm_store_release32(queue->device, EVENT_FLAGS_DISABLE << 16);
	else if (!queue->event_idx)
		pyvmm_store_release16(queue->device, USED_F_NO_NOTIFY);
}

static PyObject *pause_notify(PyObject *bound, PyObject *Py_UNUSED(nothing))
{
	const struct queue *queue = pyvmm_queue_of(bound);

	if (!queue)
		return NULL;
	suppress_notifications(queue);
	return Py_BuildValue("");
}

// Whether there is a buffer already, without having asked. Unordered: pop looks again.
static int is_known(const struct queue *queue, const struct position *position)
{
	if (queue->packed)
		return is_available(position, *(volatile const uint16_t *)flags_at(queue, position->next));
	return position->next != position->seen;
}

// Like `saw`, after having asked to hear of the next buffer.
static int enable_notifications(const struct queue *queue, struct position *position)
{
	if (queue->packed) {
		uint32_t word = position->next | position->wrap << 15 | EVENT_FLAGS_DESC << 16;

		if (!queue->event_idx)
			word = EVENT_FLAGS_ENABLE << 16;
		return is_available(position, pyvmm_rearm32(queue->device, word, flags_at(queue, position->next)));
	}
	if (queue->event_idx)
		return saw(queue, position, pyvmm_rearm16(queue->device + 4 + 8 * queue->size, position->next,
							  queue->driver + 2));
	return saw(queue, position, pyvmm_rearm16(queue->device, 0, queue->driver + 2));
}

static PyObject *resume_notify(PyObject *bound, PyObject *Py_UNUSED(nothing))
{
	const struct queue *queue = pyvmm_queue_of(bound);
	int found;

	if (!queue)
		return NULL;
	if (is_known(queue, pyvmm_queue_position(bound)))
		return PyBool_FromLong(1);
	found = enable_notifications(queue, pyvmm_queue_position(bound));
	if (found < 0)
		return PyObject_CallNoArgs(PyTuple_GetItem(bound, RESUME_NOTIFY));
	if (found && !queue->event_idx)
		suppress_notifications(queue);
	return PyBool_FromLong(found);
}

PyObject *pyvmm_bound_functions(PyObject *bound, PyMethodDef *methods, Py_ssize_t count)
{
	PyObject *functions = PyTuple_New(count);
	Py_ssize_t index;

	for (index = 0; functions && index < count; index++) {
		PyObject *function = PyCFunction_NewEx(&methods[index], bound, NULL);

		if (!function || PyTuple_SetItem(functions, index, function)) {
			Py_DECREF(functions);
			return NULL;
		}
	}
	return functions;
}

// Called with the GIL (PyDLL).
PyObject *pyvmm_queue_1(PyObject *bound)
{
	static PyMethodDef methods[] = {
		{ "pop", pop, METH_NOARGS, NULL },
		{ "complete", complete, METH_VARARGS, NULL },
		{ "complete_all", complete_all, METH_O, NULL },
		{ "should_interrupt", should_interrupt, METH_NOARGS, NULL },
		{ "pause_notify", pause_notify, METH_NOARGS, NULL },
		{ "resume_notify", resume_notify, METH_NOARGS, NULL },
	};

	return pyvmm_bound_functions(bound, methods, sizeof methods / sizeof *methods);
}
