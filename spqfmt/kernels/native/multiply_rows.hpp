// The loops of multiply.hpp. Included by one file for each instruction set, like dequantize_rows.hpp.
#pragma once

#include "dequantize_rows.hpp"
#include "multiply.hpp"

namespace spqfmt {
namespace {

// Four vectors of AVX-512, eight of AVX2: as many sums as hide the latency of an addition.
constexpr size_t kLanes = 64;
// Tokens that share one dequantized tile.
constexpr size_t kTokensAtOnce = 4;

struct Sums {
  alignas(64) float lanes[kLanes];
};

// `Weight` is float, or a code that is converted on the way.
template <typename Weight>
inline void add_products(const Weight* __restrict weights, const float* __restrict x, size_t n, Sums& sums) {
  alignas(64) float lanes[kLanes];
  std::memcpy(lanes, sums.lanes, sizeof lanes);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; lane++) lanes[lane] += static_cast<float>(weights[i + lane]) * x[i + lane];
  }
  for (size_t lane = 0; i + lane < n; lane++) lanes[lane] += static_cast<float>(weights[i + lane]) * x[i + lane];
  std::memcpy(sums.lanes, lanes, sizeof lanes);
}

// In halves, so that it costs as many additions one after the other as kLanes has bits.
inline float total(Sums& sums) {
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; lane++) sums.lanes[lane] += sums.lanes[lane + half];
  }
  return sums.lanes[0];
}

// `tile_of(row, column, n, tile)` dequantizes.
template <typename TileOf>
inline void multiply_rows(size_t n_columns, const Outliers& outliers, size_t begin, size_t end, const Tokens& tokens,
                          const TileOf& tile_of) {
  Tile tile;
  Sums sums[kTokensAtOnce];
  for (size_t first = 0; first < tokens.n_tokens; first += kTokensAtOnce) {
    const size_t n_here = smaller(kTokensAtOnce, tokens.n_tokens - first);
    for (size_t row = begin; row < end; row++) {
      std::memset(sums, 0, sizeof sums);
      int64_t next = outliers.row_begin == nullptr ? 0 : outliers.row_begin[row];
      const int64_t stop = outliers.row_begin == nullptr ? 0 : outliers.row_begin[row + 1];
      for (size_t column = 0; column < n_columns; column += kTile) {
        const size_t n = smaller(kTile, n_columns - column);
        tile_of(row, column, n, tile);
        for (; next < stop && outliers.column[next] < column + n; next++) {
          tile.weights[outliers.column[next] - column] = outliers.value[next];
        }
        for (size_t token = 0; token < n_here; token++) {
          add_products(tile.weights, tokens.x + (first + token) * n_columns + column, n, sums[token]);
        }
      }
      for (size_t token = 0; token < n_here; token++) tokens.y[(first + token) * tokens.y_stride + row] = total(sums[token]);
    }
  }
}

// 8-bit codes with a factor for each row alone: the factor is left for the end.
inline void multiply_plain_codes(const Codes& codes, size_t n_columns, const UniformScales& scales, size_t begin, size_t end,
                                 const Tokens& tokens) {
  Sums sums;
  const int8_t* all = reinterpret_cast<const int8_t*>(codes.bytes + codes.first);
  for (size_t row = begin; row < end; row++) {
    for (size_t token = 0; token < tokens.n_tokens; token++) {
      std::memset(&sums, 0, sizeof sums);
      add_products(all + row * n_columns, tokens.x + token * n_columns, n_columns, sums);
      tokens.y[token * tokens.y_stride + row] = total(sums) * scales.row[row];
    }
  }
}

void uniform_multiply(const Codes& codes, size_t n_columns, const UniformScales& scales, const Outliers& outliers, size_t begin,
                      size_t end, const Tokens& tokens) {
  if (codes.bits == 8 && codes.is_signed && scales.column == nullptr && outliers.row_begin == nullptr) {
    multiply_plain_codes(codes, n_columns, scales, begin, end, tokens);
    return;
  }
  multiply_rows(n_columns, outliers, begin, end, tokens, [&](size_t row, size_t column, size_t n, Tile& tile) {
    uniform_tile(codes, n_columns, scales, row, column, n, tile);
  });
}

void grouped_multiply(const Codes& codes, size_t n_columns, const GroupScales& scales, const Outliers& outliers, size_t begin,
                      size_t end, const Tokens& tokens) {
  multiply_rows(n_columns, outliers, begin, end, tokens, [&](size_t row, size_t column, size_t n, Tile& tile) {
    grouped_tile(codes, n_columns, scales, row, column, n, tile);
  });
}

}  // namespace
}  // namespace spqfmt
