// What Python hands over: a chain of packed factors. Mirrored by ksurgeon/kernels/cpu/library.py.
#pragma once
#include <cstdint>

struct KsStep {
  int64_t a, d, b, c;  // y[a, o, d] = sum_i w[a, d, o, i] x[a, i, d]
  const void* weight;  // packed, see layout.h
};

struct KsChain {
  int64_t in_features, out_features;
  int64_t widest;   // the largest intermediate vector
  int64_t weights;  // entries of all factors
  int64_t steps;
  const KsStep* step;
};
