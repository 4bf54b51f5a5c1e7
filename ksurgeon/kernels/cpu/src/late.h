// Threads that come late, since other processes or threads are on their cores: for a while, products then stay on one.
#pragma once
#include <cstdint>

// Nanoseconds of a clock that only goes forward.
int64_t ks_now();

#define KS_EXPORT extern "C" __attribute__((visibility("default")))

// What a product has taken several threads, and would have taken one of them alone, in nanoseconds.
KS_EXPORT void ks_shared(int64_t together, int64_t alone);

// How many of the threads to use now: all, or one.
KS_EXPORT int ks_on_time(int threads);

// Between a call with 1 and one with -1 all are used, however late.
KS_EXPORT void ks_insist(int by);
