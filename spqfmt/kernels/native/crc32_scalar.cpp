// Eight bytes a round: table[k][b] is the checksum of byte b followed by k zero bytes, and checksums of the
// bytes of a word add up (xor) because CRC is linear.
#include <array>

#include "crc32.hpp"
#include "little_endian.hpp"

namespace spqfmt {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t b = 0; b < 256; b++) {
    uint32_t r = b;
    for (int i = 0; i < 8; i++) r = r >> 1 ^ (r & 1 ? 0xEDB88320u : 0u);
    t[0][b] = r;
  }
  for (size_t k = 1; k < 8; k++) {
    for (size_t b = 0; b < 256; b++) t[k][b] = t[k - 1][b] >> 8 ^ t[0][t[k - 1][b] & 255];
  }
  return t;
}

constexpr Tables kTables = make_tables();

}  // namespace

uint32_t crc32_scalar(uint32_t value, const uint8_t* src, size_t n_bytes) {
  uint32_t r = ~value;
  for (; n_bytes >= 8; n_bytes -= 8, src += 8) {
    const uint32_t a = r ^ load_u32(src), b = load_u32(src + 4);
    r = kTables[7][a & 255] ^ kTables[6][a >> 8 & 255] ^ kTables[5][a >> 16 & 255] ^ kTables[4][a >> 24] ^
        kTables[3][b & 255] ^ kTables[2][b >> 8 & 255] ^ kTables[1][b >> 16 & 255] ^ kTables[0][b >> 24];
  }
  for (; n_bytes > 0; n_bytes--, src++) r = r >> 8 ^ kTables[0][(r ^ *src) & 255];
  return ~r;
}

}  // namespace spqfmt
