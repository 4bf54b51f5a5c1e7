// Gradients of a chain: of its input and of its factors, tile by tile of vectors.

static constexpr int64_t BACKWARD_ROWS = 24;  // a factor's gradient reads them again and again: they fit L1

template <class T> struct BackwardCall {
  const KsChain &forward, &transposed;
  int kind;
  const void *x, *g;
  void* gx;
  int64_t columns;  // neighbouring vectors lie in so many columns, or (0) in rows
  void* const* gradients;  // packed, zero at first; null where they are not wanted
  int64_t count, row, plane, tile, next;
  int64_t weights;  // packed weights of all factors
  T** sums;         // of every thread but the first
};

// Vectors at .. at + count into rows of scratch, or back from there. They lie in rows, or channels first.
template <class T>
void gather(const BackwardCall<T>& call, const void* from, int64_t features, int64_t at, int64_t count, T* to) {
  const bool converted = is_converted<T>(call.kind);
  const int64_t planes = call.forward.step[0].planes;
  if (!call.columns) {
    for (int64_t r = 0; r < count; ++r) Storage<T>::load(call.kind, from, (at + r) * features, to + r * call.row, features, call.plane);
    return;
  }
  T line[2 * TILE_ROWS];
  for (int64_t r = 0, part; r < count; r += part) {
    const int64_t image = (at + r) / call.columns, column = (at + r) % call.columns;
    part = smaller(count - r, call.columns - column);
    if (!converted) {
      const T* source = (const T*)from + image * features * call.columns + column;
      turn(source, call.columns, to + r * call.row, call.row, features, part);
      continue;
    }
    for (int64_t k = 0; k < features; ++k) {
      const int64_t start = (image * features + k) * call.columns + column;
      Storage<T>::load(call.kind, from, start, line, part, TILE_ROWS);
      for (int64_t p = 0; p < planes; ++p)
        for (int64_t c = 0; c < part; ++c) to[(r + c) * call.row + p * call.plane + k] = line[p * TILE_ROWS + c];
    }
  }
}

template <class T>
void scatter(const BackwardCall<T>& call, const T* from, int64_t features, int64_t at, int64_t count, void* to) {
  const bool converted = is_converted<T>(call.kind);
  const int64_t planes = call.forward.step[0].planes;
  if (!call.columns) {
    for (int64_t r = 0; r < count; ++r) Storage<T>::store(call.kind, from + r * call.row, to, (at + r) * features, features, call.plane);
    return;
  }
  T line[2 * TILE_ROWS];
  for (int64_t r = 0, part; r < count; r += part) {
    const int64_t image = (at + r) / call.columns, column = (at + r) % call.columns;
    part = smaller(count - r, call.columns - column);
    if (!converted) {
      T* target = (T*)to + image * features * call.columns + column;
      turn(from + r * call.row, call.row, target, call.columns, part, features);
      continue;
    }
    for (int64_t k = 0; k < features; ++k) {
      const int64_t start = (image * features + k) * call.columns + column;
      for (int64_t p = 0; p < planes; ++p)
        for (int64_t c = 0; c < part; ++c) line[p * TILE_ROWS + c] = from[(r + c) * call.row + p * call.plane + k];
      Storage<T>::store(call.kind, line, to, start, part, TILE_ROWS);
    }
  }
}

