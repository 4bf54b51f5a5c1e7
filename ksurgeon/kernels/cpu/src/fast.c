/* The eager path of one product with its checks in one call: for few vectors Python takes longer than the kernel.
 *
 * product(x, factors, bias, record, activation, threads, dim) gives it, or None where anything is not as `record` has
 * it; the general path then finds out what it is.
 */
#include "record.h"

#include <stdlib.h>

typedef int (*rows_function)(const void*, const void*, int64_t, void*, int64_t, const void*, int, int, int);
typedef int (*columns_function)(const void*, const void*, void*, int64_t, int64_t, const void*, int, int, int);
typedef int (*changed_function)(const void*);

static rows_function ks_rows;
static columns_function ks_columns;
static changed_function ks_changed;
static PyObject *empty_like, *s_new_empty, *s_new_empty_strided;

/* How the vectors of a tensor lie; ksurgeon/kernels/cpu/layout.py says the same of those that take the long way. */
typedef struct {
  int32_t axis;
  int in_rows; /* or in columns, `after` of them in each of `before` matrices, */
  int is_narrow; /* so few that they are copied into rows and back */
  int64_t before, after;
} Vectors;

/* Whether the tensor has vectors of so many features along that axis; how many lie before and after it. */
static int split(const View* view, int32_t axis, int64_t features, int64_t* before, int64_t* after) {
  if (axis < 0 || axis >= view->dims || view->shape[axis] != features) return 0;
  *before = *after = 1;
  for (int32_t k = 0; k < axis; ++k) *before *= view->shape[k];
  for (int32_t k = axis + 1; k < view->dims; ++k) *after *= view->shape[k];
  return 1;
}

static int find_vectors(const View* x, long dim, const Record* record, Vectors* vectors) {
  if (dim < -x->dims || dim >= x->dims) return 0;
  vectors->axis = (int32_t)(dim < 0 ? dim + x->dims : dim);
  if (!split(x, vectors->axis, record->in_features, &vectors->before, &vectors->after)) return 0;
  vectors->in_rows = is_dense(x, vectors->axis);
  vectors->is_narrow = !vectors->in_rows && vectors->after < record->narrow;
  return vectors->in_rows || (vectors->before && vectors->after && is_dense(x, x->dims - 1));
}

/* Whether it can take the results: another thread may have given x another shape before it was made like x. */
static int fits(const View* y, const Vectors* vectors, int64_t features) {
  int64_t before, after;
  return split(y, vectors->axis, features, &before, &after) && before == vectors->before && after == vectors->after &&
         is_dense(y, vectors->in_rows ? vectors->axis : y->dims - 1);
}

static PyObject* tuple_of(const int64_t* numbers, int32_t count) {
  PyObject* tuple = PyTuple_New(count);
  for (int32_t k = 0; tuple && k < count; ++k) {
    PyObject* number = PyLong_FromLongLong(numbers[k]);
    if (number) PyTuple_SET_ITEM(tuple, k, number);
    else Py_CLEAR(tuple);
  }
  return tuple;
}

#define MOST_DIMS 16
#define SHARED_BYTES (1 << 18) /* from which on a copy is worth a second thread */

/* Laid out as the vectors are computed on, which `new_result` of layout.py tells of. */
static PyObject* new_output(const Record* record, PyObject* x, const View* view, const Vectors* vectors) {
  const int32_t dims = view->dims, axis = vectors->axis;
  const int is_strided = vectors->in_rows && axis < dims - 1;
  if (record->in_features == record->out_features && !is_strided) return PyObject_CallOneArg(empty_like, x);
  int64_t shape[MOST_DIMS] = {0}, strides[MOST_DIMS] = {0}, step = record->out_features;
  for (int32_t k = dims; k-- > 0;) {
    shape[k] = k == axis ? record->out_features : view->shape[k];
    strides[k] = k == axis ? 1 : step;
    if (k != axis) step *= shape[k];
  }
  PyObject *y = NULL, *sizes = tuple_of(shape, dims), *steps = is_strided ? tuple_of(strides, dims) : NULL;
  if (sizes && steps) y = PyObject_CallMethodObjArgs(x, s_new_empty_strided, sizes, steps, NULL);
  else if (sizes && !is_strided) y = PyObject_CallMethodOneArg(x, s_new_empty, sizes);
  Py_XDECREF(sizes);
  Py_XDECREF(steps);
  return y;
}

