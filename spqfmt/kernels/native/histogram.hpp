#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// Counts of each byte value.
void histogram(const uint8_t* src, size_t n_bytes, uint64_t counts[256]);

}  // namespace spqfmt
