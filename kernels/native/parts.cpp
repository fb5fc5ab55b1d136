#include "parts.h"
#include "model.h"
#include <stdexcept>
#include <string>

namespace accel {

Parts::Parts(int threads) : kernels_(kernels_here()), threads_(threads) {}

void Parts::linear(const Linear &layer, const float *in, int64_t tokens, float *out) {
  room_.reserve(tokens, layer.inputs);
  reserve(up(linear_scratch(layer.inputs) / 4, 16));
  int32_t rests = 0;
  const Inputs inputs = room_.of(layer, &rests);
  threads_.run([&](int thread) {
    share(thread, threads_.count(), tokens, [&](int64_t first, int64_t last) {
      for (int64_t token = first; token < last; token++) kernels_.give(layer, in + token * layer.inputs, inputs, token);
    });
    threads_.meet();
    share(thread, threads_.count(), panels(layer), [&](int64_t first, int64_t last) {
      kernels_.linear(layer, inputs, tokens, static_cast<int>(first), static_cast<int>(last), out, layer.outputs, false,
                      1, scratch_.get() + thread * scratch_stride_);
    });
  });
}

void Parts::reserve(int64_t scratch) {
  if (scratch <= scratch_stride_) return;
  scratch_stride_ = scratch;
  scratch_.reset(allocate<float>(threads_.count() * scratch));
}

void Parts::attend(const Shape &shape, const Layer &layer, const Cache &cache, const std::vector<Lane> &lanes,
                   int64_t tokens, float *qkv, float *out) {
  std::vector<Lane> singles; // tokens one by one
  for (const Lane &lane : lanes) {
    const int64_t length = lane.length;
    if (lane.row < 0 || lane.row >= shape.rows || length < 1 || lane.start < 0 ||
        lane.start + length > cache.columns || lane.offset < 0 || lane.offset + length > tokens)
      throw std::out_of_range("a lane of row " + std::to_string(lane.row) + " and the columns from " +
                              std::to_string(lane.start) + " is out of range");
    for (int i = 0; i < lane.length; i++) singles.push_back({lane.row, lane.start + i, 1, lane.offset + i});
  }
  reserve(task_scratch(shape));
  const int64_t stride = static_cast<int64_t>(shape.heads + 2 * shape.kv_heads) * shape.width;
  const std::vector<Task> tasks = tasks_of(shape, lanes);
  std::atomic<size_t> taken{0};
  threads_.run([&](int thread) {
    share(thread, threads_.count(), static_cast<int64_t>(singles.size()), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const Lane &token = singles[static_cast<size_t>(i)];
        kernels_.write(shape, layer, cache, token.row, token.start, qkv + token.offset * stride);
      }
    });
    threads_.meet();
    take(tasks, taken, threads_.count(), [&](const Task &task, const Task *next) {
      kernels_.attend(shape, layer, cache, task, next, qkv, stride, out, scratch_.get() + thread * scratch_stride_);
    });
  });
}

} // namespace accel
