// The choice of codes that entropy-coded quantization makes: column after column of a block, each code the cheapest in
// error + slope * bits, each error handed on to the block's later columns (GPTQ's feedback).
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

constexpr int kLargestCode = 127;
constexpr int8_t kEscapeCode = -128;  // in `codes` only: the weight does not fit and is kept in full

// A block of columns of a matrix. `weights` begins at the block's first column of the first row, rows `stride` floats apart; they
// are changed as the feedback goes. `upper` is the block's [n, n] part of the factor U, row-major.
struct RateBlock {
  float* weights;
  size_t stride;
  size_t n_columns;
  const float* upper;
  const float* column_step;  // n_columns
};

// `bits[code + 128]` is what a code costs. Row i is on the grid row_step[i] * column_step[k].
struct RateCosts {
  const float* row_step;
  const float* slope;  // of a row: error in units of (weight / U_kk)^2 that one bit is worth
  const float* bits;   // 256
};

// Rows [begin, end). Codes and errors are [rows, n_columns] of their own; errors are (weight - value) / U_kk, for the columns
// behind the block. Every operation is rounded once to binary32, so that all machines choose alike.
void choose_codes(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* errors);

// A block of columns whose codes are there. `gradients` begins at the block's first column of the first row of E H, rows `stride`
// floats apart, with E what the weights have too much and H the damped Hessian; they follow the codes inside the block.
// `hessian` is the block's [n, n] part of H, row-major.
struct DescentBlock {
  float* gradients;
  size_t stride;
  size_t n_columns;
  const float* hessian;
  const float* column_step;  // n_columns
};

// Rows [begin, end). One code after the other becomes the cheapest in E H E^T + slope * bits with all others as they are, where
// that is cheaper than it was. `changes` [rows, n_columns] are the new values less the old ones. Codes that are kEscapeCode stay.
void improve_codes(const DescentBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* changes);

}  // namespace spqfmt
