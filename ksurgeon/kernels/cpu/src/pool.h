// Threads that share a product: those of PyTorch's OpenMP team, or where there is none, threads kept between calls.
#pragma once

#include <cstdint>

// Calls work(context, thread, got) for thread = 0 … got - 1, the first in the calling thread. `got` may be less than
// `threads`: inside of a parallel region it is 1. Each call returns how many parts of the product it has computed, all
// of the same size, from which it is found out whether threads come late; or always 0.
void ks_parallel(int threads, int64_t (*work)(void*, int, int), void* context);

// Whoever calls the kernels from threads of another library's may lend some: while a thread has a lender, its products
// are shared by those. A product then must not need its threads at the same time, nor their numbers.
struct KsLender {
  void (*run)(const KsLender*, int threads, int64_t (*work)(void*, int, int), void* context);
};
extern thread_local const KsLender* ks_lender;

// Waits until all `threads` threads have come here.
struct KsBarrier {
  int arrived = 0, turn = 0;
  void wait(int threads);
};
