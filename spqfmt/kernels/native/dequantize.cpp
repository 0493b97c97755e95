#include "dequantize.hpp"

#include "dispatch.hpp"
#include "team.hpp"

namespace spqfmt {

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
