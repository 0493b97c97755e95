// Encoder for AVX-512: a block's 32 states are two vectors, low words and high words, and four blocks go in lockstep. The bytes
// are those of encode_scalar.cpp.
//
// Tables. freq and cum of a symbol are words: 256 of each are eight registers, and a two-register permutation finds one of 64
// by the low six bits of the symbol. Four of those and a selection by its two high bits are many times faster than gathers.
//
// Division. The scalar step needs q = x / f and r = x % f of a state x < f << 20. Here an estimate in float is corrected:
//   * rcp14 gives (1 + e) / f with |e| <= 2^-14. One Newton step with 2 lowered by 2^-21,
//     R = rcp * (2 - 2^-21 - f * rcp), makes that (1 - e^2 - 2^-21) / f, but for roundings.
//   * Four roundings: half of 2^-24 in the parenthesis, 2^-24 each in R, in x and in x * R; together less than 2^-22.
//     So the estimate is (1 - d) * x / f with 2^-22 < d < 2^-20: not above x / f, and, as x / f < 2^20, less than one below.
//     Truncated it is q or q - 1, whatever the processor's rcp14 is in detail.
//   * x - estimate * f is then r or r + f: one comparison tells. If it is r + f, the result
//     (q - 1) * 4096 + r + f + cum is short of q * 4096 + r + cum by 4096 - f.
//
// A state gives up its low word if x >= f << 20, that is if its high word shifted right by 4 is at least f. Lanes give up words
// from 31 down to 0 and words are stored downwards, so those of one step lie in ascending lane order: one compressed vector.
//
// No library templates here: see decode_avx512.hpp.
#include <immintrin.h>

#include "encoder.hpp"

#define SPQFMT_INLINE __attribute__((always_inline)) inline

namespace spqfmt {
namespace {

SPQFMT_INLINE __m512i select(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xca); }

// Words of even lanes and odd lanes <-> dwords.
SPQFMT_INLINE __m512i join_words(__m512i even, __m512i odd) {
  return select(_mm512_set1_epi32(0xffff), even, _mm512_slli_epi32(odd, 16));
}
SPQFMT_INLINE __m512i even_words(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi32(0xffff)); }
SPQFMT_INLINE __m512i odd_words(__m512i words) { return _mm512_srli_epi32(words, 16); }

// table[symbol] for 32 symbols.
SPQFMT_INLINE __m512i look_up(const uint16_t* table, __m512i symbols, __mmask32 bit6, __mmask32 bit7) {
  __m512i part[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    part[i] = _mm512_permutex2var_epi16(_mm512_load_si512(table + 64 * i), symbols, _mm512_load_si512(table + 64 * i + 32));
  }
  return _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(part[0], bit6, part[1]), bit7,
                               _mm512_mask_mov_epi16(part[2], bit6, part[3]));
}

// 16 states x < freq << 20 after the step.
SPQFMT_INLINE __m512i push(__m512i x, __m512i freq, __m512i cum) {
  const __m512 f = _mm512_cvtepi32_ps(freq);
  const __m512 rcp = _mm512_rcp14_ps(f);
  const __m512 lowered = _mm512_mul_ps(rcp, _mm512_fnmadd_ps(f, rcp, _mm512_set1_ps(2.0f - 1.0f / (1 << 21))));
  const __m512i q = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(x), lowered));
  const __m512i r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, freq));
  const __m512i y = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(q, kFreqBits), r), cum);
  const __m512i missing = _mm512_sub_epi32(_mm512_set1_epi32(kFreqTotal), freq);
  return _mm512_mask_add_epi32(y, _mm512_cmpge_epu32_mask(r, freq), y, missing);
}

