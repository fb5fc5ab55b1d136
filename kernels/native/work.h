// How a step's work is cut up and held: buffers, panels, shares of threads, tasks of attention.
#pragma once
#include "types.h"
#include <algorithm>
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

constexpr int TASK_ROWS = 96; // query rows of an attention task: their results stay in the nearest cache

// Floats of scratch that any task of a step may want.
inline int64_t task_scratch(const Shape &shape) {
  return attend_scratch(std::max(TASK_ROWS, shape.heads / shape.kv_heads), shape.width);
}

inline std::vector<Task> tasks_of(const Shape &shape, const std::vector<Lane> &lanes) {
  std::vector<Task> tasks;
  const int tokens = std::max(1, TASK_ROWS * shape.kv_heads / shape.heads);
  for (const Lane &lane : lanes)
    for (int first = (lane.length - 1) / tokens * tokens; first >= 0; first -= tokens) // the longest first
      for (int head = 0; head < shape.kv_heads; head++)
        tasks.push_back({lane, first, std::min(tokens, lane.length - first), head});
  return tasks;
}

} // namespace accel
