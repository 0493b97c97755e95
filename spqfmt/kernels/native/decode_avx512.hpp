// Decoder for AVX-512 with VBMI2: a block's 32 states are two vectors, the low words and the high words ("planar"), and
// up to eight blocks advance in lockstep, because one block alone waits for its gathers most of the time.
//
// Equal to decode_scalar.cpp, step by step, with x = hi:lo, f = freq, k = slot - cum:
//   * f * (x >> 12) + k = f * (16 hi + (lo >> 12)) + k = (f << 4) * hi + f * (lo >> 12) + k.
//   * f <= 4095 by the format, so f4 = f << 4 fits a word; it is read from the table's high half without a shift.
//   * f * (lo >> 12) = f4 * (lo & 0xf000) >> 16: a high multiply.
//   * r = f * (lo >> 12) + k <= 4095 * 15 + 4094 < 2^16: no carry.
//   * f4 * hi is 32 bits: low and high multiply. Adding r to its low half carries where the sum is below r.
//   * The result is below 2^16 where its high half is 0. There x << 16 | word has the old low half as high half and the
//     word as low half; expand deals the words to those lanes in ascending order, as the format says.
//
// Table entries come by gather instructions or by single loads (table_loads.hpp), whichever the processor does faster: kGather.
// With gathers the steps of all blocks go stage by stage, so that the gathers of one block run under the arithmetic of another;
// with loads the instructions of a block are many enough that this happens by itself.
//
// This file is compiled with instruction sets that not every machine has: it must not instantiate library templates, which
// the linker could keep for everyone. Hence plain arrays and internal linkage only.
#pragma once

#include <immintrin.h>

#include "decoder.hpp"
#include "table_loads.hpp"

// The states live in registers only if everything inside the loop is inlined.
#define SPQFMT_INLINE __attribute__((always_inline)) inline

namespace spqfmt {
namespace {

struct Constants {
  const __m512i slot_word = _mm512_set1_epi16(0x0fff);
  const __m512i slot_dword = _mm512_set1_epi32(0x0fff);
  const __m512i freq4 = _mm512_set1_epi16(static_cast<short>(0xfff0));
  const __m512i top4 = _mm512_set1_epi16(static_cast<short>(0xf000));
  const __m512i low_word = _mm512_set1_epi32(0xffff);
  const __m512i low_byte = _mm512_set1_epi16(0x00ff);
  const __m512i one = _mm512_set1_epi16(1);
};

inline __m512i select(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

// Indices that pick every step-th word of two vectors, and indices that interleave two vectors of words.
inline __m512i word_indices(unsigned first, unsigned step) {
  alignas(64) uint16_t index[32];
  for (unsigned i = 0; i < 32; i++) index[i] = static_cast<uint16_t>(first + step * i);
  return _mm512_load_si512(index);
}

inline __m512i zip_indices(unsigned first) {
  alignas(64) uint16_t index[32];
  for (unsigned i = 0; i < 32; i++) index[i] = static_cast<uint16_t>(first + i / 2 + 32 * (i % 2));
  return _mm512_load_si512(index);
}

inline __m512i join(__m128i a, __m128i b, __m128i c, __m128i d) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// The table entries of the 32 slots in lo, as their low and their high halves.
template <bool kGather>
SPQFMT_INLINE void look_up(const uint32_t* table, __m512i lo, const Constants& c, __m512i& low_half, __m512i& high_half) {
  const __m512i slots = _mm512_and_si512(lo, c.slot_word);
  __m512i even, odd;
  if constexpr (kGather) {
    even = _mm512_i32gather_epi32(_mm512_and_si512(lo, c.slot_dword), table, 4);
    odd = _mm512_i32gather_epi32(_mm512_srli_epi32(slots, 16), table, 4);
  } else {
    __m128i e0, e1, e2, e3, o0, o1, o2, o3;
    load_even_odd(table, _mm512_castsi512_si128(slots), e0, o0);
    load_even_odd(table, _mm512_extracti32x4_epi32(slots, 1), e1, o1);
    load_even_odd(table, _mm512_extracti32x4_epi32(slots, 2), e2, o2);
    load_even_odd(table, _mm512_extracti32x4_epi32(slots, 3), e3, o3);
    even = join(e0, e1, e2, e3);
    odd = join(o0, o1, o2, o3);
  }
  low_half = select(c.low_word, even, _mm512_slli_epi32(odd, 16));
  high_half = select(c.low_word, _mm512_srli_epi32(even, 16), odd);
}

// One step of one block, all but the look-up.
template <unsigned kStep>
SPQFMT_INLINE void advance(__m512i low_half, __m512i high_half, const Constants& c, __m512i& lo, __m512i& hi, const uint8_t*& next,
                    __m512i& pair) {
  const __m512i f4 = _mm512_and_si512(high_half, c.freq4);
  const __m512i r =
      _mm512_add_epi16(_mm512_mulhi_epu16(f4, _mm512_and_si512(lo, c.top4)), _mm512_and_si512(low_half, c.slot_word));
  const __m512i new_lo = _mm512_add_epi16(_mm512_mullo_epi16(f4, hi), r);
  __m512i new_hi = _mm512_mulhi_epu16(f4, hi);
  new_hi = _mm512_mask_add_epi16(new_hi, _mm512_cmplt_epu16_mask(new_lo, r), new_hi, c.one);
  // The symbol straddles the halves: its low 4 bits end the low one, its high 4 bits begin the high one.
  const __m512i symbol = _mm512_shldi_epi16(high_half, low_half, kStep % 2 == 0 ? 4 : 12);
  pair = kStep % 2 == 0 ? symbol : select(c.low_byte, pair, symbol);
  const __mmask32 refill = _mm512_testn_epi16_mask(new_hi, new_hi);
  hi = _mm512_mask_mov_epi16(new_hi, refill, new_lo);
  lo = _mm512_mask_expand_epi16(new_lo, refill, _mm512_loadu_si512(next));
  next += 2 * static_cast<unsigned>(_mm_popcnt_u32(refill));
}

template <unsigned kBlocks, bool kGather, unsigned kStep>
SPQFMT_INLINE void step_all(const uint32_t* table, const Constants& c, __m512i* lo, __m512i* hi, const uint8_t** next,
                            __m512i* pair) {
  if constexpr (kGather) {
    __m512i low_half[kBlocks], high_half[kBlocks];
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) look_up<true>(table, lo[b], c, low_half[b], high_half[b]);
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) {
      advance<kStep>(low_half[b], high_half[b], c, lo[b], hi[b], next[b], pair[b]);
    }
  } else {
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) {
      __m512i low_half, high_half;
      look_up<false>(table, lo[b], c, low_half, high_half);
      advance<kStep>(low_half, high_half, c, lo[b], hi[b], next[b], pair[b]);
    }
  }
}

