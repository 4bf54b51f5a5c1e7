#include "team.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>

namespace {

// What compilers call for a parallel region: GCC's interface, which all runtimes for Linux have, or LLVM's.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
using KmpcForkCall = void (*)(const void* location, int32_t arguments, void (*)(int32_t*, int32_t*, void*), ...);

struct Location {  // ident_t of LLVM's runtime
  int32_t reserved, flags, more[2];
  const char* source;
};

struct Runtime {
  GompParallel gomp;
  KmpcForkCall kmpc;
  int (*thread)();
  int (*threads)();
  int (*in_parallel)();
};

Runtime runtime;
std::atomic<bool> given{false};

struct Region {
  int threads;
  void (*work)(void*, int, int);
  void* context;
};

void region(void* data) {
  const Region& call = *(const Region*)data;
  const int team = runtime.threads(), threads = call.threads < team ? call.threads : team;
  const int thread = runtime.thread();
  if (thread < threads) call.work(call.context, thread, threads);
}

void kmpc_region(int32_t*, int32_t*, void* data) { region(data); }

}  // namespace

bool ks_on_team(int threads, void (*work)(void*, int, int), void* context) {
  if (!given.load(std::memory_order_acquire)) return false;
  if (runtime.in_parallel()) {
    work(context, 0, 1);
    return true;
  }
  // Always the whole team: libgomp ends the threads that a smaller one leaves out, and starts them anew for the
  // next operator of PyTorch.
  Region call{threads, work, context};
  static const Location location{0, 2, {0, 0}, ";unknown;unknown;0;0;;"};
  if (runtime.gomp) runtime.gomp(region, &call, 0, 0);
  else runtime.kmpc(&location, 1, kmpc_region, &call);
  return true;
}

// The functions of the process's OpenMP runtime; of the first two one may be null. Returns whether it is LLVM's.
extern "C" __attribute__((visibility("default"))) int ks_team(void* gomp, void* kmpc, void* thread, void* threads,
                                                              void* in_parallel) {
  // LLVM's runtime offers GCC's interface, too. The process may hold both, of which only the first found counts.
  Dl_info of_gomp{}, of_kmpc{};
  const bool is_llvm = kmpc && (!gomp || (dladdr(gomp, &of_gomp) && dladdr(kmpc, &of_kmpc) &&
                                          of_gomp.dli_fbase == of_kmpc.dli_fbase));
  runtime = {(GompParallel)gomp, (KmpcForkCall)kmpc, (int (*)())thread, (int (*)())threads, (int (*)())in_parallel};
  // A forked child has none of libgomp's threads, and libgomp would wait for them for ever; LLVM's begins anew.
  if (!is_llvm) pthread_atfork(nullptr, nullptr, [] { given.store(false); });
  given.store(true, std::memory_order_release);
  return is_llvm;
}
