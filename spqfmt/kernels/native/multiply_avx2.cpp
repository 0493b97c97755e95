#include "multiply_integers.hpp"
#include "multiply_lanes.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_avx2 = kMultiply;
const IntegerKernels integers_avx2 = kIntegers;
const LaneKernels lanes_avx2 = kLanes;

}  // namespace spqfmt