// Forward through a tile once more, keeping what every factor took; then backward.
template <class T> int64_t backward_tiled(void* context, int thread, int) {
  BackwardCall<T>& call = *(BackwardCall<T>*)context;
  const KsChain &chain = call.forward, &transposed = call.transposed;
  const int64_t steps = chain.steps, planes = chain.step[0].planes, row = call.row, buffer = call.tile * row;
  const bool moved = call.columns || is_converted<T>(call.kind);
  T* scratch = (T*)ks_scratch((steps + (moved ? 4 : 1)) * buffer * sizeof(T));
  if (!scratch) return 0;
  T* kept = scratch + 2 * buffer;
  T *taken = scratch + (steps + 1) * buffer, *given = taken + buffer, *result = given + buffer;
  T* sums = thread && call.gradients ? call.sums[thread - 1] : nullptr;
  if (sums) memset(sums, 0, call.weights * sizeof(T));
  for (int64_t at; (at = __atomic_fetch_add(&call.next, call.tile, __ATOMIC_RELAXED)) < call.count;) {
    const int64_t count = smaller(call.tile, call.count - at);
    const T* x = moved ? taken : (const T*)call.x + at * chain.in_features;
    const T* g = moved ? given : (const T*)call.g + at * chain.out_features;
    T* gx = moved ? result : call.gx ? (T*)call.gx + at * chain.in_features : nullptr;
    const int64_t x_row = moved ? row : chain.in_features;
    if (moved) {
      gather(call, call.g, chain.out_features, at, count, given);
      if (call.gradients) gather(call, call.x, chain.in_features, at, count, taken);
    }
    if (call.gradients) {
      Rows<T> rows{x, x_row, kept, row, count, call.plane};
      for (int64_t j = 0; j < steps - 1; ++j) {
        rows.y = kept + j * buffer;
        planes_rows<T>(chain.step + j * planes, rows, nullptr, 0);
        rows.x = rows.y;
        rows.x_row = row;
      }
    }
    int64_t g_row = moved ? row : chain.out_features, offset = call.weights;
    for (int64_t j = steps - 1; j >= 0; --j) {
      for (int64_t p = planes - 1; p >= 0 && call.gradients; --p) {
        const int64_t s = j * planes + p;
        offset -= ks_packed_size(chain.step[s], Vec<T>::N);
        Gradient<T> m{j ? kept + (j - 1) * buffer : x, j ? row : x_row, g + p * call.plane, g_row, count, call.plane};
        factor_gradient<T>(chain.step[s], m, sums ? sums + offset : (T*)call.gradients[s]);
      }
      if (j == 0 && !call.gx) break;
      T* out = j ? scratch + (j % 2) * buffer : gx;
      const int64_t out_row = j ? row : x_row;
      const KsStep* step = transposed.step + (steps - 1 - j) * planes;
      planes_rows<T>(step, Rows<T>{g, g_row, out, out_row, count, call.plane}, nullptr, 0);
      g = out;
      g_row = out_row;
    }
    if (moved && call.gx) scatter(call, gx, chain.in_features, at, count, call.gx);
  }
  return 0;
}

template <class T>
bool run_backward(const KsChain& forward, const KsChain& transposed, const void* x, const void* g, void* gx,
                  void* const* gradients, int64_t count, int64_t columns, int threads, int kind) {
  const int64_t row = row_of<T>(forward), steps = forward.steps * forward.step[0].planes;
  int64_t weights = 0;
  for (int64_t j = 0; j < steps; ++j) weights += ks_packed_size(forward.step[j], Vec<T>::N);
  threads = worth(threads, count * forward.weights);
  const int64_t tile = tile_rows<T>(row, forward.steps + 4, count, threads, BACKWARD_ROWS);
  threads = (int)smaller(threads, (count + tile - 1) / tile);
  BackwardCall<T> call{forward, transposed, kind, x, g, gx, columns, gradients, count, row, plane_of<T>(forward),
                       tile, 0, weights, nullptr};
  T* memory = nullptr;
  T** sums = nullptr;
  if (threads > 1 && gradients) {
    // Zeros: fewer threads may come than are asked for.
    memory = (T*)calloc((threads - 1) * weights, sizeof(T));
    sums = (T**)malloc((threads - 1) * sizeof(T*));
    if (!memory || !sums) threads = 1;
    for (int t = 1; t < threads; ++t) sums[t - 1] = memory + (t - 1) * weights;
    call.sums = sums;
  }
  ks_parallel(threads, backward_tiled<T>, &call);
  for (int t = 1; memory && t < threads; ++t) {
    const T* from = sums[t - 1];
    for (int64_t j = 0; j < steps; ++j) {
      T* to = (T*)gradients[j];
      const int64_t size = ks_packed_size(forward.step[j], Vec<T>::N);
      for (int64_t k = 0; k < size; ++k) to[k] += from[k];
      from += size;
    }
  }
  free(sums);
  free(memory);
  return call.next >= count;
}
