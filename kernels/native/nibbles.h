// Weights in 4 bits. A weight is level * factor * scale: levels of -8 to 7, a factor of -15 to 15 for each GROUP of an
// output's inputs, a scale for each output. The product of the first two fits in 8 bits (as in QServe, Lin et al. 2024,
// arXiv:2405.04532), so that 4-bit products are 8-bit products of these, to the last bit.
//
// A block: `[BLOCK / GROUP][PANEL]` factors, then `[BLOCK / GROUP][2][PANEL][4]` bytes. The lower half of byte i of pair
// p is the level plus 8 of input 8p + i of the group, the upper half that of input 8p + 4 + i.
#pragma once
#include "vectors.h"
#include <cmath>

namespace accel {
namespace {

constexpr int VECTORS = 2; // registers of outputs that a tile takes
constexpr int NIBBLE = 8;  // what levels are stored with
constexpr int MOST = 15;   // largest factor
static_assert(GROUP == 16, "sums of a group's products fit in 16 bits");

// Tokens that read 4-bit weights as they lie: so many at once, each with two sums, for the group and for all; and in all.
#ifdef ACCEL_TILES
constexpr int FEW = 1, DIRECT = 1;
#elif defined(__AVX512F__)
constexpr int FEW = 6, DIRECT = 12;
#else
constexpr int FEW = 2, DIRECT = 4;
#endif
static_assert(DIRECT <= BESIDE && DIRECT <= STEP, "their levels lie side by side");

// For each group the sums of its levels, `STEP` tokens side by side.
void sum_groups(const int32_t *units, int inputs, int32_t *groups) {
  for (int group = 0; group < inputs / GROUP; group++, groups += STEP) {
    Ints total{};
    for (int unit = 0; unit < GROUP / 4; unit++, units += BESIDE)
      total = dot_small(total, Ints{} + 0x01010101, load_bytes(reinterpret_cast<const uint8_t *>(units)));
    memcpy(groups, &total, sizeof total);
  }
}

// Calls `work(token, v)` for each of a tile's sums; unrolled, or this compiler would keep them in memory.
template <int TOKENS, typename Work> inline void each_sum(Work work) {
#pragma GCC unroll 12
  for (int token = 0; token < TOKENS; token++)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) work(token, v);
}

// `TOKENS` tokens against `VECTORS` vectors of a panel, from the `first` on.
template <int TOKENS>
inline void nibble_tile(const uint8_t *block, int first, int blocks, const int32_t *units, const int32_t *groups,
                        Ints (*sums)[VECTORS]) {
  Ints found[TOKENS][VECTORS];
  each_sum<TOKENS>([&](int token, int v) { found[token][v] = Ints{}; });
  const int8_t *factors = reinterpret_cast<const int8_t *>(block) + first * STEP;
  const uint8_t *pairs = block + BLOCK / GROUP * PANEL + 4 * first * STEP;
  for (int group = 0; group < blocks * BLOCK / GROUP; group++, groups += STEP) {
    for (int line = 0; line < 5; line++) fetch(pairs + AHEAD + 64 * line);
    Ints within[TOKENS][VECTORS];
    for (int token = 0; token < TOKENS; token++)
      for (int v = 0; v < VECTORS; v++) within[token][v] = Ints{} - NIBBLE * groups[token];
    for (int pair = 0; pair < 2; pair++, pairs += 4 * PANEL, units += 2 * BESIDE)
      for (int v = 0; v < VECTORS; v++) {
        const Ints both = load_bytes(pairs + 4 * STEP * v), lower = both & 0x0f0f0f0f, upper = both >> 4 & 0x0f0f0f0f;
        for (int token = 0; token < TOKENS; token++) {
          const Ints even = Ints{} + units[token], odd = Ints{} + units[BESIDE + token];
          within[token][v] = dot_small(dot_small(within[token][v], lower, even), upper, odd);
        }
      }
    for (int v = 0; v < VECTORS; v++) {
      const Ints factor = widened(factors + STEP * v) & 0xffff;
      for (int token = 0; token < TOKENS; token++)
        found[token][v] = add_products(found[token][v], within[token][v], factor);
    }
    factors += PANEL;
    if (group % 2) factors += BLOCK / 2 * PANEL, pairs += BLOCK / GROUP * PANEL; // on to the next block
  }
  each_sum<TOKENS>([&](int token, int v) { sums[token][v] = found[token][v]; });
}

// Writes a panel as 8-bit weights, and returns where.
const uint8_t *expand(const uint8_t *block, int blocks, uint8_t *out) {
  typedef uint16_t Shorts __attribute__((vector_size(4 * STEP)));
  uint8_t *const begin = out;
  for (int index = 0; index < blocks; index++, block += BLOCK_BYTES)
    for (int group = 0; group < BLOCK / GROUP; group++)
      for (int pair = 0; pair < 2; pair++, out += 8 * PANEL) {
        const int8_t *held = reinterpret_cast<const int8_t *>(block) + group * PANEL;
        const uint8_t *pairs = block + BLOCK / GROUP * PANEL + (2 * group + pair) * 4 * PANEL;
        for (int line = 0; line < 3; line++) fetch(pairs + AHEAD + 64 * line);
        for (int v = 0; v < PANEL / STEP; v++) {
          const Ints factor = widened(held + STEP * v) & 0xffff;
          const Shorts factors = (Shorts)(factor | factor << 16), offset = 128 - NIBBLE * factors;
          const Shorts both = (Shorts)load_bytes(pairs + 4 * STEP * v);
          const auto times = [&](Shorts even, Shorts odd) {
            return (even * factors + offset) | (odd * factors + offset) << 8;
          };
          const Shorts lower = times(both & 15, both >> 8 & 15), upper = times(both >> 4 & 15, both >> 12);
          memcpy(out + 4 * STEP * v, &lower, sizeof lower);
          memcpy(out + 4 * (PANEL + STEP * v), &upper, sizeof upper);
        }
      }
  return begin;
}

// Groups of an output, one in each lane, and what is known of their best levels.
struct Groups {
  Floats weights[GROUP], importance[GROUP], levels[GROUP], factor;

