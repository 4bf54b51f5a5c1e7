// The functions that Python calls. Shapes are checked there.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "late.h"
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

const KsHalf* best_half() {
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
  if (best() == ks_avx512() && ks_avx512() && __builtin_cpu_supports("avx512bf16")) return ks_bf16();
#endif
  return nullptr;
}

KsRunQuads* best_quads() {
#if defined(__x86_64__)
  if (best() == ks_avx512() && ks_avx512() && __builtin_cpu_supports("avx512vnni")) return ks_vnni();
#endif
  return best()->quads;
}

const KsTable* table = best();
const KsHalf* half = best_half();
KsRunQuads* quads = best_quads();

struct Scratch {
  void* memory = nullptr;
  int64_t bytes = 0;
  ~Scratch() { free(memory); }
};
thread_local Scratch scratch;

constexpr int64_t ROWS_TO_COMPARE = 32;  // from which on reading all factors once more does not count

int64_t entry_bytes(int kind) {
  constexpr int64_t bytes[] = {4, 8, 2, 2, 8, 16};  // as KsKind
  return bytes[kind];
}

bool is_double(int kind) { return kind == KS_FLOAT64 || kind == KS_COMPLEX128; }

bool changed(const KsGuard* guard, int64_t rows) {
  if (!guard || guard->comparison == KS_NOTHING) return false;
  if (rows >= ROWS_TO_COMPARE || guard->comparison == KS_EVERYTHING)
    return table->fingerprint(*guard, 0, 1) != guard->whole;
  const int64_t part = __atomic_fetch_add(&guard->calls, 1, __ATOMIC_RELAXED) % KS_PARTS;
  if (table->fingerprint(*guard, part, KS_PARTS) == guard->part[part]) return false;
  __atomic_store_n(&guard->comparison, KS_EVERYTHING, __ATOMIC_RELAXED);  // or the next part would be found unchanged
  return true;
}

}  // namespace

const KsTable* ks_table() { return table; }
KsRunQuads* ks_run_quads() { return quads; }

void* ks_scratch(int64_t bytes) {
  if (bytes > scratch.bytes) {
    free(scratch.memory);
    bytes = (bytes + 4095) / 4096 * 4096;
    scratch.memory = aligned_alloc(4096, bytes);
    scratch.bytes = scratch.memory ? bytes : 0;
  }
  return scratch.memory;
}

// All processors with AVX-512 BF16 have VNNI.
KS_EXPORT const char* ks_isa() { return half ? "avx512_bf16" : quads != table->quads ? "avx512_vnni" : table->name; }

// Restricts the instruction set ("avx512_vnni", "avx512", "avx2", "portable"); packed weights of another one must not
// be used after.
KS_EXPORT int ks_choose(const char* name) {
  const KsTable* most = best();
  const bool with_half = !strcmp(name, "avx512_bf16"), with_vnni = with_half || !strcmp(name, "avx512_vnni");
  if ((with_half && !best_half()) || (with_vnni && best_quads() == most->quads)) return 0;
  if (with_vnni) name = "avx512";
  for (const KsTable* t : {ks_avx512(), ks_avx2(), ks_portable()}) {
    if (!t || (most == ks_avx2() && t == ks_avx512()) || (most == ks_portable() && t != most)) continue;
    if (!strcmp(t->name, name)) {
      table = t;
      half = with_half ? best_half() : nullptr;
      quads = with_vnni ? best_quads() : t->quads;
      return 1;
    }
  }
  return 0;
}

KS_EXPORT int64_t ks_spin(int64_t times) { return table->spin(times); }
KS_EXPORT float ks_read(const float* data, int64_t count) { return table->read_all(data, count); }

KS_EXPORT int64_t ks_abi() { return 7; }  // as native.py has it: raised with every change of what is passed

KS_EXPORT int64_t ks_lanes(int is_double) { return table->lanes[is_double]; }

// Whether rows of a kind are computed as they are stored, from weights that are packed so.
KS_EXPORT int ks_computes(int kind) { return kind != KS_FLOAT16 && (kind != KS_BFLOAT16 || half); }

// Weights are KS_FLOAT32, KS_FLOAT64 or, where rows are computed so, KS_BFLOAT16.
KS_EXPORT int64_t ks_size(const KsStep* step, int kind) {
  return kind == KS_BFLOAT16 ? half->size(*step) : ks_packed_size(*step, table->lanes[kind]);
}

KS_EXPORT void ks_pack(const KsStep* step, const void* weight, void* packed, int kind) {
  kind == KS_BFLOAT16 ? half->pack(*step, weight, packed) : table->pack[kind](*step, weight, packed);
}

KS_EXPORT void ks_unpack(const KsStep* step, const void* packed, void* weight, int is_double) {
  table->unpack[is_double](*step, packed, weight);
}

KS_EXPORT void ks_guard(KsGuard* guard) {
  if (guard->comparison == KS_NOTHING) return;
  guard->whole = table->fingerprint(*guard, 0, 1);
  if (guard->comparison == KS_EVERYTHING) return;
  for (int part = 0; part < KS_PARTS; ++part) guard->part[part] = table->fingerprint(*guard, part, KS_PARTS);
}

KS_EXPORT int ks_changed(const KsGuard* guard) { return changed(guard, ROWS_TO_COMPARE); }

// ks_rows and ks_columns return 0, and do nothing, where the factors have changed since they were packed, and -1
// where memory is short. `kind` is a KsKind, `activation` a KsActivation. Rows of int8 factors follow each other:
// `x_row` is in_features.
KS_EXPORT int ks_rows(const KsChain* chain, const void* x, int64_t x_row, void* y, int64_t count, const void* bias,
                      int activation, int threads, int kind) {
  if (changed(chain->guard, count)) return 0;
  expect_writes(y, count * chain->out_features * entry_bytes(kind));
  threads = ks_on_time(threads);
  if (chain->quads) return quads(*chain->quads, x, y, count, 0, bias, activation, threads, kind) ? 1 : -1;
  const auto rows = chain->packed == KS_BFLOAT16 ? half->rows : table->rows[is_double(kind)];
  return rows(*chain, x, x_row, y, chain->out_features, count, bias, activation, threads, kind) ? 1 : -1;
}

KS_EXPORT int ks_columns(const KsChain* chain, const void* x, void* y, int64_t images, int64_t columns,
                         const void* bias, int activation, int threads, int kind) {
  if (changed(chain->guard, images * columns)) return 0;
  expect_writes(y, images * columns * chain->out_features * entry_bytes(kind));
  threads = ks_on_time(threads);
  if (chain->quads)
    return quads(*chain->quads, x, y, images * columns, columns, bias, activation, threads, kind) ? 1 : -1;
  return table->columns[is_double(kind)](*chain, x, y, images, columns, bias, activation, threads, kind) ? 1 : -1;
}

// `count` vectors in rows (columns = 0), or in images of `columns` columns each. Gradients of weights are packed,
// and zero at first. Returns 0 where memory is short.
KS_EXPORT int ks_backward(const KsChain* forward, const KsChain* transposed, const void* x, const void* g, void* gx,
                           void* const* gradients, int64_t count, int64_t columns, int threads, int kind) {
  return table->backward[is_double(kind)](*forward, *transposed, x, g, gx, gradients, count, columns, threads, kind);
}
