// Matrices of codes for the targets that compute with them: shapes that no model has, in memory that ends where they do.
#pragma once

#include <cmath>

#include "bitstream.hpp"
#include "dequantize.hpp"
#include "group_numbers.hpp"
#include "input.hpp"

namespace fuzz {

struct Shape {
  explicit Shape(Input& in) {
    static const size_t kSizes[] = {4, 8, 16, 32, 64, 128, 256};
    rows = 1 + in.byte() % 9;
    const unsigned wide = in.byte();
    columns = wide < 128 ? 1 + wide : 16 * (1 + wide % 32);
    bits = 2u << in.byte() % 3;
    is_signed = in.coin();
    const unsigned size = in.byte();
    group_size = size < 128 ? kSizes[size % 7] : 1 + in.number(columns);
    first = in.byte() % 9;
  }

  size_t rows, columns, group_size, first;
  unsigned bits;
  bool is_signed;
};

struct OwnCodes {
  OwnCodes(Input& in, const Shape& shape, size_t first, bool has_values, bool any)
      : bytes(in.filled(((first + shape.rows * shape.columns) * shape.bits + 7) / 8, 512)),
        values(has_values ? floats(in, size_t{1} << shape.bits, any) : std::vector<float>()) {
    codes = {bytes.data(), first, shape.bits, shape.is_signed, has_values ? values.data() : nullptr};
  }
  OwnCodes(const OwnCodes&) = delete;

  std::vector<uint8_t> bytes;
  std::vector<float> values;
  spqfmt::Codes codes;
};

// Floats as numbers that compare by their bits, with one NaN for all: which one comes of two is the processor's own.
inline std::vector<float> comparable(const std::vector<uint8_t>& raw, spqfmt::FloatType type) {
  const size_t size = spqfmt::float_bytes(type);
  std::vector<float> found(raw.size() / size);
  for (size_t i = 0; i < found.size(); i++) {
    uint16_t narrow;
    if (size == 4) {
      std::memcpy(&found[i], &raw[4 * i], 4);
    } else {
      std::memcpy(&narrow, &raw[2 * i], 2);
      found[i] = type == spqfmt::FloatType::bf16 ? spqfmt::widened_bf16(narrow) : spqfmt::widened_f16(narrow);
    }
    // Zeros of both signs are equal as floats, and NaN never is.
    if (std::isnan(found[i])) found[i] = 0x1.234566p-101f;
    if (found[i] == 0 && std::signbit(found[i])) found[i] = 0x1.234568p-101f;
  }
  return found;
}

}  // namespace fuzz
