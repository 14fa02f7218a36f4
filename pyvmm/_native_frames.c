// SPDX-License-Identifier: Apache-2.0
//
// Frames of virtio-net moved between a virtqueue and a descriptor that takes and gives one a call, as a tap does: Pair,
// for pyvmm/devices/net/pair.py. Compiled into the native module, for the limited API; Python.h or _native_python.h
// comes first.
//
// A frame is either moved here as a whole, or left to Python with its buffer untouched. No buffer is held between two
// frames: where the next one may go is looked up anew, which costs less than to hand buffers over. What was not filled
// was never taken.
//
// The GIL is given up for the whole call: nothing here is an object, and the device's lock, which its callers hold,
// keeps others away from the queue. The guest may change rings and tables meanwhile. They are copied into addresses that
// were checked (_native_queue.c), and nothing of them is read again after the system call.

#ifdef Py_LIMITED_API // else _native_python.h has what is used of it
#include <errno.h>
#include <sys/uio.h>
#endif

#include "_native_queue.h"

enum { MOST_PIECES = 1023 }; // of IOV_MAX, 1024; one is `spare`
enum { HEADER_SIZE = 12, NUM_BUFFERS_AT = 10 }; // virtio 1.2, 5.1.6
enum { SMALLEST_FRAME = HEADER_SIZE + 14, LARGEST_FRAME = SMALLEST_FRAME + 4 + 65535 };

// Why no more frames were moved; pair.py has the same. Below zero: an errno.
enum { ENOUGH, NOT_NOW, NO_BUFFER, PYTHONS };

// A walk that collects what readv or writev take.
struct pieces {
	struct walk walk;
	uint64_t main;
	int writes, count; // writes: what each of them has of DESC_F_WRITE
	struct iovec vector[MOST_PIECES + 1];
};

// What has to be known of a buffer to give it back.
struct room {
	uint64_t bytes;
	uint32_t head, slots;
};

// What became of the frames of one call.
struct moved {
	int ending;
	uint32_t frames, dropped;
	uint64_t bytes;
	uint64_t frame, rest; // of one that was received and is Python's to deliver: its size, and what is in `spare`
};

static int add_piece(struct walk *walk, uint64_t start, uint32_t length, int writes)
{
	struct pieces *pieces = (struct pieces *)walk;

	if (writes != pieces->writes || pieces->count == MOST_PIECES)
		return 0;
	pieces->vector[pieces->count].iov_base = (void *)(uintptr_t)(pieces->main + start);
	pieces->vector[pieces->count++].iov_len = length;
	return 1;
}

// Like pyvmm_queue_look, for the pieces of the next buffer, which come behind those there are. -1: it is Python's.
static int next_buffer(const struct queue *queue, struct position *position, struct pieces *pieces)
{
	int found = pyvmm_queue_look(queue, position), before = pieces->count;

	if (found <= 0)
		return found;
	pieces->walk = (struct walk){ .add = add_piece };
	if (pyvmm_queue_walk(queue, position, &pieces->walk) > 0)
		return 1;
	pieces->count = before;
	return -1;
}

// Finds where the next frame may go, and takes none of it; `ahead` is the position behind it. With mergeable buffers that
// is room for the largest one, or as much as there is before something unusual: a longer frame's rest goes to `spare`.
// Returns how many buffers, or like next_buffer.
static int find_rooms(const struct queue *queue, struct position *ahead, struct pieces *pieces, struct room *rooms,
		      int mergeable)
{
	int count = 0, found;
	uint64_t bytes = 0;

	pieces->count = 0;
	do {
		found = next_buffer(queue, ahead, pieces);
		if (found <= 0)
			return count ? count : found;
		bytes += pieces->walk.bytes;
		rooms[count++] = (struct room){ pieces->walk.bytes, pieces->walk.head, pieces->walk.slots };
		pyvmm_queue_step(queue, ahead, pieces->walk.slots);
	} while (mergeable && bytes < LARGEST_FRAME);
	return count;
}

// In the header, wherever the driver cut it.
static void write_num_buffers(const struct pieces *pieces, uint16_t number)
{
	const struct iovec *piece = pieces->vector;
	size_t at = NUM_BUFFERS_AT;
	int index;

	for (index = 0; index < 2; index++, at++) {
		for (; at >= piece->iov_len; piece++)
			at -= piece->iov_len;
		((uint8_t *)piece->iov_base)[at] = number >> 8 * index;
	}
}

// Gives back the buffers that a frame of `size` bytes fills, all at once: see complete_all. The others stay available.
static void deliver(const struct queue *queue, struct position *position, const struct pieces *pieces,
		    const struct room *rooms, uint64_t size)
{
	uint32_t first = position->used;
	uint16_t flags, first_flags = 0;
	uint64_t left = size;
	int index, count = 0;

	do {
		left -= left < rooms[count].bytes ? left : rooms[count].bytes;
		count++;
	} while (left);
	write_num_buffers(pieces, count);
	for (index = 0, left = size; index < count; index++) {
		uint32_t at = position->used, written = left < rooms[index].bytes ? left : rooms[index].bytes;

		pyvmm_queue_step(queue, position, rooms[index].slots);
		flags = pyvmm_queue_use(queue, position, rooms[index].head, rooms[index].slots, written);
		left -= written;
		if (!index)
			first_flags = flags;
		else if (queue->packed)
			pyvmm_queue_publish(queue, position, at, flags);
	}
	pyvmm_queue_publish(queue, position, first, first_flags);
}

