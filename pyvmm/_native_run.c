// SPDX-License-Identifier: Apache-2.0
//
// KVM_RUN in a loop, answering accesses to devices: VcpuThread._on_mmio, Bus.read and Bus.write, step by step, for
// pyvmm/nativerun.py. Compiled into the native module, for the limited API; Python.h or _native_python.h comes first.
//
// An exit is either answered here as a whole, or left to Python untouched and uncounted. So whatever is rare is
// left to Python: other reasons, a trace, stores that were noted down and come first, an access to where there is no
// device, a bus that changed at this very moment.
//
// The GIL is held but inside of KVM_RUN, and for accesses that are answered directly (pyvmm/mmio/direct.py), by a
// function in C that has all it needs. Whatever is called with the GIL may let go of it for a while, so what was
// borrowed before is used afterwards only if something here keeps it: the function object keeps the tuple it is bound
// to, `table` is a reference of its own, and neither tuple ever changes.
//
// The kernel writes the run page inside of KVM_RUN only. Of what is in there the guest chooses the address, which is
// compared and nothing else, the data, the direction, and the length, of which only 1, 2, 4 and 8 are taken. It is
// copied before anything is called, which may run the vCPU.

#include <stddef.h>
#include <stdint.h>

// What is used of <linux/kvm.h>, a header that is not everywhere: the same on every architecture.
enum { KVM_RUN = 0xAE80, KVM_EXIT_MMIO = 6 };

struct access {
	uint64_t address, data;
	uint32_t length;
	uint8_t is_write;
};

struct run_page {
	uint8_t head[8];
	uint32_t exit_reason;
	uint8_t state[20];
	struct access mmio;
};
_Static_assert(offsetof(struct run_page, mmio) == 32, "the union of struct kvm_run");

struct ring_page {
	uint32_t first, last;
};

// The following two are `_Direct` and `_Directs` of pyvmm/mmio/direct.py. With them, too, the number in the name of
// pyvmm_runner_3 must change.

// Answers an access of `length` bytes: 1, or 0 when it is left to Python with nothing changed. From any vCPU's
// thread, several at once, without the GIL.
typedef int direct_function(void *context, uint64_t offset, uint32_t length, int is_write, uint64_t *data);

struct direct {
	uint64_t first, last; // addresses
	direct_function *answer;
	void *context;
	uint64_t *accesses;
};

struct directs {
	uint64_t first, last; // of all of them: no address while there are none, or while they are off
	uint64_t count;
	struct direct all[];
};
_Static_assert(sizeof(struct direct) == 40 && offsetof(struct directs, all) == 24, "_Direct, _Directs");

typedef int ioctl_function(int fd, unsigned long request, ...);

// What the function object is bound to; the objects are borrowed from there.
struct vcpu {
	ioctl_function *ioctl;
	int fd;
	struct run_page *page;
	const struct ring_page *ring; // or NULL
	const struct directs *directs;
	uint64_t *answered;
	PyObject *stopped, *handlers, *mmio, *on_mmio, *answers, *published;
};

// Places in what the bus publishes, and in a way. With these, or with what `run` is bound to, the number in the name
// of pyvmm_runner_3 must change: then a module that was built before is not taken for one that fits.
enum { BASES, LASTS, WAYS, MAPPINGS, PLACES };
enum { ACQUIRE, RELEASE, READ, WRITE, READERS, WRITERS, COUNTER };

// Several threads count at once.
static void count_access(uint64_t *accesses)
{
	__atomic_fetch_add(accesses, 1, __ATOMIC_RELAXED);
}

static uint64_t mask(const struct access *access)
{
	return UINT64_MAX >> (64 - 8 * access->length);
}

// The mapping that holds all of the access, its base, and what to count it in; -1 when there is none.
static Py_ssize_t find(PyObject *table, const struct access *access, uint64_t *base, uint64_t **accesses)
{
	PyObject *places = PyTuple_GetItem(table, PLACES);
	Py_ssize_t count = PyBytes_Size(places) / (3 * sizeof(uint64_t)), low = 0, high = count;
	const uint64_t *bases = (const uint64_t *)PyBytes_AsString(places), *lasts = bases + count;

	while (low < high) {
		Py_ssize_t middle = (low + high) / 2;

		if (bases[middle] <= access->address)
			low = middle + 1;
		else
			high = middle;
	}
	if (low-- == 0 || access->address > lasts[low] || access->length - 1 > lasts[low] - access->address)
		return -1;
	*base = bases[low];
	*accesses = (uint64_t *)(uintptr_t)lasts[count + low];
	return low;
}

