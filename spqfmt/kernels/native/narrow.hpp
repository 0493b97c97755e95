// 8-bit codes of low entropy in memory: what nearly all of them are above the least of 16 neighbouring values, in 4 bits each,
// and the others as they are, apart (escapes). A form of memory, never of files.
//
// Bytes: the least value and the number of escapes (u32 each); the halves, the first code of two in the low one; for each
// 4,096 codes, and at the end, the number of its first escape (u32); the escapes' places among these codes (u16), ascending;
// their values (u8).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "bitstream.hpp"
#include "dequantize.hpp"
#include "little_endian.hpp"
#include "multiply.hpp"

namespace spqfmt {

inline constexpr size_t kNarrowHeader = 8, kEscapeBlock = size_t{1} << 12;

struct Narrow {
  const uint8_t* halves;
  const uint8_t* begins;
  const uint8_t* places;
  const uint8_t* values;
  size_t n_codes;
  uint8_t least;
};

// Bytes of `n_codes` with so many escapes.
static inline size_t narrow_bytes(size_t n_codes, size_t n_escapes) {
  return kNarrowHeader + ceil_div(n_codes, 2) + 4 * (ceil_div(n_codes, kEscapeBlock) + 1) + 3 * n_escapes;
}

// Writes the narrow form of `n_codes` codes where `room` bytes are enough for it; else returns false, and `to` is unspecified.
bool narrow_codes(const uint8_t* codes, size_t n_codes, uint8_t* to, size_t room);

// The narrow form in `size` bytes. Throws std::invalid_argument where these are not one of `n_codes` codes.
Narrow narrow_at(const uint8_t* bytes, size_t size, size_t n_codes);

// Codes first..first + n - 1 as they were, for the calling thread.
void widen_codes(const Narrow& narrow, size_t first, size_t n, uint8_t* to);
// All of them, over threads.
void widen_all(const Narrow& narrow, uint8_t* to, size_t n_threads);

// Calls patch(i, value) for the escapes among codes first + i, i below n.
template <typename Patch>
static inline void over_escapes(const Narrow& narrow, size_t first, size_t n, const Patch& patch) {
  for (size_t at = first; at < first + n;) {
    const size_t block = at / kEscapeBlock, begin = block * kEscapeBlock;
    const size_t stop = begin + kEscapeBlock < first + n ? begin + kEscapeBlock : first + n;
    const size_t last = load_u32(narrow.begins + 4 * block + 4);
    // A block has a few at most, mostly none: nothing is searched for.
    for (size_t i = load_u32(narrow.begins + 4 * block); i < last; i++) {
      const size_t place = begin + load_u16(narrow.places + 2 * i);
      if (place >= stop) break;
      if (place >= at) patch(place - first, narrow.values[i]);
    }
    at = stop;
  }
}

// Some rows, part after part of whole rows.
struct NarrowRows {
  struct Part {
    Narrow narrow;
    size_t first, stop;
  };
  const Part* parts;
  size_t n_rows;
};

// What is widened at a time stays in the nearest cache, and is whole rows, as many as the products take at once.
inline constexpr size_t kWidenedBytes = size_t{1} << 14, kWidenedRows = 4;

// Calls run(codes, first, begin, end) for runs of rows first + begin..first + end - 1 that cover begin..end - 1; the codes are
// those of rows from `first` on.
template <typename Run>
inline void over_held(const HeldCodes& held, size_t n_columns, size_t begin, size_t end, const Run& run) {
  if (held.rows == nullptr) {
    run(held.codes, 0, begin, end);
    return;
  }
  const size_t most = kWidenedRows * (1 + kWidenedBytes / (kWidenedRows * n_columns + 1));
  const std::unique_ptr<uint8_t[]> room(new uint8_t[most * n_columns]);
  Codes codes = held.codes;
  codes.bytes = room.get();
  codes.first = 0;
  const NarrowRows::Part* part = held.rows->parts;
  for (size_t row = begin; row < end;) {
    while (part->stop <= row) part++;
    const size_t stop = part->stop < end ? part->stop : end, n = stop - row < most ? stop - row : most;
    widen_codes(part->narrow, (row - part->first) * n_columns, n * n_columns, room.get());
    run(codes, row, 0, n);
    row += n;
  }
}

}  // namespace spqfmt
