// One factor applied to columns: entry n of every vector lies in row n of a matrix, neighbouring vectors in
// neighbouring columns. Every weight meets whole registers of columns, so that the pattern of the factor is
// nothing but row offsets. Weights are taken as they are, (a, d, b, c).

template <class T> struct Columns {
  const T* x;
  int64_t x_row;
  T* y;
  int64_t y_row;
};

// B outputs of one block for K registers of columns; `last_in` and `last_out` are the columns read and
// written in the last register.
template <class T, int B, int K>
KS_INLINE void tile(const T* weight, int64_t c, const T* x, int64_t x_step, T* y, int64_t y_step, const T* bias,
                    int64_t bias_step, int64_t last_in, int64_t last_out) {
  using V = Vec<T>;
  typename V::Reg sum[B][K];
  for (int o = 0; o < B; ++o)
    for (int k = 0; k < K; ++k) sum[o][k] = bias ? V::rep1(bias + o * bias_step) : V::zero();
  const bool part = last_in < V::N;
  for (int64_t i = 0; i < c; ++i, x += x_step) {
    typename V::Reg in[K];
    for (int k = 0; k < K - 1; ++k) in[k] = V::load(x + k * V::N);
    in[K - 1] = part ? V::loadn(x + (K - 1) * V::N, last_in) : V::load(x + (K - 1) * V::N);
    for (int k = 0; k < K; ++k) V::keep(in[k]);
    for (int o = 0; o < B; ++o) {
      typename V::Reg one = V::rep1(weight + o * c + i);
      for (int k = 0; k < K; ++k) sum[o][k] = V::fma(one, in[k], sum[o][k]);
    }
  }
  for (int o = 0; o < B; ++o, y += y_step) {
    for (int k = 0; k < K - 1; ++k) V::store(y + k * V::N, sum[o][k]);
    if (last_out == V::N)
      V::store(y + (K - 1) * V::N, sum[o][K - 1]);
    else
      V::storen(y + (K - 1) * V::N, sum[o][K - 1], last_out);
  }
}

template <class T, int K> struct Tiles {
  static constexpr int LARGEST = KS_REGISTERS >= 32 ? (K == 4 ? 6 : 8) : (K == 1 ? 8 : K == 2 ? 4 : K == 3 ? 3 : 2);

  template <int B, class... Args> static void sized(int64_t b, Args... args) {
    if constexpr (B > 1) {
      if (b < B) return sized<B - 1>(b, args...);
    }
    tile<T, B, K>(args...);
  }

  static void factor(const KsStep& s, const T* weight, const Columns<T>& m, const T* bias, int64_t last_in,
                     int64_t last_out) {
    const int64_t parts = (s.b + LARGEST - 1) / LARGEST;
    for (int64_t a = 0; a < s.a; ++a)
      for (int64_t d = 0; d < s.d; ++d, weight += s.b * s.c) {
        const T* x = m.x + (a * s.c * s.d + d) * m.x_row;
        for (int64_t q = 0; q < parts; ++q) {
          const int64_t o = s.b * q / parts, count = s.b * (q + 1) / parts - o;
          const int64_t at = (a * s.b + o) * s.d + d;
          sized<LARGEST>(count, weight + o * s.c, s.c, x, s.d * m.x_row, m.y + at * m.y_row, s.d * m.y_row,
                         bias ? bias + at : nullptr, s.d, last_in, last_out);
        }
      }
  }
};

static constexpr int64_t WIDEST_TILE = 4;  // registers of columns

// A chain applied to `count` columns, at most WIDEST_TILE registers of them.
template <class T>
void chain_columns(const KsChain& chain, const T* x, int64_t x_row, T* y, int64_t y_row, int64_t count, const T* bias,
                   T* scratch) {
  constexpr int N = Vec<T>::N;
  const int64_t registers = (count + N - 1) / N, last = count - (registers - 1) * N;
  const int64_t row = (WIDEST_TILE + 1) * N;
  Columns<T> m{x, x_row, nullptr, row};
  for (int64_t j = 0; j < chain.steps; ++j) {
    const KsStep& s = chain.step[j];
    const bool end = j == chain.steps - 1;
    m.y = end ? y : scratch + (j % 2) * chain.widest * row;
    m.y_row = end ? y_row : row;
    const int64_t last_in = j == 0 ? last : N, last_out = end ? last : N;
    const T* weight = (const T*)s.weight;
    const T* start = end ? bias : nullptr;
    switch (registers) {
      case 1: Tiles<T, 1>::factor(s, weight, m, start, last_in, last_out); break;
      case 2: Tiles<T, 2>::factor(s, weight, m, start, last_in, last_out); break;
      case 3: Tiles<T, 3>::factor(s, weight, m, start, last_in, last_out); break;
      default: Tiles<T, 4>::factor(s, weight, m, start, last_in, last_out); break;
    }
    m.x = m.y;
    m.x_row = m.y_row;
  }
}
