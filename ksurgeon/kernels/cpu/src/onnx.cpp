// The kernels as custom operators of ONNX Runtime, which loads this library by its name and calls RegisterCustomOps:
//   ksurgeon::Chain(x, factor…, bias?)                      factors are float32 (a, d, b, c)
//   ksurgeon::Columns(x, factor…, bias?)                    the same along dimension 1, as of images
//   ksurgeon::Int8Chain(x, values, scale, …, bias?)         values are int8 (a, d, b, c), scales float32 (a, d, b)
// y = chain(x) + bias along the last dimension but for Columns, all float32; all inputs but x are initialisers.
// Attributes: bias (0 or 1), activation (a KsActivation), and of Int8Chain `first`, the factors of the first of two
// chains.
#include <atomic>
#include <climits>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "late.h"
#include "ort.h"
#include "pool.h"
#include "table.h"

namespace {

enum Kind { CHAIN, COLUMNS, INT8_CHAIN };

struct Kernel {
  Api api;
  Kind kind;
  int activation = 0;
  int64_t in_features = 0, out_features = 0, widest = 0, weights = 0;
  std::vector<float> bias;
  std::vector<std::vector<char>> memory;  // of packed weights, starts and scales
  std::vector<KsStep> steps;
  std::vector<KsQuadStep> quad_steps;
  KsChain chain{};
  KsQuads quads{};

  template <class T> T* room(int64_t count) {
    constexpr int64_t LINE = 64;
    memory.emplace_back(count * sizeof(T) + LINE);
    const uintptr_t at = ((uintptr_t)memory.back().data() + LINE - 1) / LINE * LINE;
    return (T*)at;
  }

  Status* attribute(const Info* info, const char* name, int64_t* to) {
    return call(api, GET_ATTRIBUTE, info, name, to);
  }

  Status* constant(const Info* info, size_t index, int type, size_t dimensions, Tensor* to) {
    int is_constant = 0;
    const Value* value = nullptr;
    KS_TRY(call(api, GET_CONSTANT, info, index, &is_constant, &value));
    if (!is_constant || !value) return failed(api, "ksurgeon: factors and bias have to be initialisers");
    KS_TRY(to->read(api, value));
    bool fine = to->type == type && to->sizes.size() == dimensions;
    for (int64_t size : to->sizes) fine = fine && size > 0 && size < (1LL << 31);
    return fine ? nullptr : failed(api, "ksurgeon: a factor or the bias has another type or shape than it can have");
  }

  // A factor's sizes, which have to fit those of the one before.
  Status* check(const Tensor& factor, int64_t* given, KsStep* step) {
    *step = {factor.sizes[0], factor.sizes[1], factor.sizes[2], factor.sizes[3], nullptr, 1};
    const int64_t ins = step->a * step->c * step->d, outs = step->a * step->b * step->d;
    if (*given && *given != ins) return failed(api, "ksurgeon: a factor does not fit the one before it");
    *given = outs;
    const int64_t quads_wide = step->a * step->d * ((step->c + 3) / 4 * 4);
    for (int64_t size : {ins, outs, quads_wide}) widest = size > widest ? size : widest;
    weights += step->a * step->b * step->c * step->d;
    return nullptr;
  }

  Status* take_floats(const Info* info, size_t factors) {
    int64_t given = 0;
    for (size_t k = 0; k < factors; ++k) {
      Tensor factor;
      KsStep step;
      KS_TRY(constant(info, 1 + k, FLOAT32, 4, &factor));
      KS_TRY(check(factor, &given, &step));
      if (!k) in_features = step.a * step.c * step.d;
      step.weight = weights_of(step, (const float*)factor.data);
      steps.push_back(step);
    }
    out_features = given;
    chain = {in_features, out_features, widest, weights, (int64_t)factors, KS_FLOAT32, steps.data(), nullptr, nullptr};
    return nullptr;
  }

  // Packed for rows; as they are for columns.
  const float* weights_of(const KsStep& step, const float* factor) {
    const int64_t plain = step.a * step.b * step.c * step.d;
    float* to = room<float>(kind == COLUMNS ? plain : ks_packed_size(step, ks_table()->lanes[0]));
    if (kind == COLUMNS) memcpy(to, factor, plain * sizeof(float));
    else ks_table()->pack[0](step, factor, to);
    return to;
  }

