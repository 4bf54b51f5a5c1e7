#include "late.h"

#include <time.h>

#include <atomic>

namespace {

constexpr int64_t EXPECTED = 100000;      // ns that threads on free cores may be waited for, beyond an own part
constexpr int64_t LONGEST = 100000000;    // ns that products stay on one thread before several are tried again
constexpr int64_t ALONE = 16;             // times what was lost: trying again costs a sixteenth at most
constexpr int REMEMBERED = 64;            // products

// Of all threads of the process, which have the same cores. Exactness does not matter here.
std::atomic<int64_t> gained{0}, lost{0}, until{0};
std::atomic<int> products{0};

void forget() {
  gained = 0;
  lost = 0;
  products = 0;
}

}  // namespace

int64_t ks_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

void ks_shared(int threads, int64_t own, int64_t waited) {
  const int64_t late = waited - own - EXPECTED;
  const int64_t gain = gained += (threads - 1) * own;
  if (late > 0 && (lost += late) > gain) {
    const int64_t alone = ALONE * lost;
    until = ks_now() + (alone < LONGEST ? alone : LONGEST);
    forget();
  } else if (++products >= REMEMBERED) {
    gained = gained / 2;
    lost = lost / 2;
    products = REMEMBERED / 2;
  }
}

int ks_on_time(int threads) {
  const int64_t end = until.load(std::memory_order_relaxed);
  if (threads <= 1 || !end) return threads;
  if (ks_now() < end) return 1;
  until = 0;
  return threads;
}
