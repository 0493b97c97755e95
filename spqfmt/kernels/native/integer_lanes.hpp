// What products of integers are made of: units of codes, their lanes' sums, and binary32 numbers for each lane. Of one instruction set,
// that of the file which includes this; see multiply_integers.hpp.
#pragma once

#include "multiply_rows.hpp"

namespace spqfmt {
namespace {

#if defined(__AVX512VNNI__)
constexpr size_t kIntRows = 4, kIntTokens = 4, kUnitBytes = 64;
using Ints = __m512i;
using Sums32 = __m512i;
using Reals = __m512;
inline Ints load_ints(const void* from) { return _mm512_loadu_si512(from); }
inline Sums32 load_sums(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Ints table_of(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}
// The four bits of each byte after the first `kFirst`.
template <unsigned kFirst>
inline Ints four_bits(Ints bytes) {
  return _mm512_and_si512(kFirst == 0 ? bytes : _mm512_srli_epi16(bytes, kFirst), _mm512_set1_epi8(15));
}
// The same, looked up.
template <unsigned kFirst>
inline Ints looked_up(Ints bytes, Ints table) {
  return _mm512_shuffle_epi8(table, four_bits<kFirst>(bytes));
}
inline Ints flipped(Ints bytes, uint8_t flip) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(flip))); }
template <bool kSigned>
inline Sums32 dot(Sums32 sums, Ints codes, Ints x) {
  return _mm512_dpbusd_epi32(sums, codes, x);
}
inline Reals load_reals(const float* from) { return _mm512_loadu_ps(from); }
inline void save_reals(Reals values, float* to) { _mm512_storeu_ps(to, values); }
inline Reals to_reals(Sums32 values) { return _mm512_cvtepi32_ps(values); }
inline Reals same_reals(float value) { return _mm512_set1_ps(value); }
inline Reals times(Reals a, Reals b) { return _mm512_mul_ps(a, b); }
inline Reals plus(Reals a, Reals b) { return _mm512_add_ps(a, b); }
inline Reals minus(Reals a, Reals b) { return _mm512_sub_ps(a, b); }
// Lane i is from[i >> log2].
using Spread = __m512i;
inline Spread spread_by(unsigned log2) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_srl_epi32(lane, _mm_cvtsi32_si128(static_cast<int>(log2)));
}
inline Reals spread(const float* from, Spread by) { return _mm512_permutexvar_ps(by, _mm512_loadu_ps(from)); }
// The first n bytes, then zeros.
inline Ints load_some(const uint8_t* from, size_t n) {
  return _mm512_maskz_loadu_epi8(n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1, from);
}
// One factor of the products is unsigned.
inline int shift_of_integers(int least, int) { return -least; }
#elif defined(__AVX2__)
constexpr size_t kIntRows = 2, kIntTokens = 2, kUnitBytes = 32;
using Ints = __m256i;
using Sums32 = __m256i;
using Reals = __m256;
inline Ints load_ints(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline Sums32 load_sums(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Ints table_of(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}
template <unsigned kFirst>
inline Ints four_bits(Ints bytes) {
  return _mm256_and_si256(kFirst == 0 ? bytes : _mm256_srli_epi16(bytes, kFirst), _mm256_set1_epi8(15));
}
template <unsigned kFirst>
inline Ints looked_up(Ints bytes, Ints table) {
  return _mm256_shuffle_epi8(table, four_bits<kFirst>(bytes));
}
inline Ints flipped(Ints bytes, uint8_t flip) { return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(flip))); }
// Sums of two products have 16 bits: they hold those of unsigned codes up to 129, and of signed ones.
constexpr int kMostUnsigned = 129;
template <bool kSigned>
inline Sums32 dot(Sums32 sums, Ints codes, Ints x) {
  const Ints pairs = kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)) : _mm256_maddubs_epi16(codes, x);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Reals load_reals(const float* from) { return _mm256_loadu_ps(from); }
