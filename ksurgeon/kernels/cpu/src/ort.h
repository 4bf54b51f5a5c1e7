// Of ONNX Runtime's C interface, whose functions keep their places in its table, what onnx.cpp uses. Declared here,
// so that nothing of ONNX Runtime's is needed to compile the kernels.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

typedef void (*Function)();
typedef const Function* Api;
struct Status;
struct Info;
struct Context;
struct Value;
struct Shape;
struct Options;
struct Domain;

struct ApiBase {
  Api (*get)(uint32_t version);
  const char* (*version)();
};

enum Place {  // in the table of functions
  CREATE_STATUS = 0,
  CREATE_DOMAIN = 26,
  ADD_OPERATOR = 27,
  ADD_DOMAIN = 28,
  GET_DATA = 51,
  GET_TYPE = 60,
  COUNT_DIMENSIONS = 61,
  GET_DIMENSIONS = 62,
  GET_SHAPE = 65,
  GET_ATTRIBUTE = 86,
  GET_INPUT = 90,
  GET_OUTPUT = 91,
  RELEASE_SHAPE = 99,
  COUNT_INPUTS = 230,
  GET_CONSTANT = 249,
  PARALLEL_FOR = 274,
};
constexpr uint32_t VERSION = 17;  // of ONNX Runtime 1.17, the first with PARALLEL_FOR
enum { ANY = 0, FLOAT32 = 1, INT8 = 3 };  // element types
enum { REQUIRED = 0, VARIADIC = 2 };

template <class... Given> Status* call(Api api, Place place, Given... given) {
  return ((Status * (*)(Given...)) api[place])(given...);
}

Status* failed(Api api, const char* why) {
  return ((Status * (*)(int, const char*)) api[CREATE_STATUS])(1, why);
}

#define KS_TRY(expression) \
  if (Status* status_ = (expression)) return status_

struct Tensor {
  std::vector<int64_t> sizes;
  int type = ANY;
  void* data = nullptr;

  Status* read(Api api, const Value* value) {
    Shape* shape = nullptr;
    KS_TRY(call(api, GET_SHAPE, value, &shape));
    size_t count = 0;
    Status* status = call(api, COUNT_DIMENSIONS, (const Shape*)shape, &count);
    if (!status) sizes.resize(count), status = call(api, GET_DIMENSIONS, (const Shape*)shape, sizes.data(), count);
    if (!status) status = call(api, GET_TYPE, (const Shape*)shape, &type);
    ((void (*)(Shape*))api[RELEASE_SHAPE])(shape);
    return status ? status : call(api, GET_DATA, (Value*)value, &data);
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t size : sizes) n *= size;
    return n;
  }
};

}  // namespace
