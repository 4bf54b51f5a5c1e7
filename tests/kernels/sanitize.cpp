// Every kernel on random chains in buffers of exactly the right size, against plain loops. Built by
// `make sanitize` with AddressSanitizer and UndefinedBehaviorSanitizer; ends with 0 if all is well.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "chain.h"

extern "C" {
const char* ks_isa();
int ks_choose(const char*);
int ks_computes(int);
int64_t ks_size(const KsStep*, int);
void ks_pack(const KsStep*, const void*, void*, int);
void ks_unpack(const KsStep*, const void*, void*, int);
void ks_guard(KsGuard*);
int ks_rows(const KsChain*, const void*, int64_t, void*, int64_t, const void*, int, int, int);
int ks_columns(const KsChain*, const void*, void*, int64_t, int64_t, const void*, int, int, int);
int ks_backward(const KsChain*, const KsChain*, const void*, const void*, void*, void* const*, int64_t, int64_t, int, int);
}

static std::mt19937 rng(1);
static int64_t among(std::initializer_list<int64_t> options) { return options.begin()[rng() % options.size()]; }

template <class T> struct Exact {  // no byte more than asked for
  std::unique_ptr<T[]> data;
  int64_t size;
  explicit Exact(int64_t n) : data(new T[n > 0 ? n : 1]), size(n) {
    std::uniform_real_distribution<double> draw(-1, 1);
    for (int64_t i = 0; i < n; ++i) data[i] = std::is_integral<T>::value ? (T)rng() : (T)draw(rng);
  }
  T* get() { return data.get(); }
};

template <class T> using Chain = std::vector<Exact<T>>;

static KsChain describe(const std::vector<KsStep>& steps, const KsGuard* guard, int64_t packed) {
  KsChain chain{steps[0].a * steps[0].c * steps[0].d, 0, 0, 0, (int64_t)steps.size(), packed, steps.data(), guard};
  for (const KsStep& s : steps) {
    chain.out_features = s.a * s.b * s.d;
    for (int64_t n : {s.a * s.c * s.d, s.a * s.b * s.d})
      if (n > chain.widest) chain.widest = n;
    chain.weights += s.a * s.b * s.c * s.d;
  }
  return chain;
}

static bool close(double got, double want, double tolerance, const char* what) {
  if (std::fabs(got - want) <= tolerance * (1 + std::fabs(want))) return true;
  std::printf("%s: got %.9g, want %.9g\n", what, got, want);
  return false;
}

// Complex numbers: a chain of the same shapes with random steps, on vectors in rows and in columns.
template <class T> static bool complex_case(const std::vector<KsStep>& shapes, int64_t rows, int threads, double tolerance) {
  const int is_double = sizeof(T) == 8, kind = is_double ? KS_COMPLEX128 : KS_COMPLEX64;
  const int64_t in = shapes.front().a * shapes.front().c * shapes.front().d;
  const int64_t out = shapes.back().a * shapes.back().b * shapes.back().d;
  std::vector<KsStep> plain, packed, back;
  Chain<T> memory;
  std::vector<void*> gradients;
  const auto pack = [&](KsStep step, const void* weight, std::vector<KsStep>& to) {
    memory.emplace_back(ks_size(&step, is_double));
    ks_pack(&step, weight, memory.back().get(), is_double);
    step.weight = memory.back().get();
    to.push_back(step);
    return memory.back().size;
  };
  for (const KsStep& s : shapes)
    for (int p = 0; p < 2; ++p) {
      memory.emplace_back(2 * s.a * s.b * s.c * s.d);
      plain.push_back({s.a, s.d, s.b, 2 * s.c, memory.back().get(), 2});
      const int64_t size = pack(plain.back(), plain.back().weight, packed);
      memory.emplace_back(size);
      gradients.push_back(memory.back().get());
    }
  for (auto s = shapes.rbegin(); s != shapes.rend(); ++s)
    for (int p = 0; p < 2; ++p) {
      Exact<T> weight(2 * s->a * s->b * s->c * s->d);
      pack({s->a, s->d, s->c, 2 * s->b, nullptr, 2}, weight.get(), back);
    }
  const auto whole = [&](const std::vector<KsStep>& steps) {
    KsChain chain = describe(steps, nullptr, is_double);
    chain.steps /= 2, chain.in_features /= 2;
    return chain;
  };
  const KsChain forward = whole(packed), columns = whole(plain), backward = whole(back);
  Exact<T> x(2 * rows * in), xc(2 * rows * in), y(2 * rows * out), yc(2 * rows * out), bias(2 * out), g(2 * rows * out);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < 2 * in; ++k) xc.get()[(k / 2 * rows + r) * 2 + k % 2] = x.get()[r * 2 * in + k];
  ks_rows(&forward, x.get(), in, y.get(), rows, bias.get(), 0, threads, kind);
  ks_columns(&columns, xc.get(), yc.get(), 1, rows, bias.get(), 0, threads, kind);
  bool fine = true;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < 2 * out; ++k)
      fine = fine && close(yc.get()[(k / 2 * rows + r) * 2 + k % 2], y.get()[r * 2 * out + k], tolerance, "complex");
  ks_backward(&forward, &backward, x.get(), g.get(), xc.get(), gradients.data(), rows, 0, threads, kind);
  ks_backward(&forward, &backward, x.get(), g.get(), xc.get(), gradients.data(), rows, rows, threads, kind);
  return fine;
}

