// A fingerprint of the contents of factors at the speed of reading them: sums of every LANES-th word, in registers,
// mixed at the end. `part` of `parts`: that share of the bytes of every factor.
// Products carry differences upwards only: shifts bring the highest bits (signs, exponents) down again, or those
// of two words of a sum would cancel.
static inline uint64_t mixed(uint64_t h) {
  h ^= h >> 31;
  h *= 0x9E3779B97F4A7C15u;
  return h ^ h >> 29;
}

static uint64_t fingerprint(const KsGuard& guard, int64_t part, int64_t parts) {
  constexpr int BYTES = KS_REGISTERS >= 32 ? 64 : 32, WORDS = BYTES / 4, SUMS = 8, LINE = SUMS * BYTES;
  typedef uint32_t Words __attribute__((vector_size(BYTES)));
  Words sum[SUMS];
  KS_UNROLL for (int k = 0; k < SUMS; ++k) sum[k] = Words{} + (2u * k + 1);
  auto add = [&](const char* p) __attribute__((always_inline)) {
    KS_UNROLL for (int k = 0; k < SUMS; ++k) {
      Words word;
      memcpy(&word, p + k * BYTES, BYTES);
      sum[k] = (sum[k] ^ sum[k] >> 15) * 0x2C1B3C6Du + word;
    }
  };
  uint64_t h = 0;
  for (int64_t f = 0; f < guard.factors; ++f) {
    const int64_t share = (guard.bytes[f] / parts / LINE + 1) * LINE, from = share * part;
    const int64_t to = part + 1 == parts || from + share > guard.bytes[f] ? guard.bytes[f] : from + share;
    const char* p = (const char*)guard.data[f] + from;
    int64_t left = to - from;
    for (; left >= LINE; left -= LINE, p += LINE) add(p);
    if (left <= 0) continue;
    char rest[LINE] = {};
    memcpy(rest, p, left);
    add(rest);
  }
  KS_UNROLL for (int k = 0; k < SUMS; ++k) {
    uint64_t pairs[WORDS / 2];
    memcpy(pairs, &sum[k], BYTES);
    uint64_t own = k;  // apart: several are mixed at a time
    for (int l = 0; l < WORDS / 2; ++l) own = mixed(own + pairs[l]);
    h = mixed(h + own);
  }
  return h;
}