// What a failed readv or writev is to the caller. EINTR: descriptors that do not wait are not interrupted, and are
// ready when asked again.
static int failure(void)
{
	return errno == EAGAIN || errno == EINTR ? NOT_NOW : -errno;
}

static void receive_frames(const struct queue *queue, struct position *position, int fd, struct iovec spare,
			   int mergeable, uint32_t most, uint64_t most_bytes, struct moved *moved)
{
	struct pieces pieces;
	struct room rooms[MOST_PIECES];

	pieces.main = queue->main;
	pieces.writes = DESC_F_WRITE;
	while (moved->frames < most && moved->bytes < most_bytes) {
		struct position ahead = *position;
		int count = find_rooms(queue, &ahead, &pieces, rooms, mergeable), index;
		uint64_t room = 0;
		Py_ssize_t size;

		if (count <= 0) {
			moved->ending = count ? PYTHONS : NO_BUFFER;
			return;
		}
		for (index = 0; index < count; index++)
			room += rooms[index].bytes;
		pieces.vector[pieces.count] = spare;
		size = readv(fd, pieces.vector, pieces.count + 1);
		if (size < 0) {
			moved->ending = failure();
			return;
		}
		if (size < SMALLEST_FRAME || ((uint64_t)size > room && !mergeable)) {
			moved->dropped++;
		} else if ((uint64_t)size > room) {
			moved->ending = PYTHONS;
			moved->frame = size;
			moved->rest = size - room;
			return;
		} else {
			position->seen = ahead.seen;
			deliver(queue, position, &pieces, rooms, size);
		}
		moved->frames++;
		moved->bytes += size;
	}
}

// The port's end, of which Python would make a ConnectionError.
static int is_lost(int number)
{
	return number == EPIPE || number == ESHUTDOWN || number == ECONNABORTED || number == ECONNREFUSED ||
	       number == ECONNRESET;
}

static void send_frames(const struct queue *queue, struct position *position, int fd, uint32_t most,
			struct moved *moved)
{
	struct pieces pieces;

	pieces.main = queue->main;
	pieces.writes = 0;
	while (moved->frames < most) {
		struct position ahead = *position;
		uint32_t at = position->used;
		uint16_t flags;
		int found;

		pieces.count = 0;
		found = next_buffer(queue, &ahead, &pieces);
		if (found <= 0 || pieces.walk.bytes < SMALLEST_FRAME || pieces.walk.bytes > LARGEST_FRAME) {
			moved->ending = found ? PYTHONS : NO_BUFFER;
			return;
		}
		if (writev(fd, pieces.vector, pieces.count) < 0) {
			int ending = failure();

			if (ending == NOT_NOW || is_lost(-ending))
				moved->ending = ending;
			else
				moved->dropped++;
			if (ending == NOT_NOW)
				return;
		}
		position->seen = ahead.seen;
		pyvmm_queue_step(queue, position, pieces.walk.slots);
		flags = pyvmm_queue_use(queue, position, pieces.walk.head, pieces.walk.slots, 0);
		pyvmm_queue_publish(queue, position, at, flags);
		moved->frames++;
		if (moved->ending)
			return;
	}
}

static PyObject *call_receive(PyObject *bound, PyObject *arguments)
{
	const struct queue *queue = pyvmm_queue_of(bound);
	struct moved moved = { 0 };
	struct iovec room;
	unsigned long long most_bytes;
	unsigned int most;
	int fd, mergeable;
	struct position *position;
	PyThreadState *state;
	PyObject *spare;

	if (!queue || !PyArg_ParseTuple(arguments, "iOpIK", &fd, &spare, &mergeable, &most, &most_bytes))
		return NULL;
	room.iov_base = PyByteArray_AsString(spare);
	room.iov_len = PyByteArray_Size(spare);
	position = pyvmm_queue_position(bound);
	state = PyEval_SaveThread();
	receive_frames(queue, position, fd, room, mergeable, most, most_bytes, &moved);
	PyEval_RestoreThread(state);
	return Py_BuildValue("iIIKKK", moved.ending, moved.frames, moved.dropped, moved.bytes, moved.frame,
			     moved.rest);
}

static PyObject *call_send(PyObject *bound, PyObject *arguments)
{
	const struct queue *queue = pyvmm_queue_of(bound);
	struct position *position = pyvmm_queue_position(bound);
	struct moved moved = { 0 };
	PyThreadState *state;
	unsigned int most;
	int fd;

	if (!queue || !PyArg_ParseTuple(arguments, "iI", &fd, &most))
		return NULL;
	state = PyEval_SaveThread();
	send_frames(queue, position, fd, most, &moved);
	PyEval_RestoreThread(state);
	return Py_BuildValue("iII", moved.ending, moved.frames, moved.dropped);
}

// Called with the GIL (PyDLL). `bound` begins with what a queue's functions are bound to.
PyObject *pyvmm_frames_1(PyObject *bound)
{
	static PyMethodDef methods[] = {
		{ "receive", call_receive, METH_VARARGS, NULL },
		{ "send", call_send, METH_VARARGS, NULL },
	};

	return pyvmm_bound_functions(bound, methods, sizeof methods / sizeof *methods);
}
