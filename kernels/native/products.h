// Matrix products: each panel of a weight is read from memory once for all tokens of a step.
#pragma once
#include "nibbles.h"
#include "tokens.h"

namespace accel {
namespace {

#ifdef __AVX512F__
constexpr int TILE = 12; // with VECTORS, 24 of 32 registers hold sums
#else
constexpr int TILE = 4; // 8 of 16
#endif

// `TOKENS` lines against `VECTORS` vectors of a panel of bytes.
template <int TOKENS>
inline void tile(const uint8_t *weight, int quads, const Line *lines, Ints (*sums)[VECTORS]) {
  Ints found[TOKENS][VECTORS] = {};
  for (int quad = 0; quad < quads; quad++, weight += 4 * PANEL) {
    for (int line = 0; TOKENS == 1 && line < 2; line++) __builtin_prefetch(weight + AHEAD + 64 * line);
    for (int token = 0; token < TOKENS; token++) {
      int32_t four;
      memcpy(&four, lines[token].levels + 4 * quad, 4);
      for (int v = 0; v < VECTORS; v++) found[token][v] = dot(found[token][v], weight + 4 * STEP * v, four);
    }
  }
  memcpy(sums, found, sizeof found);
}

typedef void (*Tile)(const uint8_t *, int, const Line *, Ints (*)[VECTORS]);
typedef void (*NibbleTile)(const uint8_t *, int, int, const Line *, Ints (*)[VECTORS]);
template <int... N> struct Tiles { static constexpr Tile of[] = {nullptr, tile<N>...}; };
template <int... N> struct NibbleTiles { static constexpr NibbleTile of[] = {nullptr, nibble_tile<N>...}; };
#ifdef __AVX512F__
typedef Tiles<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> Each;
typedef NibbleTiles<1, 2, 3, 4, 5, 6> EachFew;
#else
typedef Tiles<1, 2, 3, 4> Each;
typedef NibbleTiles<1, 2> EachFew;
#endif

// What becomes of the sums of one vector of outputs; the last vector of a layer may be cut short.
inline void finish(const Linear &layer, Floats value, int column, bool biased, bool add, float factor, float *out) {
  if (layer.bias && biased) value += load(layer.bias + column);
  value *= factor;
  float *to = out + column, edge[STEP];
  const int left = layer.outputs - column;
  if (left >= STEP) return store(to, add ? load(to) + value : value);
  store(edge, value);
  for (int i = 0; i < left; i++) to[i] = add ? to[i] + edge[i] : edge[i];
}

// Tokens against weights in integers.
void integer_linear(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
                    int64_t stride, bool add, float factor, void *scratch) {
  int64_t total = tokens;
  for (int64_t token = 0; token < tokens; token++) total += in.rest[token];
  // Few tokens read 4-bit weights as they lie; many make 8 bits of each panel first. The sums are the same integers.
  const bool nibbles = layer.dtype == INT4, direct = nibbles && total <= FEW;
  const int padded = nibbles ? (layer.inputs + BLOCK - 1) / BLOCK * BLOCK : (layer.inputs + 3) / 4 * 4;
  const int64_t panel_bytes = nibbles ? static_cast<int64_t>(padded) / BLOCK * BLOCK_BYTES
                                      : static_cast<int64_t>(padded) * PANEL;
  const int64_t tiles = (total + TILE - 1) / TILE;
  for (int panel = first_panel; panel < last_panel; panel++) {
    const uint8_t *weight = static_cast<const uint8_t *>(layer.weight) + panel * panel_bytes;
    if (nibbles && !direct) weight = expand(weight, padded / BLOCK, static_cast<uint8_t *>(scratch));
    int64_t slot = 0; // tokens first, then their rests: these are added to what is there
    for (int64_t index = 0; index < tiles; index++) {
      const int size = static_cast<int>(total * (index + 1) / tiles - total * index / tiles);
      Line lines[TILE];
      for (int line = 0; line < size; line++, slot++) {
        while (slot >= tokens && !in.rest[slot - tokens]) slot++;
        const int64_t token = slot < tokens ? slot : slot - tokens, at = slot < tokens ? slot : in.capacity + token;
        lines[line] = {in.levels + at * in.stride, nullptr, in.scales[at], in.sums[at] * ZERO, out + token * stride,
                       slot >= tokens};
        if (!direct) continue;
        lines[line].zero = 0;
        lines[line].groups = static_cast<int32_t *>(scratch) + line * (padded / GROUP);
        if (panel == first_panel) sum_groups(lines[line].levels, padded, lines[line].groups);
      }
      for (int part = 0; part < PANEL / STEP; part += VECTORS) {
        const int column = panel * PANEL + part * STEP;
        Ints sums[TILE][VECTORS];
        if (direct)
          EachFew::of[size](weight, part, padded / BLOCK, lines, sums);
        else
          Each::of[size](weight + 4 * STEP * part, padded / 4, lines, sums);
        for (int line = 0; line < size; line++) {
          const Line &held = lines[line];
          for (int v = 0; v < VECTORS && column + v * STEP < layer.outputs; v++) {
            const Floats levels = __builtin_convertvector(sums[line][v] - held.zero, Floats);
            finish(layer, levels * load(layer.scales + column + v * STEP) * held.scale, column + v * STEP, !held.rest,
                   add || held.rest, factor, held.out);
          }
        }
      }
    }
  }
}

// `TOKENS` tokens against `VECTORS` vectors of a panel of numbers, one input after the other.
template <int TOKENS, typename Number>
inline void exact_tile(const void *panel, int inputs, const float *numbers, int64_t stride, Floats (*sums)[VECTORS]) {
  Floats found[TOKENS][VECTORS] = {};
  const Number *weight = static_cast<const Number *>(panel);
  for (int input = 0; input < inputs; input++, weight += PANEL) {
    for (size_t line = 0; TOKENS == 1 && line < sizeof(Number) / 2; line++)
      __builtin_prefetch(reinterpret_cast<const char *>(weight) + AHEAD + 64 * line);
    Floats weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) weights[v] = load(weight + STEP * v);
    for (int token = 0; token < TOKENS; token++) {
      const Floats given = all(numbers[token * stride + input]);
      for (int v = 0; v < VECTORS; v++) found[token][v] += weights[v] * given;
    }
  }
  memcpy(sums, found, sizeof found);
}

typedef void (*ExactTile)(const void *, int, const float *, int64_t, Floats (*)[VECTORS]);
template <int... N> struct ExactTiles {
  static constexpr ExactTile of[][sizeof...(N) + 1] = {{nullptr, exact_tile<N, float>...},
                                                       {nullptr, exact_tile<N, uint16_t>...}};
};
#ifdef __AVX512F__
typedef ExactTiles<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> EachExact;
#else
typedef ExactTiles<1, 2, 3, 4> EachExact;
#endif

// Tokens against weights that are numbers: `[outputs / PANEL][inputs][PANEL]`.
void exact_linear(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
                  int64_t stride, bool add, float factor) {
  const int64_t size_of = layer.dtype == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  const int64_t tiles = (tokens + TILE - 1) / TILE;
  for (int panel = first_panel; panel < last_panel; panel++) {
    const char *weight = static_cast<const char *>(layer.weight) + panel * size_of * PANEL * layer.inputs;
    for (int64_t index = 0; index < tiles; index++) {
      const int64_t first = tokens * index / tiles;
      const int size = static_cast<int>(tokens * (index + 1) / tiles - first);
      for (int part = 0; part < PANEL / STEP; part += VECTORS) {
        const int column = panel * PANEL + part * STEP;
        Floats sums[TILE][VECTORS];
        EachExact::of[layer.dtype][size](weight + part * STEP * size_of, layer.inputs, in.numbers + first * in.stride,
                                         in.stride, sums);
        for (int line = 0; line < size; line++)
          for (int v = 0; v < VECTORS && column + v * STEP < layer.outputs; v++)
            finish(layer, sums[line][v], column + v * STEP, true, add, factor, out + (first + line) * stride);
      }
    }
  }
}

// out = factor * (in @ weight.T + bias), or added to it; bit for bit the same whatever shares the step.
void linear(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
            int64_t stride, bool add, float factor, void *scratch) {
  if (layer.dtype == INT8 || layer.dtype == INT4)
    integer_linear(layer, in, tokens, first_panel, last_panel, out, stride, add, factor, scratch);
  else
    exact_linear(layer, in, tokens, first_panel, last_panel, out, stride, add, factor);
}

// Lays a token out as the products of a layer take it.
void give(const Linear &layer, const float *numbers, const Inputs &out, int64_t token) {
  if (layer.dtype == INT8 || layer.dtype == INT4)
    quantise(numbers, layer.inputs, out, token);
  else
    memcpy(out.numbers + token * out.stride, numbers, static_cast<size_t>(layer.inputs) * sizeof(float));
}

} // namespace
} // namespace accel
