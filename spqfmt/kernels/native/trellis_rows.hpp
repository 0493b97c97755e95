// The loop of trellis.hpp, compiled for each instruction set. Columns are independent, and vectors of them need nothing but shifts
// and exclusive ors: the sum of FORMAT.md is taken modulo 2, where adding is that.
#pragma once

#include "trellis.hpp"

namespace spqfmt {
namespace {

// Columns whose last rows stay near. Fewer would be nearer, but the rows themselves come from far, and best in one go.
constexpr size_t kPathColumns = 1 << 14;

inline uint8_t unfold_row(uint8_t* __restrict row, const uint8_t* one, const uint8_t* two, const uint8_t* three, size_t n) {
  uint8_t wrong = 0;
  for (size_t i = 0; i < n; i++) {
    const uint8_t path = row[i], twice = static_cast<uint8_t>(path + path);
    wrong |= path ^ twice;  // the sign changes where the doubled path code has no room
    row[i] = static_cast<uint8_t>(twice | (((one[i] >> 1) ^ two[i] ^ three[i]) & 1));
  }
  return wrong;
}

inline void copy_row(uint8_t* to, const uint8_t* from, size_t n) {
  for (size_t i = 0; i < n; i++) to[i] = from[i];
}

inline bool unfold_columns(const PathRows& rows, size_t begin, size_t n, const uint8_t* before, uint8_t* after) {
  static const uint8_t zeros[kPathColumns] = {};
  const size_t stride = rows.n_columns;
  const uint8_t *one = zeros, *two = zeros, *three = zeros;
  size_t passed = rows.passed;
  if (passed != 0) one = before + begin, two = one + stride, three = two + stride;
  uint8_t wrong = 0;
  for (size_t r = 0; r < rows.n_rows; r++) {
    if (passed == rows.height) {
      passed = 0;
      one = two = three = zeros;
    }
    uint8_t* row = rows.codes + r * stride + begin;
    wrong |= unfold_row(row, one, two, three, n);
    three = two, two = one, one = row;
    passed++;
  }
  if (after != nullptr) {
    // The earliest row first: of one history alone, none is written over that is still to be copied.
    copy_row(after + begin + 2 * stride, three, n);
    copy_row(after + begin + stride, two, n);
    copy_row(after + begin, one, n);
  }
  return wrong < 0x80;
}

inline bool unfold_rows(const PathRows& rows, size_t begin, size_t end, const uint8_t* before, uint8_t* after) {
  bool fits = true;
  for (size_t at = begin; at < end; at += kPathColumns) {
    fits &= unfold_columns(rows, at, end - at < kPathColumns ? end - at : kPathColumns, before, after);
  }
  return fits;
}

}  // namespace
}  // namespace spqfmt
