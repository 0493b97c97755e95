// The choice of codes that entropy-coded quantization makes: column after column of a block, each code the cheapest in
// error + slope * bits, each error handed on to the block's later columns (GPTQ's feedback).
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

constexpr int kLargestCode = 127;
constexpr int8_t kEscapeCode = -128;  // in `codes` only: the weight does not fit and is kept in full

// A block of columns of a matrix. `values` begins at the block's first column of the first row, rows `stride` floats apart; they
// are changed inside the block. `square` is the block's [n, n] part of a matrix of columns by columns, row-major.
struct RateBlock {
  float* values;
  size_t stride;
  size_t n_columns;
  const float* square;
  const float* column_step;  // n_columns
};

// `bits[code + 128]` is what a code costs. Row i is on the grid row_step[i] * column_step[k].
struct RateCosts {
  const float* row_step;
  const float* slope;  // of a row: error in units of (weight / U_kk)^2 that one bit is worth
  const float* bits;   // 256
};

// Rows [begin, end); `values` are weights, `square` of the factor U. Codes and errors are [rows, n_columns] of their own; errors are (weight - value) / U_kk, for the columns
// behind the block. Every operation is rounded once to binary32, so that all machines choose alike.
void choose_codes(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* errors);

// Rows [begin, end) of a block whose codes are there; `values` are of E H, with E what the weights have too much and H the damped
// Hessian, of which `square` is; they follow the codes inside the block. One code after the other becomes the cheapest in E H E^T + slope * bits with all others as they are, where
// that is cheaper than it was. `changes` [rows, n_columns] are the new values less the old ones. Codes that are kEscapeCode stay.
void improve_codes(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* changes);

}  // namespace spqfmt
