// Vectors of 256 bits, with fused multiply-add.
template <class T> struct Vec;

template <> struct Vec<float> {
  using Reg = __m256;
  using Inputs = Reg;
  using Sum = float;
  static constexpr bool MERGES = false;
  static constexpr int N = 8;
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg loadn(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void storen(float* p, Reg v, int64_t n) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, v);
    for (int64_t l = 0; l < n; ++l) p[l] = lanes[l];
  }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static void keep(Reg& v) { asm("" : "+x"(v)); }  // in a register, not as an operand in memory
  static Reg rep1(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg rep2(const float* p) {
    return _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_castsi128_pd(_mm_loadl_epi64((const __m128i*)p))));
  }
  static Reg rep4(const float* p) {
    __m128 v = _mm_loadu_ps(p);
    return _mm256_set_m128(v, v);
  }
  static Reg rep8(const float* p) { return load(p); }
  using Index = __m256i;
  static Index index(const int* lanes) { return _mm256_loadu_si256((const __m256i*)lanes); }
  static Index next(Index i, Index step) { return _mm256_add_epi32(i, step); }
  static Reg permute(Reg v, Index i) { return _mm256_permutevar8x32_ps(v, i); }
};

template <> struct Vec<double> {
  using Reg = __m256d;
  using Inputs = Reg;
  using Sum = double;
  static constexpr bool MERGES = false;
  static constexpr int N = 4;
  static Reg zero() { return _mm256_setzero_pd(); }
  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Reg v) { _mm256_storeu_pd(p, v); }
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_set_epi64x(3, 2, 1, 0));
  }
  static Reg loadn(const double* p, int64_t n) { return _mm256_maskload_pd(p, mask(n)); }
  static void storen(double* p, Reg v, int64_t n) {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, v);
    for (int64_t l = 0; l < n; ++l) p[l] = lanes[l];
  }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static void keep(Reg& v) { asm("" : "+x"(v)); }  // in a register, not as an operand in memory
  static Reg rep1(const double* p) { return _mm256_broadcast_sd(p); }
  static Reg rep2(const double* p) {
    __m128d v = _mm_loadu_pd(p);
    return _mm256_set_m128d(v, v);
  }
  static Reg rep4(const double* p) { return load(p); }
  static Reg rep8(const double* p) { return load(p); }
  using Index = __m256i;
  static Index index(const int* lanes) { return _mm256_set_epi64x(lanes[3], lanes[2], lanes[1], lanes[0]); }
  static Index next(Index i, Index step) { return _mm256_add_epi64(i, step); }
  static Reg permute(Reg v, Index i) {
    const __m256i low = _mm256_shuffle_epi32(_mm256_slli_epi64(i, 1), 0xA0);
    const __m256i halves = _mm256_add_epi32(low, _mm256_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1));
    return _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(v), halves));
  }
};

// Lanes of four bytes: inputs without a sign, weights with one, sums of 32 bits, which are exact.
template <> struct Vec<quad> {
  using Reg = __m256i;
  using Inputs = Reg;
  using Sum = quad;
  static constexpr int N = 8;
  static Reg zero() { return _mm256_setzero_si256(); }
  static Reg load(const quad* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static void store(quad* p, Reg v) { _mm256_storeu_si256((__m256i*)p, v); }
  static Reg loadn(const quad* p, int64_t n) { return _mm256_maskload_epi32((const int*)p, Vec<float>::mask(n)); }
  static void storen(quad* p, Reg v, int64_t n) { _mm256_maskstore_epi32((int*)p, Vec<float>::mask(n), v); }
  static Reg fma(Reg weights, Reg inputs, Reg sum) {
    const Reg even = _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8), odd = _mm256_srai_epi16(weights, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(inputs, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(inputs, 8), odd));
  }
  static void keep(Reg& v) { asm("" : "+x"(v)); }
  static Reg rep1(const quad* p) { return _mm256_set1_epi32(p->bits); }
  static Reg rep2(const quad* p) { return _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p)); }
  static Reg rep4(const quad* p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p)); }
  static Reg rep8(const quad* p) { return load(p); }
  using Index = __m256i;
  static Index index(const int* lanes) { return _mm256_loadu_si256((const __m256i*)lanes); }
  static Index next(Index i, Index step) { return _mm256_add_epi32(i, step); }
  static Reg permute(Reg v, Index i) { return _mm256_permutevar8x32_epi32(v, i); }
};
