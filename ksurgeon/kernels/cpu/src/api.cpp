// The functions that Python calls. Shapes are checked there.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "table.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// A large result is new memory, and the page faults of its first writing take longer than the product:
// ask for huge pages, where the system gives them to those who ask.
void expect_writes(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t PAGE = 1 << 21;
  if (bytes < 2 * PAGE) return;
  const uintptr_t from = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE, to = ((uintptr_t)data + bytes) / PAGE * PAGE;
  if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

const KsTable* best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (ks_avx512() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma"))
    return ks_avx512();
  if (ks_avx2() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ks_avx2();
#endif
  return ks_portable();
}

const KsTable* table = best();

struct Scratch {
  void* memory = nullptr;
  int64_t bytes = 0;
  ~Scratch() { free(memory); }
};
thread_local Scratch scratch;

constexpr int64_t SAMPLES = 12;          // of each factor
constexpr int64_t ROWS_TO_COMPARE = 32;  // from which on reading all factors once more does not count

uint64_t fingerprint(const KsGuard& guard, bool whole) {
  uint64_t sum = 0;
  for (int64_t f = 0; f < guard.factors; ++f) {
    const char* data = (const char*)guard.data[f];
    const int64_t bytes = guard.bytes[f];
    if (whole) {
      sum = (sum ^ table->fingerprint(data, bytes)) * 0x9E3779B97F4A7C15u;
      continue;
    }
    const int64_t step = bytes / 8 / SAMPLES * 8 + 8;  // whole entries: signs and exponents are in them
    uint64_t part = 0;  // apart: the sums of several factors are made at a time
    for (int64_t at = 0; at < bytes; at += step) {
      uint64_t word = 0;
      if (at + 8 <= bytes)
        memcpy(&word, data + at, 8);
      else
        memcpy(&word, data + at, bytes - at);
      word = (part ^ word) * 0x9E3779B97F4A7C15u;
      part = word ^ word >> 32;
    }
    sum = (sum ^ part) * 0x9E3779B97F4A7C15u;
  }
  return sum;
}

int64_t entry_bytes(int kind) {
  constexpr int64_t bytes[] = {4, 8, 2, 2, 8, 16};  // as KsKind
  return bytes[kind];
}

bool is_double(int kind) { return kind == KS_FLOAT64 || kind == KS_COMPLEX128; }

bool changed(const KsGuard* guard, int64_t rows) {
  if (!guard) return false;
  return rows >= ROWS_TO_COMPARE ? fingerprint(*guard, true) != guard->whole
                                 : fingerprint(*guard, false) != guard->sampled;
}

}  // namespace

void* ks_scratch(int64_t bytes) {
  if (bytes > scratch.bytes) {
    free(scratch.memory);
    bytes = (bytes + 4095) / 4096 * 4096;
    scratch.memory = aligned_alloc(4096, bytes);
    if (!scratch.memory) abort();
    scratch.bytes = bytes;
  }
  return scratch.memory;
}

#define KS_EXPORT extern "C" __attribute__((visibility("default")))

KS_EXPORT const char* ks_isa() { return table->name; }

// Restricts the instruction set ("avx2", "portable"); packed weights of another one must not be used after.
KS_EXPORT int ks_choose(const char* name) {
  const KsTable* most = best();
  for (const KsTable* t : {ks_avx512(), ks_avx2(), ks_portable()}) {
    if (!t || (most == ks_avx2() && t == ks_avx512()) || (most == ks_portable() && t != most)) continue;
    if (!strcmp(t->name, name)) {
      table = t;
      return 1;
    }
  }
  return 0;
}

KS_EXPORT int64_t ks_spin(int64_t times) { return table->spin(times); }
KS_EXPORT float ks_read(const float* data, int64_t count) { return table->read_all(data, count); }

KS_EXPORT int64_t ks_abi() { return 2; }  // as native.py has it: raised with every change of what is passed

KS_EXPORT int64_t ks_lanes(int is_double) { return table->lanes[is_double]; }

KS_EXPORT int64_t ks_size(const KsStep* step, int is_double) { return ks_packed_size(*step, table->lanes[is_double]); }

KS_EXPORT void ks_pack(const KsStep* step, const void* weight, void* packed, int is_double) {
  table->pack[is_double](*step, weight, packed);
}

KS_EXPORT void ks_unpack(const KsStep* step, const void* packed, void* weight, int is_double) {
  table->unpack[is_double](*step, packed, weight);
}

KS_EXPORT void ks_guard(KsGuard* guard) {
  guard->whole = fingerprint(*guard, true);
  guard->sampled = fingerprint(*guard, false);
}

KS_EXPORT int ks_changed(const KsGuard* guard) { return changed(guard, ROWS_TO_COMPARE); }

// ks_rows and ks_columns return 0, and do nothing, where the factors have changed since they were packed. `kind`
// is a KsKind, `activation` a KsActivation.
KS_EXPORT int ks_rows(const KsChain* chain, const void* x, int64_t x_row, void* y, int64_t count, const void* bias,
                      int activation, int threads, int kind) {
  if (changed(chain->guard, count)) return 0;
  expect_writes(y, count * chain->out_features * entry_bytes(kind));
  table->rows[is_double(kind)](*chain, x, x_row, y, chain->out_features, count, bias, activation, threads, kind);
  return 1;
}

KS_EXPORT int ks_columns(const KsChain* chain, const void* x, void* y, int64_t images, int64_t columns,
                         const void* bias, int activation, int threads, int kind) {
  if (changed(chain->guard, images * columns)) return 0;
  expect_writes(y, images * columns * chain->out_features * entry_bytes(kind));
  table->columns[is_double(kind)](*chain, x, y, images, columns, bias, activation, threads, kind);
  return 1;
}

// `count` vectors in rows (columns = 0), or in images of `columns` columns each. Gradients of weights are packed,
// and zero at first.
KS_EXPORT void ks_backward(const KsChain* forward, const KsChain* transposed, const void* x, const void* g, void* gx,
                           void* const* gradients, int64_t count, int64_t columns, int threads, int kind) {
  table->backward[is_double(kind)](*forward, *transposed, x, g, gx, gradients, count, columns, threads, kind);
}
