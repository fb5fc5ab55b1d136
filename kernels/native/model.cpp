#include "model.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace accel {
namespace {
// Numbers from one token's to the next one's: not a multiple of 4 KiB, by which lines of the nearest cache would have to
// share their places.
int64_t apart(int64_t width) { return width % 1024 ? width : width + 16; }

// Adds a token to the lanes of a step: to the last one, where it comes next.
void join(std::vector<Lane> &lanes, int row, int column, int token) {
  if (!lanes.empty()) {
    Lane &last = lanes.back();
    if (row == last.row && column == last.start + last.length && token == last.offset + last.length) {
      last.length++;
      return;
    }
  }
  lanes.push_back({row, column, 1, token});
}
} // namespace

Model::Model(const Shape &shape, int threads)
    : shape_(shape), kernels_(kernels_here()), threads_(threads), layers_(static_cast<size_t>(shape.layers)) {
  const int64_t columns = up(shape.max_len, COLUMNS);
  const size_t strips = static_cast<size_t>(shape.rows * shape.kv_heads * columns);
  const size_t size = shape.cache_dtype == INT8 ? 1 : shape.cache_dtype == BFLOAT16 ? 2 : 4;
  // Pages of zeros that take no memory before they are written; a line more, to begin at one.
  const auto zeros = [&](size_t bytes) -> void * {
    char *memory = static_cast<char *>(std::calloc(bytes + 64, 1));
    if (!memory) throw std::bad_alloc();
    arena_.emplace_back(memory);
    return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  };
  for (int layer = 0; layer < shape.layers; layer++) {
    Cache cache{nullptr, nullptr, nullptr, nullptr, columns};
    for (void **half : {&cache.keys, &cache.values}) *half = zeros(strips * static_cast<size_t>(shape.width) * size);
    if (shape.cache_dtype == INT8)
      for (float **half : {&cache.key_scales, &cache.value_scales})
        *half = static_cast<float *>(zeros(strips * sizeof(float)));
    caches_.push_back(cache);
  }
}

void Model::grow(int count) {
  if (count <= capacity_) return;
  const int64_t attended = static_cast<int64_t>(shape_.heads) * shape_.width;
  const int64_t qkv = attended + 2 * static_cast<int64_t>(shape_.kv_heads) * shape_.width;
  const int64_t widest = up(std::max<int64_t>({shape_.hidden, shape_.inner, attended}), 64);
  hidden_.reset(allocate<float>(static_cast<int64_t>(count) * shape_.hidden));
  wanted_.reset(allocate<float>(static_cast<int64_t>(count) * shape_.hidden));
  if (shape_.parallel) before_.reset(allocate<float>(static_cast<int64_t>(count) * shape_.hidden));
  wide_.reset(allocate<float>(count * std::max<int64_t>({qkv, apart(2 * shape_.inner), shape_.hidden})));
  attended_.reset(allocate<float>(count * attended));
  room_.reserve(count, widest);
  scratch_stride_ = std::max({task_scratch(shape_), widest, up(linear_scratch(widest) / 4, 16)});
  scratch_.reset(allocate<float>(threads_.count() * scratch_stride_));
  capacity_ = count;
}

