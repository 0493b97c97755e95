// Blocks (ggml's) taken apart into elements of several roles, and put together again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bit_fields.hpp"

namespace spqfmt {

// The elements of one role, a byte each: in a block so many, of which each part is an array of its own for all blocks.
// A block holds an element plus `offset`, of which `mask` is left; `limit` is above all of these, 0 where any may be.
struct BlockRole {
  size_t n_elements, n_parts;
  uint8_t offset, mask;
  unsigned limit;
};

struct RoleField {
  size_t role;
  BitField field;
};

// Places of fields point into the numbers that it was made of.
struct BlockLayout {
  size_t block_bytes, n_parts;
  std::vector<BlockRole> roles;
  std::vector<RoleField> fields;
};

// The numbers are the bytes of a block and the number of roles; of each role elements, parts, offset, mask and limit; of
// each field its role, where it begins, runs, bytes of a run, elements of a run and the number of its places, then these.
// Throws std::invalid_argument for numbers that are no layout.
BlockLayout block_layout(const int64_t* numbers, size_t n);

// The bytes that part `part` (of all roles) has in a block.
size_t part_bytes(const BlockLayout& layout, size_t part);

// Set all parts; an element is 0 minus the offset where no field has it.
void take_blocks(const BlockLayout& layout, const uint8_t* blocks, size_t n_blocks, uint8_t* const* parts);

// Set the bytes of all fields, and return the number of roles; or of the first role with an element past its limit.
size_t put_blocks(const BlockLayout& layout, const uint8_t* const* parts, size_t n_blocks, uint8_t* blocks);

}  // namespace spqfmt
