// How one factor is cut into groups of full vectors, and the order of its packed weights.
//
// Lanes of a vector are neighbouring outputs. A factor of stride d >= N has, for each a and each run of N
// neighbours along d, one group of b vectors (one for each output o); a factor of stride d < N has one
// group for each a, whose vectors hold m = N / d outputs o of d entries each; and where even all b * d
// outputs of an a fill no more than half a vector, `fold` values of a share one. Within a group every vector
// takes the same c input vectors. The vectors of a group are taken in blocks of at most BLOCK, and the
// weights lie in the order they are used: group, block, input i, vector of the block, lane; zero where a
// lane is not used. Where an instruction multiplies PAIR inputs by as many weights in every lane, these lie
// beside each other: group, block, pair of inputs, vector, lane, input of the pair; zero for one too many.
static constexpr int BLOCK = 8;
template <class T> constexpr int PAIR = 1;

struct Layout {
  int64_t a, d, b, c, planes;
  int64_t pair;     // inputs that are multiplied at once
  int64_t depth;    // c, rounded up to pairs
  int64_t fold;     // values of a in one group
  int64_t runs;     // groups for each a
  int64_t vectors;  // vectors of a group
  int64_t lanes;    // lanes used in every vector but the last of a group (d < N)
  int64_t last;     // lanes used in that one

  Layout(const KsStep& s, int64_t n, int64_t pair = 1) : a(s.a), d(s.d), b(s.b), c(s.c), planes(s.planes), pair(pair) {
    depth = (c + pair - 1) / pair * pair;
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

// Calls f(offset in the packed weights, offset in the plain ones, lanes) for one input of every vector of weights:
// all inputs of one vector of outputs before the next, as neighbouring inputs share the cache lines of plain ones.
template <class F> inline void each_vector(const Layout& s, int64_t n, F f) {
  const int64_t block = s.b * s.c;
  int64_t offset = 0;
  for (int64_t a = 0; a < s.a; a += s.fold)
    for (int64_t run = 0; run < s.runs; ++run)
      for (int64_t q = 0; q < s.blocks(); ++q) {
        const int64_t begin = s.first(q), count = s.first(q + 1) - begin;
        for (int64_t k = 0; k < count; ++k) {
          const int64_t left = s.d - run * n, o = begin + k;
          const int64_t lanes = s.d >= n ? (left < n ? left : n) : o == s.vectors - 1 ? s.last : s.lanes;
          const int64_t plain = (a * s.d + (s.d >= n ? run * n : 0)) * block + o * (s.d >= n ? 1 : n / s.d) * s.c;
          for (int64_t i = 0, to = offset + k * n * s.pair; i < s.c; to += count * n * s.pair)
            for (int64_t p = 0; p < s.pair && i < s.c; ++p, ++i) f(to + p, plain + i, lanes);
        }
        offset += s.depth * count * n;
      }
}

// How far the plain weight of each lane of a vector lies from that of the first.
inline void lane_offsets(const Layout& s, int64_t n, int64_t* at) {
  for (int64_t l = 0; l < n; ++l) {
    const int64_t o = l / s.d;
    at[l] = s.d >= n ? l * s.b * s.c : ((o / s.b * s.d + l % s.d) * s.b + o % s.b) * s.c;
  }
}

inline int64_t packed_size(const KsStep& step, int64_t n, int64_t pair = 1) {
  Layout s(step, n, pair);
  return s.groups() * s.vectors * s.depth * n;
}

template <class T> void pack(const KsStep& step, const T* weight, T* packed) {
  constexpr int N = Vec<T>::N;
  Layout s(step, N, PAIR<T>);
  int64_t lane[N];
  lane_offsets(s, N, lane);
  memset(packed, 0, sizeof(T) * packed_size(step, N, PAIR<T>));
  each_vector(s, N, [&](int64_t to, int64_t from, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) packed[to + l * PAIR<T>] = weight[from + lane[l]];
  });
}

template <class T> void unpack(const KsStep& step, const T* packed, T* weight) {
  constexpr int N = Vec<T>::N;
  Layout s(step, N);
  int64_t lane[N];
  lane_offsets(s, N, lane);
  each_vector(s, N, [&](int64_t from, int64_t to, int64_t lanes) {
    for (int64_t l = 0; l < lanes; ++l) weight[to + lane[l]] = packed[from + l];
  });
}
