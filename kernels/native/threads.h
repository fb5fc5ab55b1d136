// Threads that run one function together and sleep between calls, so that they never compete with another library's.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace accel {

class Threads {
public:
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads &) = delete;

  int count() const { return static_cast<int>(helpers_.size()) + 1; }

  // Runs `work(thread)` on all threads, the caller's among them as thread 0, and returns when all have returned.
  void run(const std::function<void(int)> &work);

  // Called by all threads inside `run`: returns when all have called it.
  void meet();

private:
  void help(int thread);

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)> *work_ = nullptr;
  uint64_t calls_ = 0;
  bool closing_ = false;
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

} // namespace accel
