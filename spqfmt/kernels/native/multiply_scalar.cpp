#include "multiply_integers.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_scalar = kMultiply;
const IntegerKernels integers_scalar = kIntegers;

}  // namespace spqfmt
