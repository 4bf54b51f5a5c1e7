// Threads that are kept between calls.
#pragma once

// Calls work(context, thread, threads) for thread = 0 … threads - 1, the first in the calling thread.
void ks_parallel(int threads, void (*work)(void*, int, int), void* context);

// Waits until all `threads` threads have come here.
struct KsBarrier {
  int threads;
  int arrived = 0, turn = 0;
  void wait();
};
