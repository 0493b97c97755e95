// Fields of blocks (ggml's): bits of some bytes of a block that are bits of some of its elements.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// Bits from `bit` on, `bits` many, of a run's bytes are the bits from `shift` on of the run's elements from `first` on.
struct BitPlace {
  int64_t bit, bits, first, shift;
};

// Runs of `size` bytes from byte `at` of a block of `block_bytes` on; each says something of `span` of its `n_elements`
// elements, which are a byte each.
struct BitField {
  size_t block_bytes, at, n_runs, size, span, n_elements;
  const BitPlace* places;
  size_t n_places;
};

// Whether all of it lies in a block and its elements, and no number is too large to add up.
bool is_sound(const BitField& field);

// Add what the blocks say to the elements.
void take_bits(const BitField& field, const uint8_t* blocks, size_t n_blocks, uint8_t* elements);

// Set the field's bytes to what the elements say.
void put_bits(const BitField& field, const uint8_t* elements, size_t n_blocks, uint8_t* blocks);

}  // namespace spqfmt
