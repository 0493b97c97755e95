// Scales and offsets of groups as the grouped scheme stores them (FORMAT.md 5.5), widened to binary32 where they are needed.
// The loops have internal linkage, like those of dequantize_rows.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dequantize.hpp"

namespace spqfmt {

enum class NumberType : unsigned { f32, bf16, f16, u8, i8 };  // the first ones as FloatType

// One number for each group, [lines, n_groups]: `values`, or step * (value - zero) or step * value - minimum with those of its
// tile of tile_rows lines and tile_groups groups; steps null for the first, zeros and minimums null for none. Where there is a
// `table` of 256, values are u8, and each stands for the number there.
struct GroupNumbers {
  const void* values;
  NumberType type;
  const float* table;
  const void* steps;
  NumberType steps_type;
  const void* zeros;
  NumberType zeros_type;
  const void* minimums;
  NumberType minimums_type;
  size_t tile_rows, tile_groups;
};

// Of a whole matrix; `offset` without values for GroupOffset::none. A line of groups is group_rows rows, cut short where each
// stacked_rows rows end: these are a matrix of their own.
struct Groups {
  GroupNumbers scale, offset;
  GroupOffset kind;
  size_t group_size;
  size_t group_rows, stacked_rows;
};

static inline size_t line_of(const Groups& groups, size_t row) {
  if (groups.group_rows == 1) return row;
  const size_t lines = (groups.stacked_rows - 1) / groups.group_rows + 1;
  return row / groups.stacked_rows * lines + row % groups.stacked_rows / groups.group_rows;
}

namespace {

// Exponent and mantissa moved into place are 2^112 too small, also for subnormals; infinity and NaN need their exponent back.
inline float widened_f16(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  value *= 0x1p112f;
  std::memcpy(&wide, &value, sizeof wide);
  wide |= (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  wide |= static_cast<uint32_t>(bits & 0x8000) << 16;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline float widened_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Numbers first..first + n - 1.
[[maybe_unused]] inline void widen_numbers(const void* values, NumberType type, size_t first, size_t n, float* __restrict to) {
  switch (type) {
    case NumberType::f32: std::memcpy(to, static_cast<const float*>(values) + first, n * sizeof(float)); return;
    case NumberType::bf16: {
      const uint16_t* __restrict from = static_cast<const uint16_t*>(values) + first;
      for (size_t i = 0; i < n; i++) to[i] = widened_bf16(from[i]);
      return;
    }
    case NumberType::f16: {
      const uint16_t* __restrict from = static_cast<const uint16_t*>(values) + first;
      for (size_t i = 0; i < n; i++) to[i] = widened_f16(from[i]);
      return;
    }
    case NumberType::u8: {
      const uint8_t* __restrict from = static_cast<const uint8_t*>(values) + first;
      for (size_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]);
      return;
    }
    case NumberType::i8: {
      const int8_t* __restrict from = static_cast<const int8_t*>(values) + first;
      for (size_t i = 0; i < n; i++) to[i] = static_cast<float>(from[i]);
      return;
    }
  }
}

// Those of a line's groups first..first + n - 1, in the order of operations that the formula has.
[[maybe_unused]] inline void group_numbers(const GroupNumbers& numbers, size_t n_groups, size_t line, size_t first, size_t n,
                                           float* __restrict to) {
  if (numbers.table == nullptr) {
    widen_numbers(numbers.values, numbers.type, line * n_groups + first, n, to);
  } else {
    const uint8_t* __restrict from = static_cast<const uint8_t*>(numbers.values) + line * n_groups + first;
    for (size_t i = 0; i < n; i++) to[i] = numbers.table[from[i]];
  }
  if (numbers.steps == nullptr) return;
  if (numbers.tile_groups == 1) {  // as SpQR has them: a step for each group, of some rows
    constexpr size_t kAtOnce = 64;
    float others[kAtOnce];
    for (size_t i = 0; i < n; i += kAtOnce) {
      const size_t at = line / numbers.tile_rows * n_groups + first + i;
      const size_t n_here = n - i < kAtOnce ? n - i : kAtOnce;
      if (numbers.zeros != nullptr) {
        widen_numbers(numbers.zeros, numbers.zeros_type, at, n_here, others);
        for (size_t k = 0; k < n_here; k++) to[i + k] = to[i + k] - others[k];
      }
      widen_numbers(numbers.steps, numbers.steps_type, at, n_here, others);
      for (size_t k = 0; k < n_here; k++) to[i + k] = others[k] * to[i + k];
      if (numbers.minimums != nullptr) {
        widen_numbers(numbers.minimums, numbers.minimums_type, at, n_here, others);
        for (size_t k = 0; k < n_here; k++) to[i + k] = to[i + k] - others[k];
      }
    }
    return;
  }
  const size_t tiles = (n_groups - 1) / numbers.tile_groups + 1;
  for (size_t i = 0; i < n;) {
    const size_t tile = (first + i) / numbers.tile_groups;
    const size_t at = line / numbers.tile_rows * tiles + tile;
    const size_t end = (tile + 1) * numbers.tile_groups - first;
    float step, zero = 0, minimum = 0;
    widen_numbers(numbers.steps, numbers.steps_type, at, 1, &step);
    if (numbers.zeros != nullptr) widen_numbers(numbers.zeros, numbers.zeros_type, at, 1, &zero);
    if (numbers.minimums != nullptr) widen_numbers(numbers.minimums, numbers.minimums_type, at, 1, &minimum);
    for (; i < n && i < end; i++) to[i] = step * (to[i] - zero) - minimum;
  }
}

}  // namespace
}  // namespace spqfmt
