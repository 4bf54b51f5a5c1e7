// A chain applied to rows: tiles of them go through all factors, or all of few rows go from factor to factor.

static constexpr int64_t TILE_ROWS = 48;
static constexpr int64_t ROWS_STEP = 12;  // what blocks take at once divides it
static constexpr int64_t TILE_BYTES = 1 << 20;    // of scratch for a tile of rows
static constexpr int64_t SHARE = 1 << 18;  // multiplications that a second thread is worth: some microseconds of them
static constexpr int64_t READ = 4;         // those that reading a weight takes, in a model where it is in no near cache

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How many of the threads a product of so many multiplications is worth.
static inline int worth(int threads, int64_t multiplications) {
  return (int)smaller(threads, larger(1, multiplications / SHARE));
}

// Rows of scratch are an odd number of cache lines, or their equal columns would share a cache set.
template <class T> int64_t scratch_row(int64_t features) {
  const int64_t line = 64 / sizeof(T);
  return ((features + line - 1) / line | 1) * line;
}

// How far the second plane of a row of complex numbers lies from the first.
template <class T> int64_t plane_of(const KsChain& chain) { return scratch_row<T>(chain.widest); }
template <class T> int64_t row_of(const KsChain& chain) {
  const int64_t plane = plane_of<T>(chain);
  return chain.step[0].planes == 1 ? plane : scratch_row<T>(2 * plane);
}

template <class T>
int64_t tile_rows(int64_t row, int64_t buffers, int64_t count, int64_t threads, int64_t most = TILE_ROWS) {
  const int64_t step = threads > 1 ? 4 : ROWS_STEP;  // evenly shared, or blocks of full size
  const int64_t fit = larger(8, TILE_BYTES / (int64_t)sizeof(T) / (buffers * row));
  const int64_t tile = smaller(most, fit), share = (count + threads - 1) / threads;
  const int64_t tiles = larger(1, (share + tile - 1) / tile);
  const int64_t even = larger(1, (share + tiles - 1) / tiles);
  return even < step ? even : smaller(tile, (even + step - 1) / step * step);
}

// Whether every group of a factor writes exactly what it has read, in one block: then it may work in place,
// which halves the memory touched.
template <class T> bool in_place(const KsStep& step) {
  return step.planes == 1 && step.b == step.c && layout_of<T>(step).blocks() == 1;
}

// A factor, which is one step or (complex numbers) one for each plane.
template <class T> void planes_rows(const KsStep* step, Rows<T> rows, const Sum<T>* bias, int64_t bias_plane) {
  for (int64_t p = 0; p < step->planes; ++p, rows.y += rows.plane, bias += bias ? bias_plane : 0) {
    const Layout layout = layout_of<T>(step[p]);
    factor_rows<T>(layout, (const T*)step[p].weight, rows, bias, Share::whole(layout));
  }
}

template <class T>
void chain_rows(const KsChain& chain, const T* x, int64_t x_row, T* y, int64_t y_row, int64_t count,
                const Sum<T>* bias, int activation, T* scratch, int64_t row) {
  Rows<T> rows{x, x_row, nullptr, row, count, plane_of<T>(chain)};
  T *here = scratch, *other = scratch + count * row;
  for (int64_t j = 0; j < chain.steps; ++j) {
    const KsStep& step = chain.step[j * chain.step[0].planes];
    const bool end = j == chain.steps - 1;
    if (j && !in_place<T>(step)) {
      T* swapped = here;
      here = other;
      other = swapped;
    }
    rows.y = end ? y : here;
    rows.y_row = end ? y_row : row;
    planes_rows<T>(&step, rows, end ? bias : nullptr, chain.out_features);
    rows.x = rows.y;
    rows.x_row = rows.y_row;
  }
  activate_rows(activation, y, y_row, count, chain.out_features);
}

template <class T> struct RowsCall {
  const KsChain& chain;
  int kind;
  const void* x;
  int64_t x_row;
  void* y;
  int64_t y_row, count;
  const Sum<T>* bias;
  int activation;
  int64_t row, tile, next;
  T* shared;
  KsBarrier barrier;
};