SPQFMT_INLINE void encode_step(__m512i symbols, const EncodeTable& table, __m512i& lo, __m512i& hi, uint8_t*& out) {
  const __mmask32 bit6 = _mm512_test_epi16_mask(symbols, _mm512_set1_epi16(0x40));
  const __mmask32 bit7 = _mm512_test_epi16_mask(symbols, _mm512_set1_epi16(0x80));
  const __m512i freq = look_up(table.freq, symbols, bit6, bit7), cum = look_up(table.cum, symbols, bit6, bit7);

  const __mmask32 full = _mm512_cmpge_epu16_mask(_mm512_srli_epi16(hi, 4), freq);
  const unsigned n_words = static_cast<unsigned>(_mm_popcnt_u32(full));
  out -= 2 * n_words;
  _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(_bzhi_u64(0xffffffffu, n_words)),
                           _mm512_maskz_compress_epi16(full, lo));
  lo = _mm512_mask_mov_epi16(lo, full, hi);
  hi = _mm512_maskz_mov_epi16(_knot_mask32(full), hi);

  const __m512i even = push(join_words(lo, hi), even_words(freq), even_words(cum));
  const __m512i odd = push(select(_mm512_set1_epi32(0xffff), odd_words(lo), hi), odd_words(freq), odd_words(cum));
  lo = join_words(even, odd);
  hi = select(_mm512_set1_epi32(0xffff), odd_words(even), odd);
}

// Every step-th word of two vectors from `first` on, and the way back.
SPQFMT_INLINE __m512i word_indices(unsigned first, unsigned step) {
  alignas(64) uint16_t index[32];
  for (unsigned i = 0; i < 32; i++) index[i] = static_cast<uint16_t>(first + step * i);
  return _mm512_load_si512(index);
}
SPQFMT_INLINE __m512i zip_indices(unsigned first) {
  alignas(64) uint16_t index[32];
  for (unsigned i = 0; i < 32; i++) index[i] = static_cast<uint16_t>(first + i / 2 + 32 * (i % 2));
  return _mm512_load_si512(index);
}

template <unsigned kBlocks>
void encode(EncodeCursor* cursors, size_t n_groups, const EncodeTable& table) {
  const __m512i even_index = word_indices(0, 2), odd_index = word_indices(1, 2);
  const __m512i byte = _mm512_set1_epi16(0xff);
  __m512i lo[kBlocks], hi[kBlocks];
  uint8_t* out[kBlocks];
  for (unsigned b = 0; b < kBlocks; b++) {
    const __m512i first = _mm512_load_si512(cursors[b].state), second = _mm512_load_si512(cursors[b].state + 16);
    lo[b] = _mm512_permutex2var_epi16(first, even_index, second);
    hi[b] = _mm512_permutex2var_epi16(first, odd_index, second);
    out[b] = cursors[b].out;
  }
  for (size_t group = 1; group <= n_groups; group++) {
    __m512i symbols01[kBlocks], symbols23[kBlocks];  // a word holds the lane's symbols of two steps
    for (unsigned b = 0; b < kBlocks; b++) {
      const uint8_t* in = cursors[b].in - group * kGroupSymbols;
      const __m512i first = _mm512_loadu_si512(in), second = _mm512_loadu_si512(in + 64);
      symbols01[b] = _mm512_permutex2var_epi16(first, even_index, second);
      symbols23[b] = _mm512_permutex2var_epi16(first, odd_index, second);
    }
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) encode_step(_mm512_srli_epi16(symbols23[b], 8), table, lo[b], hi[b], out[b]);
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) encode_step(_mm512_and_si512(symbols23[b], byte), table, lo[b], hi[b], out[b]);
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) encode_step(_mm512_srli_epi16(symbols01[b], 8), table, lo[b], hi[b], out[b]);
#pragma GCC unroll 8
    for (unsigned b = 0; b < kBlocks; b++) encode_step(_mm512_and_si512(symbols01[b], byte), table, lo[b], hi[b], out[b]);
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    _mm512_store_si512(cursors[b].state, _mm512_permutex2var_epi16(lo[b], zip_indices(0), hi[b]));
    _mm512_store_si512(cursors[b].state + 16, _mm512_permutex2var_epi16(lo[b], zip_indices(16), hi[b]));
    cursors[b].in -= n_groups * kGroupSymbols;
    cursors[b].out = out[b];
  }
}

}  // namespace

void encode_groups_avx512(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table) {
  for (; n_cursors >= 4; n_cursors -= 4, cursors += 4) encode<4>(cursors, n_groups, table);
  if (n_cursors == 3) encode<3>(cursors, n_groups, table);
  if (n_cursors == 2) encode<2>(cursors, n_groups, table);
  if (n_cursors == 1) encode<1>(cursors, n_groups, table);
}

}  // namespace spqfmt