// Factors of any patterns whose sizes compose.
static std::vector<KsStep> some_shapes() {
  std::vector<KsStep> shapes;
  const int64_t count = among({1, 2, 3});
  int64_t n = 0;
  for (int64_t j = 0; j < count; ++j) {
    KsStep s{};
    s.planes = 1;
    if (!j) {
      s.a = among({1, 2, 3, 8}), s.d = among({1, 2, 3, 4, 5, 8, 12, 16, 17, 33}), s.c = among({1, 2, 3, 4, 8, 11});
    } else {
      do s.d = 1 + rng() % n; while (n % s.d);
      do s.c = 1 + rng() % (n / s.d); while ((n / s.d) % s.c);
      s.a = n / s.d / s.c;
    }
    s.b = among({1, 2, 3, 4, 5, 8, 9, 16, 19});
    if (s.a * s.b * s.d > 2000) s.b = 1;
    n = s.a * s.b * s.d;
    shapes.push_back(s);
  }
  return shapes;
}

static float from_bits(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
static void draw_halves(Exact<uint16_t>& numbers) {  // of size 1/4 to 1, with either sign
  for (int64_t k = 0; k < numbers.size; ++k) numbers.get()[k] = (uint16_t)((rng() % 256 + 0x3E80) | (rng() % 2 << 15));
}

// Rows of bfloat16 in the processor's own instructions.
static bool half_case(int threads) {
  const std::vector<KsStep> shapes = some_shapes();
  std::vector<KsStep> packed;
  std::vector<Exact<uint16_t>> weights, weights_packed;
  for (KsStep s : shapes) {
    weights.emplace_back(s.a * s.b * s.c * s.d);
    draw_halves(weights.back());
    weights_packed.emplace_back(ks_size(&s, KS_BFLOAT16));
    ks_pack(&s, weights.back().get(), weights_packed.back().get(), KS_BFLOAT16);
    s.weight = weights_packed.back().get();
    packed.push_back(s);
  }
  const KsChain chain = describe(packed, nullptr, KS_BFLOAT16);
  const int64_t in = chain.in_features, out = chain.out_features, rows = among({1, 2, 5, 13, 40, 70});
  Exact<uint16_t> x(rows * in), y(rows * out), bias(out);
  draw_halves(x), draw_halves(bias);
  std::vector<double> here(rows * in), size(rows * in);  // sums, and sums of sizes
  for (int64_t k = 0; k < rows * in; ++k) here[k] = from_bits(x.get()[k]), size[k] = std::fabs(here[k]);
  for (size_t j = 0; j < shapes.size(); ++j) {
    const KsStep& s = shapes[j];
    const int64_t from = s.a * s.c * s.d, to = s.a * s.b * s.d;
    std::vector<double> next(rows * to), sizes(rows * to);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t a = 0; a < s.a; ++a)
        for (int64_t d = 0; d < s.d; ++d)
          for (int64_t o = 0; o < s.b; ++o)
            for (int64_t i = 0; i < s.c; ++i) {
              const double w = from_bits(weights[j].get()[((a * s.d + d) * s.b + o) * s.c + i]);
              const int64_t at = r * to + (a * s.b + o) * s.d + d, of = r * from + (a * s.c + i) * s.d + d;
              next[at] += w * here[of], sizes[at] += std::fabs(w) * size[of];
            }
    here = std::move(next), size = std::move(sizes);
  }
  bool fine = ks_rows(&chain, x.get(), in, y.get(), rows, bias.get(), 0, threads, KS_BFLOAT16) == 1;
  for (int64_t k = 0; k < rows * out; ++k) {
    const double added = from_bits(bias.get()[k % out]), bound = (shapes.size() + 1) / 256.0;
    const double error = std::fabs(from_bits(y.get()[k]) - here[k] - added);
    if (error > bound * (size[k] + std::fabs(added))) fine = close(from_bits(y.get()[k]), here[k] + added, 0, "bfloat16");
  }
  const int activation = rng() % 7;
  return fine && ks_rows(&chain, x.get(), in, y.get(), rows, bias.get(), activation, threads, KS_BFLOAT16) == 1;
}

