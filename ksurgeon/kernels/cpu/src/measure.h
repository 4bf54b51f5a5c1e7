// What the machine could do at best: for benchmarks.

// Fused multiply-adds of float32 vectors in registers; returns floating-point operations done.
static int64_t spin(int64_t times) {
  using V = Vec<float>;
  constexpr int CHAINS = 12;
  float one = 1.0f, small = 1e-3f;
  const V::Reg a = V::rep1(&one), b = V::rep1(&small);
  V::Reg sum[CHAINS];
  KS_UNROLL for (int k = 0; k < CHAINS; ++k) sum[k] = V::zero();
  for (int64_t t = 0; t < times; ++t)
    KS_UNROLL for (int k = 0; k < CHAINS; ++k) {
      sum[k] = V::fma(sum[k], a, b);
      V::keep(sum[k]);
    }
  float lanes[V::N];
  volatile float used = 0;  // or all of it would be left out
  KS_UNROLL for (int k = 0; k < CHAINS; ++k) {
    V::store(lanes, sum[k]);
    used = used + lanes[0];
  }
  return times * CHAINS * V::N * 2;
}

// Reads floats, `count` a multiple of 8 vectors, as fast as they can be used.
static float read_all(const float* data, int64_t count) {
  using V = Vec<float>;
  float one = 1.0f, lanes[V::N];
  const V::Reg a = V::rep1(&one);
  V::Reg sum[8];
  KS_UNROLL for (int k = 0; k < 8; ++k) sum[k] = V::zero();
  for (int64_t at = 0; at + 8 * V::N <= count; at += 8 * V::N)
    KS_UNROLL for (int k = 0; k < 8; ++k) sum[k] = V::fma(V::load(data + at + k * V::N), a, sum[k]);
  float total = 0;
  KS_UNROLL for (int k = 0; k < 8; ++k) {
    V::store(lanes, sum[k]);
    for (int l = 0; l < V::N; ++l) total += lanes[l];
  }
  return total;
}