void Model::step(int count, const int32_t *tokens, const int32_t *rows, const int32_t *columns, int wanted_count,
                 const int32_t *wanted, float *logits) {
  std::vector<Lane> lanes;
  for (int i = 0; i < count; i++) {
    if (tokens[i] < 0 || tokens[i] >= shape_.vocabulary || rows[i] < 0 || rows[i] >= shape_.rows || columns[i] < 0 ||
        columns[i] >= shape_.max_len)
      throw std::out_of_range("token, row or column " + std::to_string(i) + " of the step is out of range");
    join(lanes, rows[i], columns[i], i);
  }
  std::vector<Lane> last_lanes; // of the last layer, which is computed for wanted tokens only, but their keys and values
  std::vector<bool> met(static_cast<size_t>(count));
  for (int i = 0; i < wanted_count; i++) {
    const int token = wanted[i];
    if (token < 0 || token >= count) throw std::out_of_range("a wanted token is not in the step");
    if (!met[static_cast<size_t>(token)]) join(last_lanes, rows[token], columns[token], token);
    met[static_cast<size_t>(token)] = true;
  }
  grow(std::max(count, wanted_count));
  const std::vector<Task> tasks = tasks_of(shape_, lanes);
  const std::vector<Task> last_tasks = tasks_of(shape_, last_lanes);
  const int64_t attended = static_cast<int64_t>(shape_.heads) * shape_.width;
  const int64_t qkv = attended + 2 * static_cast<int64_t>(shape_.kv_heads) * shape_.width;
  std::vector<int32_t> rests(4 * layers_.size() + 1); // of each product
  std::vector<std::atomic<size_t>> taken(layers_.size());
  for (auto &counter : taken) counter.store(0);

  threads_.run([&](int thread) {
    const int threads = threads_.count();
    float *scratch = scratch_.get() + thread * scratch_stride_;
    const auto each_token = [&](int64_t total, auto work) {
      share(thread, threads, total, [&](int64_t first, int64_t last) {
        for (int64_t token = first; token < last; token++) work(token);
      });
      threads_.meet();
    };
    int32_t *left = rests.data(); // of the next product
    const auto product = [&](const Linear &layer, int64_t total, float *out, int64_t stride, bool add) {
      const Inputs in = room_.of(layer, left++);
      share(thread, threads, panels(layer), [&](int64_t first, int64_t last) {
        kernels_.linear(layer, in, total, static_cast<int>(first), static_cast<int>(last), out, stride, add,
                        add ? shape_.residual_factor : 1, scratch);
      });
      threads_.meet();
    };
    const auto give = [&](const Linear &layer, const float *numbers, int64_t token) {
      kernels_.give(layer, numbers, room_.of(layer, left), token);
    };
    const auto normed = [&](const Norm &norm, const float *numbers, const Linear &layer, int64_t slot) {
      kernels_.normalise(norm, numbers, shape_.hidden, shape_, scratch);
      give(layer, scratch, slot);
    };
    const auto stream = [&](const Buffer<float> &of, int64_t token) { return of.get() + token * shape_.hidden; };
    const size_t hidden_bytes = static_cast<size_t>(shape_.hidden) * sizeof(float);

    const auto add = [&](const Linear &layer, int64_t total, const Buffer<float> &to, const Norm &after) {
      if (!after.weight) return product(layer, total, to.get(), shape_.hidden, true);
      product(layer, total, wide_.get(), shape_.hidden, false);
      each_token(total, [&](int64_t token) {
        kernels_.normalise(after, stream(wide_, token), shape_.hidden, shape_, scratch);
        float *numbers = stream(to, token);
        for (int i = 0; i < shape_.hidden; i++) numbers[i] += scratch[i] * shape_.residual_factor;
      });
    };

    each_token(count, [&](int64_t token) {
      float *embedded = stream(hidden_, token);
      kernels_.embed(shape_, ends_.embedding, tokens[token], embedded);
      if (ends_.embedding_norm.weight)
        kernels_.normalise(ends_.embedding_norm, embedded, shape_.hidden, shape_, embedded);
    });
    for (size_t index = 0; index < layers_.size(); index++) {
      const Layer &layer = layers_[index];
      const Cache &cache = caches_[index];
      each_token(count, [&](int64_t token) {
        if (shape_.parallel) std::memcpy(stream(before_, token), stream(hidden_, token), hidden_bytes);
        normed(layer.norm, stream(hidden_, token), layer.qkv, token);
      });
      product(layer.qkv, count, wide_.get(), qkv, false);
      each_token(count, [&](int64_t token) {
        kernels_.write(shape_, layer, cache, rows[token], columns[token], wide_.get() + token * qkv);
      });
      // From here on tokens have slots: in the last layer, only those that are wanted.
      const bool last = index + 1 == layers_.size();
      const std::vector<Task> &attends = last ? last_tasks : tasks;
      const Buffer<float> &to = last ? wanted_ : hidden_;
      const int slots = last ? wanted_count : count;
      const auto token_of = [&](int64_t slot) { return last ? wanted[slot] : slot; };
      take(attends, taken[index], threads, [&](const Task &task, const Task *next) {
        kernels_.attend(shape_, layer, cache, task, next, wide_.get(), qkv, attended_.get(), scratch);
      });
      threads_.meet();
      each_token(slots, [&](int64_t slot) {
        if (last) std::memcpy(stream(to, slot), stream(hidden_, token_of(slot)), hidden_bytes);
        give(layer.out, attended_.get() + token_of(slot) * attended, slot);
      });
      add(layer.out, slots, to, layer.after_attention);
      each_token(slots, [&](int64_t slot) {
        normed(layer.inner_norm, shape_.parallel ? stream(before_, token_of(slot)) : stream(to, slot), layer.gate_up, slot);
      });
      const int64_t inner = apart(layer.gate_up.outputs);
      product(layer.gate_up, slots, wide_.get(), inner, false);
      each_token(slots, [&](int64_t slot) {
        kernels_.gate(shape_, wide_.get() + slot * inner, scratch);
        give(layer.down, scratch, slot);
      });
      add(layer.down, slots, to, layer.after_mlp);
    }
    each_token(wanted_count, [&](int64_t slot) { normed(ends_.norm, stream(wanted_, slot), ends_.head, slot); });
    product(ends_.head, wanted_count, logits, shape_.vocabulary, false);
    each_token(wanted_count, [&](int64_t slot) { kernels_.limit(shape_, logits + slot * shape_.vocabulary); });
  });
}

