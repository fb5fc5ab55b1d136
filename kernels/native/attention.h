// Attention of a few tokens of a row to its columns, one key/value head at a time, `COLUMNS` columns at a time with a
// running maximum (Dao et al. 2022, arXiv:2205.14135). Blocks of columns begin at multiples of `COLUMNS` from 0, so that
// a token's result does not depend on the step it came in.
#pragma once
#include "vectors.h"

namespace accel {
namespace {

#ifdef __AVX512F__
constexpr int QUERIES = 6, WIDE = 4; // 24 of 32 registers hold sums
#else
constexpr int QUERIES = 6, WIDE = 2; // 12 of 16
#endif
#define ALWAYS_INLINE __attribute__((always_inline)) inline // or sums would leave their registers
constexpr float NEVER = -1e30f;
// Whether what meets keys and values of 16 or 8 bits is rounded to bfloat16, and summed in pairs, the second of each
// first: few queries do in float32 what many leave to an instruction, to the last bit.
#ifdef __AVX512BF16__
template <typename Number> constexpr bool PAIRED = sizeof(Number) < sizeof(float);
#else
template <typename Number> constexpr bool PAIRED = false;
#endif
template <typename Number> constexpr int LINE = 64 / sizeof(Number); // numbers of a line of the caches

struct Query {
  const float *numbers; // [width], or half as many pairs of bfloat16
  float *out;           // [width], not yet divided by the sum of its weights
  float *most;          // running maximum
  float *total;         // [STEP], which add up to the running sum
  int32_t first, last;  // columns it sees
  const float *bias;    // of its head, for each column; null for none
};

// A block of columns: keys, values, and where these are levels, their scales. The next block to be read, which is asked
// for while this one is, is `ahead` numbers further; 0 for none.
template <typename Number> struct Near {
  static constexpr bool rounded = PAIRED<Number>, paired = false; // whether weights are, for the values
  const Number *keys, *values;
  int64_t ahead;
  const float *key_scales, *value_scales;
};

// A block of columns in pairs of bfloat16: keys `[width / 2][COLUMNS]`, values `[COLUMNS / 2][width]`.
struct Pairs {
  static constexpr bool rounded = true, paired = true;
  const int32_t *keys, *values;
  const float *key_scales, *value_scales;
};

inline const uint16_t *shorts(const int32_t *pairs) { return reinterpret_cast<const uint16_t *>(pairs); }
inline int32_t pair_of(const float *pairs, int index) {
  int32_t pair;
  memcpy(&pair, pairs + index, 4);
  return pair;
}

// Scores of `N` queries at `WIDE` registers of neighbouring columns, the first of them `column` of the block.
template <int N, typename Number>
ALWAYS_INLINE void scores(const Query *queries, const Near<Number> &near, int width, float scaling, int column,
                          float (*out)[COLUMNS]) {
  Floats found[N][WIDE] = {};
  const Number *from[WIDE];
  for (int w = 0; w < WIDE; w++) {
    const int at = column + w * STEP;
    from[w] = near.keys + static_cast<int64_t>(at / LANES) * width * LANES + at % LANES;
  }
  for (int place = 0; place < width; place++) {
    const int i = PAIRED<Number> ? place ^ 1 : place;
    if (near.ahead && place * LANES % LINE<Number> == 0)
      for (int w = 0; w < WIDE; w++) fetch(from[w] + near.ahead + place * LANES);
    for (int w = 0; w < WIDE; w++) {
      const Floats key = load(from[w] + i * LANES);
      for (int n = 0; n < N; n++) found[n][w] += queries[n].numbers[i] * key;
    }
  }
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDE; w++) store(out[n] + column + w * STEP, found[n][w] * scaling);
}

template <int N>
ALWAYS_INLINE void scores(const Query *queries, const Pairs &near, int width, float scaling, int column,
                          float (*out)[COLUMNS]) {
  Floats found[N][WIDE] = {};
  for (int i = 0; i < width / 2; i++)
    for (int w = 0; w < WIDE; w++)
      for (int n = 0; n < N; n++)
        found[n][w] = dot_pairs(found[n][w], shorts(near.keys + i * COLUMNS + column + w * STEP),
                                pair_of(queries[n].numbers, i));
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDE; w++) store(out[n] + column + w * STEP, found[n][w] * scaling);
}