// One factor of int8: packed, and what it starts from and is scaled by.
struct Quads {
  std::vector<KsQuadStep> steps;
  std::vector<Exact<int8_t>> values;
  std::vector<Exact<int32_t>> starts;
  Chain<float> scales, packed;

  void add(const KsStep& s) {
    const int64_t wide = (s.c + 3) / 4, outputs = s.a * s.d * s.b;
    values.emplace_back(outputs * s.c), starts.emplace_back(outputs), scales.emplace_back(outputs);
    Exact<int8_t> padded(outputs * wide * 4);
    memset(padded.get(), 0, padded.size);
    for (int64_t ad = 0; ad < s.a * s.d; ++ad)
      for (int64_t b = 0; b < s.b; ++b) {
        int8_t* w = values.back().get() + (ad * s.b + b) * s.c;
        int32_t sum = 0;
        for (int64_t c = 0; c < s.c; ++c) w[c] = (int8_t)(rng() % 255 - 127), sum += w[c];
        memcpy(padded.get() + (ad * s.b + b) * wide * 4, w, s.c);
        starts.back().get()[(ad / s.d * s.b + b) * s.d + ad % s.d] = -128 * sum;
      }
    const KsStep lanes{s.a, s.d, s.b, wide, nullptr, 1};
    packed.emplace_back(ks_size(&lanes, KS_FLOAT32));
    ks_pack(&lanes, padded.get(), packed.back().get(), KS_FLOAT32);
    steps.push_back({s.a, s.d, s.b, s.c, packed.back().get(), starts.back().get(), scales.back().get()});
  }
};

