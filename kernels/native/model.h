// A decoder like Llama, or like GPT-NeoX: all its layers in one call, for any mixture of rows.
#pragma once
#include "threads.h"
#include "work.h"

namespace accel {

struct Ends {
  const void *embedding;        // [vocabulary][hidden]
  Norm embedding_norm;          // [hidden], of embedded tokens; null for none
  Norm norm;                    // [hidden], after the last layer
  Linear head;
};

// The instruction set of this processor, or the one named by LANGCHAIN_ACCEL_INSTRUCTIONS.
// Throws std::runtime_error where there is none that fits.
const Kernels &kernels_here();

class Model {
public:
  Model(const Shape &shape, int threads);

  void set_layer(int index, const Layer &layer) { layers_.at(static_cast<size_t>(index)) = layer; }
  void set_ends(const Ends &ends) { ends_ = ends; }

  // Writes `count` packed tokens to their rows and columns and returns `[wanted_count][vocabulary]` logits.
  void step(int count, const int32_t *tokens, const int32_t *rows, const int32_t *columns, int wanted_count,
            const int32_t *wanted, float *logits);
  void copy_row(int source, int target, int length);

private:
  template <typename Number> void copy(const Cache &cache, int source, int target, int length) const;
  void grow(int count);

  Shape shape_;
  const Kernels &kernels_;
  Threads threads_;
  std::vector<Layer> layers_;
  Ends ends_{};
  std::vector<Cache> caches_;
  std::vector<Buffer<char>> arena_;
  int capacity_ = 0;
  // Residual stream, and that of wanted tokens in the last layer; what it was before a layer; qkv or gate and up;
  // attention's output.
  Buffer<float> hidden_, wanted_, before_, wide_, attended_, scratch_;
  Room room_;
  int64_t scratch_stride_ = 0;
};

} // namespace accel
