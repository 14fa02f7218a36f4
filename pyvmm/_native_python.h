// SPDX-License-Identifier: Apache-2.0
//
// What _native_run.c uses of Python's stable ABI and of libc, for compilers without either's headers: those with
// which the lab builds the module for another machine. Where Python.h is there, it is used instead, and so checks
// that the file is right about these.

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

void Py_IncRef(PyObject *);
void Py_DecRef(PyObject *);
int PyArg_ParseTuple(PyObject *, const char *, ...);
char *PyBytes_AsString(PyObject *);
Py_ssize_t PyBytes_Size(PyObject *);
PyObject *PyCFunction_NewEx(PyMethodDef *, PyObject *, PyObject *);
PyObject *PyDict_GetItemWithError(PyObject *, PyObject *);
Py_ssize_t PyDict_Size(PyObject *);
void PyErr_Fetch(PyObject **, PyObject **, PyObject **);
PyObject *PyErr_Occurred(void);
void PyErr_Restore(PyObject *, PyObject *, PyObject *);
void PyEval_RestoreThread(PyThreadState *);
PyThreadState *PyEval_SaveThread(void);
PyObject *PyList_GetItem(PyObject *, Py_ssize_t);
unsigned long PyLong_AsUnsignedLongMask(PyObject *);
unsigned long long PyLong_AsUnsignedLongLongMask(PyObject *);
void *PyLong_AsVoidPtr(PyObject *);
PyObject *PyLong_FromUnsignedLong(unsigned long);
PyObject *PyLong_FromUnsignedLongLong(unsigned long long);
PyObject *PyObject_CallFunction(PyObject *, const char *, ...);
PyObject *PyObject_CallFunctionObjArgs(PyObject *, ...);
PyObject *PyObject_CallNoArgs(PyObject *);
PyObject *PyTuple_GetItem(PyObject *, Py_ssize_t);
int *__errno_location(void);

#define METH_NOARGS 4
#define Py_None (&_Py_NoneStruct)
#define Py_INCREF Py_IncRef
#define Py_DECREF Py_DecRef
#define Py_XDECREF Py_DecRef
#define Py_UNUSED(name) name __attribute__((unused))
#define errno (*__errno_location())
