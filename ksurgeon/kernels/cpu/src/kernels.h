// Everything that is compiled once for each instruction set.
#include "fingerprint.h"
#include "layout.h"
#include "activate.h"
#include "storage.h"
#include "rows.h"
#include "run_rows.h"
#include "columns.h"
#include "run_columns.h"
#include "gradient.h"
#include "turn.h"
#include "backward.h"
#include "measure.h"
#include "run_quads.h"

template <class T> void pack_any(const KsStep& step, const void* weight, void* packed) {
  pack<T>(step, (const T*)weight, (T*)packed);
}
template <class T> void unpack_any(const KsStep& step, const void* packed, void* weight) {
  unpack<T>(step, (const T*)packed, (T*)weight);
}

static const KsTable TABLE = {
    KS_NAME,
    {Vec<float>::N, Vec<double>::N},
    spin,
    read_all,
    fingerprint,
    {pack_any<float>, pack_any<double>},
    {unpack_any<float>, unpack_any<double>},
    {run_rows<float>, run_rows<double>},
    {run_columns<float>, run_columns<double>},
    {run_backward<float>, run_backward<double>},
    run_quads,
};
