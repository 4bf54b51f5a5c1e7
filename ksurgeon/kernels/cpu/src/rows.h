// One factor applied to rows of contiguous vectors.

// What sums are made in, and the inputs that an instruction takes at once: a register of numbers, or of pairs.
template <class T> using Sum = typename Vec<T>::Sum;
template <class T> using Inputs = typename Vec<T>::Inputs;

// How the input vector of a group is had from memory: N neighbours, or d < N neighbours repeated.
template <class T> struct Whole {
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::load(p); }
};
template <class T> struct Tail {
  int64_t n;
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::loadn(p, n); }
};
template <class T> struct Repeat1 {
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::rep1(p); }
};
template <class T> struct Repeat2 {
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::rep2(p); }
};
template <class T> struct Repeat4 {
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::rep4(p); }
};
template <class T> struct Repeat8 {
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::rep8(p); }
};
template <class T> struct Repeat {
  int64_t d;
  typename Vec<T>::Index index;
  typename Vec<T>::Reg operator()(const T* p) const { return Vec<T>::permute(Vec<T>::loadn(p, d), index); }
};
template <class T> Repeat<T> repeat(int64_t d) {
  int lanes[16];
  for (int l = 0; l < Vec<T>::N; ++l) lanes[l] = (int)(l % d);
  return {d, Vec<T>::index(lanes)};
}

template <class T> Whole<T> whole_of(int64_t) { return {}; }
template <class T> Tail<T> tail_of(int64_t lanes, int64_t) { return {lanes}; }

template <class T> Layout layout_of(const KsStep& step) { return Layout(step, Vec<T>::N, PAIR<T>); }

template <class T> struct Rows {
  const T* x;
  int64_t x_row;
  T* y;
  int64_t y_row;
  int64_t count;
  int64_t plane = 0;  // from the first plane of inputs to the second
};

// Addresses are counted on from here: worked out together they do not fit the registers.
template <class P> KS_INLINE void count_on(P*& p) { asm("" : "+r"(p)); }

// One block of a group: K vectors of outputs, for R rows.
template <class T> struct Block {
  int64_t c, x_step, y_step;  // c inputs of a plane
  const T* weight;
  const Sum<T>* bias;
  int64_t lanes, last;  // lanes of the vectors, and of the last one
  int64_t planes, x_plane;  // from the end of one plane's inputs to the next one's
  int64_t weight_step;      // from the weights of one input to the next one's
};

template <class T, int R, int K, class Load>
KS_INLINE void block(const Block<T>& s, const T* x, int64_t x_row, T* y, int64_t y_row, Load load,
                     int64_t weight_step = K * Vec<T>::N * PAIR<T>) {
  using V = Vec<T>;
  typename V::Reg sum[R][K];
  KS_UNROLL for (int k = 0; k < K; ++k) {
    typename V::Reg start = V::zero();
    if (s.bias) start = Vec<Sum<T>>::loadn(s.bias + k * s.y_step, k == K - 1 ? s.last : s.lanes);
    KS_UNROLL for (int r = 0; r < R; ++r) sum[r][k] = start;
  }
  const T* w = s.weight;
  const int64_t x_step = s.x_step * PAIR<T>, times = s.c / PAIR<T>;
  const int64_t y_step = s.y_step, lanes = s.lanes, last = s.last;  // which no store to y can change
  auto multiply = [&](auto take) __attribute__((always_inline)) {
    Inputs<T> in[R];
    KS_UNROLL for (int r = 0; r < R; ++r) {
      in[r] = take(x + r * x_row);
      V::keep(in[r]);
    }
    KS_UNROLL for (int k = 0; k < K; ++k) {
      Inputs<T> row = V::load(w + k * V::N * PAIR<T>);
      if (R > 1) V::keep(row);
      KS_UNROLL for (int r = 0; r < R; ++r) sum[r][k] = V::fma(row, in[r], sum[r][k]);
    }
    x += x_step;
    w += weight_step;
    count_on(x);
    count_on(w);
  };
  auto input = [&]() __attribute__((always_inline)) { multiply(load); };
  for (int64_t plane = s.planes;; x += s.x_plane) {
    if (K == 4 && s.c == 4) {  // most factors; a loop unrolled is a tenth faster
      KS_UNROLL for (int i = 0; i < 4 / PAIR<T>; ++i) input();
    } else {
      for (int64_t i = 0; i < times; ++i) input();
    }
    if constexpr (PAIR<T> > 1)
      if (s.c % PAIR<T>) multiply([&](const T* p) __attribute__((always_inline)) { return load.rest(p); });
    if (!--plane) break;
  }
  if (lanes == V::N && last == V::N) {
    KS_UNROLL for (int k = 0; k < K; ++k, y += y_step) {
      count_on(y);
      KS_UNROLL for (int r = 0; r < R; ++r) V::store(y + r * y_row, sum[r][k]);
    }
  } else {
    KS_UNROLL for (int r = 0; r < R; ++r) {
      KS_UNROLL for (int k = 0; k < K - 1; ++k) V::storen(y + r * y_row + k * y_step, sum[r][k], lanes);
      V::storen(y + r * y_row + (K - 1) * y_step, sum[r][K - 1], last);
    }
  }
}

