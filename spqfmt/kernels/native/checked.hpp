// Arguments of the binding files as pointers, after checking that each buffer is as long as the numbers say.
#pragma once

#include <cstddef>

#include "bitstream.hpp"
#include "buffer.hpp"
#include "dequantize.hpp"

namespace spqfmt {

inline size_t product(size_t a, size_t b) {
  size_t result;
  require(!__builtin_mul_overflow(a, b, &result), "matrix is too large");
  return result;
}

inline Codes checked_codes(const Buffer& buffer, size_t first, unsigned bits, bool is_signed, size_t n_codes) {
  require(bits == 2 || bits == 4 || bits == 8, "bits is not 2, 4 or 8");
  const size_t available = product(buffer.size(), 8 / bits);
  require(first <= available && n_codes <= available - first, "codes are fewer than the matrix has");
  return {buffer.data(), first, bits, is_signed};
}

inline const float* checked_floats(const Buffer& buffer, size_t n, const char* message) {
  const float* values = array_of<float>(buffer, message);
  require(buffer.size() / sizeof(float) == n, message);
  return values;
}

inline GroupScales checked_groups(const Buffer& scale, const Buffer* offset, unsigned kind, size_t n_rows, size_t n_columns,
                                  size_t group_size) {
  require(group_size > 0, "group_size is 0");
  require(kind <= static_cast<unsigned>(GroupOffset::minimum), "unknown kind of offset");
  require((kind == static_cast<unsigned>(GroupOffset::none)) == (offset == nullptr), "offset and its kind do not fit together");
  const size_t n_parameters = product(n_rows, ceil_div(n_columns, group_size));
  return {checked_floats(scale, n_parameters, "scales are not one float32 a group"),
          offset != nullptr ? checked_floats(*offset, n_parameters, "offsets are not one float32 a group") : nullptr,
          static_cast<GroupOffset>(kind), group_size};
}

}  // namespace spqfmt