// Few rows: the groups of every factor are shared out, with a barrier after each factor.
template <class T> int64_t rows_together(void* context, int thread, int threads) {
  RowsCall<T>& call = *(RowsCall<T>*)context;
  const int64_t planes = call.chain.step[0].planes, n = call.chain.out_features;
  Rows<T> rows{(const T*)call.x, call.x_row, nullptr, call.row, call.count, plane_of<T>(call.chain)};
  for (int64_t j = 0; j < call.chain.steps; ++j) {
    const bool end = j == call.chain.steps - 1;
    T* to = end ? (T*)call.y : call.shared + (j % 2) * call.count * call.row;
    rows.y_row = end ? call.y_row : call.row;
    for (int64_t p = 0; p < planes; ++p) {
      const KsStep& step = call.chain.step[j * planes + p];
      const Layout layout = layout_of<T>(step);
      rows.y = to + p * rows.plane;
      factor_rows<T>(layout, (const T*)step.weight, rows, end && call.bias ? call.bias + p * n : nullptr,
                     Share::of(layout, thread, threads));
    }
    if (threads > 1 && (!end || call.activation)) call.barrier.wait(threads);
    rows.x = to;
    rows.x_row = rows.y_row;
  }
  const int64_t from = n * thread / threads, to = n * (thread + 1) / threads;
  activate_rows(call.activation, (T*)call.y + from, call.y_row, call.count, to - from);
  return 1;
}

// Many rows: tiles are handed out.
template <class T> int64_t rows_tiled(void* context, int, int) {
  RowsCall<T>& call = *(RowsCall<T>*)context;
  const bool converted = is_converted<T>(call.kind);
  const int64_t row = call.row, buffer = call.tile * row, plane = plane_of<T>(call.chain);
  T* scratch = (T*)ks_scratch((converted ? 4 : 2) * buffer * sizeof(T));
  if (!scratch) return 0;  // what is not taken by another thread is missed in the end
  T *taken = scratch + 2 * buffer, *given = scratch + 3 * buffer;
  int64_t tiles = 0;
  for (int64_t at; (at = __atomic_fetch_add(&call.next, call.tile, __ATOMIC_RELAXED)) < call.count; ++tiles) {
    const int64_t count = smaller(call.tile, call.count - at);
    if (!converted) {
      chain_rows(call.chain, (const T*)call.x + at * call.x_row, call.x_row, (T*)call.y + at * call.y_row, call.y_row,
                 count, call.bias, call.activation, scratch, row);
      continue;
    }
    for (int64_t r = 0; r < count; ++r)
      Storage<T>::load(call.kind, call.x, (at + r) * call.x_row, taken + r * row, call.chain.in_features, plane);
    chain_rows(call.chain, (const T*)taken, row, given, row, count, call.bias, call.activation, scratch, row);
    for (int64_t r = 0; r < count; ++r)
      Storage<T>::store(call.kind, given + r * row, call.y, (at + r) * call.y_row, call.chain.out_features,
                        plane);
  }
  return tiles;
}

// Whether rows are few enough that threads do better to share out the weights, which each reads otherwise.
template <class T> bool is_shared_out(const KsChain& chain, int64_t count, int threads) {
  double all = 0, shared = 0;
  for (int64_t j = 0; j < chain.steps * chain.step[0].planes; ++j) {
    const KsStep& step = chain.step[j];
    const int64_t parts = Share::parts(layout_of<T>(step), threads), most = (parts + threads - 1) / threads;
    const double weights = (double)(step.a * step.d * step.b * step.c);
    all += weights, shared += weights * most / parts;
  }
  const int64_t rows = (count + threads - 1) / threads;
  return shared * (count + READ) < 0.9 * all * (rows + READ);
}

template <class T>
bool run_rows(const KsChain& chain, const void* x, int64_t x_row, void* y, int64_t y_row, int64_t count,
              const void* bias, int activation, int threads, int kind) {
  if (!count) return true;
  const int64_t row = row_of<T>(chain), plane = plane_of<T>(chain);
  const Bias<Sum<T>> added(kind, bias, chain.out_features);
  if (added.failed(bias)) return false;
  RowsCall<T> call{chain, kind, x, x_row, y, y_row, count, added.data, activation, row, 0, 0, nullptr, {}};
  const bool converted = is_converted<T>(kind);
  threads = worth(threads, (count + READ) * chain.weights);
  if (threads > 1 && is_shared_out<T>(chain, count, threads)) {
    call.shared = (T*)ks_scratch((converted ? 4 : 2) * count * row * sizeof(T));
    if (!call.shared) return false;
    if (!converted) return ks_parallel(threads, rows_together<T>, &call), true;
    T *taken = call.shared + 2 * count * row, *given = taken + count * row;
    for (int64_t r = 0; r < count; ++r) Storage<T>::load(kind, x, r * x_row, taken + r * row, chain.in_features, plane);
    call.x = taken, call.x_row = row, call.y = given, call.y_row = row;
    ks_parallel(threads, rows_together<T>, &call);
    for (int64_t r = 0; r < count; ++r) Storage<T>::store(kind, given + r * row, y, r * y_row, chain.out_features, plane);
    return true;
  }
  threads = (int)smaller(threads, count);
  call.tile = tile_rows<T>(row, converted ? 4 : 2, count, threads);
  ks_parallel(threads, rows_tiled<T>, &call);
  return call.next >= count;
}
