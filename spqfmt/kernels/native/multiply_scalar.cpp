#include "multiply_integers.hpp"
#include "multiply_lanes.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {

const MultiplyKernels multiply_scalar = kMultiply;
const IntegerKernels integers_scalar = kIntegers;
const LaneKernels lanes_scalar = kLanes;

}  // namespace spqfmt
