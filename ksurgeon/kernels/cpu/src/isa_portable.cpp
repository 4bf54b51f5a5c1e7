#include "isa.h"

namespace {
#define KS_NAME "portable"
#ifdef __aarch64__
#define KS_REGISTERS 32
#else
#define KS_REGISTERS 16
#endif
#include "vec_portable.h"
#include "kernels.h"
}  // namespace
const KsTable* ks_portable() { return &TABLE; }

int64_t ks_packed_size(const KsStep& step, int64_t lanes) { return packed_size(step, lanes); }
