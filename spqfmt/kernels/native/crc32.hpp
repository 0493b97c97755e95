// CRC-32 as in zlib: polynomial 0xEDB88320 reflected, initial value and result inverted.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// Continues the checksum `value` of earlier bytes (0 at the start) over `n_bytes` more.
using Crc32 = uint32_t (*)(uint32_t value, const uint8_t* src, size_t n_bytes);

uint32_t crc32_scalar(uint32_t value, const uint8_t* src, size_t n_bytes);
uint32_t crc32_pclmul(uint32_t value, const uint8_t* src, size_t n_bytes);
uint32_t crc32_arm(uint32_t value, const uint8_t* src, size_t n_bytes);
uint32_t crc32_vpclmul(uint32_t value, const uint8_t* src, size_t n_bytes);

}  // namespace spqfmt
