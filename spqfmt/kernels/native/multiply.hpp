// Activations times weights that stay codes: y = x W^T for a few tokens, W as in dequantize.hpp with outliers in place.
//
// A row's weights exist as binary32 only in a tile of the nearest cache. Products are summed in kLanes partial sums by column
// modulo kLanes, then halved; no fused multiply-add. So the result is the same on every machine and for every number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dequantize.hpp"

namespace spqfmt {

// Weights that replace the dequantized ones. Those of row i are numbers row_begin[i]..row_begin[i + 1] - 1, columns ascending.
struct Outliers {
  const int64_t* row_begin;  // n_rows + 1, or null where there are none
  const uint32_t* column;
  const float* value;
};

// x is [n_tokens, n_columns], y [n_tokens, y_stride], y_stride >= n_rows.
struct Tokens {
  const float* x;
  float* y;
  size_t n_tokens;
  size_t y_stride;
};

// Outputs [begin, end) of every token.
using UniformMultiply = void (*)(const Codes&, size_t n_columns, const UniformScales&, const Outliers&, size_t begin, size_t end,
                                 const Tokens&);
using GroupedMultiply = void (*)(const Codes&, size_t n_columns, const GroupScales&, const Outliers&, size_t begin, size_t end,
                                 const Tokens&);

void uniform_multiply_scalar(const Codes&, size_t, const UniformScales&, const Outliers&, size_t, size_t, const Tokens&);
void uniform_multiply_avx2(const Codes&, size_t, const UniformScales&, const Outliers&, size_t, size_t, const Tokens&);
void uniform_multiply_avx512(const Codes&, size_t, const UniformScales&, const Outliers&, size_t, size_t, const Tokens&);
void grouped_multiply_scalar(const Codes&, size_t, const GroupScales&, const Outliers&, size_t, size_t, const Tokens&);
void grouped_multiply_avx2(const Codes&, size_t, const GroupScales&, const Outliers&, size_t, size_t, const Tokens&);
void grouped_multiply_avx512(const Codes&, size_t, const GroupScales&, const Outliers&, size_t, size_t, const Tokens&);

// All rows, over threads. The caller has checked every buffer, that row_begin ascends within the outliers, and that columns are
// ascending in each row and below n_columns.
void multiply_uniform(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, const Outliers& outliers,
                      const Tokens& tokens, size_t n_threads);
void multiply_grouped(const Codes& codes, size_t n_rows, size_t n_columns, const GroupScales& scales, const Outliers& outliers,
                      const Tokens& tokens, size_t n_threads);

}  // namespace spqfmt
