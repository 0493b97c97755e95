// The root mean square of each token divided out, times a weight for each column: what small models spend most calls of torch on.
#pragma once

#include <cstddef>

#include "multiply.hpp"

namespace spqfmt {

// y = (offset + weight) * x / sqrt(mean(x^2) + epsilon), in binary32 and rounded once to the type that all three have; with
// `rounds_first` the quotient is rounded to that type before it is multiplied, too.
struct RootMeanSquare {
  const void* weight;  // [n_columns]
  float epsilon;
  float offset;
  bool rounds_first;
};

// x and y [n_tokens, n_columns] without gaps. The same bits on every machine: squares are summed in kProductLanes sums by column
// modulo kProductLanes, then halved, and nothing is fused.
void root_mean_square(const Floats& x, size_t n_tokens, size_t n_columns, const RootMeanSquare& norm, void* y, size_t n_threads);

}  // namespace spqfmt
