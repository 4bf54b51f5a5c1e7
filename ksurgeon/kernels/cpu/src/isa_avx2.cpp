#include "isa.h"

#if defined(__x86_64__) && !defined(KS_PORTABLE_ONLY)
KS_TARGET("avx2,fma,bmi,bmi2")
namespace {
#define KS_NAME "avx2"
#define KS_REGISTERS 16
#include "vec_avx2.h"
#include "kernels.h"
}  // namespace
KS_TARGET_END
const KsTable* ks_avx2() { return &TABLE; }
#else
const KsTable* ks_avx2() { return nullptr; }
#endif