// Rows at once such that sums and inputs fit the registers.
template <int K> constexpr int rows_at_once() {
  return KS_REGISTERS >= 32 ? (K == 1 ? 12 : K == 2 ? 8 : K == 3 ? 6 : K <= 5 ? 4 : K <= 8 ? 3 : 2)
                            : (K == 1 ? 6 : K == 2 ? 4 : K == 3 ? 3 : K <= 5 ? 2 : 1);
}

template <class T, int K, class Load> void block_rows(const Block<T>& s, const Rows<T>& rows, Load load) {
  constexpr int R = rows_at_once<K>();
  const T* x = rows.x;
  T* y = rows.y;
  int64_t left = rows.count;
  for (; left >= R; left -= R, x += R * rows.x_row, y += R * rows.y_row)
    block<T, R, K>(s, x, rows.x_row, y, rows.y_row, load, s.weight_step);
  if constexpr (R > 2)
    for (; left >= 2; left -= 2, x += 2 * rows.x_row, y += 2 * rows.y_row)
      block<T, 2, K>(s, x, rows.x_row, y, rows.y_row, load, s.weight_step);
  for (; left > 0; --left, x += rows.x_row, y += rows.y_row)
    block<T, 1, K>(s, x, rows.x_row, y, rows.y_row, load, s.weight_step);
}

template <class T, class Load> void block_sized(int64_t k, const Block<T>& s, const Rows<T>& rows, Load load) {
  switch (k) {
    case 1: return block_rows<T, 1>(s, rows, load);
    case 2: return block_rows<T, 2>(s, rows, load);
    case 3: return block_rows<T, 3>(s, rows, load);
    case 4: return block_rows<T, 4>(s, rows, load);
    case 5: return block_rows<T, 5>(s, rows, load);
    case 6: return block_rows<T, 6>(s, rows, load);
    case 7: return block_rows<T, 7>(s, rows, load);
    default: return block_rows<T, 8>(s, rows, load);
  }
}

// One row and one block in each group: what is done for a group has to be next to nothing.
template <class T, int K, class Load>
void single_row(const Layout& s, const T* weight, const Rows<T>& row, const Sum<T>* bias, int64_t from, int64_t to,
                int64_t y_step, Load load) {
  constexpr int64_t N = Vec<T>::N;
  const int64_t inputs = s.inputs();
  Block<T> part{inputs, s.d, y_step, weight, nullptr, s.lanes, s.last, s.planes, row.plane - inputs * s.d,
                K * N * PAIR<T>};
  const int64_t x_skip = (inputs - 1) * s.d, y_skip = (s.b - 1) * s.d, weights = K * s.depth * N;
  int64_t a = from / s.runs, run = from % s.runs;
  const T* x = row.x + a * inputs * s.d + run * N;
  T* y = row.y + a * s.b * s.d + run * N;
  const int64_t x_group = s.d >= N ? N : s.d, y_group = s.d >= N ? N : s.d;
  for (int64_t group = from; group < to; ++group) {
    if (bias) part.bias = bias + (y - row.y);
    block<T, 1, K>(part, x, 0, y, 0, load);
    part.weight += weights;
    x += x_group;
    y += y_group;
    if (++run == s.runs) {
      run = 0;
      x += x_skip;
      y += y_skip;
    }
  }
}

