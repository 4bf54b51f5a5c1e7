/* What _fast asks tensors, without an object of Python made for it where that can be had. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* What DLPack's exchange interface for C (its version 1.3, dlpack.h) gives of a tensor, without an object made. */
typedef struct {
  void* data;
  int32_t device_type, device_id, dims;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} View;

typedef struct {
  uint32_t major, minor;
  void* previous;
  void *allocate, *from_object, *to_object;
  int (*view)(void* object, View* view);
  void* stream;
} Exchange;

/* Attributes and methods of tensors, looked up once: doing so for every call takes longer than the call. */
static PyTypeObject *tensor_type, *plain_types[2];
static PyGetSetDef* version;
static PyMethodDef *is_neg, *is_conj, *storage_of;
static int (*view_of)(void*, View*);
static PyObject* get(PyObject* tensor, const PyGetSetDef* attribute) {
  return attribute->get(tensor, attribute->closure);
}
static PyObject* call(PyObject* tensor, const PyMethodDef* method) { return method->ml_meth(tensor, NULL); }

#define FREED (1LL << 32) /* no such address, or one that is not worth much: an offset in storage that was freed */

static int attribute(const char* name, PyGetSetDef** found) {
  PyObject* value = PyObject_GetAttrString((PyObject*)tensor_type, name);
  if (value && Py_TYPE(value) == &PyGetSetDescr_Type) *found = ((PyGetSetDescrObject*)value)->d_getset;
  else PyErr_Format(PyExc_TypeError, "%s is no attribute of tensors", name);
  Py_XDECREF(value);
  return !PyErr_Occurred();
}

static int method(const char* name, PyMethodDef** found) {
  PyObject* value = PyObject_GetAttrString((PyObject*)tensor_type, name);
  if (value && Py_TYPE(value) == &PyMethodDescr_Type &&
      ((PyMethodDescrObject*)value)->d_method->ml_flags == METH_NOARGS)
    *found = ((PyMethodDescrObject*)value)->d_method;
  else PyErr_Format(PyExc_TypeError, "%s is no method of tensors without arguments", name);
  Py_XDECREF(value);
  return !PyErr_Occurred();
}

static int number_of(PyObject* value, long long* result) { /* steals the reference */
  if (!value) return 0;
  *result = PyLong_AsLongLong(value);
  Py_DECREF(value);
  return !(*result == -1 && PyErr_Occurred());
}

static int is_it(PyObject* value, PyObject* wanted) { /* 1, 0, or -1 for an error; steals the reference */
  if (!value) return -1;
  Py_DECREF(value);
  return value == wanted;
}

static const uint8_t codes[] = {2, 2, 4, 2, 5, 5, 0}, bits[] = {32, 64, 16, 16, 64, 128, 8}; /* of each KsKind */

/* Whether the entries lie on the CPU, in the dtype of a kind; tells where, and the sizes and strides. */
static int is_plain(PyObject* tensor, int kind, View* view) {
  if (!PyObject_TypeCheck(tensor, tensor_type)) return 0;
  if (view_of(tensor, view)) {
    PyErr_Clear(); /* a kind of tensor that DLPack has not */
    return 0;
  }
  view->data = (char*)view->data + view->byte_offset;
  return view->device_type == 1 && view->dtype.code == codes[kind] && view->dtype.bits == bits[kind] &&
         view->dtype.lanes == 1;
}

/* Whether entries lie one after the other where those along `axis` are neighbours and the other dimensions are in
 * order; with the last axis that is a contiguous tensor. */
static int is_dense(const View* view, int32_t axis) {
  if (!view->strides) return axis == view->dims - 1;
  int64_t step = 1;
  for (int32_t k = view->dims; k >= 0; --k) {
    const int32_t at = k == view->dims ? axis : k;
    if (at < 0 || k == axis) continue;
    if (view->shape[at] != 1 && view->strides[at] != step && step) return 0;
    step *= view->shape[at];
  }
  return 1;
}

static int is_packed(PyObject* tensor, int kind, View* view) {
  return is_plain(tensor, kind, view) && is_dense(view, view->dims - 1);
}

static int is_freed(const View* view) { return (long long)(intptr_t)view->data < FREED; }

static int has_plain_type(PyObject* tensor) {
  return Py_TYPE(tensor) == plain_types[0] || Py_TYPE(tensor) == plain_types[1];
}

/* Whether the entries are what they are in memory. Both questions let other threads run, so that what they find
 * comes before any address is taken. */
static int is_as_stored(PyObject* tensor, int kind) {
  if (!PyObject_TypeCheck(tensor, tensor_type)) return 0;
  int fine = is_it(call(tensor, is_neg), Py_False);
  if (fine == 1 && kind > 3) fine = is_it(call(tensor, is_conj), Py_False);
  return fine;
}
