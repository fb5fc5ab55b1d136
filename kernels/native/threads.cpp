#include "threads.h"

namespace accel {
namespace {
constexpr int PATIENCE = 4096; // looks at the others before giving the processor away
}

Threads::Threads(int count) {
  for (int thread = 1; thread < count; thread++) helpers_.emplace_back([this, thread] { help(thread); });
}

Threads::~Threads() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  for (auto &helper : helpers_) helper.join();
}

void Threads::run(const std::function<void(int)> &work) {
  if (!helpers_.empty()) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      calls_++;
    }
    wake_.notify_all();
  }
  work(0);
  meet();
}

void Threads::meet() {
  if (helpers_.empty()) return;
  const uint32_t round = round_.load();
  if (arrived_.fetch_add(1) + 1 == count()) {
    arrived_.store(0);
    round_.store(round + 1);
    return;
  }
  for (int looks = 0; round_.load(std::memory_order_acquire) == round; looks++) {
    if (looks < PATIENCE)
      __builtin_ia32_pause();
    else
      std::this_thread::yield();
  }
}

void Threads::help(int thread) {
  for (uint64_t seen = 0;;) {
    const std::function<void(int)> *work;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return closing_ || calls_ != seen; });
      if (closing_) return;
      seen = calls_;
      work = work_;
    }
    (*work)(thread);
    meet();
  }
}

} // namespace accel
