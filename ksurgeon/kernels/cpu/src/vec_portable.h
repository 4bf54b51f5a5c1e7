// Vectors of 128 bits in the compiler's own vector types: SSE2, NEON, or plain scalars.
template <class T> struct Vec {
  typedef T Reg __attribute__((vector_size(16)));
  using Inputs = Reg;
  using Sum = T;
  static constexpr bool MERGES = false;
  static constexpr int N = 16 / sizeof(T);
  static Reg zero() { return Reg{}; }
  static Reg load(const T* p) {
    Reg v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, Reg v) { memcpy(p, &v, sizeof v); }
  static Reg loadn(const T* p, int64_t n) {
    Reg v{};
    for (int64_t l = 0; l < n; ++l) v[l] = p[l];
    return v;
  }
  static void storen(T* p, Reg v, int64_t n) {
    for (int64_t l = 0; l < n; ++l) p[l] = v[l];
  }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static void keep(Reg& v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#else
    (void)v;
#endif
  }
  static Reg rep1(const T* p) { return Reg{} + *p; }
  static Reg rep2(const T* p) {
    Reg v;
    for (int l = 0; l < N; ++l) v[l] = p[l % 2];
    return v;
  }
  static Reg rep4(const T* p) { return load(p); }
  static Reg rep8(const T* p) { return load(p); }
  struct Index {
    int lanes[N];
  };
  static Index index(const int* lanes) {
    Index i;
    for (int l = 0; l < N; ++l) i.lanes[l] = lanes[l];
    return i;
  }
  static Index next(Index i, Index step) {
    for (int l = 0; l < N; ++l) i.lanes[l] += step.lanes[l];
    return i;
  }
  static Reg permute(Reg v, Index i) {
    Reg w;
    for (int l = 0; l < N; ++l) w[l] = v[i.lanes[l] % N];
    return w;
  }
};

// Lanes of four bytes: inputs without a sign, weights with one, sums of 32 bits, which are exact.
template <> struct Vec<quad> : Vec<int32_t> {
  using Base = Vec<int32_t>;
  using Sum = quad;
  static Reg load(const quad* p) { return Base::load(&p->bits); }
  static void store(quad* p, Reg v) { Base::store(&p->bits, v); }
  static Reg loadn(const quad* p, int64_t n) { return Base::loadn(&p->bits, n); }
  static void storen(quad* p, Reg v, int64_t n) { Base::storen(&p->bits, v, n); }
  static Reg fma(Reg weights, Reg inputs, Reg sum) {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    KS_UNROLL for (int k = 0; k < 4; ++k) {  // products of 16 bits, in lanes of 32
      const Reg input = (Reg)((Bits)inputs << (24 - 8 * k) >> 24), weight = (Reg)((Bits)weights << (24 - 8 * k)) >> 24;
      sum += input * weight;
    }
    return sum;
  }
  static Reg rep1(const quad* p) { return Base::rep1(&p->bits); }
  static Reg rep2(const quad* p) { return Base::rep2(&p->bits); }
  static Reg rep4(const quad* p) { return Base::rep4(&p->bits); }
  static Reg rep8(const quad* p) { return Base::rep8(&p->bits); }
};
