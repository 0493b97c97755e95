// One step below a chunk: decoding whole groups of 128 symbols of several blocks at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bitstream.hpp"

namespace spqfmt {

struct Frequencies;

// slot -> freq (bits 31..20) | symbol (19..12) | slot - cum[symbol] (11..0): all that a step needs, in one load.
// The order of the fields suits the planar decoders, which work on the two 16-bit halves.
struct DecodeTable {
  alignas(64) uint32_t slot[kFreqTotal];
};
void build_decode_table(const Frequencies& frequencies, DecodeTable& table);

// Where the decoding of one block stands.
struct DecodeCursor {
  alignas(64) uint32_t state[kLanes];
  const uint8_t* next;   // next word
  const uint8_t* clamp;  // one word past the end of the block
  uint8_t* out;
};

// Decodes `n_groups` groups of each of `n_cursors` blocks; out advances by 128 bytes a group.
//
// Bounds: instead of a check per word, `next` is lowered to `clamp` before every group. A valid block never gets
// past its end, so the clamp changes nothing there; a broken one stays past its end for good and is refused
// afterwards. One group takes at most 256 bytes and the widest load is 64 bytes, so kReadAheadBytes after the
// end of the block must be readable; what stands there never reaches an accepted result.
using DecodeGroups = void (*)(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
inline constexpr size_t kReadAheadBytes = 2 + kGroupWordBytes + 64;

void decode_groups_scalar(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_sse41(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_neon(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_avx2_gather(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_avx2_loads(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_avx512_gather(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);
void decode_groups_avx512_loads(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table);

}  // namespace spqfmt