// Rows of int8 factors: one chain exactly, and a second one, of a factor, beside it.
static bool int8_case(int threads) {
  const std::vector<KsStep> shapes = some_shapes();
  Quads quads;
  for (const KsStep& s : shapes) quads.add(s);
  KsChain chain = describe(shapes, nullptr, KS_INT8);
  const int64_t in = chain.in_features, out = chain.out_features, rows = among({1, 2, 5, 13, 40, 70});
  const bool beside = rng() % 2;
  if (beside) quads.add({1, 1, out, in, nullptr, 1});
  KsQuads all{in, out, 0, 1 << 20, {(int64_t)shapes.size(), beside}, quads.steps.data()};
  for (const KsQuadStep& s : quads.steps)
    for (int64_t n : {s.a * s.d * ((s.c + 3) / 4 * 4), s.a * s.b * s.d})
      if (n > all.widest) all.widest = n;
  chain.quads = &all;
  Exact<float> x(rows * in), y(rows * out), bias(out);
  bool fine = ks_rows(&chain, x.get(), in, y.get(), rows, bias.get(), 0, threads, KS_FLOAT32) == 1;
  for (int64_t r = 0; r < rows && shapes.size() == 1; ++r) {
    float most = 0;
    for (int64_t i = 0; i < in; ++i) most = std::fmax(most, std::fabs(x.get()[r * in + i]));
    std::vector<double> want(bias.get(), bias.get() + out), bound(out);
    for (size_t j = 0; j < quads.steps.size(); ++j) {
      const KsQuadStep& s = quads.steps[j];
      for (int64_t a = 0; a < s.a; ++a)
        for (int64_t d = 0; d < s.d; ++d)
          for (int64_t o = 0; o < s.b; ++o)
            for (int64_t i = 0; i < s.c; ++i) {
              const double number = x.get()[r * in + (a * s.c + i) * s.d + d] * 127.0 / most, whole = std::rint(number);
              const int64_t at = (a * s.b + o) * s.d + d;
              const double w = quads.values[j].get()[((a * s.d + d) * s.b + o) * s.c + i] * s.scale[at] * most / 127;
              want[at] += whole * w;
              if (std::fabs(std::fabs(number - whole) - 0.5) < 1e-3) bound[at] += std::fabs(w);  // either way is right
            }
    }
    for (int64_t k = 0; k < out; ++k) {
      const double got = y.get()[r * out + k], most_off = bound[k] + 1e-4 * (1 + std::fabs(want[k]));
      fine = fine && (std::fabs(got - want[k]) <= most_off || close(got, want[k], 1e-4, "int8"));
    }
  }
  const int64_t images = among({1, 2, 3});
  Exact<float> flat(images * rows * in), xc(images * rows * in), yc(images * rows * out), yr(images * rows * out);
  for (int64_t at = 0; at < images * rows * in; ++at)
    xc.get()[(at / in / rows * in + at % in) * rows + at / in % rows] = flat.get()[at];
  fine = fine && ks_rows(&chain, flat.get(), in, yr.get(), images * rows, bias.get(), 0, threads, KS_FLOAT32) == 1;
  fine = fine && ks_columns(&chain, xc.get(), yc.get(), images, rows, bias.get(), 0, threads, KS_FLOAT32) == 1;
  for (int64_t at = 0; at < images * rows * out; ++at)
    fine = fine && close(yc.get()[(at / out / rows * out + at % out) * rows + at / out % rows], yr.get()[at], 1e-4, "int8 columns");
  for (int kind : {KS_BFLOAT16, KS_FLOAT16}) {  // whatever the bits are: that nothing is read or written beside it
    Exact<uint16_t> xh(rows * in), yh(rows * out), bh(out);
    fine = fine && ks_rows(&chain, xh.get(), in, yh.get(), rows, bh.get(), rng() % 7, threads, kind) == 1;
    fine = fine && ks_columns(&chain, xh.get(), yh.get(), 1, rows, bh.get(), rng() % 7, threads, kind) == 1;
  }
  return fine;
}

