// The loops of dequantize.hpp, written so that a compiler makes vectors of them. Included by one file for each instruction set;
// every function has internal linkage, so that none is shared between them.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "dequantize.hpp"

namespace spqfmt {
namespace {

// Columns at a time: the working arrays stay in the nearest cache.
constexpr size_t kTile = 1024;

// Room for the codes of a tile, from the begin of a byte: up to three codes stand before the first wanted.
using TileCodes = int16_t[kTile + 8];

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Half a unit of the last place kept, less one, plus that place's own bit: carries exactly where ties-to-even rounds up.
inline uint16_t to_bf16(float value) {
  const uint32_t u = bits_of(value);
  const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  const uint32_t quiet_nan = u >> 16 | 0x40;
  return static_cast<uint16_t>((u & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
}

// Three ranges, all computed and one selected. Below 2^-14 the result is subnormal, a multiple of 2^-24: adding 0.5, whose last
// place is 2^-24, lets the adder round. Up to 2^16 the exponent is moved and the mantissa rounded as in to_bf16; a carry
// into 2^16 gives infinity. Above that lie infinity and NaN.
inline uint16_t to_f16(float value) {
  const uint32_t u = bits_of(value);
  const uint32_t magnitude = u & 0x7fffffff;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  return static_cast<uint16_t>((u >> 16 & 0x8000) | (magnitude < 0x47800000 ? finite : special));
}

template <unsigned kBits, bool kSigned>
inline void unpack_bytes(const uint8_t* __restrict bytes, size_t n_bytes, int16_t* __restrict codes) {
  constexpr unsigned kPerByte = 8 / kBits;
  constexpr int kSign = 1 << (kBits - 1);
  for (size_t i = 0; i < n_bytes; i++) {
    for (unsigned k = 0; k < kPerByte; k++) {
      const int code = bytes[i] >> (k * kBits) & ((1 << kBits) - 1);
      codes[i * kPerByte + k] = static_cast<int16_t>(kSigned ? (code ^ kSign) - kSign : code);
    }
  }
}

// Codes number `first`..first + n - 1, n <= kTile. Returns where the first one stands in `room`.
inline const int16_t* unpack(const Codes& codes, size_t first, size_t n, TileCodes& room) {
  const size_t per_byte = 8 / codes.bits;
  const uint8_t* bytes = codes.bytes + first / per_byte;
  const size_t before = first % per_byte;
  const size_t n_bytes = (before + n + per_byte - 1) / per_byte;
  switch (codes.bits * 2 + codes.is_signed) {
    case 2 * 2 + 0: unpack_bytes<2, false>(bytes, n_bytes, room); break;
    case 2 * 2 + 1: unpack_bytes<2, true>(bytes, n_bytes, room); break;
    case 4 * 2 + 0: unpack_bytes<4, false>(bytes, n_bytes, room); break;
    case 4 * 2 + 1: unpack_bytes<4, true>(bytes, n_bytes, room); break;
    case 8 * 2 + 0: unpack_bytes<8, false>(bytes, n_bytes, room); break;
    default: unpack_bytes<8, true>(bytes, n_bytes, room); break;
  }
  return room + before;
}

// Weights number `at`.. of dst; an element's bytes are little-endian like all that this package supports (little_endian.hpp).
inline void store(const float* __restrict weights, size_t n, FloatType type, size_t at, uint8_t* __restrict dst) {
  if (type == FloatType::f32) {
    std::memcpy(dst + 4 * at, weights, 4 * n);
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(dst) + at;
  if (type == FloatType::bf16) {
    for (size_t i = 0; i < n; i++) to[i] = to_bf16(weights[i]);
  } else {
    for (size_t i = 0; i < n; i++) to[i] = to_f16(weights[i]);
  }
}

// Weights (row, column)..(row, column + n - 1), n <= kTile.
inline void uniform_tile(const Codes& codes, size_t n_columns, const UniformScales& scales, size_t row, size_t column, size_t n,
                         TileCodes& room, float* __restrict weights) {
  const float row_factor = scales.row[row];
  const int16_t* code = unpack(codes, codes.first + row * n_columns + column, n, room);
  for (size_t i = 0; i < n; i++) weights[i] = static_cast<float>(code[i]) * row_factor;
  if (scales.column != nullptr) {
    for (size_t i = 0; i < n; i++) weights[i] = weights[i] * scales.column[column + i];
  }
}

#if defined(__AVX512F__)
// Compilers widen codes in more steps than there need be. Always 16 codes.
inline __m512 widen(const int8_t* codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

// to_bf16 of 16 numbers, none of them NaN.
inline __m256i narrowed(__m512 values) {
  const __m512i u = reinterpret_cast<__m512i>(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

// Returns how many of the codes it did.
inline size_t plain_bf16(const int8_t* codes, size_t n, float factor, uint16_t* to) {
  if (factor != factor) return 0;
  size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 weights = _mm512_mul_ps(widen(codes + i), _mm512_set1_ps(factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), narrowed(weights));
  }
  return i;
}
#else
inline size_t plain_bf16(const int8_t*, size_t, float, uint16_t*) { return 0; }
#endif

// 8-bit codes with a factor for each row alone, in one pass.
inline void plain_row(const int8_t* __restrict codes, size_t n, float factor, FloatType type, size_t at, uint8_t* __restrict dst) {
  uint16_t* __restrict narrow = reinterpret_cast<uint16_t*>(dst) + at;
  float* __restrict wide = reinterpret_cast<float*>(dst) + at;
  switch (type) {
    case FloatType::f32:
      for (size_t i = 0; i < n; i++) wide[i] = static_cast<float>(codes[i]) * factor;
      return;
    case FloatType::bf16:
      for (size_t i = plain_bf16(codes, n, factor, narrow); i < n; i++) narrow[i] = to_bf16(static_cast<float>(codes[i]) * factor);
      return;
    case FloatType::f16:
      for (size_t i = 0; i < n; i++) narrow[i] = to_f16(static_cast<float>(codes[i]) * factor);
      return;
  }
}

[[maybe_unused]] void uniform_rows(const Codes& codes, size_t n_columns, const UniformScales& scales, size_t begin, size_t end, FloatType type,
                  uint8_t* dst) {
  if (codes.bits == 8 && codes.is_signed && scales.column == nullptr) {
    for (size_t row = begin; row < end; row++) {
      const size_t at = row * n_columns;
      plain_row(reinterpret_cast<const int8_t*>(codes.bytes) + codes.first + at, n_columns, scales.row[row], type, at, dst);
    }
    return;
  }
  alignas(64) TileCodes room;
  alignas(64) float weights[kTile];
  for (size_t row = begin; row < end; row++) {
    for (size_t column = 0; column < n_columns; column += kTile) {
      const size_t n = smaller(kTile, n_columns - column);
      uniform_tile(codes, n_columns, scales, row, column, n, room, weights);
      store(weights, n, type, row * n_columns + column, dst);
    }
  }
}

// The values of codes, which are numbers of them: those of at most 4 bits lie in registers.
inline void look_up(const int16_t* __restrict code, size_t n, const Codes& codes, float* __restrict to) {
  size_t i = 0;
#if defined(__AVX512F__)
  if (codes.bits <= 4) {
    const __m512 table = _mm512_maskz_loadu_ps(codes.bits == 4 ? 0xffff : 0xf, codes.values);
    for (; i + 16 <= n; i += 16) {
      const __m512i numbers = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(code + i)));
      _mm512_storeu_ps(to + i, _mm512_permutexvar_ps(numbers, table));
    }
  }
#elif defined(__AVX2__)
  if (codes.bits <= 4) {
    alignas(32) float table[16] = {};
    std::memcpy(table, codes.values, sizeof(float) << codes.bits);
    const __m256 low = _mm256_load_ps(table), high = _mm256_load_ps(table + 8);
    for (; i + 8 <= n; i += 8) {
      const __m256i numbers = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code + i)));
      const __m256 of_low = _mm256_permutevar8x32_ps(low, numbers), of_high = _mm256_permutevar8x32_ps(high, numbers);
      const __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(numbers, 28));  // bit 3 becomes the sign
      _mm256_storeu_ps(to + i, _mm256_blendv_ps(of_low, of_high, is_high));
    }
  }
#endif
  for (; i < n; i++) to[i] = codes.values[code[i]];
}

// `code`: int16_t, or float where codes have values.
template <typename Code>
inline void scale_group(const Code* __restrict code, size_t n, float scale, float offset, GroupOffset kind,
                        float* __restrict weights) {
  switch (kind) {
    case GroupOffset::none:
      for (size_t i = 0; i < n; i++) weights[i] = scale * static_cast<float>(code[i]);
      return;
    case GroupOffset::zero_point:
      for (size_t i = 0; i < n; i++) weights[i] = scale * (static_cast<float>(code[i]) - offset);
      return;
    case GroupOffset::minimum:
      for (size_t i = 0; i < n; i++) weights[i] = scale * static_cast<float>(code[i]) - offset;
      return;
  }
}

// Weights (row, column)..(row, column + n - 1) of groups, from their codes.
template <typename Code>
inline void scale_groups(const Code* code, size_t n_columns, const GroupScales& scales, size_t row, size_t column, size_t n,
                         float* __restrict weights) {
  const size_t n_groups = (n_columns - 1) / scales.group_size + 1;
  for (size_t i = 0; i < n;) {
    const size_t group = (column + i) / scales.group_size;
    // A group can pass the end of the tile, and of the row: the last one may be shorter than group_size.
    const size_t n_here = smaller(n - i, scales.group_size - (column + i) % scales.group_size);
    const size_t parameter = row * n_groups + group;
    const float offset = scales.offset == nullptr ? 0.0f : scales.offset[parameter];
    scale_group(code + i, n_here, scales.scale[parameter], offset, scales.kind, weights + i);
    i += n_here;
  }
}

#if defined(__AVX512BW__)
constexpr size_t kWordsAtOnce = 32;

// Whether rows of 4-bit codes begin at whole bytes, and groups at whole registers of BF16 numbers.
inline bool nibbles_look_up(const Codes& codes, size_t n_columns, const GroupScales& scales) {
  const bool are_whole = scales.group_size % kWordsAtOnce == 0 || scales.group_size >= n_columns;
  return codes.bits == 4 && codes.first % 2 == 0 && n_columns % 2 == 0 && are_whole;
}

// to_bf16 of sixteen numbers, twice.
inline __m512i narrowed_table(__m512 values) {
  const __m512i u = reinterpret_cast<__m512i>(values);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  const __m256i nan = _mm512_cvtepi32_epi16(quiet);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  return _mm512_broadcast_i64x4(_mm256_mask_blend_epi16(is_nan, narrowed(values), nan));
}

// A row of 4-bit codes as BF16 numbers. The sixteen weights of a group, computed as any weights are, stand in a register, where
// each code finds its own.
inline void nibbles_to_bf16(const Codes& codes, size_t n_columns, const GroupScales& scales, size_t row, __m512 numbers, uint16_t* to) {
  const size_t size = scales.group_size, n_groups = (n_columns - 1) / size + 1;
  const uint8_t* from = codes.bytes + (codes.first + row * n_columns) / 2;
  const __m512i low = _mm512_set1_epi32(0x000f000f);
  for (size_t group = 0, column = 0; group < n_groups; group++) {
    const size_t parameter = row * n_groups + group;
    const __m512 scale = _mm512_set1_ps(scales.scale[parameter]);
    const __m512 offset = _mm512_set1_ps(scales.offset == nullptr ? 0.0f : scales.offset[parameter]);
    __m512 weights = numbers;
    if (scales.kind == GroupOffset::zero_point) weights = _mm512_sub_ps(weights, offset);
    weights = _mm512_mul_ps(scale, weights);
    if (scales.kind == GroupOffset::minimum) weights = _mm512_sub_ps(weights, offset);
    const __m512i table = narrowed_table(weights);
    for (const size_t end = smaller(n_columns - column, size) + column; column < end; column += kWordsAtOnce) {
      const size_t n = smaller(kWordsAtOnce, end - column);
      const __mmask16 bytes_there = static_cast<__mmask16>((1u << n / 2) - 1);
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(bytes_there, from + column / 2));
      const __m512i words = _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), low);
      const __mmask32 words_there = n == kWordsAtOnce ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
      _mm512_mask_storeu_epi16(to + column, words_there, _mm512_permutexvar_epi16(words, table));
    }
    column = smaller(column, n_columns);
  }
}
#endif

