// crc32_pclmul.cpp, four times as wide: sixteen 128-bit parts in four vectors. One checksum pass must cost little beside a
// decoder that eats several bytes a nanosecond. No library templates here: see decode_avx512.hpp.
#include <immintrin.h>

#include "crc32.hpp"
#include "crc32_fold.hpp"

namespace spqfmt {
namespace {

inline __m512i constants(unsigned distance_bits) {
  return _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<long long>(fold_constant(distance_bits - 32)),
                                               static_cast<long long>(fold_constant(distance_bits + 32))));
}

inline __m512i fold(__m512i part, __m512i by, __m512i later) {
  const __m512i first = _mm512_clmulepi64_epi128(part, by, 0x00), second = _mm512_clmulepi64_epi128(part, by, 0x11);
  return _mm512_ternarylogic_epi64(first, second, later, 0x96);  // xor of three
}

}  // namespace

uint32_t crc32_vpclmul(uint32_t value, const uint8_t* src, size_t n_bytes) {
  if (n_bytes < 512) return crc32_pclmul(value, src, n_bytes);
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(src + 64 * i);
  part[0] = _mm512_xor_si512(part[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~value))));
  src += 256;
  n_bytes -= 256;
  const __m512i by_2048 = constants(2048);
  for (; n_bytes >= 256; n_bytes -= 256, src += 256) {
    for (int i = 0; i < 4; i++) part[i] = fold(part[i], by_2048, _mm512_loadu_si512(src + 64 * i));
  }
  const __m512i by_512 = constants(512);
  for (int i = 1; i < 4; i++) part[i] = fold(part[i - 1], by_512, part[i]);

  // 64 bytes of a message with the same checksum; ~0 as in crc32_pclmul.
  uint8_t last[64];
  _mm512_storeu_si512(last, part[3]);
  return crc32_pclmul(crc32_scalar(~0u, last, sizeof last), src, n_bytes);
}

}  // namespace spqfmt
