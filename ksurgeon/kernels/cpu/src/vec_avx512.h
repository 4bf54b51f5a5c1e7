// Vectors of 512 bits.
template <class T> struct Vec;

template <> struct Vec<float> {
  using Reg = __m512;
  using Inputs = Reg;
  using Sum = float;
  static constexpr int N = 16;
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
  static Reg loadn(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void storen(float* p, Reg v, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), v); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static void keep(Reg& v) { asm("" : "+v"(v)); }  // in a register, not as an operand in memory
  static Reg rep1(const float* p) { return _mm512_set1_ps(*p); }
  static Reg rep2(const float* p) {
    return _mm512_castpd_ps(_mm512_broadcastsd_pd(_mm_castps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)p)))));
  }
  static Reg rep4(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  static Reg rep8(const float* p) {
    return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(_mm256_loadu_ps(p))));
  }
  using Index = __m512i;
  static Index index(const int* lanes) {
    alignas(64) int32_t full[16];
    for (int l = 0; l < 16; ++l) full[l] = lanes[l];
    return _mm512_load_si512(full);
  }
  static Index next(Index i, Index step) { return _mm512_add_epi32(i, step); }
  static Reg permute(Reg v, Index i) { return _mm512_permutexvar_ps(i, v); }
  static constexpr bool MERGES = true;
  static Reg merge(Reg a, Reg b, Index i) { return _mm512_permutex2var_ps(a, i, b); }  // lanes of b from N on
};

template <> struct Vec<double> {
  using Reg = __m512d;
  using Inputs = Reg;
  using Sum = double;
  static constexpr int N = 8;
  static Reg zero() { return _mm512_setzero_pd(); }
  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Reg v) { _mm512_storeu_pd(p, v); }
  static __mmask8 mask(int64_t n) { return (__mmask8)((1u << n) - 1); }
  static Reg loadn(const double* p, int64_t n) { return _mm512_maskz_loadu_pd(mask(n), p); }
  static void storen(double* p, Reg v, int64_t n) { _mm512_mask_storeu_pd(p, mask(n), v); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static void keep(Reg& v) { asm("" : "+v"(v)); }  // in a register, not as an operand in memory
  static Reg rep1(const double* p) { return _mm512_set1_pd(*p); }
  static Reg rep2(const double* p) { return _mm512_broadcast_f64x2(_mm_loadu_pd(p)); }
  static Reg rep4(const double* p) { return _mm512_broadcast_f64x4(_mm256_loadu_pd(p)); }
  static Reg rep8(const double* p) { return load(p); }
  using Index = __m512i;
  static Index index(const int* lanes) {
    alignas(64) int64_t full[8];
    for (int l = 0; l < 8; ++l) full[l] = lanes[l];
    return _mm512_load_si512(full);
  }
  static Index next(Index i, Index step) { return _mm512_add_epi64(i, step); }
  static Reg permute(Reg v, Index i) { return _mm512_permutexvar_pd(i, v); }
  static constexpr bool MERGES = true;
  static Reg merge(Reg a, Reg b, Index i) { return _mm512_permutex2var_pd(a, i, b); }
};

// Lanes of four bytes: inputs without a sign, weights with one, sums of 32 bits, which are exact.
template <> struct Vec<quad> {
  using Reg = __m512i;
  using Inputs = Reg;
  using Sum = quad;
  static constexpr int N = 16;
  static Reg zero() { return _mm512_setzero_si512(); }
  static Reg load(const quad* p) { return _mm512_loadu_si512(p); }
  static void store(quad* p, Reg v) { _mm512_storeu_si512(p, v); }
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
  static Reg loadn(const quad* p, int64_t n) { return _mm512_maskz_loadu_epi32(mask(n), p); }
  static void storen(quad* p, Reg v, int64_t n) { _mm512_mask_storeu_epi32(p, mask(n), v); }
#ifdef KS_VNNI
  static Reg fma(Reg weights, Reg inputs, Reg sum) { return _mm512_dpbusd_epi32(sum, inputs, weights); }
#else
  static Reg fma(Reg weights, Reg inputs, Reg sum) {
    const Reg even = _mm512_srai_epi16(_mm512_slli_epi16(weights, 8), 8), odd = _mm512_srai_epi16(weights, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_and_si512(inputs, _mm512_set1_epi16(255)), even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(inputs, 8), odd));
  }
#endif
  static void keep(Reg& v) { asm("" : "+v"(v)); }
  static Reg rep1(const quad* p) { return _mm512_set1_epi32(p->bits); }
  static Reg rep2(const quad* p) { return _mm512_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p)); }
  static Reg rep4(const quad* p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }
  static Reg rep8(const quad* p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p)); }
  using Index = __m512i;
  static Index index(const int* lanes) { return _mm512_loadu_si512(lanes); }
  static Index next(Index i, Index step) { return _mm512_add_epi32(i, step); }
  static Reg permute(Reg v, Index i) { return _mm512_permutexvar_epi32(i, v); }
};
