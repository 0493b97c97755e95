// The loop of narrow.hpp. Included by one file for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace spqfmt {
namespace {

// Two codes a byte, the first in the low half, each `least` more than its half: `n` codes.
void widen_halves(const uint8_t* halves, size_t n, uint8_t least, uint8_t* codes) {
  size_t i = 0;
  // The halves of a byte become a word's two bytes: the word is or-ed with itself moved by a half.
#if defined(__AVX512BW__)
  const __m512i half = _mm512_set1_epi8(15), more = _mm512_set1_epi8(static_cast<char>(least));
  for (; i + 64 <= n; i += 64) {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i / 2)));
    const __m512i both = _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), half);
    _mm512_storeu_si512(codes + i, _mm512_add_epi8(both, more));
  }
#elif defined(__AVX2__)
  const __m256i half = _mm256_set1_epi8(15), more = _mm256_set1_epi8(static_cast<char>(least));
  for (; i + 32 <= n; i += 32) {
    const __m256i words = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i / 2)));
    const __m256i both = _mm256_and_si256(_mm256_or_si256(words, _mm256_slli_epi16(words, 4)), half);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), _mm256_add_epi8(both, more));
  }
#endif
  for (; i < n; i++) codes[i] = static_cast<uint8_t>(least + (halves[i / 2] >> (i % 2 * 4) & 15));
}

}  // namespace
}  // namespace spqfmt