[[maybe_unused]] void grouped_rows(const Codes& codes, size_t n_columns, const GroupScales& scales, size_t begin, size_t end, FloatType type,
                  uint8_t* dst) {
#if defined(__AVX512BW__)
  if (type == FloatType::bf16 && nibbles_look_up(codes, n_columns, scales)) {
    alignas(64) float numbers[16];
    for (int i = 0; i < 16; i++) {
      const int sign = codes.is_signed ? 8 : 0;
      numbers[i] = codes.values != nullptr ? codes.values[i] : static_cast<float>((i ^ sign) - sign);
    }
    const __m512 all = _mm512_load_ps(numbers);
    for (size_t row = begin; row < end; row++) {
      nibbles_to_bf16(codes, n_columns, scales, row, all, reinterpret_cast<uint16_t*>(dst) + row * n_columns);
    }
    return;
  }
#endif
  alignas(64) TileCodes room;
  alignas(64) float values[kTile];
  alignas(64) float weights[kTile];
  for (size_t row = begin; row < end; row++) {
    for (size_t column = 0; column < n_columns; column += kTile) {
      const size_t n = smaller(kTile, n_columns - column);
      const int16_t* code = unpack(codes, codes.first + row * n_columns + column, n, room);
      if (codes.values == nullptr) {
        scale_groups(code, n_columns, scales, row, column, n, weights);
      } else {
        look_up(code, n, codes, values);
        scale_groups(values, n_columns, scales, row, column, n, weights);
      }
      store(weights, n, type, row * n_columns + column, dst);
    }
  }
}

}  // namespace
}  // namespace spqfmt
