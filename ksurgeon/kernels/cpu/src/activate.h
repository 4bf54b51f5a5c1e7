// Activations of finished outputs, in plain loops that compilers turn into vectors. In float32 they differ
// from exact ones by less than 1e-6; NaN stays NaN.

static inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // the sum holds the rounded exponent in its last bits
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}

// x times the normal distribution function: max(x, 0) - t Q(t) with t = |x|, where Q(t) = erfc(t / sqrt 2) / 2
// is a polynomial on [0, 5.5] and t Q(t) is below 1e-6 beyond.
static inline float gelu_of(float x) {
  const float size = x < 0 ? -x : x, t = size > 5.5f ? 5.5f : size;
  const float u = t * (2 / 5.5f) - 1;
  float q = 1.641078619e-3f;
  q = q * u - 7.181688678e-3f;
  q = q * u + 3.825324893e-5f;
  q = q * u + 3.523617238e-2f;
  q = q * u - 3.671901673e-2f;
  q = q * u - 5.551623553e-2f;
  q = q * u + 1.287703961e-1f;
  q = q * u - 3.083331883e-2f;
  q = q * u - 1.614954323e-1f;
  q = q * u + 2.170589268e-1f;
  q = q * u - 5.168725550e-2f;
  q = q * u - 1.769307256e-1f;
  q = q * u + 2.719151080e-1f;
  q = q * u - 2.068254799e-1f;
  q = q * u + 9.455714375e-2f;
  q = q * u - 2.500769496e-2f;
  q = q * u + 2.979777753e-3f;
  return (x < 0 ? 0 : x) - t * q;
}
static inline float silu_of(float x) { return x / (1.0f + exp_of(-x)); }

// Rare enough in float64 to be left to the mathematical library.
static inline double gelu_of(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static inline double silu_of(double x) { return x / (1.0 + exp(-x)); }

// (1 + tanh u) / 2 = 1 / (1 + exp(-2u)).
template <class T> inline T twice_u(T x) { return (T)1.5957691216057308 * (x + (T)0.044715 * x * x * x); }
static inline float gelu_tanh_of(float x) { return x / (1.0f + exp_of(-twice_u(x))); }
static inline double gelu_tanh_of(double x) { return x / (1.0 + exp(-twice_u(x))); }

template <class T, class F> void each(T* y, int64_t n, F f) {
  for (int64_t k = 0; k < n; ++k) y[k] = f(y[k]);
}

template <class T> void activate(int activation, T* y, int64_t n) {
  const T six = 6;
  switch (activation) {
    case KS_RELU: return each(y, n, [](T v) { return v < 0 ? (T)0 : v; });
    case KS_RELU6: return each(y, n, [=](T v) { v = v < 0 ? (T)0 : v; return v > six ? six : v; });
    case KS_GELU: return each(y, n, [](T v) { return gelu_of(v); });
    case KS_GELU_TANH: return each(y, n, [](T v) { return gelu_tanh_of(v); });
    case KS_SILU: return each(y, n, [](T v) { return silu_of(v); });
    case KS_HARDSWISH:
      return each(y, n, [=](T v) {
        T w = v + 3;
        w = w < 0 ? (T)0 : w;
        return v * (w > six ? six : w) / six;
      });
  }
}

// `rows` runs of n outputs.
template <class T> void activate_rows(int activation, T* y, int64_t y_row, int64_t rows, int64_t n) {
  if (activation)
    for (int64_t r = 0; r < rows; ++r) activate(activation, y + r * y_row, n);
}
