// Threads that come late, since other processes or threads are on their cores: for a while, products then stay on one.
#pragma once
#include <cstdint>

// Nanoseconds of a clock that only goes forward.
int64_t ks_now();

// What a product on several threads took the calling thread, in nanoseconds: its own part, and waiting for the rest.
extern "C" __attribute__((visibility("default"))) void ks_shared(int threads, int64_t own, int64_t waited);

// How many of the threads to use now: all, or one.
extern "C" __attribute__((visibility("default"))) int ks_on_time(int threads);
