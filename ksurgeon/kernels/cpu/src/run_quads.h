// Chains of int8 factors applied to rows. The sums of a factor are scaled in float32, for each row the largest is
// found, and they become bytes again, in the order in which the next factor reads them: its inputs i … i + 3 of every
// entry along d are one lane of four bytes.

static inline KsStep as_step(const KsQuadStep& s) { return {s.a, s.d, s.b, (s.c + 3) / 4, s.weight, 1}; }

// The bits of the largest absolute value; those of numbers that are not finite are larger than all others.
static inline int32_t largest_of(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t k = 0; k < n; ++k) {
    int32_t bits;
    memcpy(&bits, x + k, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  return most;
}

// What numbers are multiplied by to become bytes, and the bytes to become numbers: NaN if one is not finite, 0 where
// all are too small to be scaled.
struct Scale {
  float in, out;
  explicit Scale(int32_t most_bits) {
    float most;
    memcpy(&most, &most_bits, 4);
    const bool finite = most_bits < 0x7F800000, scaled = finite && most > 1e-36f;
    in = scaled ? 127 / most : 0;
    out = scaled ? most / 127 : finite ? 0 : NAN;
  }
};

// The last byte is the nearest integer plus 128.
static inline int32_t byte_of(float x, float scale) {
  const float shifted = x * scale + (12582912.0f + 128);
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  return bits & 255;
}

// D neighbouring lanes, each of four numbers that lie in p[0] … p[3].
template <int D> KS_INLINE void lanes_of(const float* const p[4], float scale, quad* to) {
  typedef float Numbers __attribute__((vector_size(4 * D)));
  typedef uint32_t Lanes __attribute__((vector_size(4 * D)));
  Lanes all{};
  KS_UNROLL for (int k = 3; k >= 0; --k) {
    Numbers x;
    memcpy(&x, p[k], sizeof x);
    x = x * scale + (12582912.0f + 128);
    all = (all << 8) + (Lanes)x;
  }
  all -= 0x8B400000u;  // what the exponents of the four add up to
  memcpy(to, &all, sizeof all);
}

// Inputs of a factor (a, c, d) as lanes (a, (c + 3) / 4, d) of four bytes; bytes beyond c meet weights of zero.
static inline void to_quads(const KsQuadStep& s, const float* __restrict x, float scale, quad* __restrict to) {
  const int64_t c = s.c, d = s.d, quads = (c + 3) / 4;
  if (d == 1) {
    for (int64_t a = s.a; a > 0; --a, x += c, to += quads) {
      uint8_t* __restrict bytes = (uint8_t*)to;
      for (int64_t i = 0; i < c; ++i) bytes[i] = (uint8_t)byte_of(x[i], scale);
      for (int64_t i = c; i < 4 * quads; ++i) bytes[i] = 0;
    }
    return;
  }
  for (int64_t a = s.a; a > 0; --a, x += c * d)
    for (int64_t i = 0; i < c; i += 4, to += d) {
      const float* p[4];
      for (int64_t k = 0; k < 4; ++k) p[k] = x + (i + k < c ? i + k : i) * d;
      auto take = [&](auto lanes, int64_t at) __attribute__((always_inline)) {
        const float* const here[4] = {p[0] + at, p[1] + at, p[2] + at, p[3] + at};
        lanes(here, to + at);
      };
      int64_t e = 0;
      for (; e + 16 <= d; e += 16) take([&](auto p, quad* q) { lanes_of<16>(p, scale, q); }, e);
      if (d & 8) take([&](auto p, quad* q) { lanes_of<8>(p, scale, q); }, e), e += 8;
      if (d & 4) take([&](auto p, quad* q) { lanes_of<4>(p, scale, q); }, e), e += 4;
      if (d & 2) take([&](auto p, quad* q) { lanes_of<2>(p, scale, q); }, e), e += 2;
      if (d & 1) take([&](auto p, quad* q) { lanes_of<1>(p, scale, q); }, e);
    }
}

// Sums of a factor as numbers, but for the scale of their row; gives what largest_of does.
static inline int32_t scaled(const quad* __restrict sums, const float* __restrict scale, int64_t n,
                             float* __restrict to) {
  int32_t most = 0;
  for (int64_t k = 0; k < n; ++k) {
    const float number = (float)sums[k].bits * scale[k];
    to[k] = number;
    int32_t bits;
    memcpy(&bits, &number, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  return most;
}

// The same, scaled and added to `bias`, or where there is none, to nothing.
static inline void scaled_beside(const quad* __restrict sums, const float* __restrict scale, float of_row,
                                 const float* bias, int64_t n, float* to) {
  if (!bias)
    for (int64_t k = 0; k < n; ++k) to[k] = (float)sums[k].bits * scale[k] * of_row;
  else
    for (int64_t k = 0; k < n; ++k) to[k] = (float)sums[k].bits * scale[k] * of_row + bias[k];
}

struct QuadsCall {
  const KsQuads& chain;
  int kind;
  const void* x;
  void* y;
  int64_t count, columns;  // vectors in all, and in each image, where they are columns; else 0
  const float* bias;
  int activation;
  int64_t row, tile, next;
  quad* shared;
  KsBarrier barrier;

  int chains() const { return chain.steps[1] ? 2 : 1; }
  const KsQuadStep* steps(int which) const { return chain.step + (which ? chain.steps[0] : 0); }
  // Inputs as numbers in float32: where they lie, or a copy in `line`.
  const float* inputs(int64_t r, float* line) const {
    if (kind == KS_FLOAT32) return (const float*)x + r * chain.in_features;
    Storage<float>::load(kind, x, r * chain.in_features, line, chain.in_features, 0);
    return line;
  }
};

// Columns from..from + count, of images of so many features, turned into rows of numbers, or back: `move` has those of
// one feature, in memory from an entry on and in a buffer, and moves them either way.
template <bool BACK, class Move>
static inline void turned(const QuadsCall& call, int64_t features, int64_t from, int64_t count, float* rows, Move move) {
  constexpr int64_t WIDE = 16;
  float block[WIDE * TILE_ROWS];
  for (const int64_t end = from + count; from < end;) {
    const int64_t image = from / call.columns, column = from % call.columns;
    const int64_t n = smaller(end - from, call.columns - column);
    for (int64_t k = 0; k < features; k += WIDE) {
      const int64_t wide = smaller(WIDE, features - k), at = (image * features + k) * call.columns + column;
      if (!BACK)
        for (int64_t i = 0; i < wide; ++i) move(at + i * call.columns, block + i * TILE_ROWS, n);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t i = 0; i < wide; ++i) {
          float &lies = block[i * TILE_ROWS + r], &stands = rows[r * call.row + k + i];
          if (BACK) lies = stands;
          else stands = lies;
        }
      if (BACK)
        for (int64_t i = 0; i < wide; ++i) move(at + i * call.columns, block + i * TILE_ROWS, n);
    }
    from += n, rows += n * call.row;
  }
}

static inline void from_columns(const QuadsCall& call, int64_t from, int64_t count, float* rows) {
  turned<false>(call, call.chain.in_features, from, count, rows, [&](int64_t at, float* block, int64_t n) {
    if (call.kind == KS_FLOAT32) memcpy(block, (const float*)call.x + at, n * sizeof(float));
    else Storage<float>::load(call.kind, call.x, at, block, n, 0);
  });
}

static inline void to_columns(const QuadsCall& call, int64_t from, int64_t count, float* rows) {
  turned<true>(call, call.chain.out_features, from, count, rows, [&](int64_t at, float* block, int64_t n) {
    if (call.kind == KS_FLOAT32) memcpy((float*)call.y + at, block, n * sizeof(float));
    else Storage<float>::store(call.kind, block, call.y, at, n, 0);
  });
}

// Outputs from..to of a row, from the sums of both chains; in `line` where they are columns.
static inline void finish(const QuadsCall& call, int64_t r, const quad* const sums[2], const float scale[2],
                          int64_t from, int64_t to, float* line) {
  const int64_t n = to - from, at = r * call.chain.out_features + from;
  const bool stored = call.kind != KS_FLOAT32 && !call.columns;
  float* y = stored || call.columns ? line : (float*)call.y + at;
  const float* bias = call.bias ? call.bias + from : nullptr;
  for (int which = 0; which < call.chains(); ++which, bias = y)
    scaled_beside(sums[which] + from, call.steps(which)[call.chain.steps[which] - 1].scale + from, scale[which], bias, n,
                  y);
  activate(call.activation, y, n);
  if (stored) Storage<float>::store(call.kind, line, call.y, at, n, 0);
}

// What a thread needs for `rows` rows besides their sums: quads, a row of numbers, and scales; columns as rows.
struct QuadsScratch {
  quad* quads;
  float *line, *scale[2], *taken;
  quad* sums;  // further buffers of rows
  QuadsScratch(const QuadsCall& call, int64_t rows, int64_t buffers) {
    const int64_t copies = call.columns ? 1 : 0;
    const int64_t numbers = (rows * (1 + buffers + copies) + 1) * call.row + 2 * (rows + 16);
    quads = (quad*)ks_scratch(numbers * 4);
    if (!quads) return;
    line = (float*)(quads + rows * call.row);
    sums = (quad*)(line + call.row);
    float* rest = (float*)(sums + rows * buffers * call.row);
    taken = copies ? rest : nullptr;
    scale[0] = rest + rows * copies * call.row, scale[1] = scale[0] + rows;
  }
};

// The inputs of factor j of a chain from rows of numbers, or of the sums of the factor before.
static inline void take_inputs(const QuadsCall& call, int which, int64_t j, int64_t from, int64_t rows,
                               const quad* sums, const QuadsScratch& own) {
  const KsQuadStep* step = call.steps(which) + j;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = j ? own.line : own.taken ? own.taken + r * call.row : call.inputs(from + r, own.line);
    const Scale found(j ? scaled(sums + r * call.row, step[-1].scale, step[-1].a * step[-1].b * step[-1].d, own.line)
                        : largest_of(x, call.chain.in_features));
    to_quads(*step, x, found.in, own.quads + r * call.row);
    own.scale[which][r] = j ? own.scale[which][r] * found.out : found.out;
  }
}

// Few rows: the groups of every factor are shared out. Each thread makes the inputs of all rows for itself.
static inline int64_t quads_together(void* context, int thread, int threads) {
  QuadsCall& call = *(QuadsCall*)context;
  const int64_t rows = call.count, buffer = rows * call.row, n = call.chain.out_features;
  const QuadsScratch own(call, rows, 0);
  if (!own.quads) __atomic_store_n(&call.next, -1, __ATOMIC_RELAXED);  // the others wait for this thread all the same
  for (int which = 0; which < call.chains(); ++which)
    for (int64_t j = 0; j < call.chain.steps[which]; ++j) {
      const bool end = j == call.chain.steps[which] - 1;
      quad* sums = call.shared + (end ? 2 + which : j % 2) * buffer;
      if (own.quads) {
        const KsQuadStep& quads = call.steps(which)[j];
        take_inputs(call, which, j, 0, rows, call.shared + (j + 1) % 2 * buffer, own);
        const KsStep step = as_step(quads);
        const Layout layout = layout_of<quad>(step);
        const Rows<quad> of{own.quads, call.row, sums, call.row, rows};
        factor_rows<quad>(layout, (const quad*)quads.weight, of, (const quad*)quads.start,
                          Share::of(layout, thread, threads));
      }
      if (threads > 1) call.barrier.wait(threads);
    }
  if (!own.quads) return 0;
  const int64_t from = n * thread / threads, to = n * (thread + 1) / threads;
  for (int64_t r = 0; r < rows; ++r) {
    const quad* sums[2] = {call.shared + 2 * buffer + r * call.row, call.shared + 3 * buffer + r * call.row};
    const float scale[2] = {own.scale[0][r], own.scale[1][r]};
    finish(call, r, sums, scale, from, to, own.line);
  }
  return 1;
}

// Many rows: tiles are handed out.
static inline int64_t quads_tiled(void* context, int, int) {
  QuadsCall& call = *(QuadsCall*)context;
  const QuadsScratch own(call, call.tile, call.chains());
  if (!own.quads) return 0;  // what is not taken by another thread is missed in the end
  int64_t tiles = 0;
  for (int64_t at; (at = __atomic_fetch_add(&call.next, call.tile, __ATOMIC_RELAXED)) < call.count; ++tiles) {
    const int64_t rows = smaller(call.tile, call.count - at);
    if (own.taken) from_columns(call, at, rows, own.taken);
    for (int which = 0; which < call.chains(); ++which) {
      quad* sums = own.sums + which * call.tile * call.row;
      for (int64_t j = 0; j < call.chain.steps[which]; ++j) {
        const KsQuadStep& quads = call.steps(which)[j];
        take_inputs(call, which, j, at, rows, sums, own);
        const KsStep step = as_step(quads);
        const Layout layout = layout_of<quad>(step);
        const Rows<quad> of{own.quads, call.row, sums, call.row, rows};
        factor_rows<quad>(layout, (const quad*)quads.weight, of, (const quad*)quads.start, Share::whole(layout));
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const quad* sums[2] = {own.sums + r * call.row, own.sums + (call.tile + r) * call.row};
      const float scale[2] = {own.scale[0][r], own.scale[1][r]};
      float* line = own.taken ? own.taken + r * call.row : own.line;
      finish(call, at + r, sums, scale, 0, call.chain.out_features, line);
    }
    if (own.taken) to_columns(call, at, rows, own.taken);
  }
  return tiles;
}

static bool run_quads(const KsQuads& chain, const void* x, void* y, int64_t count, int64_t columns, const void* bias,
                      int activation, int threads, int kind) {
  if (!count) return true;
  const Bias<float> added(kind, bias, chain.out_features);
  if (added.failed(bias)) return false;
  const int64_t row = scratch_row<float>(chain.widest), work = chain.weights / 4;
  QuadsCall call{chain, kind, x, y, count, columns, added.data, activation, row, 0, 0, nullptr, {}};
  threads = worth(threads, (count + READ) * work);
  if (threads > 1 && count < 4 * threads && !columns) {
    call.shared = (quad*)malloc(4 * count * row * sizeof(quad));
    if (!call.shared) return false;
    ks_parallel(threads, quads_together, &call);
    free(call.shared);
    return call.next == 0;
  }
  threads = (int)smaller(threads, count);
  call.tile = tile_rows<float>(row, 2 + call.chains() + (columns ? 1 : 0), count, threads);
  ks_parallel(threads, quads_tiled, &call);
  return call.next >= count;
}
