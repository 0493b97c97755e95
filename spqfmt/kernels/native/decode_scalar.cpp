// The plain decoder: every other one must give what this gives.
#include "decoder.hpp"
#include "frequencies.hpp"
#include "little_endian.hpp"

namespace spqfmt {

void build_decode_table(const Frequencies& frequencies, DecodeTable& table) {
  uint32_t* slot = table.slot;
  for (uint32_t s = 0; s < 256; s++) {
    const uint32_t freq = frequencies.of[s];
    for (uint32_t k = 0; k < freq; k++) *slot++ = freq << 20 | s << 12 | k;
  }
}

namespace {

void decode_block(DecodeCursor& cursor, size_t n_groups, const uint32_t* table) {
  uint32_t x[kLanes];
  for (unsigned lane = 0; lane < kLanes; lane++) x[lane] = cursor.state[lane];
  const uint8_t* next = cursor.next;
  uint8_t* out = cursor.out;
  for (size_t group = 0; group < n_groups; group++, out += kGroupSymbols) {
    next = next < cursor.clamp ? next : cursor.clamp;
    for (unsigned step = 0; step < 4; step++) {
#pragma GCC unroll 32
      for (unsigned lane = 0; lane < kLanes; lane++) {
        const uint32_t entry = table[x[lane] & (kFreqTotal - 1)];
        out[4 * lane + step] = static_cast<uint8_t>(entry >> 12);
        const uint32_t v = (entry >> 20) * (x[lane] >> kFreqBits) + (entry & 0xfff);
        // "if (v < 2^16) take a word", as arithmetic: compilers turn a conditional expression into a branch,
        // and this one is as good as random. `low` is 1 where a word is taken.
        const uint64_t low = (static_cast<uint64_t>(v) - kStateFloor) >> 63;
        const uint32_t refilled = v << 16 | load_u16(next);
        x[lane] = v + ((refilled - v) & (0u - static_cast<uint32_t>(low)));
        next += 2 * low;
      }
    }
  }
  for (unsigned lane = 0; lane < kLanes; lane++) cursor.state[lane] = x[lane];
  cursor.next = next;
  cursor.out = out;
}

}  // namespace

void decode_groups_scalar(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table) {
  for (size_t i = 0; i < n_cursors; i++) decode_block(cursors[i], n_groups, table.slot);
}

}  // namespace spqfmt
