// Half precision that is storage only: tiles are converted on their way in and out. Plain loops of integer and
// float32 arithmetic, which compilers turn into vectors; rounding is to nearest even.

static inline uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
static inline float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline float from_bfloat(uint16_t h) { return float_of((uint32_t)h << 16); }
static inline uint16_t to_bfloat(float f) {
  const uint32_t u = bits_of(f), rounded = (u + 0x7FFFu + ((u >> 16) & 1)) >> 16;
  return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

static inline float from_half(uint16_t h) {
  const uint32_t size = (uint32_t)(h & 0x7FFF) << 13, sign = (uint32_t)(h & 0x8000) << 16;
  const uint32_t scaled = bits_of(float_of(size) * 0x1p112f);  // makes subnormal numbers normal
  return float_of(sign | (size >= 0x0F800000u ? size | 0x7F800000u : scaled));
}
static inline uint16_t to_half(float f) {
  const uint32_t u = bits_of(f), twice = u + u;
  const float size = float_of(u & 0x7FFFFFFFu);
  const float clipped = size * 0x1p112f * 0x1p-110f;  // infinite above the range, else four times as much
  uint32_t exponent = twice & 0xFF000000u;
  exponent = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t sum = bits_of(float_of((exponent >> 1) + 0x07800000u) + clipped);  // rounds to 11 bits
  const uint32_t value = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
  return (uint16_t)((u & 0x80000000u) >> 16 | (twice > 0xFF000000u ? 0x7E00u : value));
}

static inline bool is_complex(int kind) { return kind == KS_COMPLEX64 || kind == KS_COMPLEX128; }

// `plane` is how far the imaginary parts of a tile lie from its real parts.
template <class T> struct Storage {
  static void load(int kind, const void* from, int64_t at, T* to, int64_t n, int64_t plane) {
    if (is_complex(kind)) {
      const T* pairs = (const T*)from + 2 * at;
      for (int64_t k = 0; k < n; ++k) to[k] = pairs[2 * k], to[plane + k] = pairs[2 * k + 1];
      return;
    }
    const uint16_t* p = (const uint16_t*)from + at;
    if (kind == KS_BFLOAT16)
      for (int64_t k = 0; k < n; ++k) to[k] = (T)from_bfloat(p[k]);
    else
      for (int64_t k = 0; k < n; ++k) to[k] = (T)from_half(p[k]);
  }
  static void store(int kind, const T* from, void* to, int64_t at, int64_t n, int64_t plane) {
    if (is_complex(kind)) {
      T* pairs = (T*)to + 2 * at;
      for (int64_t k = 0; k < n; ++k) pairs[2 * k] = from[k], pairs[2 * k + 1] = from[plane + k];
      return;
    }
    uint16_t* p = (uint16_t*)to + at;
    if (kind == KS_BFLOAT16)
      for (int64_t k = 0; k < n; ++k) p[k] = to_bfloat((float)from[k]);
    else
      for (int64_t k = 0; k < n; ++k) p[k] = to_half((float)from[k]);
  }
};

// Whether vectors of a kind are computed on as a copy of other numbers.
template <class T> bool is_converted(int kind) { return sizeof(T) > 2 && kind >= KS_BFLOAT16; }

// The bias as tiles are: as it is, or a copy, whose second plane follows the first.
template <class T> struct Bias {
  const T* data;
  T* copy;
  Bias(int kind, const void* bias, int64_t n) : data((const T*)bias), copy(nullptr) {
    if (!bias || !is_converted<T>(kind)) return;
    copy = (T*)malloc(2 * n * sizeof(T));
    data = copy;
    if (!copy) return;
    Storage<T>::load(kind, bias, 0, copy, n, n);
  }
  bool failed(const void* bias) const { return bias && !data; }  // memory is short
  ~Bias() { free(copy); }
};