  Status* take_int8(const Info* info, size_t factors, size_t first) {
    int64_t given = 0;
    for (size_t k = 0; k < factors; ++k) {
      if (k == first) given = 0;
      Tensor values, scale;
      KsStep step;
      KS_TRY(constant(info, 1 + 2 * k, INT8, 4, &values));
      KS_TRY(constant(info, 2 + 2 * k, FLOAT32, 3, &scale));
      KS_TRY(check(values, &given, &step));
      if (scale.sizes != std::vector<int64_t>{step.a, step.d, step.b})
        return failed(api, "ksurgeon: a scale has not the factor's sizes");
      if (step.c > INT32_MAX / (255 * 127)) return failed(api, "ksurgeon: a block has more inputs than sums have room for");
      const int64_t ins = step.a * step.c * step.d;
      if (!k) in_features = ins;
      if (k == first && ins != in_features) return failed(api, "ksurgeon: two chains take vectors of other sizes");
      if (k + 1 == first) out_features = given;
      if (k + 1 == factors && given != out_features) return failed(api, "ksurgeon: two chains give other sizes");
      quad_steps.push_back(packed_quads(step, (const int8_t*)values.data, (const float*)scale.data));
    }
    quads = {in_features, out_features, widest, weights, {(int64_t)first, (int64_t)(factors - first)},
             quad_steps.data()};
    return nullptr;
  }

  KsQuadStep packed_quads(const KsStep& step, const int8_t* values, const float* scale) {
    const int64_t wide = (step.c + 3) / 4, outputs = step.a * step.d * step.b;
    std::vector<int8_t> padded(outputs * wide * 4);
    int32_t* start = room<int32_t>(outputs);
    float* scales = room<float>(outputs);
    for (int64_t a = 0; a < step.a; ++a)
      for (int64_t d = 0; d < step.d; ++d)
        for (int64_t b = 0; b < step.b; ++b) {
          const int64_t from = (a * step.d + d) * step.b + b, to = (a * step.b + b) * step.d + d;
          memcpy(&padded[from * wide * 4], values + from * step.c, step.c);
          int32_t sum = 0;
          for (int64_t c = 0; c < step.c; ++c) sum += values[from * step.c + c];
          start[to] = -128 * sum;
          scales[to] = scale[from];
        }
    const KsStep lanes = {step.a, step.d, step.b, wide, nullptr, 1};
    float* packed = room<float>(ks_packed_size(lanes, ks_table()->lanes[0]));
    ks_table()->pack[0](lanes, padded.data(), packed);
    return {step.a, step.d, step.b, step.c, packed, start, scales};
  }

  Status* create(const Info* info) {
    int64_t with_bias = 0, applied = 0, first = 0;
    const bool int8 = kind == INT8_CHAIN;
    KS_TRY(attribute(info, "bias", &with_bias));
    KS_TRY(attribute(info, "activation", &applied));
    if (int8) KS_TRY(attribute(info, "first", &first));
    size_t inputs = 0;
    KS_TRY(call(api, COUNT_INPUTS, info, &inputs));
    const size_t beside = 1 + (with_bias ? 1 : 0), each = int8 ? 2 : 1;
    const size_t factors = inputs > beside ? (inputs - beside) / each : 0;
    if (!factors || with_bias < 0 || with_bias > 1 || inputs != beside + each * factors || applied < KS_NONE || applied > KS_HARDSWISH ||
        (int8 && (first < 1 || (size_t)first > factors)))
      return failed(api, "ksurgeon: the node has other inputs or attributes than it can have");
    activation = (int)applied;
    KS_TRY(int8 ? take_int8(info, factors, (size_t)first) : take_floats(info, factors));
    if (!with_bias) return nullptr;
    Tensor added;
    KS_TRY(constant(info, inputs - 1, FLOAT32, 1, &added));
    if (added.sizes[0] != out_features) return failed(api, "ksurgeon: the bias has not the size of the outputs");
    bias.assign((const float*)added.data, (const float*)added.data + out_features);
    return nullptr;
  }

