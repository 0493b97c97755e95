// Unaligned little-endian loads and stores. One move each on a little-endian machine, right on any.
// Everything is `static`: these are compiled with several instruction sets and must not be merged by the linker.
#pragma once

#include <cstdint>
#include <cstring>

namespace spqfmt {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint16_t little(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t little(uint32_t v) { return __builtin_bswap32(v); }
#else
static inline uint16_t little(uint16_t v) { return v; }
static inline uint32_t little(uint32_t v) { return v; }
#endif

static inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return little(v);
}
static inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return little(v);
}
static inline void store_u16(uint8_t* p, uint16_t v) {
  v = little(v);
  std::memcpy(p, &v, sizeof v);
}
static inline void store_u32(uint8_t* p, uint32_t v) {
  v = little(v);
  std::memcpy(p, &v, sizeof v);
}

}  // namespace spqfmt
