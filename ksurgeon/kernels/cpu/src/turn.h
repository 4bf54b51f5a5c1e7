// to[c * to_step + k] = from[k * from_step + c] for k < lines and c < length, block by block.

// N lines of N numbers: halves of the block change places, then halves of the halves.
template <class T> void turn_block(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t lines, int64_t length) {
  using V = Vec<T>;
  constexpr int N = V::N;
  typename V::Reg line[N];
  KS_UNROLL for (int k = 0; k < N; ++k) line[k] = k < lines ? V::loadn(from + k * from_step, length) : V::zero();
  KS_UNROLL for (int step = N / 2; step; step /= 2) {
    int low[N], high[N];
    for (int l = 0; l < N; ++l) {
      low[l] = l & step ? N + l - step : l;
      high[l] = l & step ? N + l : l + step;
    }
    const typename V::Index lower = V::index(low), upper = V::index(high);
    KS_UNROLL for (int k = 0; k < N; ++k) {
      if (k & step) continue;
      const typename V::Reg a = line[k], b = line[k + step];
      line[k] = V::merge(a, b, lower);
      line[k + step] = V::merge(a, b, upper);
    }
  }
  KS_UNROLL for (int c = 0; c < N; ++c)
    if (c < length) V::storen(to + c * to_step, line[c], lines);
}

template <class T> void turn(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t lines, int64_t length) {
  constexpr int64_t N = 64 / sizeof(T);  // a line of the cache
  for (int64_t k = 0; k < lines; k += N)
    for (int64_t c = 0; c < length; c += N) {
      const T* source = from + k * from_step + c;
      T* target = to + c * to_step + k;
      const int64_t wide = smaller(N, lines - k), high = smaller(N, length - c);
      if constexpr (Vec<T>::MERGES) {
        turn_block(source, from_step, target, to_step, wide, high);
      } else {
        for (int64_t j = 0; j < high; ++j)
          for (int64_t i = 0; i < wide; ++i) target[j * to_step + i] = source[i * from_step + j];
      }
    }
}
