// The gradient of one factor, summed over rows, in the layout of its packed weights.

template <class T> struct Gradient {
  const T* x;  // what the factor took
  int64_t x_row;
  const T* g;  // gradient of what it gave
  int64_t g_row;
  int64_t count;
  int64_t plane = 0;  // from the first plane of x to the second
};

template <class T, int I, int K, class Load>
KS_INLINE void outer(const Gradient<T>& m, int64_t x_step, int64_t g_step, int64_t lanes, int64_t last, T* weight,
                     int64_t weight_step, Load load) {
  using V = Vec<T>;
  typename V::Reg sum[I][K];
  KS_UNROLL for (int i = 0; i < I; ++i)
    KS_UNROLL for (int k = 0; k < K; ++k) sum[i][k] = V::load(weight + i * weight_step + k * V::N);
  const bool full = lanes == V::N && last == V::N;
  const T *x = m.x, *g = m.g;
  for (int64_t r = 0; r < m.count; ++r, x += m.x_row, g += m.g_row) {
    typename V::Reg out[K];
    if (full)
      KS_UNROLL for (int k = 0; k < K; ++k) out[k] = V::load(g + k * g_step);
    else
      KS_UNROLL for (int k = 0; k < K; ++k) out[k] = V::loadn(g + k * g_step, k == K - 1 ? last : lanes);
    if (I > 1)
      KS_UNROLL for (int k = 0; k < K; ++k) V::keep(out[k]);
    KS_UNROLL for (int i = 0; i < I; ++i) {
      typename V::Reg in = load(x + i * x_step, i);
      V::keep(in);
      KS_UNROLL for (int k = 0; k < K; ++k) sum[i][k] = V::fma(in, out[k], sum[i][k]);
    }
  }
  KS_UNROLL for (int i = 0; i < I; ++i)
    KS_UNROLL for (int k = 0; k < K; ++k) V::store(weight + i * weight_step + k * V::N, sum[i][k]);
}

template <class T, class Load> struct Indifferent {
  Load load;
  typename Vec<T>::Reg operator()(const T* p, int) const { return load(p); }
};

template <int K> constexpr int inputs_at_once() {
  return KS_REGISTERS >= 32 ? (K == 1 ? 8 : K == 2 ? 8 : K == 3 ? 6 : K == 4 ? 4 : K == 5 ? 4 : K == 6 ? 3 : 2)
                            : (K == 1 ? 6 : K == 2 ? 4 : K == 3 ? 3 : K == 4 ? 2 : 1);
}

template <class T, int K, class Load>
void outer_sized(Gradient<T> m, int64_t c, int64_t x_step, int64_t g_step, int64_t lanes, int64_t last, T* weight,
                 Load load) {
  constexpr int I = inputs_at_once<K>();
  constexpr int64_t row = K * Vec<T>::N;
  Indifferent<T, Load> take{load};
  int64_t i = 0;
  for (; i + I <= c; i += I, m.x += I * x_step, weight += I * row)
    outer<T, I, K>(m, x_step, g_step, lanes, last, weight, row, take);
  for (; i < c; ++i, m.x += x_step, weight += row) outer<T, 1, K>(m, x_step, g_step, lanes, last, weight, row, take);
}

template <class T, class Load>
void gradient_groups(const Layout& s, const Gradient<T>& m, T* weight, Load load) {
  constexpr int N = Vec<T>::N;
  const int64_t blocks = s.blocks(), g_step = s.d >= N ? s.d : s.lanes;
  const int64_t inputs = s.inputs();
  auto block = [&](int64_t k, const Gradient<T>& here, int64_t lanes, int64_t last, auto take) {
    switch (k) {
      case 1: return outer_sized<T, 1>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 2: return outer_sized<T, 2>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 3: return outer_sized<T, 3>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 4: return outer_sized<T, 4>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 5: return outer_sized<T, 5>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 6: return outer_sized<T, 6>(here, inputs, s.d, g_step, lanes, last, weight, take);
      case 7: return outer_sized<T, 7>(here, inputs, s.d, g_step, lanes, last, weight, take);
      default: return outer_sized<T, 8>(here, inputs, s.d, g_step, lanes, last, weight, take);
    }
  };
  const int64_t groups = s.groups();
  for (int64_t group = 0, a = 0, run = 0; group < groups; ++group, ++run) {
    if (run == s.runs) run = 0, ++a;
    const int64_t x_at = a * inputs * s.d + run * N, g_at = a * s.b * s.d + run * N;
    const bool tail = s.d >= N && s.d - run * N < N;
    const int64_t lanes = tail ? s.d - run * N : s.lanes;
    for (int64_t q = 0, k0 = 0, k; q < blocks; ++q, k0 += k) {
      k = blocks == 1 ? s.vectors : s.first(q + 1) - k0;
      const int64_t last = tail ? lanes : q == blocks - 1 ? s.last : s.lanes;
      Gradient<T> here{m.x + x_at, m.x_row, m.g + g_at + k0 * g_step, m.g_row, m.count};
      for (int64_t p = 0; p < s.planes; ++p, here.x += m.plane, weight += k * inputs * N) {
        if (tail)
          block(k, here, lanes, last, Tail<T>{lanes});
        else
          block(k, here, lanes, last, load);
      }
    }
  }
}

// A group of `fold` values of a: the inputs of all of them are one vector, permuted anew for every i.
template <class T> struct Folded {
  int64_t inputs;
  const typename Vec<T>::Index* lanes;
  typename Vec<T>::Reg operator()(const T* p, int i) const {
    return Vec<T>::permute(Vec<T>::loadn(p, inputs), lanes[i]);
  }
};

template <class T> void folded_gradient(const Layout& s, Gradient<T> m, T* weight) {
  using V = Vec<T>;
  typename V::Index lanes[V::N];  // c <= N where groups are folded
  for (int64_t i = 0; i < s.c; ++i) {
    int at[16] = {};
    for (int64_t l = 0; l < s.last; ++l) at[l] = (int)(l / (s.b * s.d) * s.c * s.d + l % s.d + i * s.d);
    lanes[i] = V::index(at);
  }
  constexpr int I = 4;
  const int64_t inputs = s.fold * s.c * s.d;
  for (int64_t group = 0; group < s.groups(); ++group, m.x += inputs, m.g += s.last) {
    int64_t i = 0;
    for (; i + I <= s.c; i += I, weight += I * V::N)
      outer<T, I, 1>(m, 0, 0, s.last, s.last, weight, V::N, Folded<T>{inputs, lanes + i});
    for (; i < s.c; ++i, weight += V::N)
      outer<T, 1, 1>(m, 0, 0, s.last, s.last, weight, V::N, Folded<T>{inputs, lanes + i});
  }
}

template <class T> void factor_gradient(const KsStep& step, const Gradient<T>& m, T* weight) {
  constexpr int N = Vec<T>::N;
  Layout s(step, N);
  if (s.fold > 1) return folded_gradient(s, m, weight);
  if (s.d >= N) return gradient_groups(s, m, weight, Whole<T>{});
  switch (s.d) {
    case 1: return gradient_groups(s, m, weight, Repeat1<T>{});
    case 2: return gradient_groups(s, m, weight, Repeat2<T>{});
    case 4: return gradient_groups(s, m, weight, Repeat4<T>{});
    case 8: return gradient_groups(s, m, weight, Repeat8<T>{});
    default: return gradient_groups(s, m, weight, repeat<T>(s.d));
  }
}
