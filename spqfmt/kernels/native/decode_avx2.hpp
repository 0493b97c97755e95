// Decoder for AVX2: two vectors of 16 low words and two of 16 high words a block, up to three blocks in lockstep, stage by stage:
// all look-ups of a step, then all arithmetic, then all refills. The stages give the out-of-order window independent work.
//
// The arithmetic and the argument for its equality with decode_scalar.cpp are those of decode_avx512.hpp, where kGather is
// explained too. What AVX2 lacks:
//   * unsigned compare: new_lo < r where max(new_lo, r) != new_lo; all-ones of "no carry" is -1, so 1 + (-1) = 0 adds nothing;
//   * expand: a byte shuffle from a table, for eight lanes at a time.
// No library templates here: see decode_avx512.hpp.
#pragma once

#include <immintrin.h>

#include "decoder.hpp"
#include "expand_words.hpp"
#include "table_loads.hpp"

// The states live in registers only if everything inside the loop is inlined.
#define SPQFMT_INLINE __attribute__((always_inline)) inline

namespace spqfmt {
namespace {

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

inline uint32_t count(uint32_t mask) { return static_cast<uint32_t>(_mm_popcnt_u32(mask)); }

inline __m256i expand_pair(const uint8_t* low, uint32_t low_mask, const uint8_t* high, uint32_t high_mask) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(expand_words(low, low_mask)), expand_words(high, high_mask), 1);
}

// The table entries of the 16 slots in lo, as their low and their high halves.
template <bool kGather>
SPQFMT_INLINE void look_up(const uint32_t* table, __m256i lo, __m256i& low_half, __m256i& high_half) {
  const __m256i slots = _mm256_and_si256(lo, _mm256_set1_epi16(0x0fff));
  __m256i even, odd;
  if constexpr (kGather) {
    const int* entries = reinterpret_cast<const int*>(table);
    even = _mm256_i32gather_epi32(entries, _mm256_and_si256(lo, _mm256_set1_epi32(0x0fff)), 4);
    odd = _mm256_i32gather_epi32(entries, _mm256_srli_epi32(slots, 16), 4);
  } else {
    __m128i e0, e1, o0, o1;
    load_even_odd(table, _mm256_castsi256_si128(slots), e0, o0);
    load_even_odd(table, _mm256_extracti128_si256(slots, 1), e1, o1);
    even = _mm256_inserti128_si256(_mm256_castsi128_si256(e0), e1, 1);
    odd = _mm256_inserti128_si256(_mm256_castsi128_si256(o0), o1, 1);
  }
  low_half = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  high_half = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
}

