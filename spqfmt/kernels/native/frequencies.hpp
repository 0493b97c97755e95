// The frequency table of a rans chunk: how many of the 4096 slots each symbol owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

struct Frequencies {
  uint16_t of[256] = {};  // 0: the symbol does not occur; else 1..4095; the sum is 4096
};

// Longest bit stream: 256 symbols of 4 + 11 bits.
inline constexpr size_t kMaxTableBytes = 256 * 15 / 8;

// Counts of bytes -> frequencies, near the fewest bits. At least two counts must be non-zero.
// Integers only, so that every machine packs to the same bytes.
Frequencies normalize(const uint64_t counts[256]);

// First and last symbol of non-zero frequency.
unsigned first_symbol(const Frequencies& frequencies);
unsigned last_symbol(const Frequencies& frequencies);

// Writes the bit stream (without its padding) and returns its bytes, at most kMaxTableBytes.
size_t write_frequencies(const Frequencies& frequencies, uint8_t* dst);

// Reads a bit stream of exactly `n_bytes`. Throws DataError unless every rule of the format holds.
Frequencies read_frequencies(const uint8_t* src, size_t n_bytes, unsigned first, unsigned last);

}  // namespace spqfmt
