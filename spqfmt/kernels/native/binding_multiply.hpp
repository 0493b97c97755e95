// Products of matrices that share tokens, for who computes more than these in one call.
#pragma once

#include <vector>

#include <nanobind/nanobind.h>

#include "multiply.hpp"

namespace spqfmt {

// Those of a CodeMatrices object, which must live as long, with an address and a type of each bias [rows], and outputs in no place
// yet. Raises ValueError where `biases` are not two numbers for each matrix, RuntimeError for another object.
std::vector<RowsProduct> products_of(nanobind::handle matrices, const nanobind::tuple& biases);

// Their columns.
size_t n_columns_of(nanobind::handle matrices);

}  // namespace spqfmt