template <typename Number> void Model::copy(const Cache &cache, int source, int target, int length) const {
  const int whole = length / LANES * LANES, width = shape_.width;
  for (int head = 0; head < shape_.kv_heads; head++) {
    const auto strip = [&](void *half, int row) {
      return static_cast<Number *>(half) +
             (static_cast<int64_t>(row) * shape_.kv_heads + head) * cache.columns * width;
    };
    const auto bytes = [&](int count) { return static_cast<size_t>(count) * static_cast<size_t>(width) * sizeof(Number); };
    const Number *keys = strip(cache.keys, source);
    Number *to = strip(cache.keys, target);
    std::memcpy(to, keys, bytes(whole));
    for (int i = 0; i < width; i++) // the last block's first columns
      for (int column = 0; column < length - whole; column++)
        to[(whole * width) + i * LANES + column] = keys[(whole * width) + i * LANES + column];
    std::memcpy(strip(cache.values, target), strip(cache.values, source), bytes(length));
    for (float *scales : {cache.key_scales, cache.value_scales})
      if (scales)
        std::memcpy(scales + (static_cast<int64_t>(target) * shape_.kv_heads + head) * cache.columns,
                    scales + (static_cast<int64_t>(source) * shape_.kv_heads + head) * cache.columns,
                    static_cast<size_t>(length) * sizeof(float));
  }
}

void Model::copy_row(int source, int target, int length) {
  if (std::min(source, target) < 0 || std::max(source, target) >= shape_.rows || length < 0 || length > shape_.max_len)
    throw std::out_of_range("a row or the length of the copy is out of range");
  if (source == target) return;
  for (const Cache &cache : caches_) {
    if (shape_.cache_dtype == INT8)
      copy<int8_t>(cache, source, target, length);
    else if (shape_.cache_dtype == BFLOAT16)
      copy<uint16_t>(cache, source, target, length);
    else
      copy<float>(cache, source, target, length);
  }
}

} // namespace accel
