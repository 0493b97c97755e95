#include "decode_avx512.hpp"

namespace spqfmt {

void decode_groups_avx512_loads(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table) {
  decode_groups<4, false>(cursors, n_cursors, n_groups, table.slot);
}

}  // namespace spqfmt
