// Encoder for AVX2: a block's 32 states are four vectors. The bytes are those of encode_scalar.cpp.
//
// Tables. What a step needs of a symbol, frequency, begin and reciprocal, is one entry of 64 bits. Those of a group's 128 symbols are
// copied first, by single loads and stores, to where vectors take them from: gathers, or inserting into vectors, take longer.
//
// Division. The scalar step needs q = x / f and r = x % f of a state x < f << 20. Here an estimate in float is corrected:
//   * the entry's reciprocal is (1 - 2^-21) / f, but for a rounding of 2^-24. Three more follow: x is off by 2^-24 + 2^-25 at most
//     (where it does not fit in a signed number, 2^32 is added to what is taken for a negative one), the product by 2^-24.
//     So the estimate is (1 - d) * x / f with 2^-22 < d < 2^-20: not above x / f, and, as x / f < 2^20, less than one below.
//   * Truncated it is q or q - 1, and y = x + estimate * (4096 - f) is q * 4096 + r or short of it by 4096 - f. Which of them, tells
//     y - estimate * 4096: it is r, or r + f.
//
// Words. Lanes give up words from 31 down to 0 and words are stored downwards: those of eight lanes lie in ascending order, moved
// to the end of a vector. What is stored before them is overwritten by the next, or lies within the group's own room.
//
// No library templates here: see decode_avx512.hpp.
#include <immintrin.h>

#include "encoder.hpp"

#define SPQFMT_INLINE __attribute__((always_inline)) inline

namespace spqfmt {
namespace {

constexpr unsigned kVector = 8, kVectors = kLanes / kVector;

// Of eight words those whose lane's bit is not set, at the end of 16 bytes.
struct Compaction {
  alignas(64) uint8_t of[256][16];
  constexpr Compaction() : of() {
    for (unsigned stay = 0; stay < 256; stay++) {
      unsigned at = 16;
      for (unsigned lane = kVector; lane-- > 0;) {
        if (stay >> lane & 1) continue;
        of[stay][--at] = static_cast<uint8_t>(2 * lane + 1);
        of[stay][--at] = static_cast<uint8_t>(2 * lane);
      }
      while (at > 0) of[stay][--at] = 0x80;
    }
  }
};
constexpr Compaction kCompaction;

// Entries of a step's lanes: of each eight in the order that shuffling two vectors of four entries takes apart into lanes 0 to 7.
constexpr unsigned kPlace[kVector] = {0, 1, 4, 5, 2, 3, 6, 7};

SPQFMT_INLINE void find_entries(const uint8_t* in, const EncodeTable& table, uint64_t* found) {
#pragma GCC unroll 32
  for (unsigned lane = 0; lane < kLanes; lane++) {
    const unsigned place = lane / kVector * kVector + kPlace[lane % kVector];
#pragma GCC unroll 4
    for (unsigned step = 0; step < 4; step++) found[kLanes * step + place] = table.entry[in[4 * lane + step]];
  }
}

SPQFMT_INLINE void encode_step(const uint64_t* found, __m256i& x, uint8_t*& out) {
  const __m256 first = _mm256_load_ps(reinterpret_cast<const float*>(found));
  const __m256 second = _mm256_load_ps(reinterpret_cast<const float*>(found + 4));
  const __m256i words = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
  const __m256 reciprocal = _mm256_shuffle_ps(first, second, 0xdd);
  const __m256i freq = _mm256_and_si256(words, _mm256_set1_epi32(0xffff)), cum = _mm256_srli_epi32(words, 16);

  const __m256i stays = _mm256_cmpgt_epi32(freq, _mm256_srli_epi32(x, 32 - kFreqBits));
  const unsigned mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(stays)));
  const __m256i low = _mm256_blend_epi16(x, _mm256_setzero_si256(), 0xaa);
  const __m128i given = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out - 16),
                   _mm_shuffle_epi8(given, _mm_load_si128(reinterpret_cast<const __m128i*>(kCompaction.of[mask]))));
  out -= 2 * (kVector - static_cast<unsigned>(_mm_popcnt_u32(mask)));
  x = _mm256_srlv_epi32(x, _mm256_andnot_si256(stays, _mm256_set1_epi32(16)));

  const __m256 beyond = _mm256_and_ps(_mm256_castsi256_ps(_mm256_srai_epi32(x, 31)), _mm256_set1_ps(4294967296.0f));
  const __m256 value = _mm256_add_ps(_mm256_cvtepi32_ps(x), beyond);
  const __m256i q = _mm256_cvttps_epi32(_mm256_mul_ps(value, reciprocal));
  const __m256i missing = _mm256_sub_epi32(_mm256_set1_epi32(kFreqTotal), freq);
  const __m256i y = _mm256_add_epi32(x, _mm256_mullo_epi32(q, missing));
  const __m256i r = _mm256_sub_epi32(y, _mm256_slli_epi32(q, kFreqBits));
  const __m256i rest = _mm256_andnot_si256(_mm256_cmpgt_epi32(freq, r), missing);
  x = _mm256_add_epi32(y, _mm256_add_epi32(cum, rest));
}

SPQFMT_INLINE void encode_block(EncodeCursor& cursor, size_t n_groups, const EncodeTable& table) {
  __m256i* state = reinterpret_cast<__m256i*>(cursor.state);
  __m256i x[kVectors];
  for (unsigned v = 0; v < kVectors; v++) x[v] = _mm256_load_si256(state + v);
  // Of a group and of the next: vectors are loaded long after the single stores, which they would have to wait for.
  alignas(64) uint64_t found[2][kGroupSymbols];
  find_entries(cursor.in - kGroupSymbols, table, found[1]);
  for (size_t group = 1; group <= n_groups; group++) {
    if (group < n_groups) find_entries(cursor.in - (group + 1) * kGroupSymbols, table, found[~group & 1]);
    for (unsigned step = 4; step-- > 0;) {
#pragma GCC unroll 4
      for (unsigned behind = 1; behind <= kVectors; behind++) {
        const unsigned v = kVectors - behind;
        encode_step(found[group & 1] + kLanes * step + kVector * v, x[v], cursor.out);
      }
    }
  }
  for (unsigned v = 0; v < kVectors; v++) _mm256_store_si256(state + v, x[v]);
  cursor.in -= n_groups * kGroupSymbols;
}

}  // namespace

void encode_groups_avx2(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table) {
  if (n_groups == 0) return;
  for (size_t i = 0; i < n_cursors; i++) encode_block(cursors[i], n_groups, table);
}

}  // namespace spqfmt
