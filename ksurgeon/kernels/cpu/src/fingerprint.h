// A fingerprint of memory at the speed of reading it: 64 sums, each of every 64th word, mixed at the end.
// Products carry differences upwards only: shifts bring the highest bits (signs, exponents) down again, or those
// of two words of a sum would cancel.
static inline uint64_t mixed(uint64_t h) {
  h ^= h >> 31;
  h *= 0x9E3779B97F4A7C15u;
  return h ^ h >> 29;
}

static uint64_t fingerprint(const void* data, int64_t bytes) {
  constexpr int LANES = 64;
  uint32_t sum[LANES];
  for (int l = 0; l < LANES; ++l) sum[l] = 2u * l + 1;
  const char* p = (const char*)data;
  for (; bytes >= LANES * 4; bytes -= LANES * 4, p += LANES * 4) {
    uint32_t word[LANES];
    memcpy(word, p, sizeof word);
    for (int l = 0; l < LANES; ++l) sum[l] = (sum[l] ^ sum[l] >> 15) * 0x2C1B3C6Du + word[l];
  }
  unsigned char rest[LANES * 4] = {};
  memcpy(rest, p, bytes);
  uint64_t h = (uint64_t)bytes;
  for (int l = 0; l < LANES; ++l) {
    uint32_t word;
    memcpy(&word, rest + 4 * l, 4);
    h = mixed(h + (sum[l] ^ sum[l] >> 15) * 0x2C1B3C6Du + word);
  }
  return h;
}