typedef struct {
  const void *x, *bias;
  void* y;
  int activation, threads;
} Arguments;

static inline void copy(const char* x, char* y, const int64_t* index, int64_t features, int64_t count, size_t bytes) {
  for (; count-- > 0; x += features * bytes, y += features * bytes)
    for (int64_t k = 0; k < features; ++k) memcpy(y + k * bytes, x + index[k] * bytes, bytes);
}

/* y = x[index], whatever numbers these are. What is worth several threads is left to PyTorch. */
static int reorder(const Record* record, const Vectors* vectors, const Arguments* given) {
  const int64_t features = record->in_features, *index = (const int64_t*)(intptr_t)record->index;
  const size_t entry = bits[record->kind] / 8, bytes = entry * (vectors->in_rows ? 1 : vectors->after);
  const int64_t count = vectors->before * (vectors->in_rows ? vectors->after : 1);
  if (given->threads > 1 && count * features * bytes > SHARED_BYTES) return 0;
  if (ks_changed((const void*)(intptr_t)record->guard)) return 0;
  if (bytes == 4) copy(given->x, given->y, index, features, count, 4);
  else if (bytes == 8) copy(given->x, given->y, index, features, count, 8);
  else copy(given->x, given->y, index, features, count, bytes);
  return 1;
}

static inline void transpose(const char* x, char* y, int64_t rows, int64_t columns, size_t bytes) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      memcpy(y + (column * rows + row) * bytes, x + (row * columns + column) * bytes, bytes);
}

/* Of each of `count` matrices of entries of 2, 4, 8 or 16 bytes. */
static void transpose_each(const char* x, char* y, int64_t count, int64_t rows, int64_t columns, size_t bytes) {
  for (const int64_t step = rows * columns * bytes; count-- > 0; x += step, y += step) {
    if (bytes == 4) transpose(x, y, rows, columns, 4);
    else if (bytes == 8) transpose(x, y, rows, columns, 8);
    else transpose(x, y, rows, columns, bytes);
  }
}

/* Few columns, as rows. What is worth several threads is left to PyTorch. */
static int run_narrow(const Record* record, const void* chain, const Vectors* vectors, const Arguments* given) {
  const int64_t ins = record->in_features, outs = record->out_features, count = vectors->before * vectors->after;
  const size_t bytes = bits[record->kind] / 8, size = count * (ins + outs) * bytes;
  if (size > SHARED_BYTES) return 0;
  char *from = malloc(size), *to = from + count * ins * bytes;
  if (!from) return -1;
  transpose_each(given->x, from, vectors->before, ins, vectors->after, bytes);
  const int done = ks_rows(chain, from, ins, to, count, given->bias, given->activation, given->threads, record->kind);
  if (done > 0) transpose_each(to, given->y, vectors->before, vectors->after, outs, bytes);
  free(from);
  return done;
}

static int run(const Record* record, const Vectors* vectors, const Arguments* given) {
  const int64_t rows = vectors->before * vectors->after;
  const int by_rows = vectors->in_rows || vectors->is_narrow;
  const long long address = !by_rows ? record->columns : rows < record->limit ? record->few : record->many;
  const void* chain = (const void*)(intptr_t)address;
  if (record->index) return reorder(record, vectors, given);
  if (!chain) return 0;
  if (vectors->is_narrow) return run_narrow(record, chain, vectors, given);
  if (vectors->in_rows)
    return ks_rows(chain, given->x, record->in_features, given->y, rows, given->bias, given->activation, given->threads,
                   record->kind);
  return ks_columns(chain, given->x, given->y, vectors->before, vectors->after, given->bias, given->activation,
                    given->threads, record->kind);
}

