// The chunk records of a stream (FORMAT.md 3.3): checked, and where the planes lie.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// What is asked of the records of one stream. `planes` and `bits` are those of its dtype; its first plane lies at `begin`,
// each other one at the next multiple of `alignment`.
struct ChunkRules {
  size_t planes;
  unsigned bits;
  int64_t begin, alignment;
  bool may_be_empty;
};

// `rows` is int64[n, 1 + 3 * planes]: number of elements, then stored_bytes, codec and crc32 of each plane. Writes to
// `table`, int64[n, 2 + planes]: number of the first element, raw_bytes of a plane, offset of each plane. Returns the
// number of all elements. Throws DataError that names the chunk.
int64_t check_chunks(const int64_t* rows, size_t n, const ChunkRules& rules, int64_t* table);

}  // namespace spqfmt
