// A register of numbers at a time, in the compiler's vector types; the few operations these lack are written for each
// instruction set.
#pragma once
#include "types.h"
#include <cstring>
#include <immintrin.h>

namespace accel {
namespace {

#ifdef __AVX512F__
constexpr int STEP = 16; // numbers of a register
#else
constexpr int STEP = 8;
#endif
static_assert(LANES % STEP == 0, "blocks of the KV cache hold whole registers");
constexpr int TILE = 12; // tokens whose numbers lie side by side
#ifdef ACCEL_TILES
constexpr int BESIDE = 1; // and whose levels do
#else
constexpr int BESIDE = TILE;
#endif

typedef float Floats __attribute__((vector_size(4 * STEP)));
typedef int32_t Ints __attribute__((vector_size(4 * STEP)));
typedef float UnalignedFloats __attribute__((vector_size(4 * STEP), aligned(4), may_alias));

// Asks memory for a line, into the second cache: the first is small, and would lose it again before it is needed.
inline void fetch(const void *line) { __builtin_prefetch(line, 0, 2); }
// Bytes of a weight that are asked for before they are needed. On an AMD EPYC, 8-bit steps of one token were fastest with
// 2 KiB, of several tokens with 8 or more, and 4-bit steps with 8 or more.
constexpr int AHEAD = 8192;
constexpr int ahead(int tokens) { return tokens == 1 ? 2048 : AHEAD; }

inline Floats load(const float *from) { return *reinterpret_cast<const UnalignedFloats *>(from); }
inline void store(float *to, Floats value) { *reinterpret_cast<UnalignedFloats *>(to) = value; }
inline Floats all(float value) { return value - Floats{}; }
#ifdef __AVX512F__ // a > b ? a : b, which this compiler would write in two instructions
inline Floats largest(Floats a, Floats b) { return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
inline Floats smallest(Floats a, Floats b) { return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#else
inline Floats largest(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
inline Floats smallest(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
#endif
inline Floats magnitude(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }
inline Floats bits(Ints a) { return (Floats)a; }

inline Ints halves(const uint16_t *from) {
#ifdef __AVX512F__ // the forms with a mask, because the others make this compiler warn
  return (Ints)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#else
  return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#endif
}
inline Floats load(const uint16_t *from) { return (Floats)(halves(from) << 16); } // bfloat16: the upper half of a float32

inline Ints widened(const int8_t *from) {
#ifdef __AVX512F__
  return (Ints)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
#endif
}
inline Floats load(const int8_t *from) { return __builtin_convertvector(widened(from), Floats); } // levels

// Numbers of bfloat16 as pairs; levels are such numbers without rounding.
inline Ints joined(const uint16_t *first, const uint16_t *second) { return halves(second) << 16 | halves(first); }
inline Ints joined(const int8_t *first, const int8_t *second) {
  return (Ints)load(second) | ((Ints)load(first) >> 16 & 0xffff);
}

inline uint16_t rounded(float value) { // to bfloat16, to nearest even
  uint32_t word;
  memcpy(&word, &value, 4);
  return static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void put(float *to, float value) { *to = value; }
inline void put(uint16_t *to, float value) { *to = rounded(value); }
inline void put(int8_t *to, float value) { *to = static_cast<int8_t>(value); } // a whole number

// Rounds numbers to bfloat16, to nearest even; each stands in the lower half of its place.
inline Ints rounded(Floats numbers) {
  typedef uint32_t Words __attribute__((vector_size(4 * STEP)));
  const Words words = (Words)numbers;
  return (Ints)((words + 0x7fff + ((words >> 16) & 1)) >> 16);
}

// Adds the products of pairs of bfloat16 numbers, the second one first, as the instruction does.
inline Floats dot_pairs(Floats sums, const uint16_t *weights, int32_t pair) {
  typedef int32_t Unaligned __attribute__((vector_size(4 * STEP), aligned(2), may_alias));
  const Ints both = *reinterpret_cast<const Unaligned *>(weights);
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)both, (__m512bh)_mm512_set1_epi32(pair));
#else
  constexpr int32_t UPPER = ~0xffff;
  const auto number = [](int32_t word) {
    float value;
    memcpy(&value, &word, 4);
    return value;
  };
  sums += bits(both & UPPER) * all(number(pair & UPPER));
  return sums + bits(both << 16) * all(number(static_cast<int32_t>(static_cast<uint32_t>(pair) << 16)));
#endif
}

// Takes the halves of a register together until one number is left.
template <typename Take> inline float folded(Floats a, Take take) {
#ifdef __AVX512F__
  const __m256 eight = take((__m256)_mm512_maskz_extractf64x4_pd(0xff, (__m512d)a, 0),
                            (__m256)_mm512_maskz_extractf64x4_pd(0xff, (__m512d)a, 1));
#else
  const __m256 eight = (__m256)a;
#endif
  __m128 four = take(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = take(four, _mm_movehl_ps(four, four));
  return take(four[0], four[1]);
}
inline float sum(Floats a) { return folded(a, [](auto x, auto y) { return x + y; }); }
inline float maximum(Floats a) { return folded(a, [](auto x, auto y) { return x > y ? x : y; }); }

inline Floats nearest(Floats a) { // whole numbers, ties to even; right for magnitudes below 2^22
  const Floats shift = all(12582912.f);
  Floats moved = a + shift;
#ifdef __AVX512F__
  __asm__("" : "+v"(moved)); // or the compiler would see that nothing is added
#else
  __asm__("" : "+x"(moved));
#endif
  return moved - shift;
}

// e^x: 2^n times a polynomial for 2^f, |f| <= 1/2. By the Taylor series to about one unit in the last place; or, for x of at
// most 88 and what is rounded to bfloat16, by the polynomial of degree 4 that is least off, 2.6e-6 of the result.
template <bool COARSE = false> inline Floats exponential(Floats x) {
  x = largest(x, all(-87.f));
  if (!COARSE) x = smallest(all(88.f), x);
  Floats scaled = x * 1.44269504f, whole = nearest(scaled), f = scaled - whole;
  Floats p;
  if (COARSE) {
    p = all(0.0095701022f);
    p = p * f + 0.055917859f;
    p = p * f + 0.24024744f;
    p = p * f + 0.69312179f;
    p = p * f + 0.99999928f;
  } else {
    p = all(1.5403530e-4f);
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.f;
  }
#ifdef __AVX512F__
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
#else
  return bits((__builtin_convertvector(whole, Ints) << 23) + (Ints)p);
#endif
}

inline Floats hyperbolic_tangent(Floats x) { return 1.f - 2.f / (1.f + exponential(x + x)); }

// Sums of four products of an unsigned and a signed byte, added to 32-bit numbers. The weights' zero is stored as 128:
// `ZERO` is what of it the sums still hold, times the sum of the signed bytes.
typedef uint8_t UnalignedInts __attribute__((vector_size(4 * STEP), aligned(1), may_alias));
inline Ints load_bytes(const uint8_t *from) { return (Ints)*reinterpret_cast<const UnalignedInts *>(from); }

#ifdef __AVX512VNNI__
constexpr int32_t ZERO = 128;
inline Ints dot(Ints sums, const uint8_t *weights, int32_t four) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(weights), _mm512_set1_epi32(four));
}
// The same with unsigned bytes below 16.
inline Ints dot_small(Ints sums, Ints weights, Ints levels) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)levels);
}
// Adds products of numbers of 16 bits, held in 32; `factors` with their upper halves cleared.
inline Ints add_products(Ints sums, Ints numbers, Ints factors) {
  return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)numbers, (__m512i)factors);
}
#else
// The weight's levels are -127 to 127, so that no pair of products leaves 16 bits.
constexpr int32_t ZERO = 0;
inline Ints dot(Ints sums, const uint8_t *weights, int32_t four) {
  const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights));
  const __m256i weight = _mm256_xor_si256(stored, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i token = _mm256_sign_epi8(_mm256_set1_epi32(four), weight);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), token);
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
inline Ints dot_small(Ints sums, Ints weights, Ints levels) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, (__m256i)levels);
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
inline Ints add_products(Ints sums, Ints numbers, Ints factors) {
  return sums + (Ints)_mm256_madd_epi16((__m256i)numbers, (__m256i)factors);
}
#endif

} // namespace
} // namespace accel
