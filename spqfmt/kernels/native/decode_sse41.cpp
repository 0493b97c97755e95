// Decoder for SSE4.1: four vectors of eight low words and four of eight high words a block, table entries loaded one by one.
// A model for machines without a gather. The arithmetic is that of decode_avx2.hpp, half as wide.
// No library templates here: see decode_avx512.hpp.
#include <smmintrin.h>

#include "decoder.hpp"
#include "expand_words.hpp"

namespace spqfmt {
namespace {

inline __m128i load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

// The entries of four slots, given as the words of `slots`.
inline __m128i entries(const uint32_t* table, uint64_t slots) {
  __m128i e = _mm_cvtsi32_si128(static_cast<int>(table[slots & 0xffff]));
  e = _mm_insert_epi32(e, static_cast<int>(table[slots >> 16 & 0xffff]), 1);
  e = _mm_insert_epi32(e, static_cast<int>(table[slots >> 32 & 0xffff]), 2);
  return _mm_insert_epi32(e, static_cast<int>(table[slots >> 48]), 3);
}

// Bits in each byte value: POPCNT is not part of SSE4.1.
struct BitCounts {
  uint8_t of[256];
};
constexpr BitCounts make_bit_counts() {
  BitCounts counts{};
  for (unsigned m = 1; m < 256; m++) counts.of[m] = static_cast<uint8_t>(counts.of[m / 2] + m % 2);
  return counts;
}
constexpr BitCounts kBitCounts = make_bit_counts();

template <unsigned kBlocks>
void decode(DecodeCursor* cursors, size_t n_groups, const uint32_t* table) {
  constexpr unsigned kVectors = 4 * kBlocks;
  const __m128i slot_word = _mm_set1_epi16(0x0fff), low_word = _mm_set1_epi32(0xffff), low_byte = _mm_set1_epi16(0x00ff);
  const __m128i freq4 = _mm_set1_epi16(static_cast<short>(0xfff0)), top4 = _mm_set1_epi16(static_cast<short>(0xf000));
  const __m128i one = _mm_set1_epi16(1), zero = _mm_setzero_si128();

  __m128i lo[kVectors], hi[kVectors];
  const uint8_t* next[kBlocks];
  for (unsigned v = 0; v < kVectors; v++) {
    alignas(16) uint16_t low[8], high[8];
    for (unsigned i = 0; i < 8; i++) {
      const uint32_t state = cursors[v / 4].state[8 * (v % 4) + i];
      low[i] = static_cast<uint16_t>(state);
      high[i] = static_cast<uint16_t>(state >> 16);
    }
    lo[v] = load(low);
    hi[v] = load(high);
  }
  for (unsigned b = 0; b < kBlocks; b++) next[b] = cursors[b].next;

  for (size_t group = 0; group < n_groups; group++) {
    __m128i pair01[kVectors], pair23[kVectors];
    for (unsigned b = 0; b < kBlocks; b++) next[b] = next[b] < cursors[b].clamp ? next[b] : cursors[b].clamp;
#pragma GCC unroll 4
    for (unsigned step = 0; step < 4; step++) {
#pragma GCC unroll 8
      for (unsigned v = 0; v < kVectors; v++) {
        const __m128i slots = _mm_and_si128(lo[v], slot_word);
        const __m128i first = entries(table, static_cast<uint64_t>(_mm_cvtsi128_si64(slots)));
        const __m128i second = entries(table, static_cast<uint64_t>(_mm_extract_epi64(slots, 1)));
        const __m128i low_half = _mm_packus_epi32(_mm_and_si128(first, low_word), _mm_and_si128(second, low_word));
        const __m128i high_half = _mm_packus_epi32(_mm_srli_epi32(first, 16), _mm_srli_epi32(second, 16));

        const __m128i f4 = _mm_and_si128(high_half, freq4);
        const __m128i r = _mm_add_epi16(_mm_mulhi_epu16(f4, _mm_and_si128(lo[v], top4)), _mm_and_si128(low_half, slot_word));
        const __m128i new_lo = _mm_add_epi16(_mm_mullo_epi16(f4, hi[v]), r);
        const __m128i no_carry = _mm_cmpeq_epi16(_mm_max_epu16(new_lo, r), new_lo);
        const __m128i new_hi = _mm_add_epi16(_mm_add_epi16(_mm_mulhi_epu16(f4, hi[v]), one), no_carry);
        const __m128i symbol = _mm_or_si128(_mm_srli_epi16(low_half, 12), _mm_slli_epi16(high_half, 4));
        __m128i& pair = step < 2 ? pair01[v] : pair23[v];
        pair = step % 2 == 0 ? symbol : _mm_or_si128(_mm_and_si128(pair, low_byte), _mm_slli_epi16(symbol, 8));

        const __m128i refill = _mm_cmpeq_epi16(new_hi, zero);
        const uint32_t mask = static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(refill, zero)));
        hi[v] = _mm_or_si128(new_hi, _mm_and_si128(new_lo, refill));
        lo[v] = _mm_or_si128(_mm_andnot_si128(refill, new_lo), expand_words(next[v / 4], mask));
        next[v / 4] += 2 * kBitCounts.of[mask];
      }
    }
    for (unsigned v = 0; v < kVectors; v++) {
      uint8_t* out = cursors[v / 4].out + group * kGroupSymbols + 32 * (v % 4);
      store(out, _mm_unpacklo_epi16(pair01[v], pair23[v]));
      store(out + 16, _mm_unpackhi_epi16(pair01[v], pair23[v]));
    }
  }
  for (unsigned v = 0; v < kVectors; v++) {
    alignas(16) uint16_t low[8], high[8];
    store(low, lo[v]);
    store(high, hi[v]);
    for (unsigned i = 0; i < 8; i++) cursors[v / 4].state[8 * (v % 4) + i] = static_cast<uint32_t>(high[i]) << 16 | low[i];
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    cursors[b].next = next[b];
    cursors[b].out += n_groups * kGroupSymbols;
  }
}

}  // namespace

void decode_groups_sse41(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table) {
  for (; n_cursors >= 2; n_cursors -= 2, cursors += 2) decode<2>(cursors, n_groups, table.slot);
  if (n_cursors == 1) decode<1>(cursors, n_groups, table.slot);
}

}  // namespace spqfmt