template <class T, class Load>
void single_row_sized(const Layout& s, const T* weight, const Rows<T>& row, const Sum<T>* bias, int64_t from,
                      int64_t to, int64_t y_step, Load load) {
  switch (s.vectors) {
    case 1: return single_row<T, 1>(s, weight, row, bias, from, to, y_step, load);
    case 2: return single_row<T, 2>(s, weight, row, bias, from, to, y_step, load);
    case 3: return single_row<T, 3>(s, weight, row, bias, from, to, y_step, load);
    case 4: return single_row<T, 4>(s, weight, row, bias, from, to, y_step, load);
    case 5: return single_row<T, 5>(s, weight, row, bias, from, to, y_step, load);
    case 6: return single_row<T, 6>(s, weight, row, bias, from, to, y_step, load);
    case 7: return single_row<T, 7>(s, weight, row, bias, from, to, y_step, load);
    default: return single_row<T, 8>(s, weight, row, bias, from, to, y_step, load);
  }
}

// What a thread computes of a factor: vectors first..end of each of the groups from..to.
struct Share {
  int64_t from, to, first, end;

  static Share whole(const Layout& s) { return {0, s.groups(), 0, s.vectors}; }
  static Share of(const Layout& s, int64_t thread, int64_t threads) {
    const int64_t count = parts(s, threads), from = count * thread / threads, to = count * (thread + 1) / threads;
    return by_groups(s, threads) ? Share{from, to, 0, s.vectors} : Share{0, s.groups(), from, to};
  }
  // What is shared out among threads: the groups, or where these are few, the vectors of all of them.
  static int64_t parts(const Layout& s, int64_t threads) { return by_groups(s, threads) ? s.groups() : s.vectors; }

 private:
  static bool by_groups(const Layout& s, int64_t threads) {
    const int64_t groups = s.groups();
    return s.fold > 1 || groups >= 4 * threads || groups % threads == 0 || groups > s.vectors;
  }
};

template <class T, class Load>
void groups(const Layout& s, const T* weight, const Rows<T>& rows, const Sum<T>* bias, const Share& share, Load load) {
  constexpr int N = Vec<T>::N, W = N * PAIR<T>;
  const int64_t blocks = s.blocks(), y_step = s.d >= N ? s.d : s.lanes, inputs = s.inputs();
  const bool all = share.first == 0 && share.end == s.vectors;
  weight += share.from * s.vectors * s.depth * N;
  if (rows.count == 1 && blocks == 1 && all && (s.d < N || s.d % N == 0))
    return single_row_sized(s, weight, rows, bias, share.from, share.to, y_step, load);
  int64_t a = share.from / s.runs, run = share.from % s.runs;  // counted: a division costs as much as a block
  for (int64_t group = share.from; group < share.to; ++group, ++run) {
    if (run == s.runs) run = 0, ++a;
    const int64_t x_at = a * inputs * s.d + run * N, y_at = a * s.b * s.d + run * N;
    const bool tail = s.d >= N && s.d - run * N < N;
    const int64_t lanes = tail ? s.d - run * N : s.lanes;
    for (int64_t q = 0, k0 = 0, k; q < blocks; ++q, k0 += k) {
      k = blocks == 1 ? s.vectors : s.first(q + 1) - k0;
      const int64_t begin = all || share.first < k0 ? k0 : share.first;
      const int64_t end = all || share.end > k0 + k ? k0 + k : share.end;
      if (begin < end) {
        const int64_t at = y_at + begin * y_step, last = tail ? lanes : end == s.vectors ? s.last : s.lanes;
        Block<T> part{inputs, s.d, y_step, weight + (begin - k0) * W, bias ? bias + at : nullptr, lanes, last,
                      s.planes, rows.plane - inputs * s.d, k * W};
        Rows<T> here{rows.x + x_at, rows.x_row, rows.y + at, rows.y_row, rows.count};
        if (tail)
          block_sized(end - begin, part, here, tail_of<T>(lanes, s.d));
        else
          block_sized(end - begin, part, here, load);
      }
      weight += k * s.depth * N;
    }
  }
}

