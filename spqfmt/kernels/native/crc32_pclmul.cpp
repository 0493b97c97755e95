// Four 128-bit parts folded side by side, then into one, which is 16 bytes of a message with the same checksum: the plain
// function finishes them and the rest. No library templates here: see decode_avx512.hpp.
#include <emmintrin.h>
#include <wmmintrin.h>

#include "crc32.hpp"
#include "crc32_fold.hpp"

namespace spqfmt {
namespace {

inline __m128i load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

inline __m128i fold(__m128i part, __m128i constants, __m128i later) {
  const __m128i first = _mm_clmulepi64_si128(part, constants, 0x00), second = _mm_clmulepi64_si128(part, constants, 0x11);
  return _mm_xor_si128(_mm_xor_si128(first, second), later);
}

inline __m128i constants(uint64_t first, uint64_t second) {
  return _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first));
}

}  // namespace

uint32_t crc32_pclmul(uint32_t value, const uint8_t* src, size_t n_bytes) {
  if (n_bytes < 128) return crc32_scalar(value, src, n_bytes);
  __m128i part[4];
  for (int i = 0; i < 4; i++) part[i] = load(src + 16 * i);
  part[0] = _mm_xor_si128(part[0], _mm_cvtsi32_si128(static_cast<int>(~value)));
  src += 64;
  n_bytes -= 64;
  const __m128i by_512 = constants(fold_constant(512 + 32), fold_constant(512 - 32));
  for (; n_bytes >= 64; n_bytes -= 64, src += 64) {
    for (int i = 0; i < 4; i++) part[i] = fold(part[i], by_512, load(src + 16 * i));
  }
  const __m128i by_128 = constants(fold_constant(128 + 32), fold_constant(128 - 32));
  for (int i = 1; i < 4; i++) part[i] = fold(part[i - 1], by_128, part[i]);
  for (; n_bytes >= 16; n_bytes -= 16, src += 16) part[3] = fold(part[3], by_128, load(src));

  // crc32_scalar inverts its first value; ~0 makes that zero, for `value` is in the message already.
  uint8_t last[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(last), part[3]);
  return crc32_scalar(crc32_scalar(~0u, last, sizeof last), src, n_bytes);
}

}  // namespace spqfmt
