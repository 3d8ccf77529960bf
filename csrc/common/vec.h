// Vectors of floats: one wrapper for each instruction set, with the same members, so that a kernel is written once.
//
// Include it from *_avx2.cpp and *_avx512.cpp only. All is in an unnamed namespace: these files are compiled with flags
// of their own, and the linker must never take an inline function of one for another. For the same reason kernels in
// those files call no inline function of the standard library.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "dtype.h"

namespace refiners {
namespace {

inline float to_float(const float* p) { return *p; }
inline float to_float(const Float16* p) { return _cvtsh_ss(p->bits); }
inline float to_float(const Bfloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Loads and stores of the first `count` elements, by way of the stack: the ragged end of a row.
template <class V, class T>
inline typename V::Reg load_partial(const T* p, int64_t count) {
  T buffer[V::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return V::load(buffer);
}

template <class V, class T>
inline void store_partial(T* p, typename V::Reg v, int64_t count) {
  T buffer[V::kWidth];
  V::store(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

#if defined(__AVX2__)

struct Avx2 {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6;  // 6 rows of 2 vectors, 2 vectors of the right side, 1 of the left: 15 registers

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg set(float value) { return _mm256_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }  // b, where one is not a number
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }  // the same
  static Reg abs(Reg v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  static Reg round(Reg v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg choose_negative(Reg sign, Reg negative, Reg other) { return _mm256_blendv_ps(other, negative, sign); }
  static Reg power_of_two(Reg n) {  // 2^n for whole numbers in [-126, 127], 0 for -127
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static float sum(Reg v) {  // of its elements
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float max_of(Reg v) {  // of its elements
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  // Element i of vector j becomes element j of vector i.
  static void transpose(Reg (&v)[8]) {
    Reg pairs[8], fours[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }

  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Reg load(const Bfloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }

  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void store(Float16* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Bfloat16* p, Reg v) {  // to nearest, ties to even; a NaN stays one
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(sum, _mm256_set1_epi32(0x7fc00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

#endif

#if defined(__AVX512F__)

struct Avx512 {
  using Reg = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 12;  // 12 rows of 2 vectors and 3 vectors more: 27 registers of 32

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg set(float value) { return _mm512_set1_ps(value); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }  // b, where one is not a number
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }  // the same
  static Reg abs(Reg v) { return _mm512_abs_ps(v); }
  static Reg round(Reg v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg choose_negative(Reg sign, Reg negative, Reg other) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), other, negative);
  }
  static Reg power_of_two(Reg n) {  // 2^n for whole numbers in [-126, 127], 0 for -127
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static float sum(Reg v) { return _mm512_reduce_add_ps(v); }
  static float max_of(Reg v) { return _mm512_reduce_max_ps(v); }
  // Element i of vector j becomes element j of vector i.
  static void transpose(Reg (&v)[16]) {
    Reg pairs[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    const auto low = [](Reg a, Reg b) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto high = [](Reg a, Reg b) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    Reg fours[16];  // lane l of fours[4 g + j]: column 4 l + j of the rows from 4 g on
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      fours[i] = low(pairs[i], pairs[i + 2]);
      fours[i + 1] = high(pairs[i], pairs[i + 2]);
      fours[i + 2] = low(pairs[i + 1], pairs[i + 3]);
      fours[i + 3] = high(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Reg even = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);  // lanes 0 and 2 of each
      const Reg odd = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
      const Reg even_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
      const Reg odd_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
      v[j] = _mm512_shuffle_f32x4(even, even_high, 0x88);
      v[4 + j] = _mm512_shuffle_f32x4(odd, odd_high, 0x88);
      v[8 + j] = _mm512_shuffle_f32x4(even, even_high, 0xdd);
      v[12 + j] = _mm512_shuffle_f32x4(odd, odd_high, 0xdd);
    }
  }

  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Reg load(const Bfloat16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }

  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void store(Float16* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Bfloat16* p, Reg v) {  // to nearest, ties to even; a NaN stays one
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(sum, nan, _mm512_set1_epi32(0x7fc00000)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
};

#endif

}  // namespace
}  // namespace refiners
