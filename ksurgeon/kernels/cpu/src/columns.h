// One factor applied to columns: entry n of every vector lies in row n of a matrix, neighbouring vectors in
// neighbouring columns. Every weight meets whole registers of columns, so that the pattern of the factor is
// nothing but row offsets. Weights are taken as they are, (a, d, b, c).

template <class T> struct Columns {
  const T* x;
  int64_t x_row;
  T* y;
  int64_t y_row;
  int64_t registers;
  int64_t last_in, last_out;  // columns read from and written to the last register
  int64_t plane;              // from the first plane of inputs to the second
};

// B outputs of one (a, d): offsets between rows, and where the first ones lie.
template <class T> struct Outputs {
  const T* weight;
  int64_t c;
  const T* x;
  int64_t x_step;
  T* y;
  int64_t y_step;
  const T* bias;
  int64_t bias_step;
  int64_t planes, x_plane;
};

template <class T, int B, int K, bool WHOLE>
KS_INLINE void tile(const Outputs<T>& s, int64_t at, int64_t last_in, int64_t last_out) {
  using V = Vec<T>;
  typename V::Reg sum[B][K];
  KS_UNROLL for (int o = 0; o < B; ++o)
    KS_UNROLL for (int k = 0; k < K; ++k) sum[o][k] = s.bias ? V::rep1(s.bias + o * s.bias_step) : V::zero();
  const T* x = s.x + at;
  const T* weight = s.weight;
  const int64_t c = s.c, x_step = s.x_step, y_step = s.y_step, half = s.planes == 1 ? -1 : c / 2;
  for (int64_t i = 0; i < c; ++i, x += x_step, ++weight) {
    if (i == half) x += s.x_plane;
    typename V::Reg in[K];
    KS_UNROLL for (int k = 0; k < K - 1; ++k) in[k] = V::load(x + k * V::N);
    in[K - 1] = WHOLE ? V::load(x + (K - 1) * V::N) : V::loadn(x + (K - 1) * V::N, last_in);
    KS_UNROLL for (int k = 0; k < K; ++k) V::keep(in[k]);
    KS_UNROLL for (int o = 0; o < B; ++o) {
      typename V::Reg one = V::rep1(weight + o * c);
      if (K > 1) V::keep(one);
      KS_UNROLL for (int k = 0; k < K; ++k) sum[o][k] = V::fma(one, in[k], sum[o][k]);
    }
  }
  T* y = s.y + at;
  KS_UNROLL for (int o = 0; o < B; ++o, y += y_step) {
    KS_UNROLL for (int k = 0; k < K - 1; ++k) V::store(y + k * V::N, sum[o][k]);
    if (WHOLE)
      V::store(y + (K - 1) * V::N, sum[o][K - 1]);
    else
      V::storen(y + (K - 1) * V::N, sum[o][K - 1], last_out);
  }
}

// Registers of columns at once such that sums and inputs fit.
template <int B> constexpr int columns_at_once() {
  return KS_REGISTERS >= 32 ? (B <= 4 ? 4 : B == 5 ? 4 : B == 6 ? 4 : 3) : (B <= 2 ? 4 : B <= 4 ? 2 : 1);
}

// The last registers of columns, K or fewer, together: each by itself would meet every weight anew.
template <class T, int B, int K> void last_tile(const Outputs<T>& s, const Columns<T>& m, int64_t r) {
  if constexpr (K > 1)
    if (m.registers - r < K) return last_tile<T, B, K - 1>(s, m, r);
  if (m.last_in < Vec<T>::N || m.last_out < Vec<T>::N)
    tile<T, B, K, false>(s, r * Vec<T>::N, m.last_in, m.last_out);
  else
    tile<T, B, K, true>(s, r * Vec<T>::N, 0, 0);
}

template <class T, int B> void tiles(const Outputs<T>& s, const Columns<T>& m) {
  constexpr int K = columns_at_once<B>();
  int64_t r = 0;
  for (; r + K < m.registers; r += K) tile<T, B, K, true>(s, r * Vec<T>::N, 0, 0);
  last_tile<T, B, K>(s, m, r);
}

static constexpr int64_t OUTPUTS = KS_REGISTERS >= 32 ? 8 : 4;

template <class T> void factor_columns(const KsStep& step, const Columns<T>& m, const T* bias) {
  using Run = void (*)(const Outputs<T>&, const Columns<T>&);
  static constexpr Run run[] = {tiles<T, 1>, tiles<T, 2>, tiles<T, 3>, tiles<T, 4>,
                                tiles<T, 5>, tiles<T, 6>, tiles<T, 7>, tiles<T, 8>};
  const int64_t parts = (step.b + OUTPUTS - 1) / OUTPUTS, inputs = step.c / step.planes;
  const T* weight = (const T*)step.weight;
  for (int64_t a = 0; a < step.a; ++a)
    for (int64_t d = 0; d < step.d; ++d, weight += step.b * step.c)
      for (int64_t q = 0, o = 0, count; q < parts; ++q, o += count) {
        count = parts == 1 ? step.b : step.b * (q + 1) / parts - o;
        const int64_t at = (a * step.b + o) * step.d + d;
        const Outputs<T> s{weight + o * step.c, step.c,
                           m.x + (a * inputs * step.d + d) * m.x_row, step.d * m.x_row,
                           m.y + at * m.y_row, step.d * m.y_row,
                           bias ? bias + at : nullptr, step.d,
                           step.planes, m.plane - inputs * step.d * m.x_row};
        run[count - 1](s, m);
      }
}

static constexpr int64_t COLUMNS_BYTES = 3 << 17;  // of scratch for a tile of columns

// Registers of columns in a tile: as many as the scratch holds, and a row of them an odd number of cache lines.
template <class T> int64_t tile_registers(const KsChain& chain) {
  const int64_t fit = COLUMNS_BYTES / (2 * chain.step[0].planes * chain.widest * (int64_t)sizeof(T) * Vec<T>::N);
  return fit < 4 ? 4 : fit > 12 ? 12 : fit / 4 * 4;
}

// A chain applied to `count` columns; scratch holds 2 * widest rows of `row` entries, for each plane.
template <class T>
void chain_columns(const KsChain& chain, const T* x, int64_t x_row, T* y, int64_t y_row, int64_t count, const T* bias,
                   int activation, T* scratch, int64_t row) {
  constexpr int N = Vec<T>::N;
  const int64_t registers = (count + N - 1) / N, last = count - (registers - 1) * N;
  const int64_t planes = chain.step[0].planes, plane = chain.widest * row;
  T *here = scratch, *other = scratch + planes * plane;
  Columns<T> m{x, x_row, nullptr, row, registers, last, N, plane};
  for (int64_t j = 0; j < chain.steps; ++j) {
    const KsStep& step = chain.step[j * planes];
    const bool end = j == chain.steps - 1;
    if (j && !(planes == 1 && step.b == step.c && step.b <= OUTPUTS)) {  // else every block writes just what it has read
      T* swapped = here;
      here = other;
      other = swapped;
    }
    m.y_row = end ? y_row : row;
    m.last_out = end ? last : N;
    for (int64_t p = 0; p < planes; ++p) {
      m.y = (end ? y : here) + p * plane;
      factor_columns<T>((&step)[p], m, end && bias ? bias + p * chain.out_features : nullptr);
    }
    m.x = end ? y : here;
    m.x_row = m.y_row;
    m.last_in = N;
  }
  activate_rows(activation, y, y_row, chain.out_features, count);
}