// Adds `WIDTH` registers of the values, weighted.
template <int N, int WIDTH, typename Number>
ALWAYS_INLINE void gather(const Query *queries, const Near<Number> &near, int width, int first, int count,
                          const float (*weights)[COLUMNS]) {
  Floats found[N][WIDTH];
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDTH; w++) found[n][w] = load(queries[n].out + first + w * STEP);
  for (int place = 0; place < (PAIRED<Number> ? (count + 1) / 2 * 2 : count); place++) {
    const int column = PAIRED<Number> ? place ^ 1 : place;
    for (int i = 0; near.ahead && i < WIDTH * STEP; i += LINE<Number>)
      fetch(near.values + near.ahead + place * width + first + i);
    for (int w = 0; w < WIDTH; w++) {
      Floats value = load(near.values + static_cast<int64_t>(column) * width + first + w * STEP);
      for (int n = 0; n < N; n++) found[n][w] += weights[n][column] * value;
    }
  }
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDTH; w++) store(queries[n].out + first + w * STEP, found[n][w]);
}

template <int N, int WIDTH>
ALWAYS_INLINE void gather(const Query *queries, const Pairs &near, int width, int first, int count,
                          const float (*weights)[COLUMNS]) {
  Floats found[N][WIDTH];
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDTH; w++) found[n][w] = load(queries[n].out + first + w * STEP);
  for (int pair = 0; pair < (count + 1) / 2; pair++)
    for (int w = 0; w < WIDTH; w++)
      for (int n = 0; n < N; n++)
        found[n][w] = dot_pairs(found[n][w], shorts(near.values + pair * width + first + w * STEP),
                                pair_of(weights[n], pair));
  for (int n = 0; n < N; n++)
    for (int w = 0; w < WIDTH; w++) store(queries[n].out + first + w * STEP, found[n][w]);
}

// Rounds a register of numbers to bfloat16, and puts it at a place of `out`: as pairs, or as numbers again. Pairs may be
// written over the numbers they come from, in order.
inline void put_rounded(Floats numbers, bool pairs, float *out, int at) {
  typedef uint16_t Halves __attribute__((vector_size(2 * STEP), aligned(2), may_alias));
#ifdef __AVX512BF16__
  const Halves half = (Halves)_mm512_cvtneps_pbh((__m512)numbers);
#else
  const Halves half = __builtin_convertvector(rounded(numbers), Halves);
#endif
  if (pairs)
    reinterpret_cast<Halves *>(out)[at / STEP] = half;
  else
    store(out + at, load(reinterpret_cast<const uint16_t *>(&half)));
}

