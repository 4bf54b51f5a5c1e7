/* What a call is checked against: made once for each packed chain. */
#pragma once
#include "tensors.h"

#include <string.h>

typedef struct {
  PyObject* factor; /* borrowed, and only ever compared */
  long long version, address, kind;
  int64_t sizes[4]; /* 0 for dimensions that it does not have */
} Known;

typedef struct {
  PyObject* owner; /* keeps alive what the chains point to: a caller that has the record may let go of the lock */
  long long few, many, limit; /* chains for fewer than `limit` rows, and for more; 0 where not made yet, */
  long long columns, narrow;  /* and for columns, from `narrow` of them on */
  long long index, guard;     /* of a permutation p, y = x[p], which has no chains; else 0 */
  long long in_features, out_features;
  int kind, compared; /* whether the library compares all bytes of the factors in every call */
  Py_ssize_t count;
  Known known[1];
} Record;

static const char NAME[] = "ksurgeon.record";

static void forget(PyObject* capsule) {
  Record* record = PyCapsule_GetPointer(capsule, NAME);
  if (!record) return;
  Py_DECREF(record->owner);
  PyMem_Free(record);
}

/* record(factors, what is known of each: (version, address, *shape, kind), owner, few, many, limit, columns, narrow,
 * index, guard, in_features, out_features, kind, compared) */
static PyObject* make_record(PyObject* self, PyObject* arguments) {
  PyObject *factors, *each, *owner;
  long long few, many, limit, columns, narrow, index, guard, in_features, out_features;
  int kind, compared;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "O!O!OLLLLLLLLLip", &PyTuple_Type, &factors, &PyTuple_Type, &each, &owner, &few,
                        &many, &limit, &columns, &narrow, &index, &guard, &in_features, &out_features, &kind,
                        &compared))
    return NULL;
  const Py_ssize_t count = PyTuple_GET_SIZE(factors);
  if (PyTuple_GET_SIZE(each) != count) return PyErr_Format(PyExc_ValueError, "expected as many as factors");
  Record* record = PyMem_Calloc(1, sizeof(Record) + (size_t)count * sizeof(Known));
  if (!record) return PyErr_NoMemory();
  for (Py_ssize_t k = 0; k < count; ++k) {
    Known* known = &record->known[k];
    long long sizes[4];
    known->factor = PyTuple_GET_ITEM(factors, k);
    if (!PyObject_TypeCheck(known->factor, tensor_type)) PyErr_SetString(PyExc_TypeError, "factors are tensors");
    if (PyErr_Occurred() ||
        !PyArg_ParseTuple(PyTuple_GET_ITEM(each, k), "LLLLLLL", &known->version, &known->address, &sizes[0],
                          &sizes[1], &sizes[2], &sizes[3], &known->kind)) {
      PyMem_Free(record);
      return NULL;
    }
    for (int size = 0; size < 4; ++size) known->sizes[size] = sizes[size];
  }
  record->few = few;
  record->many = many;
  record->limit = limit;
  record->columns = columns;
  record->narrow = narrow;
  record->index = index;
  record->guard = guard;
  record->in_features = in_features;
  record->out_features = out_features;
  record->kind = kind;
  record->count = count;
  record->compared = compared;
  record->owner = Py_NewRef(owner);
  PyObject* capsule = PyCapsule_New(record, NAME, forget);
  if (!capsule) {
    Py_DECREF(owner);
    PyMem_Free(record);
  }
  return capsule;
}

/* Whether the entries of complex factors are what they are in memory. Real ones are not asked, which takes longer than
 * all else that is: only private functions of PyTorch mark them in place. */
static int are_as_stored(PyObject* factors, int kind) {
  int fine = PyTuple_Check(factors);
  for (Py_ssize_t k = 0; fine == 1 && kind > 3 && k < PyTuple_GET_SIZE(factors); ++k)
    fine = is_as_stored(PyTuple_GET_ITEM(factors, k), kind);
  return fine;
}

/* Whether the factors are the record's and lie in memory as they did. What they hold is for the library to compare;
 * their versions count where it does not compare all of it. */
static int same_factors(const Record* record, PyObject* factors) {
  if (!PyTuple_Check(factors) || PyTuple_GET_SIZE(factors) != record->count) return 0;
  for (Py_ssize_t k = 0; k < record->count; ++k) {
    const Known* known = &record->known[k];
    PyObject* factor = PyTuple_GET_ITEM(factors, k);
    long long now;
    View view;
    if (factor != known->factor || !is_packed(factor, (int)known->kind, &view) || view.dims > 4 ||
        (long long)(intptr_t)view.data != known->address || (view.dims < 4 && known->sizes[view.dims]) ||
        memcmp(view.shape, known->sizes, view.dims * sizeof *known->sizes))
      return 0;
    if (record->compared) continue;
    if (!number_of(get(factor, version), &now)) return -1;
    if (now != known->version) return 0;
  }
  return 1;
}