  bool rows(const float* x, float* y, int64_t count) const {
    const float* added = bias.empty() ? nullptr : bias.data();
    if (kind == INT8_CHAIN)
      return ks_run_quads()(quads, x, y, count, 0, added, activation, 1, KS_FLOAT32);
    return ks_table()->rows[0](chain, x, in_features, y, out_features, count, added, activation, 1, KS_FLOAT32);
  }

  bool columns(const float* x, float* y, int64_t images, int64_t columns, int threads) const {
    const float* added = bias.empty() ? nullptr : bias.data();
    return ks_table()->columns[0](chain, x, y, images, columns, added, activation, threads, KS_FLOAT32);
  }
};

struct Job {
  const Kernel& kernel;
  const float* x;
  float* y;
  int64_t count, share;
  std::atomic<bool> short_of_memory{false};
};

void run_share(void* given, size_t number) {
  Job& job = *(Job*)given;
  const int64_t from = (int64_t)number * job.share, left = job.count - from;
  const Kernel& k = job.kernel;
  if (!k.rows(job.x + from * k.in_features, job.y + from * k.out_features, left < job.share ? left : job.share))
    job.short_of_memory = true;
}

// Rows that a thread takes at a time: shares of equal size, eight of them, fewer where these would not be worth a
// thread, and more where they would be longer than a tile.
int64_t share_of(const Kernel& kernel, int64_t count) {
  constexpr int64_t WORK = 1 << 17, SHARES = 8, MOST = 48;
  const int64_t weights = kernel.kind == INT8_CHAIN ? kernel.weights / 4 + 1 : kernel.weights;
  int64_t shares = count * weights / WORK;
  shares = shares < 1 ? 1 : shares > SHARES ? SHARES : shares;
  shares = shares * MOST < count ? (count + MOST - 1) / MOST : shares;
  return (count + shares - 1) / shares;
}

// The session's own threads, for products that ask for some.
struct Session : KsLender {
  Api api;
  const Context* context;
  mutable Status* status = nullptr;

  Session(Api api, const Context* context) : KsLender{lend}, api(api), context(context) { ks_lender = this; }
  ~Session() { ks_lender = nullptr; }

