// Matrix registers (AMX): tiles of 16 rows of 64 bytes. Compiled with `ACCEL_EMULATED`, they are computed in plain code, as
// the Intel 64 and IA-32 Architectures Software Developer's Manual describes TILELOADD, TILESTORED and TDPBSUD, so that
// the rest of the code can be tested on processors that have none.
#pragma once
#include "vectors.h"

namespace accel {
namespace {

constexpr int TILE_ROWS = 16;

#ifdef ACCEL_EMULATED
thread_local uint8_t tiles[8][TILE_ROWS][64];

inline void tiles_begin() { memset(tiles, 0, sizeof tiles); }
inline void tiles_end() {}
inline void tile_zero(int to) { memset(tiles[to], 0, sizeof tiles[to]); }
inline void tile_load(int to, const void *from, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; row++) memcpy(tiles[to][row], static_cast<const char *>(from) + row * stride, 64);
}
inline void tile_store(int from, void *to, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; row++) memcpy(static_cast<char *>(to) + row * stride, tiles[from][row], 64);
}
// Adds rows of signed bytes times columns of unsigned ones, of which four neighbours lie together.
inline void tile_dot(int to, int rows, int columns) {
  for (int row = 0; row < TILE_ROWS; row++)
    for (int column = 0; column < 16; column++) {
      int32_t total;
      memcpy(&total, tiles[to][row] + 4 * column, 4);
      for (int i = 0; i < 64; i++)
        total += static_cast<int8_t>(tiles[rows][row][i]) * tiles[columns][i / 4][4 * column + i % 4];
      memcpy(tiles[to][row] + 4 * column, &total, 4);
    }
}
#else
inline void tiles_begin() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  _tile_loadconfig(&shapes);
}
inline void tiles_end() { _tile_release(); }
#define tile_zero _tile_zero // not functions: the compiler wants the registers' numbers as they stand
#define tile_load _tile_loadd
#define tile_store _tile_stored
#define tile_dot _tile_dpbsud
#endif

constexpr int TILED = 2 * TILE_ROWS; // tokens that tiles take at a time

// Up to TILED tokens, `stride` bytes apart, against a panel of bytes: `[TILED][PANEL]` sums.
inline void tiled(const uint8_t *weight, int quads, const int8_t *tokens, int64_t stride, int size, void *sums) {
  char *const out = static_cast<char *>(sums);
  const bool both = size > TILE_ROWS;
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
  __asm__ volatile("" ::: "memory"); // compilers do not know that a tile's load reads memory
  int quad = 0;
  for (; quad + TILE_ROWS <= quads; quad += TILE_ROWS) {
    tile_load(4, weight + 4 * PANEL * quad, 4 * PANEL);
    tile_load(5, weight + 4 * PANEL * quad + 64, 4 * PANEL);
    tile_load(6, tokens + 4 * quad, stride);
    tile_dot(0, 6, 4);
    tile_dot(1, 6, 5);
    if (!both) continue;
    tile_load(7, tokens + TILE_ROWS * stride + 4 * quad, stride);
    tile_dot(2, 7, 4);
    tile_dot(3, 7, 5);
  }
  tile_store(0, out, 4 * PANEL);
  tile_store(1, out + 64, 4 * PANEL);
  tile_store(2, out + 4 * PANEL * TILE_ROWS, 4 * PANEL);
  tile_store(3, out + 4 * PANEL * TILE_ROWS + 64, 4 * PANEL);
  for (; quad < quads; quad++) // the last inputs, where their number is no multiple of 64
    for (int token = 0; token < size; token++) {
      int32_t four;
      memcpy(&four, tokens + token * stride + 4 * quad, 4);
      for (int v = 0; v < PANEL / STEP; v++) {
        Ints *sum = static_cast<Ints *>(sums) + token * (PANEL / STEP) + v;
        *sum = dot(*sum, weight + 4 * PANEL * quad + 4 * STEP * v, four);
      }
    }
}

} // namespace
} // namespace accel
