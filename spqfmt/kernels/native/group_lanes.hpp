// What products of integers with a lane for each group are made of, beside integer_lanes.hpp. Of one instruction set, that of the file
// which includes this; see multiply_lanes.hpp.
//
// A block of a row is kVectorLanes lanes' columns, kWords words of four bytes each. In a vector lie whole lanes' words; these are
// exchanged, within 128 bits, so that vector w has word w of every lane. Lane p is then columns of number lane_at<kWords>(p).
#pragma once

#include "integer_lanes.hpp"

namespace spqfmt {
namespace {

template <size_t kWords>
constexpr size_t lane_at(size_t place) {
  const size_t quarter = place / 4, in_quarter = place % 4;
  if (kWords == 4) return 4 * in_quarter + quarter;
  if (kWords == 2) return in_quarter / 2 * 8 + 2 * quarter + in_quarter % 2;
  return place;
}

#if defined(__AVX512VNNI__)
constexpr size_t kBlockTokens = 4;
template <size_t kVectors>
constexpr size_t kBlockRows = kVectors > 4 ? 2 : 4;

template <unsigned kFirst>
inline Ints two_bits(Ints bytes) {
  return _mm512_and_si512(kFirst == 0 ? bytes : _mm512_srli_epi16(bytes, kFirst), _mm512_set1_epi8(3));
}
inline void exchange(Ints (&v)[4]) {
  const Ints a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const Ints c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}
inline void exchange(Ints (&v)[2]) {
  const __m512 a = _mm512_castsi512_ps(v[0]), b = _mm512_castsi512_ps(v[1]);
  v[0] = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
  v[1] = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd));
}
inline void exchange(Ints (&)[1]) {}
inline Sums32 dot_bytes(Sums32 sums, Ints codes, Ints x) { return _mm512_dpbusd_epi32(sums, codes, x); }
inline Sums32 no_sums() { return _mm512_setzero_si512(); }
inline Sums32 of_parts(Sums32 high, Sums32 low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 7), low); }
// Bytes of sixteen groups, or of eight and zeros, as numbers of lanes: lane i of a unit is that at place[i].
inline Reals lane_numbers(__m128i bytes, const uint8_t* places, bool have_sign) {
  const __m128i placed = _mm_shuffle_epi8(bytes, _mm_load_si128(reinterpret_cast<const __m128i*>(places)));
  return to_reals(have_sign ? _mm512_cvtepi8_epi32(placed) : _mm512_cvtepu8_epi32(placed));
}
// The step of all lanes, or that of the first and of the last two of each four.
template <bool kTwo>
inline Reals lane_steps(const float* from) {
  if (!kTwo) return same_reals(*from);
  double both;
  std::memcpy(&both, from, sizeof both);
  return _mm512_permute_ps(_mm512_castpd_ps(_mm512_set1_pd(both)), 0x50);
}
#elif defined(__AVX2__)
constexpr size_t kBlockTokens = 1;
template <size_t kVectors>
constexpr size_t kBlockRows = 1;

template <unsigned kFirst>
inline Ints two_bits(Ints bytes) {
  return _mm256_and_si256(kFirst == 0 ? bytes : _mm256_srli_epi16(bytes, kFirst), _mm256_set1_epi8(3));
}
inline void exchange(Ints (&v)[4]) {
  const Ints a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const Ints c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(a, c);
  v[1] = _mm256_unpackhi_epi64(a, c);
  v[2] = _mm256_unpacklo_epi64(b, d);
  v[3] = _mm256_unpackhi_epi64(b, d);
}
inline void exchange(Ints (&v)[2]) {
  const __m256 a = _mm256_castsi256_ps(v[0]), b = _mm256_castsi256_ps(v[1]);
  v[0] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
  v[1] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
}
inline void exchange(Ints (&)[1]) {}
// Sums of two products have 16 bits: of codes up to 255 and parts up to 64 they need 15.
inline Sums32 dot_bytes(Sums32 sums, Ints codes, Ints x) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}
inline Sums32 no_sums() { return _mm256_setzero_si256(); }
inline Sums32 of_parts(Sums32 high, Sums32 low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 7), low); }
inline Reals lane_numbers(__m128i bytes, const uint8_t* places, bool have_sign) {
  const __m128i placed = _mm_shuffle_epi8(bytes, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places)));
  return to_reals(have_sign ? _mm256_cvtepi8_epi32(placed) : _mm256_cvtepu8_epi32(placed));
}
template <bool kTwo>
inline Reals lane_steps(const float* from) {
  if (!kTwo) return same_reals(*from);
  double both;
  std::memcpy(&both, from, sizeof both);
  return _mm256_permute_ps(_mm256_castpd_ps(_mm256_set1_pd(both)), 0x50);
}
#else
constexpr size_t kBlockTokens = 1;
template <size_t kVectors>
constexpr size_t kBlockRows = 1;

template <unsigned kFirst>
inline Ints two_bits(Ints bytes) {
  for (int8_t& byte : bytes.byte) byte = static_cast<int8_t>(static_cast<uint8_t>(byte) >> kFirst & 3);
  return bytes;
}
template <size_t kWords>
inline void exchange(Ints (&v)[kWords]) {
  Ints from[kWords];
  for (size_t w = 0; w < kWords; w++) from[w] = v[w];
  for (size_t place = 0; place < kVectorLanes; place++) {
    const size_t lane = lane_at<kWords>(place), per_vector = kVectorLanes / kWords;
    for (size_t w = 0; w < kWords; w++) {
      std::memcpy(v[w].byte + 4 * place, from[lane / per_vector].byte + 4 * (lane % per_vector * kWords + w), 4);
    }
  }
}
inline Sums32 dot_bytes(Sums32 sums, const Ints& codes, const Ints& x) {
  for (size_t i = 0; i < kVectorLanes; i++) {
    for (size_t k = 4 * i; k < 4 * i + 4; k++) sums.of[i] += static_cast<uint8_t>(codes.byte[k]) * x.byte[k];
  }
  return sums;
}
inline Sums32 no_sums() { return {}; }
inline Sums32 of_parts(const Sums32& high, Sums32 low) {
  for (size_t i = 0; i < kVectorLanes; i++) low.of[i] += 128 * high.of[i];
  return low;
}
template <bool kTwo>
inline Reals lane_steps(const float* from) {
  return each([&](size_t i) { return from[kTwo ? i % 4 / 2 : 0]; });
}
#endif
#if defined(__AVX2__)
using GroupBytes = __m128i;
// Sixteen, or eight and zeros.
inline GroupBytes load_groups(const uint8_t* from, bool are_eight) {
  return are_eight ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)) : _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
#else
struct GroupBytes {
  uint8_t byte[kVectorLanes];
};
inline GroupBytes load_groups(const uint8_t* from, bool are_eight) {
  GroupBytes bytes{};
  std::memcpy(bytes.byte, from, are_eight ? kVectorLanes / 2 : kVectorLanes);
  return bytes;
}
inline Reals lane_numbers(const GroupBytes& bytes, const uint8_t* places, bool have_sign) {
  return each([&](size_t i) {
    const uint8_t byte = bytes.byte[places[i]];
    return have_sign ? static_cast<float>(static_cast<int8_t>(byte)) : static_cast<float>(byte);
  });
}
#endif

}  // namespace
}  // namespace spqfmt
