// What the files isa_*.cpp share. Every system header comes before the target is changed, and the kernels lie
// in an unnamed namespace: no function compiled for one instruction set may stand in for another's.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "pool.h"
#include "table.h"

// Four inputs of one byte, four weights of one byte, or a sum of their products.
struct quad {
  int32_t bits;
};

#define KS_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define KS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KS_UNROLL _Pragma("GCC unroll 16")  // arrays of registers live in registers only where indices are constant
#endif
#define KS_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KS_TARGET(features) KS_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KS_TARGET_END KS_PRAGMA(clang attribute pop)
#else
#define KS_TARGET(features) KS_PRAGMA(GCC push_options) KS_PRAGMA(GCC target(features))
#define KS_TARGET_END
#endif