  struct Work {
    int64_t (*work)(void*, int, int);
    void* context;
    int threads;
  };
  static void lend(const KsLender* lender, int threads, int64_t (*work)(void*, int, int), void* context) {
    const Session& own = *(const Session*)lender;
    Work job{work, context, threads};
    void (*one)(void*, size_t) = [](void* given, size_t number) {
      const Work& job = *(const Work*)given;
      job.work(job.context, (int)number, job.threads);
    };
    own.status = call(own.api, PARALLEL_FOR, own.context, one, (size_t)threads, (size_t)0, (void*)&job);
  }
};

Status* run_columns(const Kernel& kernel, const Context* context, const Tensor& x, float* y) {
  constexpr int THREADS = 8;  // at most that it is worth
  int64_t columns = 1;
  for (size_t k = 2; k < x.sizes.size(); ++k) columns *= x.sizes[k];
  const Session session(kernel.api, context);
  const bool fine = kernel.columns((const float*)x.data, y, x.sizes[0], columns, THREADS);
  return session.status ? session.status
         : fine         ? nullptr
                        : failed(kernel.api, "ksurgeon: not enough memory for the intermediate vectors");
}

Status* compute(void* given, Context* context) {
  const Kernel& kernel = *(const Kernel*)given;
  const Api api = kernel.api;
  try {
    const Value* input = nullptr;
    Value* output = nullptr;
    Tensor x;
    KS_TRY(call(api, GET_INPUT, (const Context*)context, (size_t)0, &input));
    KS_TRY(x.read(api, input));
    const bool columns = kernel.kind == COLUMNS;
    const size_t axis = columns ? 1 : x.sizes.size() - 1;
    if (axis >= x.sizes.size() || x.sizes[axis] != kernel.in_features)
      return failed(api, ("ksurgeon: the chain takes vectors of " + std::to_string(kernel.in_features) +
                          " entries along " + (columns ? "dimension 1" : "the last dimension")).c_str());
    const int64_t count = x.numel() / kernel.in_features;
    std::vector<int64_t> sizes = x.sizes;
    sizes[axis] = kernel.out_features;
    KS_TRY(call(api, GET_OUTPUT, context, (size_t)0, (const int64_t*)sizes.data(), sizes.size(), &output));
    void* y = nullptr;
    KS_TRY(call(api, GET_DATA, output, &y));
    if (!count) return nullptr;
    if (columns) return run_columns(kernel, context, x, (float*)y);
    const int64_t share = share_of(kernel, count);
    Job job{kernel, (const float*)x.data, (float*)y, count, share};
    const size_t shares = (size_t)((count + share - 1) / share);
    if (shares == 1) run_share(&job, 0);
    else KS_TRY(call(api, PARALLEL_FOR, (const Context*)context, &run_share, shares, (size_t)0, (void*)&job));
    return job.short_of_memory ? failed(api, "ksurgeon: not enough memory for the intermediate vectors") : nullptr;
  } catch (const std::bad_alloc&) {
    return failed(api, "ksurgeon: not enough memory");
  }
}

// OrtCustomOp of version 17.
struct Operator {
  uint32_t version = VERSION;
  void* (*create)(const Operator*, Api, const Info*) = nullptr;
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*) = [](const Operator*) -> const char* { return nullptr; };
  int (*input_type)(const Operator*, size_t) = [](const Operator*, size_t k) { return (int)(k ? ANY : FLOAT32); };
  size_t (*inputs)(const Operator*) = [](const Operator*) -> size_t { return 2; };
  int (*output_type)(const Operator*, size_t) = [](const Operator*, size_t) { return (int)FLOAT32; };
  size_t (*outputs)(const Operator*) = [](const Operator*) -> size_t { return 1; };
  void (*compute_before)(void*, Context*) = nullptr;
  void (*destroy)(void*) = [](void* kernel) { delete (Kernel*)kernel; };
  int (*input_is)(const Operator*, size_t) = [](const Operator*, size_t k) { return (int)(k ? VARIADIC : REQUIRED); };
  int (*output_is)(const Operator*, size_t) = [](const Operator*, size_t) { return (int)REQUIRED; };
  int (*memory)(const Operator*, size_t) = [](const Operator*, size_t) { return 0; };
  int (*fewest_inputs)(const Operator*) = [](const Operator*) { return 1; };
  int (*inputs_alike)(const Operator*) = [](const Operator*) { return 0; };
  int (*fewest_outputs)(const Operator*) = [](const Operator*) { return 0; };
  int (*outputs_alike)(const Operator*) = [](const Operator*) { return 1; };
  Status* (*make)(const Operator*, Api, const Info*, void**);
  Status* (*run)(void*, Context*) = compute;
  void* infer_shape = nullptr;
  int (*from_version)(const Operator*) = [](const Operator*) { return 1; };
  int (*to_version)(const Operator*) = [](const Operator*) { return INT_MAX; };
  void* unused[4] = {};

  Operator(const char* (*name)(const Operator*), Status* (*make)(const Operator*, Api, const Info*, void**))
      : name(name), make(make) {}

  template <Kind kind> static Status* make_kernel(const Operator*, Api api, const Info* info, void** to) {
    Kernel* kernel = nullptr;
    try {
      kernel = new Kernel{api, kind};
      Status* status = kernel->create(info);
      if (!status) return *to = kernel, nullptr;
      delete kernel;
      return status;
    } catch (const std::bad_alloc&) {
      delete kernel;
      return failed(api, "ksurgeon: not enough memory for the weights");
    }
  }
};

const Operator OPERATORS[] = {
    {[](const Operator*) { return "Chain"; }, Operator::make_kernel<CHAIN>},
    {[](const Operator*) { return "Columns"; }, Operator::make_kernel<COLUMNS>},
    {[](const Operator*) { return "Int8Chain"; }, Operator::make_kernel<INT8_CHAIN>},
};

}  // namespace

KS_EXPORT Status* RegisterCustomOps(Options* options, const ApiBase* base) {
  const Api api = base->get(VERSION);
  if (!api) {
    const Api first = base->get(1);
    return first ? failed(first, "ksurgeon: its operators need ONNX Runtime 1.17 or newer") : nullptr;
  }
  Domain* domain = nullptr;
  KS_TRY(call(api, CREATE_DOMAIN, "ksurgeon", &domain));
  for (const Operator& each : OPERATORS) KS_TRY(call(api, ADD_OPERATOR, domain, &each));
  return call(api, ADD_DOMAIN, options, domain);
}