template <class T> static bool one_case(int threads) {
  const int is_double = sizeof(T) == 8;
  const double tolerance = is_double ? 1e-9 : 2e-3;
  std::vector<KsStep> plain, packed, transposed;
  Chain<T> weights, weights_packed, weights_transposed, flipped;
  for (KsStep s : some_shapes()) {
    const int64_t numel = s.a * s.b * s.c * s.d;
    weights.emplace_back(numel);
    s.weight = weights.back().get();
    plain.push_back(s);
    weights_packed.emplace_back(ks_size(&s, is_double));
    ks_pack(&s, s.weight, weights_packed.back().get(), is_double);
    KsStep p = s;
    p.weight = weights_packed.back().get();
    packed.push_back(p);
    flipped.emplace_back(numel);
    const T* w = (const T*)s.weight;
    for (int64_t k = 0; k < s.a * s.d; ++k)
      for (int64_t o = 0; o < s.b; ++o)
        for (int64_t i = 0; i < s.c; ++i) flipped.back().get()[(k * s.c + i) * s.b + o] = w[(k * s.b + o) * s.c + i];
    KsStep t{s.a, s.d, s.c, s.b, nullptr, 1};
    weights_transposed.emplace_back(ks_size(&t, is_double));
    ks_pack(&t, flipped.back().get(), weights_transposed.back().get(), is_double);
    t.weight = weights_transposed.back().get();
    transposed.insert(transposed.begin(), t);
  }
  std::vector<const void*> data;
  std::vector<int64_t> bytes;
  for (auto& w : weights) data.push_back(w.get()), bytes.push_back(w.size * (int64_t)sizeof(T));
  const int64_t count = (int64_t)plain.size();
  KsGuard guard{count, data.data(), bytes.data(), among({KS_NOTHING, KS_PART, KS_EVERYTHING})};
  ks_guard(&guard);
  const KsChain forward = describe(packed, &guard, is_double), backward = describe(transposed, nullptr, is_double);
  const KsChain columns = describe(plain, &guard, is_double);
  const int64_t in = forward.in_features, out = forward.out_features, rows = among({0, 1, 2, 5, 13, 40, 70});

  Exact<T> x(rows * in), g(rows * out), bias(out), y(rows * out), gx(rows * in);
  std::vector<std::vector<double>> kept;  // what every factor takes
  kept.emplace_back(x.get(), x.get() + rows * in);
  for (const KsStep& s : plain) {
    const int64_t from = s.a * s.c * s.d, to = s.a * s.b * s.d;
    std::vector<double> next(rows * to);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t a = 0; a < s.a; ++a)
        for (int64_t d = 0; d < s.d; ++d)
          for (int64_t o = 0; o < s.b; ++o)
            for (int64_t i = 0; i < s.c; ++i)
              next[r * to + (a * s.b + o) * s.d + d] += ((const T*)s.weight)[((a * s.d + d) * s.b + o) * s.c + i] *
                                                       kept.back()[r * from + (a * s.c + i) * s.d + d];
    kept.push_back(std::move(next));
  }
  bool fine = ks_rows(&forward, x.get(), in, y.get(), rows, bias.get(), 0, threads, is_double) == 1;
  for (int64_t k = 0; k < rows * out; ++k)
    fine = fine && close(y.get()[k], kept.back()[k] + bias.get()[k % out], tolerance, "rows");

  Exact<T> xc(rows * in), yc(rows * out);  // the same vectors as columns
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < in; ++k) xc.get()[k * rows + r] = x.get()[r * in + k];
  if (rows) {
    fine = fine && ks_columns(&columns, xc.get(), yc.get(), 1, rows, nullptr, 0, threads, is_double) == 1;
    for (int64_t k = 0; k < rows * out; ++k)
      fine = fine && close(yc.get()[k % out * rows + k / out], kept.back()[k], tolerance, "columns");
  }

  std::vector<Exact<T>> gradients;
  std::vector<void*> pointers;
  for (const KsStep& s : packed) {
    gradients.emplace_back(ks_size(&s, is_double));
    memset(gradients.back().get(), 0, gradients.back().size * sizeof(T));
    pointers.push_back(gradients.back().get());
  }
  ks_backward(&forward, &backward, x.get(), g.get(), gx.get(), pointers.data(), rows, 0, threads, is_double);
  std::vector<double> back(g.get(), g.get() + rows * out);
  for (int64_t j = count - 1; j >= 0; --j) {
    const KsStep& s = plain[j];
    const int64_t from = s.a * s.c * s.d, to = s.a * s.b * s.d, numel = s.a * s.b * s.c * s.d;
    std::vector<double> next(rows * from), of_weight(numel);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t a = 0; a < s.a; ++a)
        for (int64_t d = 0; d < s.d; ++d)
          for (int64_t o = 0; o < s.b; ++o)
            for (int64_t i = 0; i < s.c; ++i) {
              const int64_t at = ((a * s.d + d) * s.b + o) * s.c + i;
              const double up = back[r * to + (a * s.b + o) * s.d + d];
              next[r * from + (a * s.c + i) * s.d + d] += ((const T*)s.weight)[at] * up;
              of_weight[at] += kept[j][r * from + (a * s.c + i) * s.d + d] * up;
            }
    Exact<T> got(numel);
    ks_unpack(&s, gradients[j].get(), got.get(), is_double);
    for (int64_t k = 0; k < numel; ++k) fine = fine && close(got.get()[k], of_weight[k], tolerance * 10, "of weights");
    back = std::move(next);
  }
  for (int64_t k = 0; k < rows * in; ++k) fine = fine && close(gx.get()[k], back[k], tolerance * 10, "of input");

  // The same gradient of the input with channels first, in one or two images.
  const int64_t images = among({1, 2}), each = rows / images;
  if (each) {
    const int64_t all = images * each;
    Exact<T> xi(all * in), gi(all * out), gxi(all * in);
    for (int64_t r = 0; r < all; ++r)
      for (int64_t k = 0; k < out; ++k) gi.get()[(r / each * out + k) * each + r % each] = g.get()[r * out + k];
    ks_backward(&forward, &backward, xi.get(), gi.get(), gxi.get(), nullptr, all, each, threads, is_double);
    for (int64_t r = 0; r < all; ++r)
      for (int64_t k = 0; k < in; ++k)
        fine = fine && close(gxi.get()[(r / each * in + k) * each + r % each], gx.get()[r * in + k], tolerance, "images");
    ks_backward(&forward, &backward, xi.get(), gi.get(), nullptr, pointers.data(), all, each, threads, is_double);
  }

  if (!is_double && rows)  // half precision, whatever the bits are: that nothing is read or written beside it
    for (int kind : {2, 3}) {
      Exact<uint16_t> xh(rows * in), yh(rows * out), bh(out), gh(rows * out), gxh(rows * in);
      const int activation = rng() % 7;
      ks_rows(&forward, xh.get(), in, yh.get(), rows, bh.get(), activation, threads, kind);
      ks_columns(&columns, xh.get(), yh.get(), 1, rows, bh.get(), activation, threads, kind);
      ks_backward(&forward, &backward, xh.get(), gh.get(), gxh.get(), pointers.data(), rows, 0, threads, kind);
      ks_backward(&forward, &backward, xh.get(), gh.get(), gxh.get(), pointers.data(), rows, rows, threads, kind);
    }

  if (rows) fine = fine && complex_case<T>(plain, rows, threads, tolerance);

  const int64_t last = weights[0].size - 1;  // a write that nobody was told of
  weights[0].get()[last] += 1;
  Exact<T> many(40 * in), result(40 * out);
  const int fresh = guard.comparison == KS_NOTHING;  // as it was asked not to look
  fine = fine && ks_rows(&forward, many.get(), in, result.get(), 40, nullptr, 0, 1, is_double) == fresh;
  return fine;
}

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    if (!ks_choose(isa)) continue;
    rng.seed(1);
    for (int k = 0; k < cases; ++k)
      if (!one_case<float>(1 + k % 3) || !one_case<double>(1 + k % 3)) {
        std::printf("%s: case %d failed\n", isa, k);
        return 1;
      }
    std::printf("%s: %d chains in float32 and in float64\n", isa, cases);
  }
  for (const char* isa : {"portable", "avx2", "avx512", "avx512_vnni"}) {
    if (!ks_choose(isa)) continue;
    rng.seed(3);
    for (int k = 0; k < 2 * cases; ++k)
      if (!int8_case(1 + k % 3)) {
        std::printf("%s: case %d in int8 failed\n", isa, k);
        return 1;
      }
    std::printf("%s: %d chains in int8\n", isa, 2 * cases);
  }
  rng.seed(2);
  for (int k = 0; ks_choose("avx512_bf16") && k < 4 * cases; ++k)
    if (!half_case(1 + k % 3)) {
      std::printf("%s: case %d in bfloat16 failed\n", ks_isa(), k);
      return 1;
    }
  std::printf("%s: %d chains in bfloat16\n", ks_isa(), ks_computes(KS_BFLOAT16) ? 4 * cases : 0);
}