// A block's words and its symbols are each a stream of their own, and with eight blocks there are more of them than the
// hardware's prefetcher follows. The address may lie past a buffer: prefetching never faults, and no pointer is made.
SPQFMT_INLINE void prefetch_ahead(const uint8_t* next, const uint8_t* out) {
  constexpr uintptr_t kAhead = 512;
  const uintptr_t words = reinterpret_cast<uintptr_t>(next) + kAhead, symbols = reinterpret_cast<uintptr_t>(out) + kAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(words), 0, 3);
  __builtin_prefetch(reinterpret_cast<const void*>(words + 64), 0, 3);
  __builtin_prefetch(reinterpret_cast<const void*>(symbols), 1, 3);
  __builtin_prefetch(reinterpret_cast<const void*>(symbols + 64), 1, 3);
}

template <unsigned kBlocks, bool kGather>
void decode(DecodeCursor* cursors, size_t n_groups, const uint32_t* table) {
  const Constants c;
  const __m512i even = word_indices(0, 2), odd = word_indices(1, 2);
  __m512i lo[kBlocks], hi[kBlocks];
  const uint8_t* next[kBlocks];
  for (unsigned b = 0; b < kBlocks; b++) {
    const __m512i first = _mm512_load_si512(cursors[b].state), second = _mm512_load_si512(cursors[b].state + 16);
    lo[b] = _mm512_permutex2var_epi16(first, even, second);
    hi[b] = _mm512_permutex2var_epi16(first, odd, second);
    next[b] = cursors[b].next;
  }
  // Four steps leave symbols 0,1 and 2,3 of each lane in two vectors of words; unpacking joins them to the lane's four
  // bytes, and these two orders of quadwords undo what unpacking does within 128-bit parts.
  const __m512i out_first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i out_second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);

  for (size_t group = 0; group < n_groups; group++) {
    __m512i pair01[kBlocks], pair23[kBlocks];
    for (unsigned b = 0; b < kBlocks; b++) {
      next[b] = next[b] < cursors[b].clamp ? next[b] : cursors[b].clamp;
      prefetch_ahead(next[b], cursors[b].out + group * kGroupSymbols);
    }
    step_all<kBlocks, kGather, 0>(table, c, lo, hi, next, pair01);
    step_all<kBlocks, kGather, 1>(table, c, lo, hi, next, pair01);
    step_all<kBlocks, kGather, 2>(table, c, lo, hi, next, pair23);
    step_all<kBlocks, kGather, 3>(table, c, lo, hi, next, pair23);
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) {
      const __m512i u = _mm512_unpacklo_epi16(pair01[b], pair23[b]), v = _mm512_unpackhi_epi16(pair01[b], pair23[b]);
      uint8_t* out = cursors[b].out + group * kGroupSymbols;
      _mm512_storeu_si512(out, _mm512_permutex2var_epi64(u, out_first, v));
      _mm512_storeu_si512(out + 64, _mm512_permutex2var_epi64(u, out_second, v));
    }
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    _mm512_store_si512(cursors[b].state, _mm512_permutex2var_epi16(lo[b], zip_indices(0), hi[b]));
    _mm512_store_si512(cursors[b].state + 16, _mm512_permutex2var_epi16(lo[b], zip_indices(16), hi[b]));
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
