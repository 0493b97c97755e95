// For SSE4.1 and AVX2: deal the next words to those of eight lanes that take one.
#pragma once

#include <smmintrin.h>

#include <cstdint>

#include "expand_table.hpp"

namespace spqfmt {

static inline __m128i expand_words(const uint8_t* next, uint32_t mask) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(next));
  return _mm_shuffle_epi8(words, _mm_load_si128(reinterpret_cast<const __m128i*>(kExpand.row[mask])));
}

}  // namespace spqfmt
