// What every instruction set offers; [0] for float32, [1] for float64.
#pragma once
#include "chain.h"

// Int8 factors, from and to `count` vectors of a kind that float32 can hold, one after another (columns = 0) or in
// images of `columns` columns each. Returns as KsTable::rows.
typedef bool KsRunQuads(const KsQuads&, const void* x, void* y, int64_t count, int64_t columns, const void* bias,
                        int activation, int threads, int kind);

struct KsTable {
  const char* name;
  int64_t lanes[2];
  int64_t (*spin)(int64_t times);
  float (*read_all)(const float* data, int64_t count);
  uint64_t (*fingerprint)(const KsGuard&, int64_t part, int64_t parts);
  void (*pack[2])(const KsStep&, const void* weight, void* packed);
  void (*unpack[2])(const KsStep&, const void* packed, void* weight);
  // They return whether there was memory for the intermediate vectors.
  bool (*rows[2])(const KsChain&, const void* x, int64_t x_row, void* y, int64_t y_row, int64_t count,
                  const void* bias, int activation, int threads, int kind);
  bool (*columns[2])(const KsChain&, const void* x, void* y, int64_t images, int64_t columns, const void* bias,
                     int activation, int threads, int kind);
  bool (*backward[2])(const KsChain& forward, const KsChain& transposed, const void* x, const void* g, void* gx,
                      void* const* gradients, int64_t count, int64_t columns, int threads, int kind);
  KsRunQuads* quads;
};

// bfloat16 that is computed on as it is stored, where the processor has instructions for it.
struct KsHalf {
  int64_t (*size)(const KsStep&);
  void (*pack)(const KsStep&, const void* weight, void* packed);
  bool (*rows)(const KsChain&, const void* x, int64_t x_row, void* y, int64_t y_row, int64_t count, const void* bias,
               int activation, int threads, int kind);
};

const KsTable* ks_portable();
const KsTable* ks_avx2();    // null where it was not compiled
const KsTable* ks_avx512();
const KsHalf* ks_bf16();
KsRunQuads* ks_vnni();
// Those in use.
const KsTable* ks_table();
KsRunQuads* ks_run_quads();
int64_t ks_packed_size(const KsStep& step, int64_t lanes);

// A buffer of this thread, on a cache line, that lives until the thread ends; contents are undefined. Null where
// memory is short.
void* ks_scratch(int64_t bytes);
