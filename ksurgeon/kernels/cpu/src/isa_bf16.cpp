#include "isa.h"

#if defined(__x86_64__) && !defined(KS_PORTABLE_ONLY) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
KS_TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,bmi,bmi2")
namespace {
#define KS_REGISTERS 32
#include "vec_avx512.h"
#include "layout.h"
#include "activate.h"
#include "storage.h"
#include "rows.h"
#include "vec_bf16.h"
#include "run_rows.h"

int64_t size_any(const KsStep& step) { return packed_size(step, Vec<bfloat>::N, PAIR<bfloat>); }
void pack_any(const KsStep& step, const void* weight, void* packed) {
  pack<bfloat>(step, (const bfloat*)weight, (bfloat*)packed);
}
const KsHalf HALF = {size_any, pack_any, run_rows<bfloat>};
}  // namespace
KS_TARGET_END
const KsHalf* ks_bf16() { return &HALF; }
#else
const KsHalf* ks_bf16() { return nullptr; }
#endif
