// One step below a chunk: encoding whole groups of 128 symbols of several blocks at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bitstream.hpp"

namespace spqfmt {

struct Frequencies;

struct EncodeTable {
  // Scalar step of encode_scalar.cpp.
  struct Symbol {
    uint64_t reciprocal;
    uint32_t limit;       // a state at or above gives up a word first: freq << 20
    uint32_t bias;
    uint32_t complement;  // 4096 - freq
  };
  Symbol symbol[256];
  // Vector step of encode_avx512.cpp.
  alignas(64) uint16_t freq[256];
  alignas(64) uint16_t cum[256];  // below 4096 where freq is not 0
  // Vector step of encode_avx2.cpp: frequency, cum << 16, and above them the bits of a float just below 1 / frequency.
  alignas(64) uint64_t entry[256];
};
void build_encode_table(const Frequencies& frequencies, EncodeTable& table);

// Where the encoding of one block stands. It goes from the last symbol to the first.
struct EncodeCursor {
  alignas(64) uint32_t state[kLanes];
  const uint8_t* in;  // end of the symbols that are left
  uint8_t* out;       // begin of the words that are written; kGroupWordBytes a group must fit below
};

// Encodes the last `n_groups` groups that are left of each block. Every symbol's frequency must be non-zero.
using EncodeGroups = void (*)(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table);

void encode_groups_scalar(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table);
void encode_groups_avx2(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table);
void encode_groups_avx512(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table);

}  // namespace spqfmt
