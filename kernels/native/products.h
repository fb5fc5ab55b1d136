// Matrix products: each panel of a weight is read from memory once for all tokens of a step.
#pragma once
#include "nibbles.h"
#ifdef ACCEL_TILES
#include "tiles.h"
#endif
#include "tokens.h"

namespace accel {
namespace {

#ifdef __AVX512F__
constexpr int MANY = TILE; // tokens at a time; with VECTORS, 24 of 32 registers hold sums
#else
constexpr int MANY = 4; // 8 of 16
#endif
#ifdef ACCEL_TILES
constexpr int AT_ONCE = TILED; // tokens at a time by their levels
#else
constexpr int AT_ONCE = MANY;
#endif
static_assert(TILE % MANY == 0 && SLOTS % TILE == 0 && SLOTS % AT_ONCE == 0, "a tile's tokens lie together");

// `TOKENS` tokens against `VECTORS` vectors of a panel of bytes.
template <int TOKENS>
inline void tile(const uint8_t *weight, int quads, const int32_t *units, Ints (*sums)[VECTORS]) {
  Ints found[TOKENS][VECTORS];
  each_sum<TOKENS>([&](int token, int v) { found[token][v] = Ints{}; });
  for (int quad = 0; quad < quads; quad++, weight += 4 * PANEL, units += BESIDE) {
    for (int line = 0; line < 2; line++) fetch(weight + ahead(TOKENS) + 64 * line);
    for (int token = 0; token < TOKENS; token++)
      for (int v = 0; v < VECTORS; v++) found[token][v] = dot(found[token][v], weight + 4 * STEP * v, units[token]);
  }
  each_sum<TOKENS>([&](int token, int v) { sums[token][v] = found[token][v]; });
}

// `TOKENS` tokens against `VECTORS` vectors of a panel of numbers, one input after the other.
template <int TOKENS, typename Number>
inline void exact_tile(const void *panel, int inputs, const int32_t *units, Floats (*sums)[VECTORS]) {
  Floats found[TOKENS][VECTORS];
  each_sum<TOKENS>([&](int token, int v) { found[token][v] = Floats{}; });
  const Number *weight = static_cast<const Number *>(panel);
  for (int input = 0; input < inputs; input++, weight += PANEL, units += TILE) {
    for (size_t line = 0; line < sizeof(Number) / 2; line++)
      fetch(reinterpret_cast<const char *>(weight) + ahead(TOKENS) + 64 * line);
    Floats weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) weights[v] = load(weight + STEP * v);
    for (int token = 0; token < TOKENS; token++) {
      float given;
      memcpy(&given, units + token, 4);
      for (int v = 0; v < VECTORS; v++) found[token][v] += weights[v] * all(given);
    }
  }
  each_sum<TOKENS>([&](int token, int v) { sums[token][v] = found[token][v]; });
}

// `TOKENS` tokens against `VECTORS` vectors of a panel of pairs, one pair of inputs after the other.
template <int TOKENS>
inline void pair_tile(const void *panel, int inputs, const int32_t *units, Floats (*sums)[VECTORS]) {
  Floats found[TOKENS][VECTORS];
  each_sum<TOKENS>([&](int token, int v) { found[token][v] = Floats{}; });
  const uint16_t *weight = static_cast<const uint16_t *>(panel);
  for (int input = 0; input < inputs; input += 2, weight += 2 * PANEL, units += TILE) {
    for (int line = 0; line < 2; line++)
      fetch(reinterpret_cast<const char *>(weight) + ahead(TOKENS) + 64 * line);
    for (int token = 0; token < TOKENS; token++)
      for (int v = 0; v < VECTORS; v++) found[token][v] = dot_pairs(found[token][v], weight + 2 * STEP * v, units[token]);
  }
  each_sum<TOKENS>([&](int token, int v) { sums[token][v] = found[token][v]; });
}

typedef void (*Tile)(const uint8_t *, int, const int32_t *, Ints (*)[VECTORS]);
typedef void (*NibbleTile)(const uint8_t *, int, int, const int32_t *, const int32_t *, Ints (*)[VECTORS]);
typedef void (*ExactTile)(const void *, int, const int32_t *, Floats (*)[VECTORS]);
template <int... N> struct Tiles {
  static constexpr Tile of[] = {nullptr, tile<N>...};
  static constexpr ExactTile exact[][sizeof...(N) + 1] = {{nullptr, exact_tile<N, float>...},
                                                          {nullptr, exact_tile<N, uint16_t>...},
                                                          {nullptr, pair_tile<N>...}};
};
template <int... N> struct NibbleTiles { static constexpr NibbleTile of[] = {nullptr, nibble_tile<N>...}; };
#ifdef __AVX512F__
typedef Tiles<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12> Each;
typedef NibbleTiles<1, 2, 3, 4, 5, 6> EachFew;
#else
typedef Tiles<1, 2, 3, 4> Each;
typedef NibbleTiles<1, 2> EachFew;
#endif

// Writes or adds the first `count` numbers of a register.
inline void finish(Floats value, int count, bool add, float *to) {
  if (count >= STEP) return store(to, add ? load(to) + value : value);
  float edge[STEP];
  store(edge, value);
  for (int i = 0; i < count; i++) to[i] = add ? to[i] + edge[i] : edge[i];
}

// Calls `work(units, slot, size)` for `count` tokens from slot `first` on, `most` at a time of the `SIDE` side by side.
template <int SIDE, typename Work>
inline void each_tile(const Inputs &in, int64_t first, int64_t count, int most, Work work) {
  for (int64_t done = 0; done < count; done += most) {
    const int64_t slot = first + done;
    work(in.units + slot / SIDE * SIDE * in.stride + slot % SIDE, slot,
         static_cast<int>(count - done < most ? count - done : most));
  }
}

// Tokens against weights in integers.
void integer_linear(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
                    int64_t stride, bool add, float factor, void *scratch) {
  // Few tokens read 4-bit weights as they lie; many make 8 bits of each panel first. The sums are the same integers.
  const bool nibbles = layer.dtype == INT4, direct = nibbles && tokens <= DIRECT;
  const int padded = nibbles ? (layer.inputs + BLOCK - 1) / BLOCK * BLOCK : (layer.inputs + 3) / 4 * 4;
  const int64_t panel_bytes = nibbles ? static_cast<int64_t>(padded) / BLOCK * BLOCK_BYTES
                                      : static_cast<int64_t>(padded) * PANEL;
  int32_t *groups = static_cast<int32_t *>(scratch); // of the tokens, then of what is left of them
  const int64_t each_groups = padded / GROUP * STEP;
  if (direct) {
    sum_groups(in.units, padded, groups);
    if (*in.rests) sum_groups(in.units + in.capacity * in.stride, padded, groups + each_groups);
  }
#ifdef ACCEL_TILES
  if (tokens > 1) tiles_begin();
#endif
  const int64_t held = ALONG_BYTES / (static_cast<int64_t>(padded) * PANEL);
  const int along = static_cast<int>(held < 1 ? 1 : held > ALONG ? ALONG : held);
  for (int begin = first_panel; begin < last_panel; begin += along) {
    const int end = last_panel - begin < along ? last_panel : begin + along;
    const uint8_t *weights = static_cast<const uint8_t *>(layer.weight) + begin * panel_bytes;
    if (nibbles && !direct) weights = expand(weights, (end - begin) * padded / BLOCK, static_cast<uint8_t *>(scratch));
    const int64_t apart = nibbles && !direct ? static_cast<int64_t>(padded) * PANEL : panel_bytes;
    const auto multiply = [&](int64_t first, int64_t count, bool rest) {
      const auto result = [&](int64_t slot) { return out + (rest ? in.owners[slot - first] : slot) * stride; };
      each_tile<BESIDE>(in, first, count, direct ? FEW : AT_ONCE, [&](const int32_t *units, int64_t slot, int size) {
        for (int block = 0; block < (end - begin) * (PANEL / STEP); block += VECTORS) {
          const int panel = begin + block / (PANEL / STEP), part = block % (PANEL / STEP);
          const uint8_t *weight = weights + (panel - begin) * apart;
          Ints sums[AT_ONCE][VECTORS];
          for (int i = 0; i < size; i++) // results are fetched while the inputs are multiplied
            for (int v = 0; v < VECTORS; v++)
              __builtin_prefetch(result(slot + i) + panel * PANEL + (part + v) * STEP, 1);
          if (direct)
            EachFew::of[size](weight, part, padded / BLOCK, units, groups + rest * each_groups + slot % BESIDE, sums);
#ifdef ACCEL_TILES
          else if (size > 1)
            tiled(weight, padded / 4, reinterpret_cast<const int8_t *>(units), 4 * in.stride, size, sums);
#endif
          else
            Each::of[size](weight + 4 * STEP * part, padded / 4, units, sums);
          const int column = panel * PANEL + part * STEP;
          Floats scales[VECTORS], bias[VECTORS];
          for (int v = 0; v < VECTORS; v++) {
            scales[v] = load(layer.scales + column + v * STEP);
            bias[v] = layer.bias && !rest ? load(layer.bias + column + v * STEP) : Floats{};
          }
          for (int i = 0; i < size; i++) {
            const int32_t zero = direct ? 0 : in.sums[slot + i] * ZERO;
            float *const to = result(slot + i) + column;
            for (int v = 0; v < VECTORS; v++) {
              const Floats levels = __builtin_convertvector(sums[i][v] - zero, Floats);
              const Floats value = (levels * scales[v] * in.scales[slot + i] + bias[v]) * factor;
              finish(value, layer.outputs - column - v * STEP, add || rest, to + v * STEP);
            }
          }
        }
      });
    };
    multiply(0, tokens, false);
    multiply(in.capacity, *in.rests, true); // added to what is there
  }
#ifdef ACCEL_TILES
  if (tokens > 1) tiles_end();
#endif
}

// Tokens against weights that are numbers: `[outputs / PANEL][inputs][PANEL]`.
void exact_linear(const Linear &layer, const Inputs &in, int64_t tokens, int first_panel, int last_panel, float *out,
                  int64_t stride, bool add, float factor) {
  const int64_t size_of = layer.dtype == FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  const bool pairs = layer.dtype == BFLOAT16_PAIRS;
  for (int panel = first_panel; panel < last_panel; panel++) {
    const char *weight = static_cast<const char *>(layer.weight) + panel * size_of * PANEL * layer.inputs;
    each_tile<TILE>(in, 0, tokens, MANY, [&](const int32_t *units, int64_t first, int size) {
      for (int part = 0; part < PANEL / STEP; part += VECTORS) {
        const int column = panel * PANEL + part * STEP;
        Floats sums[MANY][VECTORS];
        const char *from = weight + part * STEP * size_of * (pairs ? 2 : 1);
        Each::exact[pairs ? 2 : layer.dtype][size](from, layer.inputs, units, sums);
        for (int i = 0; i < size; i++)
          for (int v = 0; v < VECTORS; v++) {
            const int at = column + v * STEP;
            const Floats bias = layer.bias ? load(layer.bias + at) : Floats{};
            finish((sums[i][v] + bias) * factor, layer.outputs - at, add, out + (first + i) * stride + at);
          }
      }
    });
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
  else if (layer.dtype == BFLOAT16_PAIRS)
    pair(numbers, layer.inputs, out, token);
  else
    lay<TILE>(numbers, out, token, layer.inputs);
}

} // namespace
} // namespace accel
