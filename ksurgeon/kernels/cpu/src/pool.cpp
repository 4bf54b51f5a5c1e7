#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "late.h"
#include "team.h"

namespace {

constexpr int SPINS = 4000;
thread_local int64_t at_barriers;  // ns that this thread has waited at them during a product

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  void run(int threads, void (*work)(void*, int, int), void* context) {
    std::unique_lock<std::mutex> busy(calls_, std::try_to_lock);
    if (!busy) return work(context, 0, 1);  // another thread has the pool: do it all here
    while ((int)workers_.size() < threads - 1) {
      const int index = (int)workers_.size() + 1;
      const unsigned seen = generation_.load();
      try {
        workers_.emplace_back([this, index, seen] { serve(index, seen); });
      } catch (const std::exception&) {  // the system gives no more threads
        busy.unlock();
        return work(context, 0, 1);
      }
    }
    {
      std::lock_guard<std::mutex> hold(mutex_);
      work_ = work;
      context_ = context;
      threads_ = threads;
      left_.store((int)workers_.size());
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    work(context, 0, threads);
    for (int spin = 0; left_.load() > 0; ++spin) spin < SPINS ? relax() : std::this_thread::yield();
  }

 private:
  void serve(int index, unsigned seen) {
    for (;;) {
      for (int spin = 0; spin < SPINS && generation_.load() == seen; ++spin) relax();
      {
        std::unique_lock<std::mutex> hold(mutex_);
        wake_.wait(hold, [&] { return generation_.load() != seen; });
        seen = generation_.load();
      }
      if (index < threads_) work_(context_, index, threads_);
      left_.fetch_sub(1);
    }
  }

  std::mutex calls_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> left_{0};
  void (*work_)(void*, int, int) = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
};

// Never destroyed: its threads run until the process ends. A forked child has none of them and starts anew.
std::atomic<Pool*> pool{nullptr};

void on_pool(int threads, void (*work)(void*, int, int), void* context) {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool* mine = pool.load();
  if (!mine) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(mine, fresh)) mine = fresh;
    else delete fresh;
  }
  mine->run(threads, work, context);
}

struct Timed {
  int64_t (*work)(void*, int, int);
  void* context;
  std::atomic<int> threads{0};
  std::atomic<int64_t> parts{0}, least{INT64_MAX};  // how many, and the least that one has taken a thread
};

// A thread that loses its core while it computes has taken long, and not the part.
void timed(void* context, int thread, int threads) {
  Timed& call = *(Timed*)context;
  at_barriers = 0;
  const int64_t start = ks_now(), parts = call.work(call.context, thread, threads);
  call.threads = threads;
  if (!parts) return;
  const int64_t each = (ks_now() - start - at_barriers) / parts;
  call.parts += parts;
  for (int64_t least = call.least; each < least && !call.least.compare_exchange_weak(least, each);) {
  }
}

}  // namespace

thread_local const KsLender* ks_lender = nullptr;

void ks_parallel(int threads, int64_t (*work)(void*, int, int), void* context) {
  if (threads <= 1) return (void)work(context, 0, 1);
  if (ks_lender) return ks_lender->run(ks_lender, threads, work, context);
  Timed call{work, context};
  const int64_t start = ks_now();
  if (!ks_on_team(threads, timed, &call)) on_pool(threads, timed, &call);
  if (call.threads > 1 && call.parts) ks_shared(ks_now() - start, call.parts * call.least);
}

void KsBarrier::wait(int threads) {
  const int now = __atomic_load_n(&turn, __ATOMIC_ACQUIRE);
  if (__atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL) == threads - 1) {
    __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&turn, now + 1, __ATOMIC_RELEASE);
    return;
  }
  if (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != now) return;
  const int64_t start = ks_now();
  for (int spin = 0; __atomic_load_n(&turn, __ATOMIC_ACQUIRE) == now; ++spin)
    spin < SPINS ? relax() : std::this_thread::yield();
  at_barriers += ks_now() - start;
}
