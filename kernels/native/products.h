// 8-bit matrix products: each panel of a weight is read from memory once for all tokens of a step.
#pragma once
#include "vectors.h"

namespace accel {
namespace {

#ifdef __AVX512F__
constexpr int TILE = 12, VECTORS = 2; // 24 of 32 registers hold sums
#else
constexpr int TILE = 4, VECTORS = 2; // 8 of 16
#endif

// One token against a panel: where its levels are and what becomes of the sums.
struct Line {
  const int8_t *levels;
  float scale;
  int32_t zero; // what the weight's offset adds to each sum
  float *out;
  bool rest;
};

// `TOKENS` lines against `VECTORS` vectors of a panel.
template <int TOKENS>
inline void tile(const uint8_t *weight, int quads, const Line *lines, Ints (*sums)[VECTORS]) {
  Ints found[TOKENS][VECTORS] = {};
  for (int quad = 0; quad < quads; quad++, weight += 4 * PANEL) {
    if (TOKENS == 1) __builtin_prefetch(weight + 2048), __builtin_prefetch(weight + 2112);
    for (int token = 0; token < TOKENS; token++) {
      int32_t four;
      memcpy(&four, lines[token].levels + 4 * quad, 4);
      for (int v = 0; v < VECTORS; v++) found[token][v] = dot(found[token][v], weight + 4 * STEP * v, four);
    }
  }
  memcpy(sums, found, sizeof found);
}

typedef void (*Tile)(const uint8_t *, int, const Line *, Ints (*)[VECTORS]);
template <int... N> struct Tiles { static constexpr Tile of[] = {nullptr, tile<N>...}; };
#ifdef __AVX512F__
typedef Tiles<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> Each;
#else
typedef Tiles<1, 2, 3, 4> Each;
#endif

// out = factor * (in @ weight.T + bias), or added to it; bit for bit the same whatever shares the step.
void linear(const Linear &layer, const Levels &in, int64_t tokens, int first_panel, int last_panel, float *out,
            int64_t stride, bool add, float factor) {
  int64_t total = tokens;
  for (int64_t token = 0; token < tokens; token++) total += in.rest[token];
  const int quads = (layer.inputs + 3) / 4;
  const int64_t tiles = (total + TILE - 1) / TILE;
  for (int panel = first_panel; panel < last_panel; panel++) {
    const uint8_t *weight = layer.weight + static_cast<int64_t>(panel) * quads * 4 * PANEL;
    int64_t slot = 0; // tokens first, then their rests: these are added to what is there
    for (int64_t index = 0; index < tiles; index++) {
      const int size = static_cast<int>(total * (index + 1) / tiles - total * index / tiles);
      Line lines[TILE];
      for (int line = 0; line < size; line++, slot++) {
        while (slot >= tokens && !in.rest[slot - tokens]) slot++;
        const int64_t token = slot < tokens ? slot : slot - tokens, at = slot < tokens ? slot : in.capacity + token;
        lines[line] = {in.levels + at * in.stride, in.scales[at], in.sums[at] * ZERO, out + token * stride,
                       slot >= tokens};
      }
      for (int part = 0; part < PANEL / STEP; part += VECTORS) {
        Ints sums[TILE][VECTORS];
        Each::of[size](weight + 4 * STEP * part, quads, lines, sums);
        for (int v = 0; v < VECTORS; v++) {
          const int column = panel * PANEL + (part + v) * STEP, left = layer.outputs - column;
          if (left <= 0) break;
          for (int line = 0; line < size; line++) {
            Floats value = __builtin_convertvector(sums[line][v] - lines[line].zero, Floats);
            value = value * load(layer.scales + column) * lines[line].scale;
            if (layer.bias && !lines[line].rest) value += load(layer.bias + column);
            value *= factor;
            float *to = lines[line].out + column, edge[STEP];
            const bool whole = left >= STEP, adds = add || lines[line].rest;
            if (whole) {
              store(to, adds ? load(to) + value : value);
              continue;
            }
            store(edge, value);
            for (int i = 0; i < left; i++) to[i] = adds ? to[i] + edge[i] : edge[i];
          }
        }
      }
    }
  }
}

} // namespace
} // namespace accel
