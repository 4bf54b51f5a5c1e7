// How one factor is cut into groups of full vectors, and the order of its packed weights.
//
// Lanes of a vector are neighbouring outputs. A factor of stride d >= N has, for each a and each run of N
// neighbours along d, one group of b vectors (one for each output o); a factor of stride d < N has one
// group for each a, whose vectors hold m = N / d outputs o of d entries each; and where even all b * d
// outputs of an a fill no more than half a vector, `fold` values of a share one. Within a group every vector
// takes the same c input vectors. The vectors of a group are taken in blocks of at most BLOCK, and the
// weights lie in the order they are used: group, block, input i, vector of the block, lane; zero where a
// lane is not used.
static constexpr int BLOCK = 8;

struct Layout {
  int64_t a, d, b, c, planes;
  int64_t fold;     // values of a in one group
  int64_t runs;     // groups for each a
  int64_t vectors;  // vectors of a group
  int64_t lanes;    // lanes used in every vector but the last of a group (d < N)
  int64_t last;     // lanes used in that one

  Layout(const KsStep& s, int64_t n) : a(s.a), d(s.d), b(s.b), c(s.c), planes(s.planes) {
    fold = 1;
    if (d >= n) {
      runs = (d + n - 1) / n;
      vectors = b;
      lanes = last = n;
    } else {
      int64_t m = n / d;
      runs = 1;
      vectors = (b + m - 1) / m;
      lanes = m * d;
      last = (b - (vectors - 1) * m) * d;
      if (c <= b && s.planes == 1)
        for (int64_t p = n / (b * d); p > 1 && fold == 1; --p)
          if (a % p == 0) fold = p;
      if (fold > 1) lanes = last = fold * b * d;
    }
  }
  int64_t inputs() const { return c / planes; }  // of one plane
  int64_t groups() const { return a / fold * runs; }
  int64_t blocks() const { return (vectors + BLOCK - 1) / BLOCK; }
  // First vector of block q when the vectors are spread evenly.
  int64_t first(int64_t q) const { return vectors * q / blocks(); }
};

// Calls f(offset in the packed weights, lane) -> a, d, o, i of every weight there is.
template <class F> inline void each_weight(const Layout& s, int64_t n, F f) {
  int64_t offset = 0;
  for (int64_t a = 0; a < s.a; a += s.fold)
    for (int64_t run = 0; run < s.runs; ++run)
      for (int64_t q = 0; q < s.blocks(); ++q)
        for (int64_t i = 0; i < s.c; ++i)
          for (int64_t k = s.first(q); k < s.first(q + 1); ++k, offset += n) {
            if (s.d >= n) {
              int64_t d0 = run * n, lanes = s.d - d0 < n ? s.d - d0 : n;
              for (int64_t l = 0; l < lanes; ++l) f(offset + l, a, d0 + l, k, i);
            } else {
              int64_t o0 = k * (n / s.d), lanes = k == s.vectors - 1 ? s.last : s.lanes;
              for (int64_t l = 0; l < lanes; ++l) {
                int64_t o = o0 + l / s.d;
                f(offset + l, a + o / s.b, l % s.d, o % s.b, i);
              }
            }
          }
}

inline int64_t packed_size(const KsStep& step, int64_t n) {
  Layout s(step, n);
  return s.groups() * s.vectors * s.c * n;
}

template <class T> void pack(const KsStep& step, const T* weight, T* packed) {
  Layout s(step, Vec<T>::N);
  memset(packed, 0, sizeof(T) * packed_size(step, Vec<T>::N));
  each_weight(s, Vec<T>::N, [&](int64_t at, int64_t a, int64_t d, int64_t o, int64_t i) {
    packed[at] = weight[((a * s.d + d) * s.b + o) * s.c + i];
  });
}

template <class T> void unpack(const KsStep& step, const T* packed, T* weight) {
  Layout s(step, Vec<T>::N);
  each_weight(s, Vec<T>::N, [&](int64_t at, int64_t a, int64_t d, int64_t o, int64_t i) {
    weight[((a * s.d + d) * s.b + o) * s.c + i] = packed[at];
  });
}
