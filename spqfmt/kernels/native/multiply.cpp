#include "multiply.hpp"

#include <algorithm>

#include "bitstream.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace spqfmt {
namespace {

// A thread costs some ten microseconds to start: it must get ten times that to do.
constexpr size_t kPieceWeights = size_t{1} << 20;

template <typename Rows>
void over_rows(size_t n_rows, size_t n_columns, size_t n_threads, const Rows& rows) {
  if (n_rows == 0 || n_columns == 0) return;
  const size_t rows_per_piece = std::max<size_t>(1, kPieceWeights / n_columns);
  parallel_for(ceil_div(n_rows, rows_per_piece), n_threads, [&](size_t piece) {
    const size_t begin = piece * rows_per_piece;
    rows(begin, std::min(n_rows, begin + rows_per_piece));
  });
}

}  // namespace

void multiply_uniform(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, const Outliers& outliers,
                      const Tokens& tokens, size_t n_threads) {
  over_rows(n_rows, n_columns, n_threads, [&](size_t begin, size_t end) {
    active_kernels().uniform_multiply(codes, n_columns, scales, outliers, begin, end, tokens);
  });
}

void multiply_grouped(const Codes& codes, size_t n_rows, size_t n_columns, const GroupScales& scales, const Outliers& outliers,
                      const Tokens& tokens, size_t n_threads) {
  over_rows(n_rows, n_columns, n_threads, [&](size_t begin, size_t end) {
    active_kernels().grouped_multiply(codes, n_columns, scales, outliers, begin, end, tokens);
  });
}

}  // namespace spqfmt
