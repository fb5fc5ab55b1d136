// What happens to one token between the products: norms, gates, rotary positions, rounding.
#pragma once
#include "vectors.h"
#include <cmath>

namespace accel {
namespace {

// Puts a token among the `SIDE` ones it is multiplied with.
template <int SIDE> inline void lay(const void *line, const Inputs &out, int64_t slot, int64_t units) {
  int32_t *to = out.units + slot / SIDE * SIDE * out.stride + slot % SIDE;
  for (int64_t unit = 0; unit < units; unit++) memcpy(to + unit * SIDE, static_cast<const char *>(line) + 4 * unit, 4);
}

// Rounds numbers to `LEVELS` levels of the returned scale; `sum` is that of the levels.
inline float to_levels(const float *numbers, int size, int8_t *levels, int32_t *sum) {
  Floats most = all(1.17549435e-38f);
  for (int i = 0; i < size; i += STEP) most = largest(most, magnitude(load(numbers + i)));
  const float scale = maximum(most) / LEVELS > 1.17549435e-38f ? maximum(most) / LEVELS : 1.17549435e-38f;
  const float inverse = 1 / scale;
  typedef int8_t Bytes __attribute__((vector_size(STEP), aligned(1), may_alias));
  Ints total{};
  for (int i = 0; i < size; i += STEP) {
    Ints level = __builtin_convertvector(nearest(load(numbers + i) * inverse), Ints);
    total += level;
    *reinterpret_cast<Bytes *>(levels + i) = __builtin_convertvector(level, Bytes);
  }
  *sum = 0;
  for (int i = 0; i < STEP; i++) *sum += total[i];
  return scale;
}

void quantise(const float *numbers, int size, const Inputs &out, int64_t token) {
  int8_t *levels = static_cast<int8_t *>(__builtin_alloca(static_cast<size_t>(4 * out.stride)));
  memset(levels + size, 0, static_cast<size_t>(4 * out.stride - size));
  float &scale = out.scales[token] = to_levels(numbers, size, levels, out.sums + token);
  lay<BESIDE>(levels, out, token, out.stride);
  Floats squares{};
  for (int i = 0; i < size; i += STEP) squares += load(numbers + i) * load(numbers + i);
  const float mean = sum(squares) / size;
  const bool left = scale * LEVELS > OUTLIER * std::sqrt(mean);
  if (!std::isfinite(mean)) scale = NAN; // levels of what is no number would make numbers of it
  if (!left) return;
  const int64_t rest = __atomic_fetch_add(out.rests, 1, __ATOMIC_RELAXED), slot = out.capacity + rest;
  out.owners[rest] = static_cast<int32_t>(token);
  float *numbers_left = static_cast<float *>(__builtin_alloca(static_cast<size_t>(size) * sizeof(float)));
  for (int i = 0; i < size; i++) numbers_left[i] = numbers[i] - levels[i] * scale;
  out.scales[slot] = to_levels(numbers_left, size, levels, out.sums + slot);
  lay<BESIDE>(levels, out, slot, out.stride);
}

// Rounds a token to bfloat16.
void pair(const float *numbers, int size, const Inputs &out, int64_t token) {
  typedef uint16_t Halves __attribute__((vector_size(2 * STEP), aligned(2), may_alias));
  uint16_t *halves = static_cast<uint16_t *>(__builtin_alloca(static_cast<size_t>(size) * sizeof(uint16_t)));
  for (int i = 0; i < size; i += STEP)
    *reinterpret_cast<Halves *>(halves + i) = __builtin_convertvector(rounded(load(numbers + i)), Halves);
  lay<TILE>(halves, out, token, size / 2);
}

// Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467), or of what differs from the mean (Ba et al. 2016,
// arXiv:1607.06450).
void normalise(const Norm &norm, const float *numbers, int size, const Shape &shape, float *out) {
  Floats total{}, squares{};
  if (shape.centred)
    for (int i = 0; i < size; i += STEP) total += load(numbers + i);
  const float mean = sum(total) / size;
  for (int i = 0; i < size; i += STEP) squares += (load(numbers + i) - mean) * (load(numbers + i) - mean);
  const float factor = 1 / std::sqrt(sum(squares) / size + shape.epsilon);
  for (int i = 0; i < size; i += STEP) {
    const Floats normed = (load(numbers + i) - mean) * factor * load(norm.weight + i);
    store(out + i, norm.bias ? normed + load(norm.bias + i) : normed);
  }
}

// The error function of magnitudes, to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
inline Floats error_function(Floats x) {
  const Floats t = 1.f / (1.f + 0.3275911f * x);
  Floats p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return 1.f - p * t * exponential(-x * x);
}

// act(gate) * up (Shazeer 2020, arXiv:2002.05202), or act alone.
void gate(const Shape &shape, const float *gate_up, float *out) {
  for (int i = 0; i < shape.inner; i += STEP) {
    const Floats x = load(gate_up + i);
    Floats active;
    if (shape.activation == GELU) { // x / 2 * (1 + erf(x / sqrt(2)))
      const Floats tail = 0.5f * (1.f - error_function(magnitude(x) * 0.707106781f));
      active = x > 0.f ? x - x * tail : x * tail;
    } else { // gelu by tanh is x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3))
      const Floats inside = shape.activation == GELU_TANH ? 1.59576912f * (x + 0.044715f * x * x * x) : x;
      active = x / (1.f + exponential(-inside));
    }
    store(out + i, shape.gated ? active * load(gate_up + shape.inner + i) : active);
  }
}

void embed(const Shape &shape, const void *table, int32_t token, float *out) {
  const int64_t first = static_cast<int64_t>(token) * shape.hidden;
  for (int i = 0; i < shape.hidden; i += STEP) {
    Floats value = shape.embedding_dtype == BFLOAT16 ? load(static_cast<const uint16_t *>(table) + first + i)
                                                     : load(static_cast<const float *>(table) + first + i);
    store(out + i, value * shape.embedding_factor);
  }
}

// Rotates the first dimensions of a head, in halves (Su et al. 2021, arXiv:2104.09864, in transformers' order).
inline void rotate(float *head, int rotary, const float *cosines, const float *sines) {
  for (int i = 0; i < rotary / 2; i++) {
    const float a = head[i], b = head[i + rotary / 2];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + rotary / 2] = b * cosines[i] + a * sines[i];
  }
}

// Writes the numbers of one head, `step` apart, as `Number`; of levels, their scale to `scale`.
template <typename Number> void keep_head(const float *numbers, int width, Number *to, int64_t step, float *scale) {
  if (!scale) {
    for (int i = 0; i < width; i++) put(to + i * step, numbers[i]);
    return;
  }
  Floats most = all(1e-30f);
  for (int i = 0; i < width; i += STEP) most = largest(most, magnitude(load(numbers + i)));
  *scale = maximum(most) / LEVELS;
  for (int i = 0; i < width; i += STEP) {
    const Floats levels = nearest(load(numbers + i) / *scale);
    for (int lane = 0; lane < STEP; lane++) put(to + (i + lane) * step, levels[lane]);
  }
}

template <typename Number>
void keep(const Shape &shape, const Cache &cache, int row, int column, const float *keys, const float *values) {
  for (int head = 0; head < shape.kv_heads; head++) {
    const int64_t strip = (static_cast<int64_t>(row) * shape.kv_heads + head) * cache.columns, at = strip + column;
    Number *key = static_cast<Number *>(cache.keys) + (at / LANES * shape.width) * LANES + column % LANES;
    Number *value = static_cast<Number *>(cache.values) + at * shape.width;
    const float *head_keys = keys + head * shape.width, *head_values = values + head * shape.width;
    keep_head(head_keys, shape.width, key, LANES, cache.key_scales ? cache.key_scales + at : nullptr);
    keep_head(head_values, shape.width, value, 1, cache.value_scales ? cache.value_scales + at : nullptr);
  }
}

// Norms and rotates the queries and keys of a token in place, and writes its keys and values.
void write(const Shape &shape, const Layer &layer, const Cache &cache, int row, int column, float *qkv) {
  const int64_t half = static_cast<int64_t>(column) * (shape.rotary / 2);
  for (int head = 0; head < shape.heads + shape.kv_heads; head++) {
    float *at = qkv + static_cast<int64_t>(head) * shape.width;
    const Norm &norm = head < shape.heads ? layer.query_norm : layer.key_norm;
    if (norm.weight) normalise(norm, at, shape.width, shape, at);
    if (layer.cosines) rotate(at, shape.rotary, layer.cosines + half, layer.sines + half);
  }
  const float *keys = qkv + static_cast<int64_t>(shape.heads) * shape.width;
  const float *values = keys + static_cast<int64_t>(shape.kv_heads) * shape.width;
  if (shape.cache_dtype == INT8)
    keep<int8_t>(shape, cache, row, column, keys, values);
  else if (shape.cache_dtype == BFLOAT16)
    keep<uint16_t>(shape, cache, row, column, keys, values);
  else
    keep<float>(shape, cache, row, column, keys, values);
}

// What becomes of a token's products with the head.
void limit(const Shape &shape, float *logits) {
  const auto changed = [&](Floats value) {
    value *= shape.logits_factor;
    return shape.logits_cap == 0 ? value : shape.logits_cap * hyperbolic_tangent(value / shape.logits_cap);
  };
  if (shape.logits_factor == 1 && shape.logits_cap == 0) return;
  int i = 0;
  for (; i + STEP <= shape.vocabulary; i += STEP) store(logits + i, changed(load(logits + i)));
  for (; i < shape.vocabulary; i++) logits[i] = changed(all(logits[i]))[0];
}

} // namespace
} // namespace accel