static PyObject* product(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  (void)self;
  if (count != 7) {
    PyErr_SetString(PyExc_TypeError, "product takes x, factors, bias, record, activation, threads and dim");
    return NULL;
  }
  PyObject *x = arguments[0], *factors = arguments[1], *bias = arguments[2];
  PyObject *y = NULL, *x_storage = NULL, *bias_storage = NULL;
  Record* record = PyCapsule_GetPointer(arguments[3], NAME);
  const long activation = PyLong_AsLong(arguments[4]), threads = PyLong_AsLong(arguments[5]);
  int is_beyond = 0;
  const long dim = PyLong_AsLongAndOverflow(arguments[6], &is_beyond);
  if (!record || PyErr_Occurred()) return NULL;
  const int kind = record->kind;
  View from, to, start = {0};
  Vectors vectors = {0};
  /* KS_COMPLEX64 and above have no activation, and a copy has nothing besides. */
  const int refused = is_beyond || (activation && kind > 3) || (record->index && (activation || bias != Py_None));
  int fine = refused ? 0 : is_as_stored(x, kind);
  if (fine == 1 && bias != Py_None) fine = has_plain_type(bias) ? is_as_stored(bias, kind) : 0;
  if (fine == 1) fine = are_as_stored(factors, kind);
  /* Another thread may give either tensor other memory meanwhile. */
  if (fine == 1 && (!(x_storage = call(x, storage_of)) ||
                    (bias != Py_None && !(bias_storage = call(bias, storage_of))))) {
    PyErr_Clear(); /* a kind of tensor that has none */
    fine = 0;
  }
  if (fine == 1)
    fine = is_plain(x, kind, &from) && from.dims <= MOST_DIMS && find_vectors(&from, dim, record, &vectors);
  if (fine == 1) fine = !(vectors.before && vectors.after) || !is_freed(&from);
  if (fine == 1 && bias != Py_None) {
    fine = is_packed(bias, kind, &start);
    if (fine == 1) fine = start.dims == 1 && start.shape[0] == record->out_features && !is_freed(&start);
  }
  if (fine == 1) fine = same_factors(record, factors);
  int done = 0;
  if (fine == 1 && (y = new_output(record, x, &from, &vectors)) && is_plain(y, kind, &to) &&
      fits(&to, &vectors, record->out_features)) {
    const Arguments given = {from.data, start.data, to.data, (int)activation, (int)threads};
    Py_BEGIN_ALLOW_THREADS;
    done = run(record, &vectors, &given);
    Py_END_ALLOW_THREADS;
  }
  Py_XDECREF(x_storage);
  Py_XDECREF(bias_storage);
  if (done < 0) PyErr_SetString(PyExc_MemoryError, "not enough memory for the intermediate vectors of a product");
  if (PyErr_Occurred() || !done) {
    Py_XDECREF(y);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
  }
  return y;
}

/* bind(addresses of ks_rows, ks_columns and ks_changed, torch.empty_like, the C type of tensors, torch.Tensor,
 * nn.Parameter, their DLPack interface); TypeError where that is not what it was */
static PyObject* bind(PyObject* self, PyObject* arguments) {
  long long of_rows, of_columns, of_changed;
  PyObject *function, *type, *plain, *parameter, *capsule;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "LLLOO!O!O!O", &of_rows, &of_columns, &of_changed, &function, &PyType_Type, &type,
                        &PyType_Type, &plain, &PyType_Type, &parameter, &capsule))
    return NULL;
  ks_rows = (rows_function)(intptr_t)of_rows;
  ks_columns = (columns_function)(intptr_t)of_columns;
  ks_changed = (changed_function)(intptr_t)of_changed;
  Py_INCREF(function);
  Py_XSETREF(empty_like, function);
  Py_INCREF(type);
  Py_XSETREF(tensor_type, (PyTypeObject*)type);
  Py_INCREF(plain);
  Py_XSETREF(plain_types[0], (PyTypeObject*)plain);
  Py_INCREF(parameter);
  Py_XSETREF(plain_types[1], (PyTypeObject*)parameter);
  const Exchange* exchange = PyCapsule_GetPointer(capsule, "dlpack_exchange_api"); /* static memory */
  if (!exchange) return NULL;
  if (exchange->major != 1) return PyErr_Format(PyExc_TypeError, "DLPack %u is another one", exchange->major);
  view_of = exchange->view;
  if (!attribute("_version", &version) || !method("is_neg", &is_neg) || !method("is_conj", &is_conj) ||
      !method("untyped_storage", &storage_of))
    return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, "Give the module what it calls."},
    {"record", make_record, METH_VARARGS, "What a call is checked against."},
    {"product", (PyCFunction)(void (*)(void))product, METH_FASTCALL, "It, or None where it needs the long way."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
  s_new_empty = PyUnicode_InternFromString("new_empty");
  s_new_empty_strided = PyUnicode_InternFromString("new_empty_strided");
  if (!s_new_empty || !s_new_empty_strided) return NULL;
  return PyModule_Create(&definition);
}
