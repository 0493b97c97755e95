#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_scalar = kMultiply;

}  // namespace spqfmt