inline void save_reals(Reals values, float* to) { _mm256_storeu_ps(to, values); }
inline Reals to_reals(Sums32 values) { return _mm256_cvtepi32_ps(values); }
inline Reals same_reals(float value) { return _mm256_set1_ps(value); }
inline Reals times(Reals a, Reals b) { return _mm256_mul_ps(a, b); }
inline Reals plus(Reals a, Reals b) { return _mm256_add_ps(a, b); }
inline Reals minus(Reals a, Reals b) { return _mm256_sub_ps(a, b); }
using Spread = __m256i;
inline Spread spread_by(unsigned log2) {
  return _mm256_srl_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm_cvtsi32_si128(static_cast<int>(log2)));
}
inline Reals spread(const float* from, Spread by) { return _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), by); }
inline int shift_of_integers(int least, int most) { return most - least <= kMostUnsigned ? -least : most > 127 ? -128 : 0; }
#else
constexpr size_t kIntRows = 1, kIntTokens = 1, kUnitBytes = 64;
struct Ints {
  int8_t byte[kUnitBytes];
};
struct Sums32 {
  int32_t of[kVectorLanes];
};
struct Reals {
  float of[kVectorLanes];
};
template <typename T>
inline T loaded(const void* from) {
  T values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline Ints load_ints(const void* from) { return loaded<Ints>(from); }
inline Sums32 load_sums(const int32_t* from) { return loaded<Sums32>(from); }
inline Ints table_of(const uint8_t* table) {
  Ints found{};
  std::memcpy(found.byte, table, 16);
  return found;
}
template <unsigned kFirst>
inline Ints four_bits(Ints bytes) {
  for (int8_t& byte : bytes.byte) byte = static_cast<int8_t>(static_cast<uint8_t>(byte) >> kFirst & 15);
  return bytes;
}
template <unsigned kFirst>
inline Ints looked_up(const Ints& bytes, const Ints& table) {
  Ints found = four_bits<kFirst>(bytes);
  for (int8_t& byte : found.byte) byte = table.byte[byte];
  return found;
}
inline Ints flipped(Ints bytes, uint8_t flip) {
  for (int8_t& byte : bytes.byte) byte = static_cast<int8_t>(byte ^ static_cast<int8_t>(flip));
  return bytes;
}
template <bool kSigned>
inline Sums32 dot(Sums32 sums, const Ints& codes, const Ints& x) {
  for (size_t i = 0; i < kVectorLanes; i++) {
    for (size_t k = 4 * i; k < 4 * i + 4; k++) sums.of[i] += codes.byte[k] * x.byte[k];
  }
  return sums;
}
inline Reals load_reals(const float* from) { return loaded<Reals>(from); }
inline void save_reals(const Reals& values, float* to) { std::memcpy(to, &values, sizeof values); }
template <typename Of>
inline Reals each(const Of& of) {
  Reals values;
  for (size_t i = 0; i < kVectorLanes; i++) values.of[i] = of(i);
  return values;
}
inline Reals to_reals(const Sums32& sums) {
  return each([&](size_t i) { return static_cast<float>(sums.of[i]); });
}
inline Reals same_reals(float value) {
  return each([&](size_t) { return value; });
}
inline Reals times(const Reals& a, const Reals& b) {
  return each([&](size_t i) { return a.of[i] * b.of[i]; });
}
inline Reals plus(const Reals& a, const Reals& b) {
  return each([&](size_t i) { return a.of[i] + b.of[i]; });
}
inline Reals minus(const Reals& a, const Reals& b) {
  return each([&](size_t i) { return a.of[i] - b.of[i]; });
}
using Spread = unsigned;
inline Spread spread_by(unsigned log2) { return log2; }
inline Reals spread(const float* from, Spread by) {
  return each([&](size_t i) { return from[i >> by]; });
}
// All codes are bytes with a sign.
inline int shift_of_integers(int, int most) { return most > 127 ? -128 : 0; }
#endif

constexpr size_t kUnits = kVectorBytes64 / kUnitBytes, kUnitLanes = kUnitBytes / 4;

// Rows are read side by side, each too short for the processor to see a stream. So the rows after them are fetched as the one stream
// that they are, and those after these, `further`, into the second cache. Addresses may lie behind the codes.
[[gnu::always_inline]] inline void fetch_line([[maybe_unused]] const uint8_t* near, [[maybe_unused]] const uint8_t* far) {
#if defined(__AVX2__)
  _mm_prefetch(reinterpret_cast<const char*>(near), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(far), _MM_HINT_T1);
#endif
}

[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* from, size_t further) { fetch_line(from, from + further); }

#if !defined(__AVX512VNNI__)
inline Ints load_some(const uint8_t* from, size_t n) {
  alignas(64) uint8_t bytes[kUnitBytes] = {};
  std::memcpy(bytes, from, n < kUnitBytes ? n : kUnitBytes);
  return load_ints(bytes);
}
#endif

// In halves.
inline float total_of_lanes(const float* lanes) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(_mm512_load_ps(lanes));
#else
  float of[kVectorLanes];
  std::memcpy(of, lanes, sizeof of);
  for (size_t half = kVectorLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; i++) of[i] += of[i + half];
  }
  return of[0];
#endif
}

}  // namespace
}  // namespace spqfmt
