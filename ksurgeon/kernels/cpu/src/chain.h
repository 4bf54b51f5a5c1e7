// What Python hands over: a chain of packed factors. Mirrored by ksurgeon/kernels/cpu/native.py.
#pragma once
#include <cstdint>

struct KsStep {
  int64_t a, d, b, c;  // y[a, o, d] = sum_i w[a, d, o, i] x[a, i, d]
  const void* weight;  // packed, see layout.h
  int64_t planes;      // 1; or 2, where inputs i >= c / 2 lie one plane further on
};

// The factors that weights were made from. PyTorch's version counter does not see writes through `.data` or
// NumPy, so that their contents are compared too. Of large factors and for few rows a part at a time is: a write
// is seen after KS_PARTS calls at the latest.
enum KsComparison { KS_NOTHING, KS_PART, KS_EVERYTHING };

constexpr int KS_PARTS = 64;

struct KsGuard {
  int64_t factors;
  const void* const* data;
  const int64_t* bytes;
  mutable int64_t comparison;  // a KsComparison; of everything, once a part has changed
  mutable int64_t calls;  // that compared a part
  uint64_t whole, part[KS_PARTS];  // fingerprints
};

// What is applied to the outputs of a chain; the numbers are those of native.py.
enum KsActivation { KS_NONE, KS_RELU, KS_RELU6, KS_GELU, KS_GELU_TANH, KS_SILU, KS_HARDSWISH };

// What vectors are stored in. Half precision is computed in float32, from weights in float32, but for rows of bfloat16
// where the weights are packed in it. Nothing but weights is in int8.
enum KsKind { KS_FLOAT32, KS_FLOAT64, KS_BFLOAT16, KS_FLOAT16, KS_COMPLEX64, KS_COMPLEX128, KS_INT8 };

// A tile of complex numbers is two planes, of real and of imaginary parts, and a complex factor two steps: of the
// real parts of its outputs, weights [Re, -Im], and of their imaginary parts, weights [Im, Re].

// One factor of a chain in int8. Its outputs are scale[o] times sums of products with inputs from -127 to 127, which
// are kept from 1 to 255, so that sums begin with -128 times the sum of their weights.
struct KsQuadStep {
  int64_t a, d, b, c;
  const void* weight;    // packed as a factor of (c + 3) / 4 inputs in float32 is, four bytes being one weight
  const int32_t* start;  // of each output
  const float* scale;
};

// One chain, or the sum of two, of int8 factors. Inputs of every factor are scaled anew for each row by its largest.
struct KsQuads {
  int64_t in_features, out_features;
  int64_t widest;    // the largest vector of inputs, in groups of four, or outputs of a factor
  int64_t weights;   // entries of all factors
  int64_t steps[2];  // factors of the first chain and of the second, which may have none
  const KsQuadStep* step;
};

struct KsChain {
  int64_t in_features, out_features;
  int64_t widest;   // the largest intermediate vector
  int64_t weights;  // entries of all factors
  int64_t steps;    // factors
  int64_t packed;   // weights for rows: a KsKind, KS_FLOAT32, KS_FLOAT64 or KS_BFLOAT16
  const KsStep* step;  // as many as there are planes for each factor
  const KsGuard* guard;  // may be null
  const KsQuads* quads;  // int8 factors, in the place of all others; else null
};
