#include "multiply_integers.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_avx512 = kMultiply;
const IntegerKernels integers_avx512 = kIntegers;

}  // namespace spqfmt
