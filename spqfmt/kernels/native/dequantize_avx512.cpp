#include "dequantize_rows.hpp"

namespace spqfmt {

void uniform_rows_avx512(const Codes& codes, size_t n_columns, const UniformScales& scales, size_t begin, size_t end,
                         FloatType type, uint8_t* dst) {
  uniform_rows(codes, n_columns, scales, begin, end, type, dst);
}

void grouped_rows_avx512(const Codes& codes, size_t n_columns, const GroupScales& scales, size_t begin, size_t end,
                         FloatType type, uint8_t* dst) {
  grouped_rows(codes, n_columns, scales, begin, end, type, dst);
}

}  // namespace spqfmt
