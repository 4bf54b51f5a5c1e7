/* The eager path of one product with its checks in one call: for few rows Python takes longer than the kernel.
 *
 * rows(x, factors, bias, record, activation, threads) gives the product, or None where anything is not as `record` has it;
 * the general path then finds out what it is. A record is made once for each packed chain.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef int (*rows_function)(const void*, const void*, int64_t, void*, int64_t, const void*, int, int, int);

typedef struct {
  PyObject* factor; /* borrowed, and only ever compared */
  long long version, address;
} Known;

typedef struct {
  long long few, many, limit; /* chains for fewer than `limit` rows, and for more; 0 where not made yet */
  long long in_features, out_features;
  int kind;
  PyObject* dtype;
  Py_ssize_t count;
  Known known[1];
} Record;

static rows_function ks_rows;
static PyObject *empty_like, *s_is_contiguous, *s_new_empty;

/* Attributes and methods of tensors, looked up once: doing so for every call takes longer than the call. */
static PyTypeObject* tensor_type;
static PyGetSetDef *version, *shape_of, *dtype_of, *is_cpu;
static PyMethodDef *data_ptr, *is_neg, *is_conj;
static PyObject* get(PyObject* tensor, const PyGetSetDef* attribute) {
  return attribute->get(tensor, attribute->closure);
}
static PyObject* call(PyObject* tensor, const PyMethodDef* method) { return method->ml_meth(tensor, NULL); }

static const char NAME[] = "ksurgeon.record";

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

/* Whether the entries lie on the CPU, in the record's dtype, one after the other and as they are. */
static int is_plain(PyObject* tensor, PyObject* dtype) {
  if (!PyObject_TypeCheck(tensor, tensor_type)) return 0;
  int fine = is_it(get(tensor, dtype_of), dtype);
  if (fine == 1) fine = is_it(get(tensor, is_cpu), Py_True);
  if (fine == 1) fine = is_it(PyObject_CallMethodNoArgs(tensor, s_is_contiguous), Py_True);
  if (fine == 1) fine = is_it(call(tensor, is_neg), Py_False);
  if (fine == 1) fine = is_it(call(tensor, is_conj), Py_False);
  return fine;
}

static void forget(PyObject* capsule) {
  Record* record = PyCapsule_GetPointer(capsule, NAME);
  if (!record) return;
  Py_DECREF(record->dtype);
  PyMem_Free(record);
}

/* record(factors, few, many, limit, in_features, out_features, kind, dtype) */
static PyObject* make_record(PyObject* self, PyObject* arguments) {
  PyObject *factors, *dtype;
  long long few, many, limit, in_features, out_features;
  int kind;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "O!LLLLLiO", &PyTuple_Type, &factors, &few, &many, &limit, &in_features,
                        &out_features, &kind, &dtype))
    return NULL;
  const Py_ssize_t count = PyTuple_GET_SIZE(factors);
  Record* record = PyMem_Malloc(sizeof(Record) + (size_t)count * sizeof(Known));
  if (!record) return PyErr_NoMemory();
  for (Py_ssize_t k = 0; k < count; ++k) {
    Known* known = &record->known[k];
    known->factor = PyTuple_GET_ITEM(factors, k);
    if (!PyObject_TypeCheck(known->factor, tensor_type)) PyErr_SetString(PyExc_TypeError, "factors are tensors");
    if (PyErr_Occurred() || !number_of(get(known->factor, version), &known->version) ||
        !number_of(call(known->factor, data_ptr), &known->address)) {
      PyMem_Free(record);
      return NULL;
    }
  }
  record->few = few;
  record->many = many;
  record->limit = limit;
  record->in_features = in_features;
  record->out_features = out_features;
  record->kind = kind;
  record->count = count;
  record->dtype = dtype;
  Py_INCREF(dtype);
  PyObject* capsule = PyCapsule_New(record, NAME, forget);
  if (!capsule) {
    Py_DECREF(dtype);
    PyMem_Free(record);
  }
  return capsule;
}

static int same_factors(const Record* record, PyObject* factors) {
  if (!PyTuple_Check(factors) || PyTuple_GET_SIZE(factors) != record->count) return 0;
  for (Py_ssize_t k = 0; k < record->count; ++k) {
    const Known* known = &record->known[k];
    PyObject* factor = PyTuple_GET_ITEM(factors, k);
    long long now, address;
    if (factor != known->factor) return 0;
    if (!number_of(get(factor, version), &now) || !number_of(call(factor, data_ptr), &address)) return -1;
    if (now != known->version || address != known->address) return 0;
  }
  return 1;
}

