// How a step's work is cut up and held: buffers, panels, shares of threads, tasks of attention.
#pragma once
#include "types.h"
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace accel {

inline int64_t up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

inline int panels(const Linear &layer) { return (layer.outputs + PANEL - 1) / PANEL; }

struct Release {
  void operator()(void *memory) const { std::free(memory); }
};
template <typename Number> using Buffer = std::unique_ptr<Number[], Release>;

template <typename Number> Number *allocate(int64_t count) {
  void *memory = std::aligned_alloc(64, static_cast<size_t>(up(count * static_cast<int64_t>(sizeof(Number)), 64)));
  if (!memory) throw std::bad_alloc();
  return static_cast<Number *>(memory);
}

// Calls `work(first, last)` with this thread's share of `count`.
template <typename Work> void share(int thread, int threads, int64_t count, Work work) {
  const int64_t first = count * thread / threads, last = count * (thread + 1) / threads;
  if (first < last) work(first, last);
}

// Room for tokens laid out for products.
class Room {
public:
  // For so many tokens of so many inputs at most.
  void reserve(int64_t tokens, int64_t inputs) {
    const int64_t units = up(inputs, 64);
    if (tokens <= capacity_ && units <= units_each_) return;
    capacity_ = up(std::max(tokens, capacity_), SLOTS), units_each_ = std::max(units, units_each_);
    units_.reset(allocate<int32_t>(capacity_ * units_each_ + 16)); // twice as many slots of a quarter of it, for levels
    scales_.reset(allocate<float>(2 * capacity_));
    sums_.reset(allocate<int32_t>(2 * capacity_));
    owners_.reset(allocate<int32_t>(capacity_));
  }

  // As a layer takes them; `rests` counts what rounding leaves of tokens, from 0.
  Inputs of(const Linear &layer, int32_t *rests) const {
    const bool levels = layer.dtype == INT8 || layer.dtype == INT4;
    const int64_t stride = up(layer.inputs, 64) / (levels ? 4 : layer.dtype == BFLOAT16_PAIRS ? 2 : 1);
    return {units_.get(), scales_.get(), sums_.get(), owners_.get(), rests, stride, capacity_};
  }

private:
  int64_t capacity_ = 0, units_each_ = 0;
  Buffer<int32_t> units_, sums_, owners_;
  Buffer<float> scales_;
};

constexpr int TASK_ROWS = 96; // query rows of an attention task: their results stay in the nearest cache

// Floats of scratch that any task of a step may want.
inline int64_t task_scratch(const Shape &shape) {
  return attend_scratch(std::max(TASK_ROWS, shape.heads / shape.kv_heads), shape.width);
}

inline std::vector<Task> tasks_of(const Shape &shape, const std::vector<Lane> &lanes) {
  std::vector<Task> tasks;
  const int tokens = std::max(1, TASK_ROWS * shape.kv_heads / shape.heads);
  for (const Lane &lane : lanes)
    for (int head = 0; head < shape.kv_heads; head++) // whose keys and values stay in the second cache meanwhile
      for (int first = (lane.length - 1) / tokens * tokens; first >= 0; first -= tokens) // the longest first
        tasks.push_back({lane, first, std::min(tokens, lane.length - first), head});
  return tasks;
}

// Calls `work(task, next)` for tasks that no other thread has taken.
template <typename Work>
void take(const std::vector<Task> &tasks, std::atomic<size_t> &taken, int threads, Work work) {
  for (size_t task; (task = taken.fetch_add(1)) < tasks.size();) {
    const size_t next = task + static_cast<size_t>(threads);
    work(tasks[task], next < tasks.size() ? &tasks[next] : nullptr);
  }
}

} // namespace accel
