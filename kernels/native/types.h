// What the kernels, the model and the C interface share. No standard containers: these headers are compiled once for
// each instruction set, and an inline function of theirs must never serve a processor without it.
#pragma once
#include <cstdint>

namespace accel {

constexpr int LANES = 16;   // columns of a block of keys; what widths must be multiples of
constexpr int PANEL = 32;   // outputs of a weight that lie together
constexpr int ALONG = 4;    // panels that a tile of tokens meets before the next tile: its results are written in a row
constexpr int64_t ALONG_BYTES = 1 << 17; // and their bytes, at most, which stay in the nearer caches
constexpr int SLOTS = 96;   // room for tokens is made in multiples of it, which are whole tiles of any instruction set
constexpr int COLUMNS = 64; // KV-cache columns that attention takes at a time
constexpr int GROUP = 16;   // inputs of a 4-bit weight that share a factor
constexpr int BLOCK = 32;   // inputs whose factors and nibbles lie together
constexpr int BLOCK_BYTES = BLOCK / GROUP * PANEL + BLOCK / 2 * PANEL;
constexpr float LEVELS = 127;
// A token whose largest number is so many times its root mean square is held in two passes of 8 bits, 15 bits in all.
constexpr float OUTLIER = 16;

enum Dtype : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, BFLOAT16_PAIRS = 4 };
enum Activation : int32_t { SILU = 0, GELU_TANH = 1, GELU = 2 };

// A linear layer with weights as numbers, `[outputs / PANEL][inputs][PANEL]`; as pairs of bfloat16 for tokens that are
// rounded to bfloat16, `[outputs / PANEL][inputs / 2][PANEL][2]`; or in integers with a scale for each output: in 8 bits
// levels plus 128, `[outputs / PANEL][inputs / 4][PANEL][4]`; in 4 bits `[outputs / PANEL][inputs / BLOCK]` blocks, see
// nibbles.h.
struct Linear {
  const void *weight;
  const float *scales; // null for numbers
  const float *bias; // null for none
  int32_t inputs;
  int32_t outputs;
  int32_t dtype;
};

// Tokens as products take them: in units of four bytes, which hold a number, a pair or four levels, after the
// weight. The units
// of some slots lie side by side, so that a product reads them one after the other: how many is up to the instruction
// set. Slot t is token t; the slots from `capacity` on are what rounding left of some.
struct Inputs {
  int32_t *units;  // [slots / beside][stride][beside]
  float *scales;   // [slots], of levels, as are the following
  int32_t *sums;   // [slots], of the levels of a slot
  int32_t *owners; // [capacity]: the token that slot `capacity + i` is left of
  int32_t *rests;  // how many tokens have something left
  int64_t stride;
  int64_t capacity; // a multiple of SLOTS
};

// Numbers of a decoder like Llama, or like GPT-NeoX.
struct Shape {
  int32_t layers, hidden, inner, heads, kv_heads, width; // width: of a head
  int32_t rotary;                                        // dimensions of a head that are rotated
  int32_t vocabulary, rows, max_len;
  int32_t cache_dtype, embedding_dtype, activation;
  int32_t gated;    // whether the activation of one half multiplies the other
  int32_t centred;  // whether norms take the mean away
  int32_t parallel; // whether both halves of a layer read what came into it
  float epsilon, scaling; // of the norms; of the attention's scores
  float embedding_factor, residual_factor;
  float logits_factor, logits_cap; // logits become cap * tanh(factor * logits / cap); 0 for no cap
};

// Weights of a norm, and what it adds; null for none.
struct Norm {
  const float *weight, *bias;
};

struct Layer {
  Linear qkv, out, gate_up, down;     // gate_up: without a gate, what the activation takes
  Norm norm, inner_norm;              // [hidden]
  Norm query_norm, key_norm;          // [width], null for none
  Norm after_attention, after_mlp;    // [hidden], of what a half makes, before it is added; null for none
  const float *cosines, *sines;       // [max_len][rotary / 2]; null for no rotation
  int32_t window;                    // columns that a token sees, itself included; 0 for all
  float soft_cap;                    // scores become soft_cap * tanh(scores / soft_cap); 0 for no cap
  const float *column_bias;          // [heads][cache columns], added to scores (ALiBi); null for none
};

// KV cache of one layer: keys `[rows][kv_heads][blocks of LANES columns][width][LANES]`, so that a vector holds one
// dimension of neighbouring columns; values `[rows][kv_heads][columns][width]`.
// In 8 bits, a token's keys and values are levels of a scale for each head, `[rows][kv_heads][columns]`.
struct Cache {
  void *keys, *values;
  float *key_scales, *value_scales; // null but in 8 bits
  int64_t columns; // of a row: max_len, rounded up to whole blocks
};

// Tokens of one row in a step.
struct Lane {
  int32_t row, start, length, offset;
};

// Some tokens of a lane and one key/value head of it.
struct Task {
  Lane lane;
  int32_t first, count, kv_head;
};

// Functions of one instruction set. Those on tokens work on one token, so that callers share tokens out as they like.
struct Kernels {
  const char *name;
  void (*give)(const Linear &layer, const float *numbers, const Inputs &out, int64_t token);
  void (*normalise)(const Norm &norm, const float *numbers, int size, const Shape &shape, float *out);
  void (*gate)(const Shape &shape, const float *gate_up, float *out);
  void (*linear)(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
                 int64_t stride, bool add, float factor, void *scratch);
  float (*nibbles)(const float *weights, const float *importance, int inputs, int8_t *levels, int8_t *factors);
  void (*embed)(const Shape &shape, const void *table, int32_t token, float *out);
  void (*write)(const Shape &shape, const Layer &layer, const Cache &cache, int row, int column, float *qkv);
  // `next`: what this thread is to do after it, probably; null for nothing.
  void (*attend)(const Shape &shape, const Layer &layer, const Cache &cache, const Task &task, const Task *next,
                 const float *qkv, int64_t qkv_stride, float *out, float *scratch);
  void (*limit)(const Shape &shape, float *logits);
};

const Kernels &kernels_avx2();
const Kernels &kernels_avx512vnni();
const Kernels &kernels_avx512bf16();
const Kernels &kernels_amx();
const Kernels &kernels_amx_emulated();

// Bytes of scratch that `linear` wants for a layer of so many inputs.
constexpr int64_t linear_scratch(int64_t inputs) { return ALONG * (inputs + BLOCK) * PANEL; }

// Floats of scratch that `attend` wants for a task of so many query rows, in heads of a width.
constexpr int64_t attend_scratch(int64_t query_rows, int64_t width) {
  return 6 * COLUMNS + 2 * COLUMNS * width + (17 + width) * query_rows;
}

} // namespace accel
