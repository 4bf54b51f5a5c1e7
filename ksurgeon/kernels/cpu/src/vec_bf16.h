// bfloat16 in the processor's own instructions (AVX-512 BF16): every lane multiplies a pair of inputs by a pair of
// weights and adds both products to a sum in float32. The pairs of a chain's inner vectors are made as they are read.
struct bfloat {
  uint16_t bits;
};

template <> constexpr int PAIR<bfloat> = 2;

template <> struct Vec<bfloat> {
  using Reg = __m512;
  using Inputs = __m512i;
  using Sum = float;
  static constexpr int N = 16;
  static Reg zero() { return _mm512_setzero_ps(); }
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
  static __mmask32 pairs(int64_t n) { return (__mmask32)((1ull << n) - 1); }
  static Inputs load(const bfloat* p) { return _mm512_loadu_si512(p); }  // of 16 pairs
  static Inputs loadn(const bfloat* p, int64_t n) { return _mm512_maskz_loadu_epi16(pairs(n), p); }
  static void store(bfloat* p, Reg v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
  static void storen(bfloat* p, Reg v, int64_t n) {
    _mm256_mask_storeu_epi16(p, mask(n), (__m256i)_mm512_cvtneps_pbh(v));
  }
  static Reg fma(Inputs a, Inputs b, Reg c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
  static void keep(Inputs& v) { asm("" : "+v"(v)); }
  using Index = __m512i;  // of 32 entries
  static Index index(const int* entries) {
    alignas(64) uint16_t full[32];
    for (int l = 0; l < 32; ++l) full[l] = (uint16_t)entries[l];
    return _mm512_load_si512(full);
  }
  static Index next(Index i, Index step) { return _mm512_add_epi16(i, step); }
  static Inputs permute(Inputs v, Index i) { return _mm512_permutexvar_epi16(i, v); }
  static Inputs permute_rest(Inputs v, Index i) { return _mm512_maskz_permutexvar_epi16(FIRST, i, v); }
  static constexpr __mmask32 FIRST = 0x55555555;  // of every pair, where there is no second
  // Pairs (l, step + l) of 32 entries.
  static Index interleaved(int64_t step, int64_t period) {
    int entries[32];
    for (int l = 0; l < 32; ++l) entries[l] = (int)(l / 2 % period + l % 2 * step);
    return index(entries);
  }
};

template <> struct Whole<bfloat> {
  int64_t d;  // from the first input of a pair to the second
  __m512i index;
  __m512i operator()(const bfloat* p) const {
    const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
    return Vec<bfloat>::permute(_mm512_inserti64x4(first, _mm256_loadu_si256((const __m256i*)(p + d)), 1), index);
  }
  __m512i rest(const bfloat* p) const { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
};
template <> Whole<bfloat> whole_of<bfloat>(int64_t d) { return {d, Vec<bfloat>::interleaved(16, 16)}; }

template <> struct Tail<bfloat> {
  __mmask16 lanes;
  int64_t d;
  __m512i operator()(const bfloat* p) const {
    const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p + d));
    return _mm512_or_si512(rest(p), _mm512_slli_epi32(second, 16));
  }
  __m512i rest(const bfloat* p) const { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)); }
};
template <> Tail<bfloat> tail_of<bfloat>(int64_t lanes, int64_t d) { return {Vec<bfloat>::mask(lanes), d}; }

template <> struct Repeat1<bfloat> {
  __m512i operator()(const bfloat* p) const {
    int32_t pair;
    memcpy(&pair, p, 4);
    return _mm512_set1_epi32(pair);
  }
  __m512i rest(const bfloat* p) const { return _mm512_set1_epi32(p->bits); }
};

template <> struct Repeat<bfloat> {
  int64_t d;
  __m512i index;
  __m512i operator()(const bfloat* p) const { return Vec<bfloat>::permute(Vec<bfloat>::loadn(p, 2 * d), index); }
  __m512i rest(const bfloat* p) const { return Vec<bfloat>::permute(Vec<bfloat>::loadn(p, d), index); }
};
template <> Repeat<bfloat> repeat<bfloat>(int64_t d) { return {d, Vec<bfloat>::interleaved(d, d)}; }

template <> struct Storage<bfloat> {  // never called: nothing is converted
  static void load(int, const void*, int64_t, bfloat*, int64_t, int64_t) {}
  static void store(int, const bfloat*, void*, int64_t, int64_t, int64_t) {}
};

// Activations are computed in float32, from sums that were rounded once.
static inline void activate(int activation, bfloat* y, int64_t n) {
  float line[256];
  for (int64_t from = 0; from < n; from += 256) {
    const int64_t count = n - from < 256 ? n - from : 256;
    for (int64_t k = 0; k < count; ++k) line[k] = from_bfloat(y[from + k].bits);
    activate<float>(activation, line, count);
    for (int64_t k = 0; k < count; ++k) y[from + k].bits = to_bfloat(line[k]);
  }
}
