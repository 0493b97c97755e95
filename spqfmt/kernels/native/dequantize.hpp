// Codes -> weights (FORMAT.md 5.3 and 5.5, without outliers, orders and permutations).
//
// Every operation is one binary32 operation, rounded once, in the order of the formulas: no fused multiply-add (the build
// forbids contraction), no reassociation. So the result is the same on every machine, and the same as numpy's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

enum class FloatType : unsigned { f32, bf16, f16 };  // binary32 is rounded to the others to nearest, ties to even

static inline size_t float_bytes(FloatType type) { return type == FloatType::f32 ? 4 : 2; }

// Packed codes of `bits` bits (2, 4 or 8), the first in the lowest bits of a byte; code (row, column) of a run of whole rows is
// code number first + row * n_columns + column. Where there are `values`, 2^bits of them, the groups' weights are computed from
// the value of each code's number.
struct Codes {
  const uint8_t* bytes;
  size_t first;
  unsigned bits;
  bool is_signed;
  const float* values = nullptr;
};

// weight = (code * row[i]) * column[j]; without the last factor if `column` is null.
struct UniformScales {
  const float* row;     // n_rows
  const float* column;  // n_columns or null
};

enum class GroupOffset : unsigned {
  none,        // weight = scale * code
  zero_point,  // weight = scale * (code - offset)
  minimum,     // weight = scale * code - offset
};

// Groups of group_size columns of a row, the last one holding the rest.
struct GroupScales {
  const float* scale;   // n_rows * n_groups
  const float* offset;  // n_rows * n_groups, or null for GroupOffset::none
  GroupOffset kind;
  size_t group_size;
};

// Rows [begin, end) of a run of rows; dst is the first weight of the run.
using UniformRows = void (*)(const Codes& codes, size_t n_columns, const UniformScales& scales, size_t begin, size_t end,
                             FloatType type, uint8_t* dst);
using GroupedRows = void (*)(const Codes& codes, size_t n_columns, const GroupScales& scales, size_t begin, size_t end,
                             FloatType type, uint8_t* dst);

void uniform_rows_scalar(const Codes&, size_t, const UniformScales&, size_t, size_t, FloatType, uint8_t*);
void uniform_rows_avx2(const Codes&, size_t, const UniformScales&, size_t, size_t, FloatType, uint8_t*);
void uniform_rows_avx512(const Codes&, size_t, const UniformScales&, size_t, size_t, FloatType, uint8_t*);
void grouped_rows_scalar(const Codes&, size_t, const GroupScales&, size_t, size_t, FloatType, uint8_t*);
void grouped_rows_avx2(const Codes&, size_t, const GroupScales&, size_t, size_t, FloatType, uint8_t*);
void grouped_rows_avx512(const Codes&, size_t, const GroupScales&, size_t, size_t, FloatType, uint8_t*);

// All rows, over threads. The caller has checked that every buffer is as long as these numbers say.
void dequantize_uniform(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, FloatType type,
                        uint8_t* dst, size_t n_threads);
void dequantize_grouped(const Codes& codes, size_t n_rows, size_t n_columns, const GroupScales& scales, FloatType type,
                        uint8_t* dst, size_t n_threads);

}  // namespace spqfmt
