#include "multiply_rows.hpp"

namespace spqfmt {

void uniform_multiply_avx2(const Codes& codes, size_t n_columns, const UniformScales& scales, const Outliers& outliers,
                           size_t begin, size_t end, const Tokens& tokens) {
  uniform_multiply(codes, n_columns, scales, outliers, begin, end, tokens);
}

void grouped_multiply_avx2(const Codes& codes, size_t n_columns, const GroupScales& scales, const Outliers& outliers,
                           size_t begin, size_t end, const Tokens& tokens) {
  grouped_multiply(codes, n_columns, scales, outliers, begin, end, tokens);
}

}  // namespace spqfmt
