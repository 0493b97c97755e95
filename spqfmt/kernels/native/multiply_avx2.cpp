#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_avx2 = kMultiply;

}  // namespace spqfmt
