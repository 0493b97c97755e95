// Arguments of the binding files as pointers, after checking that each buffer is as long as the numbers say.
#pragma once

#include <cstddef>
#include <optional>

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

inline FloatType checked_type(unsigned type) {
  require(type <= static_cast<unsigned>(FloatType::f16), "unknown float type");
  return static_cast<FloatType>(type);
}

// A buffer that may be None.
class OptionalSource {
 public:
  explicit OptionalSource(nanobind::handle object) {
    if (!object.is_none()) source_.emplace(object);
  }
  const Source* get() const { return source_ ? &*source_ : nullptr; }

 private:
  std::optional<Source> source_;
};

// Factors of a uniform matrix, borrowed.
class UniformParameters {
 public:
  UniformParameters(nanobind::handle row, nanobind::handle column) : row_(row), column_(column) {}

  UniformScales checked(size_t n_rows, size_t n_columns) const {
    const Source* column = column_.get();
    return {checked_floats(row_, n_rows, "row factors are not one float32 a row"),
            column == nullptr ? nullptr : checked_floats(*column, n_columns, "column factors are not one float32 a column")};
  }

 private:
  Source row_;
  OptionalSource column_;
};

// Scales and offsets of groups, borrowed.
class GroupParameters {
 public:
  GroupParameters(size_t group_size, nanobind::handle scale, unsigned kind, nanobind::handle offset)
      : group_size_(group_size), kind_(kind), scale_(scale), offset_(offset) {}

  GroupScales checked(size_t n_rows, size_t n_columns) const {
    const Source* offset = offset_.get();
    require(group_size_ > 0, "group_size is 0");
    require(kind_ <= static_cast<unsigned>(GroupOffset::minimum), "unknown kind of offset");
    require((kind_ == static_cast<unsigned>(GroupOffset::none)) == (offset == nullptr), "offset and its kind do not fit together");
    const size_t n = product(n_rows, ceil_div(n_columns, group_size_));
    return {checked_floats(scale_, n, "scales are not one float32 a group"),
            offset == nullptr ? nullptr : checked_floats(*offset, n, "offsets are not one float32 a group"),
            static_cast<GroupOffset>(kind_), group_size_};
  }

 private:
  size_t group_size_;
  unsigned kind_;
  Source scale_;
  OptionalSource offset_;
};

}  // namespace spqfmt
