#include "multiply_integers.hpp"
#include "multiply_lanes.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_avx512 = kMultiply;
const IntegerKernels integers_avx512 = kIntegers;
const LaneKernels lanes_avx512 = kLanes;

}  // namespace spqfmt