template <int N, typename Block>
void block(const Query *queries, const Block &near, int width, float scaling, float soft_cap, int column,
           int count, float (*weights)[COLUMNS]) {
  for (int at = 0; at < COLUMNS; at += WIDE * STEP) scores<N>(queries, near, width, scaling, at, weights);
  Ints along;
  for (int i = 0; i < STEP; i++) along[i] = i;
  const auto sees_all = [&](const Query &query) {
    return query.first <= column && query.last >= column + COLUMNS - 1;
  };
  const auto seen = [&](const Query &query, int i, Floats there, float unseen) {
    const Ints at = along + (column + i);
    return (at >= query.first) & (at <= query.last) ? there : all(unseen);
  };
  // Each loop is over all queries: what one of them waits for, another one does not.
  float now[N], before[N];
  for (int n = 0; n < N; n++) {
    const Query &query = queries[n];
    const bool plain = !near.key_scales && soft_cap == 0 && !query.bias && sees_all(query);
    Floats most = all(before[n] = *query.most);
    for (int i = 0; i < COLUMNS; i += STEP) {
      Floats score = load(weights[n] + i);
      if (!plain) {
        if (near.key_scales) score *= load(near.key_scales + i);
        if (soft_cap != 0) score = soft_cap * hyperbolic_tangent(score / soft_cap);
        if (query.bias) score += load(query.bias + column + i);
        store(weights[n] + i, score = seen(query, i, score, NEVER));
      }
      most = largest(most, score);
    }
    *query.most = now[n] = maximum(most);
  }
  for (int n = 0; n < N; n++) {
    const Query &query = queries[n];
    Floats total = load(query.total);
    if (now[n] != before[n]) {
      const Floats fade = exponential(all(before[n] - now[n]));
      total *= fade;
      for (int i = 0; i < width; i += STEP) store(query.out + i, load(query.out + i) * fade);
    }
    const bool whole = sees_all(query);
    for (int i = 0; i < COLUMNS; i += STEP) {
      Floats weight = exponential<Block::rounded>(load(weights[n] + i) - now[n]);
      if (!whole) weight = seen(query, i, weight, 0);
      total += weight;
      if (near.value_scales) weight *= load(near.value_scales + i);
      if (Block::rounded)
        put_rounded(weight, Block::paired, weights[n], i);
      else
        store(weights[n] + i, weight);
    }
    store(query.total, total);
  }
  int first = 0;
  for (; first + WIDE * STEP <= width; first += WIDE * STEP)
    gather<N, WIDE>(queries, near, width, first, count, weights);
  for (; first < width; first += STEP) gather<N, 1>(queries, near, width, first, count, weights);
}

// Widens the numbers of a block once, where many queries are to read them.
template <typename Number> Near<float> widened(const Near<Number> &near, int width, float *scratch) {
  float *const values = scratch + COLUMNS * width;
  for (int i = 0; i < COLUMNS * width; i += STEP) {
    store(scratch + i, load(near.keys + i));
    store(values + i, load(near.values + i));
  }
  return {scratch, values, 0, near.key_scales, near.value_scales};
}

// Lays a block out in pairs once, likewise.
template <typename Number> Pairs paired(const Near<Number> &near, int width, float *scratch) {
  int32_t *const keys = reinterpret_cast<int32_t *>(scratch), *const values = keys + COLUMNS / 2 * width;
  const auto join = [](const Number *first, const Number *second, int32_t *to) {
    store(reinterpret_cast<float *>(to), bits(joined(first, second)));
  };
  for (int column = 0; column < COLUMNS; column += STEP)
    for (int i = 0; i < width; i += 2) {
      const Number *from = near.keys + (column / LANES * width + i) * LANES + column % LANES;
      join(from, from + LANES, keys + i / 2 * COLUMNS + column);
    }
  for (int column = 0; column < COLUMNS; column += 2)
    for (int i = 0; i < width; i += STEP) {
      const Number *from = near.values + column * width + i;
      join(from, from + width, values + column / 2 * width + i);
    }
  return {keys, values, near.key_scales, near.value_scales};
}

// The first column that the token at column `last` sees.
inline int32_t first_seen(const Layer &layer, int32_t last) {
  return layer.window && last >= layer.window ? last - layer.window + 1 : 0;
}

// Where the columns of a task's row and head begin in the cache, and its first block.
inline int64_t strip_of(const Shape &shape, const Cache &cache, const Task &task) {
  return (static_cast<int64_t>(task.lane.row) * shape.kv_heads + task.kv_head) * cache.columns;
}
inline int first_block(const Layer &layer, const Task &task) {
  return first_seen(layer, task.lane.start + task.first) / COLUMNS * COLUMNS;
}

