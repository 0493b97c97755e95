// Which bytes of the next words go to which of eight lanes, for the decoders that shuffle bytes.
#pragma once

#include <cstdint>

namespace spqfmt {

// row[m]: a byte shuffle that moves word number popcount(m & (2^lane - 1)) to each lane in m and zero to the others.
struct ExpandTable {
  alignas(16) uint8_t row[256][16];
};

static constexpr ExpandTable make_expand_table() {
  ExpandTable table{};
  for (unsigned mask = 0; mask < 256; mask++) {
    unsigned word = 0;
    for (unsigned lane = 0; lane < 8; lane++) {
      const bool takes = mask >> lane & 1;
      table.row[mask][2 * lane] = static_cast<uint8_t>(takes ? 2 * word : 0x80);
      table.row[mask][2 * lane + 1] = static_cast<uint8_t>(takes ? 2 * word + 1 : 0x80);
      word += takes;
    }
  }
  return table;
}

static constexpr ExpandTable kExpand = make_expand_table();

}  // namespace spqfmt