// A group of `fold` values of a whose inputs and outputs fit one vector each.
template <class T, int R>
KS_INLINE void folded(const Layout& s, const T* weight, typename Vec<T>::Index lanes, typename Vec<T>::Index step,
                      const T* x, int64_t x_row, T* y, int64_t y_row, const Sum<T>* bias) {
  using V = Vec<T>;
  Inputs<T> in[R];
  typename V::Reg sum[R];
  const typename V::Reg start = bias ? Vec<Sum<T>>::loadn(bias, s.last) : V::zero();
  KS_UNROLL for (int r = 0; r < R; ++r) {
    in[r] = V::loadn(x + r * x_row, s.fold * s.c * s.d);
    sum[r] = start;
  }
  for (int64_t i = 0; i < s.c / PAIR<T>; ++i, weight += V::N * PAIR<T>, lanes = V::next(lanes, step)) {
    const Inputs<T> row = V::load(weight);
    KS_UNROLL for (int r = 0; r < R; ++r) sum[r] = V::fma(row, V::permute(in[r], lanes), sum[r]);
  }
  if constexpr (PAIR<T> > 1)
    if (s.c % PAIR<T>)
      KS_UNROLL for (int r = 0; r < R; ++r) sum[r] = V::fma(V::load(weight), V::permute_rest(in[r], lanes), sum[r]);
  KS_UNROLL for (int r = 0; r < R; ++r) V::storen(y + r * y_row, sum[r], s.last);
}

template <class T>
void folded_groups(const Layout& s, const T* weight, const Rows<T>& rows, const Sum<T>* bias, int64_t from, int64_t to) {
  using V = Vec<T>;
  constexpr int R = KS_REGISTERS >= 32 ? 12 : 6;
  constexpr int P = PAIR<T>;
  int first[16 * P] = {}, next[16 * P] = {};
  for (int64_t l = 0; l < s.last * P; ++l) {
    const int64_t lane = l / P;
    first[l] = (int)(lane / (s.b * s.d) * s.c * s.d + lane % s.d + l % P * s.d);
    next[l] = (int)s.d * P;
  }
  const typename V::Index lanes = V::index(first), step = V::index(next);
  for (int64_t group = from; group < to; ++group) {
    const T* x = rows.x + group * s.fold * s.c * s.d;
    T* y = rows.y + group * s.last;
    const Sum<T>* start = bias ? bias + group * s.last : nullptr;
    const T* w = weight + group * s.depth * V::N;
    int64_t left = rows.count;
    for (; left >= R; left -= R, x += R * rows.x_row, y += R * rows.y_row)
      folded<T, R>(s, w, lanes, step, x, rows.x_row, y, rows.y_row, start);
    for (; left >= 2; left -= 2, x += 2 * rows.x_row, y += 2 * rows.y_row)
      folded<T, 2>(s, w, lanes, step, x, rows.x_row, y, rows.y_row, start);
    for (; left > 0; --left, x += rows.x_row, y += rows.y_row)
      folded<T, 1>(s, w, lanes, step, x, rows.x_row, y, rows.y_row, start);
  }
}

template <class T>
void factor_rows(const Layout& s, const T* weight, const Rows<T>& rows, const Sum<T>* bias, const Share& share) {
  constexpr int N = Vec<T>::N;
  if (s.fold > 1) return folded_groups(s, weight, rows, bias, share.from, share.to);
  if (s.d >= N) return groups(s, weight, rows, bias, share, whole_of<T>(s.d));
  if (s.d == 1) return groups(s, weight, rows, bias, share, Repeat1<T>{});
  if constexpr (PAIR<T> == 1) switch (s.d) {
      case 2: return groups(s, weight, rows, bias, share, Repeat2<T>{});
      case 4: return groups(s, weight, rows, bias, share, Repeat4<T>{});
      case 8: return groups(s, weight, rows, bias, share, Repeat8<T>{});
    }
  groups(s, weight, rows, bias, share, repeat<T>(s.d));
}