// What was compiled for the access, borrowed; NULL when there is nothing, or with an exception.
static PyObject *accessor(PyObject *way, const struct access *access, uint64_t offset)
{
	PyObject *key, *found;

	if (offset > UINT32_MAX) // so that the shift loses nothing
		return NULL;
	key = PyLong_FromUnsignedLongLong(offset << 4 | access->length);
	if (!key)
		return NULL;
	found = PyDict_GetItemWithError(PyTuple_GetItem(way, access->is_write ? WRITERS : READERS), key);
	Py_DECREF(key);
	return found;
}

// The device's read or write: what it returned, or NULL with an exception. `value` is NULL for a read, and then
// ends the arguments.
static PyObject *call_device(PyObject *way, const struct access *access, uint64_t offset, PyObject *value)
{
	PyObject *function = accessor(way, access, offset), *where, *length, *result = NULL;

	if (function) {
		Py_INCREF(function);
		result = value ? PyObject_CallFunctionObjArgs(function, value, NULL) : PyObject_CallNoArgs(function);
		Py_DECREF(function);
	} else if (!PyErr_Occurred()) {
		where = PyLong_FromUnsignedLongLong(offset);
		length = PyLong_FromUnsignedLong(access->length);
		function = PyTuple_GetItem(way, value ? WRITE : READ);
		if (where && length)
			result = PyObject_CallFunctionObjArgs(function, where, length, value, NULL);
		Py_XDECREF(where);
		Py_XDECREF(length);
	}
	return result;
}

// Calls what takes no arguments. Returns 0, or -1 with an exception.
static int call(PyObject *function)
{
	PyObject *result = PyObject_CallNoArgs(function);

	Py_XDECREF(result);
	return result ? 0 : -1;
}

// Likewise; an exception that there was before stays.
static int call_anyway(PyObject *function)
{
	PyObject *type, *value, *traceback;

	if (!PyErr_Occurred())
		return call(function);
	PyErr_Fetch(&type, &value, &traceback);
	call(function);
	PyErr_Restore(type, value, traceback);
	return -1;
}

// Bus.read and Bus.write. Returns 1, or 0 when it is Python's, or -1 with an exception.
static int access_device(const struct vcpu *vcpu, PyObject *table, const struct access *access)
{
	uint64_t base, answer, *accesses;
	Py_ssize_t at = find(table, access, &base, &accesses);
	PyObject *way, *value = NULL, *result = NULL;
	int published, failed;

	if (at < 0)
		return 0;
	if (access->is_write && !(value = PyLong_FromUnsignedLongLong(access->data & mask(access))))
		return -1;
	way = PyTuple_GetItem(PyTuple_GetItem(table, WAYS), at);
	if (call(PyTuple_GetItem(way, ACQUIRE))) {
		Py_XDECREF(value);
		return -1;
	}
	published = PyList_GetItem(vcpu->published, 0) == table;
	if (published) {
		++*vcpu->answered;
		count_access(accesses);
		result = call_device(way, access, access->address - base, value);
	}
	failed = call_anyway(PyTuple_GetItem(way, RELEASE));
	Py_XDECREF(value);
	if (result && !failed && access->is_write) {
		failed = result != Py_None && call(result);
	} else if (result && !failed) {
		answer = PyLong_AsUnsignedLongLongMask(result);
		failed = answer == UINT64_MAX && PyErr_Occurred();
		if (!failed)
			vcpu->page->mmio.data = answer & mask(access);
	}
	Py_XDECREF(result);
	return failed ? -1 : published;
}

// A load that the serial port's shortcut knows. Returns 1, or 0.
static int answer_known(const struct vcpu *vcpu, const struct access *access)
{
	PyObject *address, *value; // borrowed, and used at once
	Py_ssize_t at = 0;

	if (access->length != 1 || access->is_write)
		return 0;
	while (PyDict_Next(vcpu->answers, &at, &address, &value)) { // one at most: cheaper than a key to look it up
		if (PyLong_AsUnsignedLongLongMask(address) == access->address) {
			++*vcpu->answered;
			vcpu->page->mmio.data = PyLong_AsUnsignedLongMask(value);
			return 1;
		}
	}
	return 0;
}

