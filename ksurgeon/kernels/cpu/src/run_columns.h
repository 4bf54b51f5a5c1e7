// A chain applied to columns, tile by tile.

template <class T> struct ColumnsCall {
  const KsChain& chain;
  int kind;
  const void* x;
  void* y;
  int64_t columns;
  const T* bias;
  int activation;
  int64_t row, tiles, count, next;
};

template <class T> int64_t columns_tiled(void* context, int, int) {
  ColumnsCall<T>& call = *(ColumnsCall<T>*)context;
  constexpr int64_t N = Vec<T>::N;
  const KsChain& chain = call.chain;
  const bool converted = is_converted<T>(call.kind);
  const int64_t row = call.row, plane = chain.widest * row, buffer = chain.step[0].planes * plane;
  T* scratch = (T*)ks_scratch((converted ? 4 : 2) * buffer * sizeof(T));
  if (!scratch) return 0;
  T *taken = scratch + 2 * buffer, *given = scratch + 3 * buffer;
  const int64_t registers = (call.columns + N - 1) / N;
  int64_t tiles = 0;
  for (int64_t at; (at = __atomic_fetch_add(&call.next, 1, __ATOMIC_RELAXED)) < call.count; ++tiles) {
    const int64_t image = at / call.tiles, tile = at % call.tiles;
    const int64_t from = registers * tile / call.tiles * N;
    const int64_t to = smaller(call.columns, registers * (tile + 1) / call.tiles * N);
    const int64_t x_at = image * chain.in_features * call.columns + from, count = to - from;
    const int64_t y_at = image * chain.out_features * call.columns + from;
    if (!converted) {
      chain_columns<T>(chain, (const T*)call.x + x_at, call.columns, (T*)call.y + y_at, call.columns, count, call.bias,
                       call.activation, scratch, row);
      continue;
    }
    for (int64_t k = 0; k < chain.in_features; ++k)
      Storage<T>::load(call.kind, call.x, x_at + k * call.columns, taken + k * row, count, plane);
    chain_columns<T>(chain, taken, row, given, row, count, call.bias, call.activation, scratch, row);
    for (int64_t k = 0; k < chain.out_features; ++k)
      Storage<T>::store(call.kind, given + k * row, call.y, y_at + k * call.columns, count, plane);
  }
  return tiles;
}

template <class T>
bool run_columns(const KsChain& chain, const void* x, void* y, int64_t images, int64_t columns, const void* bias,
                 int activation, int threads, int kind) {
  constexpr int64_t N = Vec<T>::N;
  const int64_t registers = (columns + N - 1) / N, most = tile_registers<T>(chain);
  int64_t tiles = (registers + most - 1) / most;
  threads = worth(threads, images * columns * chain.weights);
  if (images < threads) tiles = larger(tiles, smaller(registers, threads));
  const int64_t row = scratch_row<T>((registers + tiles - 1) / tiles * N);
  const Bias<T> added(kind, bias, chain.out_features);
  if (added.failed(bias)) return false;
  ColumnsCall<T> call{chain, kind, x, y, columns, added.data, activation, row, tiles, images * tiles, 0};
  ks_parallel((int)smaller(threads, call.count), columns_tiled<T>, &call);
  return call.next >= call.count;
}
