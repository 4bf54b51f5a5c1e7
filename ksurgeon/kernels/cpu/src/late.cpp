#include "late.h"

#include <time.h>

#include <atomic>

namespace {

constexpr int64_t ALONE = 100000000;  // ns that products stay on one thread before several are tried again
constexpr int64_t TRIED = 1000000;    // ns that several may then lose
constexpr int64_t SAVED = 4000000;    // and may ever lose for what they have gained before: a turn of another process

// Of all threads of the process, which have the same cores. Exactness does not matter here.
std::atomic<int64_t> left{TRIED}, until{0};
std::atomic<int> insisting{0};

}  // namespace

int64_t ks_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

void ks_shared(int64_t together, int64_t alone) {
  const int64_t now_left = left.load(std::memory_order_relaxed) + alone - together;
  left = now_left < 0 ? TRIED : now_left < SAVED ? now_left : SAVED;
  if (now_left < 0) until = ks_now() + ALONE;
}

int ks_on_time(int threads) {
  const int64_t end = until.load(std::memory_order_relaxed);
  if (threads <= 1 || !end || insisting.load(std::memory_order_relaxed) > 0) return threads;
  const int64_t wait = end - ks_now();
  return wait > 0 && wait <= ALONE ? 1 : threads;
}

void ks_insist(int by) { insisting += by; }
