#include "trellis_rows.hpp"

namespace spqfmt {

bool unfold_rows_scalar(const PathRows& rows, size_t begin, size_t end, const uint8_t* before, uint8_t* after) {
  return unfold_rows(rows, begin, end, before, after);
}

}  // namespace spqfmt
