#include "isa.h"

#if defined(__x86_64__) && !defined(KS_PORTABLE_ONLY)
KS_TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi,bmi2")
namespace {
#define KS_NAME "avx512"
#define KS_REGISTERS 32
#include "vec_avx512.h"
#include "kernels.h"
}  // namespace
KS_TARGET_END
const KsTable* ks_avx512() { return &TABLE; }
#else
const KsTable* ks_avx512() { return nullptr; }
#endif
