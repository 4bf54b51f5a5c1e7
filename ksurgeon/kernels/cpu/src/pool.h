// Threads that share a product: those of PyTorch's OpenMP team, or where there is none, threads kept between calls.
#pragma once

// Calls work(context, thread, got) for thread = 0 … got - 1, the first in the calling thread. `got` may be less than
// `threads`: inside of a parallel region it is 1.
void ks_parallel(int threads, void (*work)(void*, int, int), void* context);

// Waits until all `threads` threads have come here.
struct KsBarrier {
  int arrived = 0, turn = 0;
  void wait(int threads);
};
