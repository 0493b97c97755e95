#include "turn.hpp"

#include <algorithm>
#include <cstring>

#include "bitstream.hpp"
#include "team.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace spqfmt {
namespace {

constexpr size_t kSide = 16;

#if defined(__SSE2__)
// 16 x 16 bytes: interleaving halves four times turns the square.
void turn_square(const uint8_t* src, size_t src_stride, uint8_t* dst, size_t dst_stride) {
  __m128i rows[kSide], next[kSide];
  for (size_t i = 0; i < kSide; i++) rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i * src_stride));
  for (int round = 0; round < 4; round++) {
    for (size_t i = 0; i < kSide / 2; i++) {
      next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + kSide / 2]);
      next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + kSide / 2]);
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (size_t i = 0; i < kSide; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i * dst_stride), rows[i]);
}
#else
void turn_square(const uint8_t* src, size_t src_stride, uint8_t* dst, size_t dst_stride) {
  for (size_t i = 0; i < kSide; i++) {
    for (size_t j = 0; j < kSide; j++) dst[i * dst_stride + j] = src[j * src_stride + i];
  }
}
#endif

// Rows begin to end of dst.
void turn_bytes(const uint8_t* src, size_t n_channels, size_t width, uint8_t* dst, size_t begin, size_t end) {
  for (size_t i = begin; i < end; i += kSide) {
    const size_t n = std::min(kSide, end - i);
    for (size_t j = 0; j < n_channels; j += kSide) {
      const size_t m = std::min(kSide, n_channels - j);
      if (n == kSide && m == kSide) {
        turn_square(src + j * width + i, width, dst + i * n_channels + j, n_channels);
        continue;
      }
      for (size_t a = i; a < i + n; a++) {
        for (size_t b = j; b < j + m; b++) dst[a * n_channels + b] = src[b * width + a];
      }
    }
  }
}

void turn_packed(const uint8_t* src, size_t n_channels, size_t width, unsigned bits, uint8_t* dst) {
  const size_t in_byte = 8 / bits;
  const unsigned mask = (1u << bits) - 1;
  std::memset(dst, 0, ceil_div(n_channels * width, in_byte));
  for (size_t i = 0; i < width; i++) {
    for (size_t j = 0; j < n_channels; j++) {
      const size_t from = j * width + i, to = i * n_channels + j;
      const unsigned code = src[from / in_byte] >> (from % in_byte * bits) & mask;
      dst[to / in_byte] = static_cast<uint8_t>(dst[to / in_byte] | code << (to % in_byte * bits));
    }
  }
}

}  // namespace

void turn(const uint8_t* src, size_t n_channels, size_t width, unsigned bits, uint8_t* dst, size_t n_threads) {
  if (n_channels == 0 || width == 0) return;  // there may be no buffer, which memset must not be given
  if (bits != 8) {
    turn_packed(src, n_channels, width, bits, dst);
    return;
  }
  const size_t n_bands = ceil_div(width, kSide);
  over_rows(n_bands, kSide * n_channels, n_threads, [&](size_t begin, size_t end) {
    turn_bytes(src, n_channels, width, dst, begin * kSide, std::min(width, end * kSide));
  });
}

}  // namespace spqfmt