/* The number of rows of x, or -1 where its last dimension is not the chain's, or -2 for an error. */
static long long rows_of(PyObject* x, long long in_features, PyObject** shape) {
  *shape = get(x, shape_of);
  if (!*shape) return -2;
  const Py_ssize_t dims = PyTuple_Check(*shape) ? PyTuple_GET_SIZE(*shape) : 0;
  long long rows = 1;
  for (Py_ssize_t k = 0; k < dims; ++k) {
    const long long size = PyLong_AsLongLong(PyTuple_GET_ITEM(*shape, k));
    if (size == -1 && PyErr_Occurred()) return -2;
    if (k == dims - 1) return size == in_features ? rows : -1;
    rows *= size;
  }
  return -1;
}

static int fits(const Record* record, PyObject* bias) {
  PyObject* shape;
  int fine = is_plain(bias, record->dtype);
  if (fine != 1) return fine;
  const long long rows = rows_of(bias, record->out_features, &shape);
  fine = rows == -2 ? -1 : rows == 1 && PyTuple_GET_SIZE(shape) == 1;
  Py_XDECREF(shape);
  return fine;
}

static PyObject* new_output(const Record* record, PyObject* x, PyObject* shape) {
  if (record->in_features == record->out_features) return PyObject_CallOneArg(empty_like, x);
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
  PyObject* sizes = PyTuple_New(dims);
  if (!sizes) return NULL;
  for (Py_ssize_t k = 0; k < dims; ++k) {
    PyObject* size = k < dims - 1 ? PyTuple_GET_ITEM(shape, k) : PyLong_FromLongLong(record->out_features);
    if (k < dims - 1) Py_INCREF(size);
    if (!size) {
      Py_DECREF(sizes);
      return NULL;
    }
    PyTuple_SET_ITEM(sizes, k, size);
  }
  PyObject* y = PyObject_CallMethodOneArg(x, s_new_empty, sizes);
  Py_DECREF(sizes);
  return y;
}

static PyObject* rows(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  (void)self;
  if (count != 6) {
    PyErr_SetString(PyExc_TypeError, "rows takes x, factors, bias, record, activation and threads");
    return NULL;
  }
  PyObject *x = arguments[0], *factors = arguments[1], *bias = arguments[2], *shape = NULL, *y = NULL;
  const Record* record = PyCapsule_GetPointer(arguments[3], NAME);
  const long activation = PyLong_AsLong(arguments[4]), threads = PyLong_AsLong(arguments[5]);
  if (!record || PyErr_Occurred()) return NULL;
  int fine = same_factors(record, factors);
  if (activation && record->kind > 3) fine = 0; /* KS_COMPLEX64: has none */
  if (fine == 1) fine = is_plain(x, record->dtype);
  if (fine == 1 && bias != Py_None) fine = fits(record, bias);
  if (fine == -1) return NULL;
  if (!fine) Py_RETURN_NONE;
  const long long vectors = rows_of(x, record->in_features, &shape);
  long long from, to, start = 0;
  int done = 0;
  const long long address = vectors < record->limit ? record->few : record->many;
  if (vectors >= 0 && address && (y = new_output(record, x, shape)) &&
      number_of(call(x, data_ptr), &from) &&
      number_of(call(y, data_ptr), &to) &&
      (bias == Py_None || number_of(call(bias, data_ptr), &start))) {
    const void *chain = (const void*)(intptr_t)address, *source = (const void*)(intptr_t)from;
    const void* added = (const void*)(intptr_t)start;
    const int64_t features = record->in_features;
    const int kind = record->kind;
    Py_BEGIN_ALLOW_THREADS;
    done = ks_rows(chain, source, features, (void*)(intptr_t)to, vectors, added, (int)activation, (int)threads,
                   kind);
    Py_END_ALLOW_THREADS;
  }
  Py_XDECREF(shape);
  if (PyErr_Occurred() || !done) {
    Py_XDECREF(y);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
  }
  return y;
}

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

/* bind(address of ks_rows, torch.empty_like, the C type of tensors); TypeError where that is not what it was */
static PyObject* bind(PyObject* self, PyObject* arguments) {
  long long address;
  PyObject *function, *type;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "LOO!", &address, &function, &PyType_Type, &type)) return NULL;
  ks_rows = (rows_function)(intptr_t)address;
  Py_INCREF(function);
  Py_XSETREF(empty_like, function);
  Py_INCREF(type);
  Py_XSETREF(tensor_type, (PyTypeObject*)type);
  if (!attribute("_version", &version) || !attribute("shape", &shape_of) || !attribute("dtype", &dtype_of) ||
      !attribute("is_cpu", &is_cpu) || !method("data_ptr", &data_ptr) || !method("is_neg", &is_neg) ||
      !method("is_conj", &is_conj))
    return NULL;
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, "Give the module what it calls."},
    {"record", make_record, METH_VARARGS, "What a call is checked against."},
    {"rows", (PyCFunction)(void (*)(void))rows, METH_FASTCALL, "The product, or None where it needs the long way."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
  s_is_contiguous = PyUnicode_InternFromString("is_contiguous");
  s_new_empty = PyUnicode_InternFromString("new_empty");
  if (!s_is_contiguous || !s_new_empty) return NULL;
  return PyModule_Create(&definition);
}