template <unsigned kBlocks, bool kGather>
void decode(DecodeCursor* cursors, size_t n_groups, const uint32_t* table) {
  constexpr unsigned kVectors = 2 * kBlocks;
  const __m256i slot_word = _mm256_set1_epi16(0x0fff);
  const __m256i freq4 = _mm256_set1_epi16(static_cast<short>(0xfff0)), top4 = _mm256_set1_epi16(static_cast<short>(0xf000));
  const __m256i low_byte = _mm256_set1_epi16(0x00ff), one = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();

  __m256i lo[kVectors], hi[kVectors];
  const uint8_t* next[kBlocks];
  for (unsigned v = 0; v < kVectors; v++) {
    alignas(32) uint16_t low[16], high[16];
    for (unsigned i = 0; i < 16; i++) {
      const uint32_t state = cursors[v / 2].state[16 * (v % 2) + i];
      low[i] = static_cast<uint16_t>(state);
      high[i] = static_cast<uint16_t>(state >> 16);
    }
    lo[v] = load(low);
    hi[v] = load(high);
  }
  for (unsigned b = 0; b < kBlocks; b++) next[b] = cursors[b].next;

  for (size_t group = 0; group < n_groups; group++) {
    __m256i pair01[kVectors], pair23[kVectors];
    for (unsigned b = 0; b < kBlocks; b++) next[b] = next[b] < cursors[b].clamp ? next[b] : cursors[b].clamp;
#pragma GCC unroll 4
    for (unsigned step = 0; step < 4; step++) {
      __m256i low_half[kVectors], high_half[kVectors];
#pragma GCC unroll 8
      for (unsigned v = 0; v < kVectors; v++) look_up<kGather>(table, lo[v], low_half[v], high_half[v]);
#pragma GCC unroll 8
      for (unsigned v = 0; v < kVectors; v++) {
        const __m256i f4 = _mm256_and_si256(high_half[v], freq4);
        const __m256i r = _mm256_add_epi16(_mm256_mulhi_epu16(f4, _mm256_and_si256(lo[v], top4)),
                                           _mm256_and_si256(low_half[v], slot_word));
        const __m256i new_lo = _mm256_add_epi16(_mm256_mullo_epi16(f4, hi[v]), r);
        const __m256i no_carry = _mm256_cmpeq_epi16(_mm256_max_epu16(new_lo, r), new_lo);
        hi[v] = _mm256_add_epi16(_mm256_add_epi16(_mm256_mulhi_epu16(f4, hi[v]), one), no_carry);
        lo[v] = new_lo;
        const __m256i symbol = _mm256_or_si256(_mm256_srli_epi16(low_half[v], 12), _mm256_slli_epi16(high_half[v], 4));
        __m256i& pair = step < 2 ? pair01[v] : pair23[v];
        pair = step % 2 == 0 ? symbol : _mm256_or_si256(_mm256_and_si256(pair, low_byte), _mm256_slli_epi16(symbol, 8));
      }
      __m256i refill[kVectors];
#pragma GCC unroll 8
      for (unsigned v = 0; v < kVectors; v++) {
        refill[v] = _mm256_cmpeq_epi16(hi[v], zero);
        hi[v] = _mm256_or_si256(hi[v], _mm256_and_si256(lo[v], refill[v]));
        lo[v] = _mm256_andnot_si256(refill[v], lo[v]);
      }
#pragma GCC unroll 4
      for (unsigned b = 0; b < kBlocks; b++) {
        // Packing works within 128-bit halves: the bits come as lanes 0-7, 16-23, 8-15, 24-31.
        const uint32_t mask = static_cast<uint32_t>(
            _mm256_movemask_epi8(_mm256_packs_epi16(refill[2 * b], refill[2 * b + 1])));
        const uint32_t mask0 = mask & 255, mask1 = mask >> 16 & 255, mask2 = mask >> 8 & 255, mask3 = mask >> 24;
        const uint8_t* next0 = next[b];
        const uint8_t* next1 = next0 + 2 * count(mask0);
        const uint8_t* next2 = next1 + 2 * count(mask1);
        const uint8_t* next3 = next2 + 2 * count(mask2);
        next[b] += 2 * count(mask);  // not from next3: the step after waits for this one alone
        lo[2 * b] = _mm256_or_si256(lo[2 * b], expand_pair(next0, mask0, next1, mask1));
        lo[2 * b + 1] = _mm256_or_si256(lo[2 * b + 1], expand_pair(next2, mask2, next3, mask3));
      }
    }
#pragma GCC unroll 8
    for (unsigned v = 0; v < kVectors; v++) {
      const __m256i u = _mm256_unpacklo_epi16(pair01[v], pair23[v]), w = _mm256_unpackhi_epi16(pair01[v], pair23[v]);
      uint8_t* out = cursors[v / 2].out + group * kGroupSymbols + 64 * (v % 2);
      store(out, _mm256_permute2x128_si256(u, w, 0x20));
      store(out + 32, _mm256_permute2x128_si256(u, w, 0x31));
    }
  }
  for (unsigned v = 0; v < kVectors; v++) {
    alignas(32) uint16_t low[16], high[16];
    store(low, lo[v]);
    store(high, hi[v]);
    for (unsigned i = 0; i < 16; i++) {
      cursors[v / 2].state[16 * (v % 2) + i] = static_cast<uint32_t>(high[i]) << 16 | low[i];
    }
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    cursors[b].next = next[b];
    cursors[b].out += n_groups * kGroupSymbols;
  }
}

// Up to kMost blocks in lockstep.
template <unsigned kMost, bool kGather>
inline void decode_groups(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const uint32_t* table) {
  for (; n_cursors >= kMost; n_cursors -= kMost, cursors += kMost) decode<kMost, kGather>(cursors, n_groups, table);
  if constexpr (kMost > 1) decode_groups<kMost - 1, kGather>(cursors, n_cursors, n_groups, table);
}

}  // namespace
}  // namespace spqfmt
