#include "decode_avx512.hpp"

namespace spqfmt {

void decode_groups_avx512_gather(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table) {
  decode_groups<8, true>(cursors, n_cursors, n_groups, table.slot);
}

}  // namespace spqfmt
