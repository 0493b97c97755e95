// ARM's CRC32 instructions (not CRC32C) have this polynomial, in this order of bits: eight bytes each. No library templates
// here: see decode_avx512.hpp.
#include <arm_acle.h>

#include <cstring>

#include "crc32.hpp"

namespace spqfmt {

uint32_t crc32_arm(uint32_t value, const uint8_t* src, size_t n_bytes) {
  uint32_t r = ~value;
  for (; n_bytes >= 8; n_bytes -= 8, src += 8) {
    uint64_t eight;
    std::memcpy(&eight, src, sizeof eight);
    r = __crc32d(r, eight);
  }
  for (; n_bytes > 0; n_bytes--, src++) r = __crc32b(r, *src);
  return ~r;
}

}  // namespace spqfmt
