#include "dequantize.hpp"

#include <algorithm>

#include "bitstream.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

namespace spqfmt {
namespace {

// Enough work to be worth handing to a thread.
constexpr size_t kPieceWeights = size_t{1} << 16;

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

void dequantize_uniform(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, FloatType type,
                        uint8_t* dst, size_t n_threads) {
  over_rows(n_rows, n_columns, n_threads, [&](size_t begin, size_t end) {
    active_kernels().uniform_rows(codes, n_columns, scales, begin, end, type, dst);
  });
}

void dequantize_grouped(const Codes& codes, size_t n_rows, size_t n_columns, const GroupScales& scales, FloatType type,
                        uint8_t* dst, size_t n_threads) {
  over_rows(n_rows, n_columns, n_threads, [&](size_t begin, size_t end) {
    active_kernels().grouped_rows(codes, n_columns, scales, begin, end, type, dst);
  });
}

}  // namespace spqfmt
