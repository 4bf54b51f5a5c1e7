#include "isa.h"

#if defined(__x86_64__) && !defined(KS_PORTABLE_ONLY)
KS_TARGET("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,bmi,bmi2")
namespace {
#define KS_REGISTERS 32
#define KS_VNNI
#include "vec_avx512.h"
#include "layout.h"
#include "activate.h"
#include "storage.h"
#include "rows.h"
#include "run_rows.h"
#include "run_quads.h"
}  // namespace
KS_TARGET_END
KsRunQuads* ks_vnni() { return run_quads; }
#else
KsRunQuads* ks_vnni() { return nullptr; }
#endif
