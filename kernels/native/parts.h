// Products and attention one at a time, for a model whose steps another library runs.
#pragma once
#include "threads.h"
#include "work.h"

namespace accel {

class Parts {
public:
  explicit Parts(int threads);

  // out[tokens][outputs] = in[tokens][inputs] @ weight.T + bias; `inputs` is a multiple of LANES.
  void linear(const Linear &layer, const float *in, int64_t tokens, float *out);

  // Writes the lanes' keys and values to the cache, then attends. `qkv` is [tokens][heads + 2 * kv_heads][width], `out`
  // [tokens][heads][width]; padding, which is in no lane, is neither read nor written.
  void attend(const Shape &shape, const Layer &layer, const Cache &cache, const std::vector<Lane> &lanes,
              int64_t tokens, float *qkv, float *out);

private:
  void reserve(int64_t scratch);

  const Kernels &kernels_;
  Threads threads_;
  int64_t scratch_stride_ = 0;
  Buffer<float> scratch_;
  Room room_;
};

} // namespace accel