  inline Floats level(int input, Floats inverse) const {
    const Floats near = nearest(weights[input] * inverse), low = all(-NIBBLE), high = all(NIBBLE - 1);
    return smallest(high, largest(low, near));
  }

  // Finds the factor of -MOST to MOST with the least sum of importance * error^2.
  inline void search(float scale) {
    Floats extreme{}, least = all(INFINITY);
    for (const Floats &weight : weights) extreme = magnitude(weight) > magnitude(extreme) ? weight : extreme;
    const auto attempt = [&](Floats aim, float off) {
      const Floats size = nearest(magnitude(aim)) + off, one = all(1), most = all(MOST);
      const Floats bounded = smallest(most, largest(one, size)), tried = aim < 0.f ? -bounded : bounded;
      const Floats step = tried * scale, inverse = 1.f / step;
      Floats error{};
      for (int i = 0; i < GROUP; i++) {
        const Floats off_by = weights[i] - level(i, inverse) * step;
        error += importance[i] * off_by * off_by;
      }
      factor = error < least ? tried : factor;
      least = error < least ? error : least;
    };
    factor = all(1);
    for (int off = -3; off <= 1; off++) attempt(extreme / (-NIBBLE * scale), static_cast<float>(off)); // level -8
    for (int off = -2; off <= 0; off++) attempt(extreme / ((NIBBLE - 1) * scale), static_cast<float>(off)); // level 7
    for (int i = 0; i < GROUP; i++) levels[i] = level(i, 1.f / (factor * scale));
  }
};

// Searches the levels and factors of one output for the least sum of importance * error^2, and returns the scale.
// Inputs are a multiple of GROUP.
float nibbles(const float *weights, const float *importance, int inputs, int8_t *levels, int8_t *factors) {
  const int groups = inputs / GROUP;
  float largest = 1e-30f, scale = 0;
  for (int input = 0; input < inputs; input++) largest = std::fmax(largest, std::fabs(weights[input]));
  double most = -1; // of what is explained: the sum of importance * weight^2, less that of the errors
  int8_t *tried = static_cast<int8_t *>(__builtin_alloca(static_cast<size_t>(inputs + groups)));
  for (int attempt = 0; attempt < 6; attempt++) { // smaller scales clip the largest numbers and hold the others better
    const float start = largest / (NIBBLE * MOST) * (1 - 0.1f * static_cast<float>(attempt));
    double products = 0, squares = 0;
    for (int first = 0; first < groups; first += STEP) {
      const int lanes = groups - first < STEP ? groups - first : STEP;
      Groups some{};
      for (int lane = 0; lane < lanes; lane++)
        for (int i = 0; i < GROUP; i++) {
          some.weights[i][lane] = weights[(first + lane) * GROUP + i];
          some.importance[i][lane] = importance[(first + lane) * GROUP + i];
        }
      some.search(start);
      Floats up{}, down{};
      for (int i = 0; i < GROUP; i++) {
        const Floats level = some.levels[i] * some.factor, weighed = some.importance[i] * level;
        up += weighed * some.weights[i], down += weighed * level;
      }
      products += sum(up), squares += sum(down);
      for (int lane = 0; lane < lanes; lane++) {
        tried[inputs + first + lane] = static_cast<int8_t>(some.factor[lane]);
        for (int i = 0; i < GROUP; i++)
          tried[(first + lane) * GROUP + i] = static_cast<int8_t>(some.levels[i][lane]);
      }
    }
    // The best scale for these levels is that of least squares.
    const double explained = squares > 0 ? products * products / squares : 0;
    if (explained <= most) continue;
    most = explained, scale = squares > 0 ? static_cast<float>(products / squares) : 0;
    memcpy(levels, tried, static_cast<size_t>(inputs));
    memcpy(factors, tried + inputs, static_cast<size_t>(groups));
  }
  return scale;
}

} // namespace
} // namespace accel