template <typename Number>
void attend_to(const Shape &shape, const Layer &layer, const Cache &cache, const Task &task, const Task *next,
               const float *qkv, int64_t stride, float *out, float *scratch) {
  const int width = shape.width, group = shape.heads / shape.kv_heads, rows = task.count * group;
  const int64_t strip = strip_of(shape, cache, task);
  float(*weights)[COLUMNS] = reinterpret_cast<float(*)[COLUMNS]>(scratch); // whole lines of the cache first
  float *const block_scratch = scratch + QUERIES * COLUMNS, *const total = block_scratch + 2 * COLUMNS * width;
  float *const most = total + static_cast<int64_t>(rows) * STEP, *const rounded_queries = most + rows;
  const bool many = sizeof(Number) < sizeof(float) && rows > 2 * QUERIES;
  const auto query = [&](int index) {
    const int token = task.first + index / group, head = task.kv_head * group + index % group;
    const int64_t packed = task.lane.offset + token;
    const int32_t last = task.lane.start + token;
    const float *numbers = qkv + packed * stride + static_cast<int64_t>(head) * width;
    return Query{PAIRED<Number> ? rounded_queries + static_cast<int64_t>(index) * width : numbers,
                 out + (packed * shape.heads + head) * width,
                 most + index,
                 total + static_cast<int64_t>(index) * STEP,
                 first_seen(layer, last),
                 last,
                 layer.column_bias ? layer.column_bias + head * cache.columns : nullptr};
  };
  for (int index = 0; index < rows; index++) {
    most[index] = NEVER;
    store(query(index).total, Floats{});
    memset(query(index).out, 0, static_cast<size_t>(width) * sizeof(float));
    if (PAIRED<Number>) {
      const int64_t packed = task.lane.offset + task.first + index / group;
      const int head = task.kv_head * group + index % group;
      const float *numbers = qkv + packed * stride + static_cast<int64_t>(head) * width;
      for (int i = 0; i < width; i += STEP)
        put_rounded(load(numbers + i), many, rounded_queries + static_cast<int64_t>(index) * width, i);
    }
  }
  const int end = task.lane.start + task.first + task.count;
  for (int column = first_block(layer, task); column < end; column += COLUMNS) {
    const int64_t at = strip + column;
    const int64_t coming = column + COLUMNS < end ? at + COLUMNS
                           : next                 ? strip_of(shape, cache, *next) + first_block(layer, *next)
                                                  : at;
    const Near<Number> near{static_cast<const Number *>(cache.keys) + at * width,
                            static_cast<const Number *>(cache.values) + at * width,
                            many ? 0 : (coming - at) * width,
                            cache.key_scales ? cache.key_scales + at : nullptr,
                            cache.value_scales ? cache.value_scales + at : nullptr};
    const auto each_query = [&](const auto &read) {
      for (int index = 0; index < rows; index += QUERIES) {
        Query queries[QUERIES];
        const int size = rows - index < QUERIES ? rows - index : QUERIES;
        for (int n = 0; n < size; n++) queries[n] = query(index + n);
        const int seen = queries[size - 1].last - column + 1, count = seen < COLUMNS ? seen : COLUMNS; // the last sees most
        if (count <= 0) continue;
        const auto run = [&](auto taken) {
          block<decltype(taken)::size>(queries, read, width, shape.scaling, layer.soft_cap, column, count, weights);
        };
        switch (size) { // a constant, so that sums stay in registers
#define CASE(n)                                                                                                        \
  case n: {                                                                                                            \
    struct Size {                                                                                                      \
      enum { size = n };                                                                                               \
    };                                                                                                                 \
    run(Size{});                                                                                                       \
    break;                                                                                                             \
  }
          CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
        }
      }
    };
    if (!many)
      each_query(near);
    else if constexpr (PAIRED<Number>)
      each_query(paired(near, width, block_scratch));
    else
      each_query(widened(near, width, block_scratch));
  }
  for (int index = 0; index < rows; index++) {
    const Query done = query(index);
    const float whole = sum(load(done.total));
    for (int i = 0; i < width; i += STEP) store(done.out + i, load(done.out + i) / whole);
  }
}

void attend(const Shape &shape, const Layer &layer, const Cache &cache, const Task &task, const Task *next,
            const float *qkv, int64_t stride, float *out, float *scratch) {
  if (shape.cache_dtype == INT8)
    attend_to<int8_t>(shape, layer, cache, task, next, qkv, stride, out, scratch);
  else if (shape.cache_dtype == BFLOAT16)
    attend_to<uint16_t>(shape, layer, cache, task, next, qkv, stride, out, scratch);
  else
    attend_to<float>(shape, layer, cache, task, next, qkv, stride, out, scratch);
}

} // namespace
} // namespace accel
