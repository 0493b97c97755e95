#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_avx512 = kMultiply;

}  // namespace spqfmt
