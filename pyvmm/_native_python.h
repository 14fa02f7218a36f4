// SPDX-License-Identifier: Apache-2.0
//
// What the module's C uses of Python's stable ABI and of libc, for compilers without either's headers: those with which
// the lab builds it for another machine. Where Python.h is there, it is used instead.

#include <stddef.h>

typedef ptrdiff_t Py_ssize_t;
typedef struct _object PyObject;
typedef struct _ts PyThreadState;
typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef struct {
	const char *name;
	PyCFunction function;
	int flags;
	const char *doc;
} PyMethodDef;

extern PyObject _Py_NoneStruct;
extern PyObject *PyExc_OverflowError;
extern PyObject *PyExc_ValueError;

void Py_IncRef(PyObject *);
void Py_DecRef(PyObject *);
int PyArg_ParseTuple(PyObject *, const char *, ...);
char *PyByteArray_AsString(PyObject *);
Py_ssize_t PyByteArray_Size(PyObject *);
char *PyBytes_AsString(PyObject *);
Py_ssize_t PyBytes_Size(PyObject *);
PyObject *PyBool_FromLong(long);
PyObject *PyCFunction_NewEx(PyMethodDef *, PyObject *, PyObject *);
PyObject *PyDict_GetItemWithError(PyObject *, PyObject *);
int PyDict_Next(PyObject *, Py_ssize_t *, PyObject **, PyObject **);
void PyErr_Fetch(PyObject **, PyObject **, PyObject **);
PyObject *PyErr_Occurred(void);
void PyErr_Restore(PyObject *, PyObject *, PyObject *);
void PyErr_SetString(PyObject *, const char *);
void PyEval_RestoreThread(PyThreadState *);
PyThreadState *PyEval_SaveThread(void);
int PyList_Append(PyObject *, PyObject *);
PyObject *PyList_GetItem(PyObject *, Py_ssize_t);
PyObject *PyList_New(Py_ssize_t);
int PyList_SetSlice(PyObject *, Py_ssize_t, Py_ssize_t, PyObject *);
Py_ssize_t PyList_Size(PyObject *);
unsigned long PyLong_AsUnsignedLong(PyObject *);
unsigned long PyLong_AsUnsignedLongMask(PyObject *);
unsigned long long PyLong_AsUnsignedLongLongMask(PyObject *);
void *PyLong_AsVoidPtr(PyObject *);
PyObject *PyLong_FromUnsignedLong(unsigned long);
PyObject *PyLong_FromUnsignedLongLong(unsigned long long);
PyObject *PyObject_CallFunction(PyObject *, const char *, ...);
PyObject *PyObject_CallFunctionObjArgs(PyObject *, ...);
PyObject *PyObject_CallNoArgs(PyObject *);
PyObject *PyObject_GetAttr(PyObject *, PyObject *);
PyObject *PyObject_GetItem(PyObject *, PyObject *);
PyObject *PySlice_New(PyObject *, PyObject *, PyObject *);
PyObject *PyTuple_GetItem(PyObject *, Py_ssize_t);
PyObject *PyTuple_New(Py_ssize_t);
int PyTuple_SetItem(PyObject *, Py_ssize_t, PyObject *);
PyObject *Py_BuildValue(const char *, ...);
int *__errno_location(void);

struct iovec {
	void *iov_base;
	size_t iov_len;
};
Py_ssize_t readv(int, const struct iovec *, int);
Py_ssize_t writev(int, const struct iovec *, int);
typedef union {
	long long room[5]; // as much as musl and glibc take on 64-bit RISC-V and x86
} pthread_mutex_t;
int pthread_mutex_lock(pthread_mutex_t *);
int pthread_mutex_unlock(pthread_mutex_t *);

#define METH_VARARGS 1
#define METH_NOARGS 4
#define METH_O 8
#define Py_None (&_Py_NoneStruct)
#define Py_INCREF Py_IncRef
#define Py_DECREF Py_DecRef
#define Py_XDECREF Py_DecRef
#define Py_UNUSED(name) name __attribute__((unused))
#define errno (*__errno_location())
// <asm-generic/errno.h>, as RISC-V and x86 have it.
enum {
	EINTR = 4, EAGAIN = 11, EPIPE = 32, ECONNABORTED = 103, ECONNRESET = 104, ESHUTDOWN = 108, ECONNREFUSED = 111
};
