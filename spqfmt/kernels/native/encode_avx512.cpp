// Encoder for AVX-512 with VBMI2: 16 states a vector, four blocks in lockstep. The bytes are those of encode_scalar.cpp.
//
// Equality. The scalar step needs q = x / f and r = x % f of a state x < f << 20. Here a float estimate of q is corrected:
//   * reciprocal_f32 = (1 - 2^-21) / f, rounded; x is rounded to float, the product is rounded: three errors of at most
//     2^-24 each, less than the 2^-21 by which the factor is lowered. So the estimate is at most x / f, and it is at least
//     x / f * (1 - 2^-20). As x / f < 2^20, it is less than one below, and truncation gives q or q - 1.
//   * The remainder x - estimate * f is then r or r + f: one comparison tells which. If it is r + f, the result
//     (q - 1) * 4096 + r + f + cum is short of q * 4096 + r + cum by 4096 - f.
// The states that give up a word are those with x >= f << 20, that is x >> 20 >= f. Lanes give up words from 31 down to 0
// and words are stored downwards, so the words of one step lie in memory in ascending lane order: one compressed vector.
// No library templates here: see decode_avx512.hpp.
#include <immintrin.h>

#include "encoder.hpp"

namespace spqfmt {
namespace {

inline __m512i narrow(__m512i first, __m512i second) {
  const __m256i a = _mm512_cvtepi32_epi16(first), b = _mm512_cvtepi32_epi16(second);
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

template <unsigned kBlocks>
void encode(EncodeCursor* cursors, size_t n_groups, const EncodeTable& table) {
  const __m512i byte = _mm512_set1_epi32(255), cum_mask = _mm512_set1_epi32(0xfffff), total = _mm512_set1_epi32(kFreqTotal);
  __m512i state[kBlocks][2];
  uint8_t* out[kBlocks];
  for (unsigned b = 0; b < kBlocks; b++) {
    for (unsigned h = 0; h < 2; h++) state[b][h] = _mm512_load_si512(cursors[b].state + 16 * h);
    out[b] = cursors[b].out;
  }
  for (size_t group = 1; group <= n_groups; group++) {
    __m512i quads[kBlocks][2];  // the four symbols of each lane
    for (unsigned b = 0; b < kBlocks; b++) {
      const uint8_t* in = cursors[b].in - group * kGroupSymbols;
      for (unsigned h = 0; h < 2; h++) quads[b][h] = _mm512_loadu_si512(in + 64 * h);
    }
#pragma GCC unroll 4
    for (unsigned backwards = 0; backwards < 4; backwards++) {
      const unsigned step = 3 - backwards;
#pragma GCC unroll 8
      for (unsigned b = 0; b < kBlocks; b++) {
        __m512i freq[2], cum[2];
        __m512 reciprocal[2];
        __mmask16 full[2];
#pragma GCC unroll 2
        for (unsigned h = 0; h < 2; h++) {
          const __m512i symbol = _mm512_and_si512(_mm512_srli_epi32(quads[b][h], 8 * step), byte);
          const __m512i entry = _mm512_i32gather_epi32(symbol, table.freq_cum, 4);
          reciprocal[h] = _mm512_i32gather_ps(symbol, table.reciprocal_f32, 4);
          freq[h] = _mm512_srli_epi32(entry, 20);
          cum[h] = _mm512_and_si512(entry, cum_mask);
          full[h] = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(state[b][h], 20), freq[h]);
        }
        const __mmask32 gives = static_cast<__mmask32>(full[0]) | static_cast<__mmask32>(full[1]) << 16;
        const unsigned n_words = static_cast<unsigned>(_mm_popcnt_u32(gives));
        const __m512i words = _mm512_maskz_compress_epi16(gives, narrow(state[b][0], state[b][1]));
        out[b] -= 2 * n_words;
        _mm512_mask_storeu_epi16(out[b], static_cast<__mmask32>(_bzhi_u64(0xffffffffu, n_words)), words);
#pragma GCC unroll 2
        for (unsigned h = 0; h < 2; h++) {
          const __m512i x = _mm512_mask_srli_epi32(state[b][h], full[h], state[b][h], 16);
          const __m512i q = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(x), reciprocal[h]));
          const __m512i r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, freq[h]));
          const __m512i y = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(q, kFreqBits), r), cum[h]);
          const __mmask16 short_by_one = _mm512_cmpge_epu32_mask(r, freq[h]);
          state[b][h] = _mm512_mask_add_epi32(y, short_by_one, y, _mm512_sub_epi32(total, freq[h]));
        }
      }
    }
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    for (unsigned h = 0; h < 2; h++) _mm512_store_si512(cursors[b].state + 16 * h, state[b][h]);
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