static int has_size_of_access(const struct access *access)
{
	return access->length == 1 || access->length == 2 || access->length == 4 || access->length == 8;
}

// Whether stores were noted down, which come first. Indices of a page that other vCPUs make the kernel write to.
static int has_stores(const struct ring_page *ring)
{
	return ring &&
	       __atomic_load_n(&ring->first, __ATOMIC_RELAXED) != __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
}

// Without the GIL. Returns 1, or 0.
static int answer_directly(const struct vcpu *vcpu)
{
	const struct directs *directs = vcpu->directs;
	const uint64_t address = vcpu->page->mmio.address;
	struct access access;
	uint64_t index;

	if (address < __atomic_load_n(&directs->first, __ATOMIC_RELAXED) || address > directs->last)
		return 0;
	access = vcpu->page->mmio;
	if (!has_size_of_access(&access) || has_stores(vcpu->ring))
		return 0;
	for (index = 0; index < directs->count; index++) {
		const struct direct *direct = &directs->all[index];
		uint64_t data = access.data & mask(&access);

		if (address < direct->first || address > direct->last ||
		    access.length - 1 > direct->last - address)
			continue;
		if (!direct->answer(direct->context, address - direct->first, access.length, access.is_write,
				    &data))
			return 0;
		++*vcpu->answered;
		count_access(direct->accesses);
		if (!access.is_write)
			vcpu->page->mmio.data = data & mask(&access);
		return 1;
	}
	return 0;
}

// VcpuThread._on_mmio. Returns 1, or 0 when it is Python's, or -1 with an exception.
static int on_mmio(const struct vcpu *vcpu)
{
	const struct access access = vcpu->page->mmio;
	PyObject *table;
	int done;

	if (PyDict_GetItemWithError(vcpu->handlers, vcpu->mmio) != vcpu->on_mmio)
		return PyErr_Occurred() ? -1 : 0;
	if (!has_size_of_access(&access))
		return 0;
	if (answer_known(vcpu, &access))
		return 1;
	if (has_stores(vcpu->ring))
		return 0;
	table = PyList_GetItem(vcpu->published, 0);
	Py_INCREF(table);
	done = access_device(vcpu, table, &access);
	Py_DECREF(table);
	return done;
}

// Vcpu.run, which returns the reason of the first exit that is Python's, or NULL with an exception.
static PyObject *run(PyObject *bound, PyObject *Py_UNUSED(nothing))
{
	unsigned long long ioctl, page, ring, directs, answered;
	struct vcpu vcpu;

	if (!PyArg_ParseTuple(bound, "KiKKKKOOOOOO", &ioctl, &vcpu.fd, &page, &ring, &directs, &answered,
			      &vcpu.stopped, &vcpu.handlers, &vcpu.mmio, &vcpu.on_mmio, &vcpu.answers, &vcpu.published))
		return NULL;
	vcpu.ioctl = (ioctl_function *)(uintptr_t)ioctl;
	vcpu.page = (struct run_page *)(uintptr_t)page;
	vcpu.ring = (const struct ring_page *)(uintptr_t)ring;
	vcpu.directs = (const struct directs *)(uintptr_t)directs;
	vcpu.answered = (uint64_t *)(uintptr_t)answered;
	for (;;) {
		PyThreadState *state = PyEval_SaveThread();
		int failed, number, done = 0;

		do {
			failed = vcpu.ioctl(vcpu.fd, KVM_RUN, 0ul);
			number = errno;
		} while (!failed && vcpu.page->exit_reason == KVM_EXIT_MMIO && answer_directly(&vcpu));
		PyEval_RestoreThread(state);
		if (failed)
			return PyObject_CallFunction(vcpu.stopped, "i", number);
		if (vcpu.page->exit_reason == KVM_EXIT_MMIO)
			done = on_mmio(&vcpu);
		if (done < 0)
			return NULL;
		if (!done)
			return PyLong_FromUnsignedLong(vcpu.page->exit_reason);
	}
}

// Called with the GIL (PyDLL). The function keeps what it is bound to, and the garbage collector sees both.
PyObject *pyvmm_runner_3(PyObject *bound)
{
	static PyMethodDef method = { "run", run, METH_NOARGS, NULL };

	return PyCFunction_NewEx(&method, bound, NULL);
}
