// The loops of multiply.hpp. Included by one file for each instruction set, like dequantize_rows.hpp.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "dequantize_rows.hpp"
#include "multiply.hpp"
#include "widen_halves.hpp"

namespace spqfmt {
namespace {

// A vector of floats as wide as the registers, and how many rows and tokens have their sums in registers at once.
#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64, kRowsAtOnce = 4, kTokensAtOnce = 2;
#elif defined(__AVX2__)
constexpr size_t kVectorBytes = 32, kRowsAtOnce = 2, kTokensAtOnce = 1;
#else
constexpr size_t kVectorBytes = 16, kRowsAtOnce = 1, kTokensAtOnce = 1;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef float StoredVector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
constexpr size_t kWidth = kVectorBytes / sizeof(float);
constexpr size_t kVectors = kProductLanes / kWidth;

// Tokens that share the tiles of some rows; more are done in further rounds.
constexpr size_t kTokensPerTile = 16;

inline Vector load(const float* from) { return *reinterpret_cast<const StoredVector*>(from); }
inline void save(const Vector& vector, float* to) { *reinterpret_cast<StoredVector*>(to) = vector; }

#if defined(__AVX512F__)
// Rows are read side by side, each too short for the processor to see a stream: so the same place of the next rows is fetched.
// The address may lie behind the codes.
inline void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1); }
#endif

// A tile of weights, its rows not a multiple of 4 KiB apart: such addresses compete for the same places of the nearest cache.
using WeightTile = float[kTile + kProductLanes];

// The partial sums of some rows and tokens.
struct Sums {
  alignas(64) float of[kRowsAtOnce][kTokensPerTile][kProductLanes];
};

// In halves.
inline float total(const float* lanes) {
  Vector sums[kVectors];
  for (size_t v = 0; v < kVectors; v++) sums[v] = load(lanes + v * kWidth);
  for (size_t half = kVectors / 2; half > 0; half /= 2) {
    for (size_t v = 0; v < half; v++) sums[v] += sums[v + half];
  }
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(sums[0]));  // in halves, too
#else
  float last[kWidth];
  save(sums[0], last);
  for (size_t half = kWidth / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; i++) last[i] += last[i + half];
  }
  return last[0];
#endif
}

// Adds n columns (a multiple of kProductLanes) of kRows tiles times kTokens tokens; `is_first`: to nothing.
template <size_t kRows, size_t kTokens>
inline void add_products(const WeightTile* weights, const float* x, size_t x_stride, size_t n, bool is_first, size_t token,
                         Sums& sums) {
  Vector acc[kRows][kTokens][kVectors];
  for (size_t r = 0; r < kRows; r++) {
    for (size_t t = 0; t < kTokens; t++) {
      for (size_t v = 0; v < kVectors; v++) acc[r][t][v] = is_first ? Vector{} : load(sums.of[r][token + t] + v * kWidth);
    }
  }
  for (size_t i = 0; i < n; i += kProductLanes) {
    for (size_t v = 0; v < kVectors; v++) {
      Vector activation[kTokens];
      for (size_t t = 0; t < kTokens; t++) activation[t] = load(x + t * x_stride + i + v * kWidth);
      for (size_t r = 0; r < kRows; r++) {
        const Vector weight = load(weights[r] + i + v * kWidth);
        for (size_t t = 0; t < kTokens; t++) acc[r][t][v] += weight * activation[t];
      }
    }
  }
  for (size_t r = 0; r < kRows; r++) {
    for (size_t t = 0; t < kTokens; t++) {
      for (size_t v = 0; v < kVectors; v++) save(acc[r][t][v], sums.of[r][token + t] + v * kWidth);
    }
  }
}

inline float read_float(Floats from, size_t i) {
  switch (from.type) {
    case FloatType::f32: return static_cast<const float*>(from.values)[i];
    case FloatType::bf16: return widened_bf16(static_cast<const uint16_t*>(from.values)[i]);
    case FloatType::f16: break;
  }
  return widened_f16(static_cast<const uint16_t*>(from.values)[i]);
}

inline void write(const Outputs& outputs, size_t token, size_t row, float value) {
  const size_t at = outputs.place != nullptr ? static_cast<size_t>(outputs.place[row]) : outputs.first + row;
  if (outputs.bias.values != nullptr) value += read_float(outputs.bias, at);
  const size_t i = token * outputs.stride + at;
  switch (outputs.type) {
    case FloatType::f32: static_cast<float*>(outputs.y)[i] = value; return;
    case FloatType::bf16: static_cast<uint16_t*>(outputs.y)[i] = to_bf16(value); return;
    case FloatType::f16: static_cast<uint16_t*>(outputs.y)[i] = to_f16(value); return;
  }
}

// kRows rows from `row` on. `tile_of(row, column, n, weights)` dequantizes n columns, at most kTile; `factor(row)` is left for
// the end of each row.
template <size_t kRows, typename TileOf, typename Factor>
inline void multiply_some(size_t row, size_t n_columns, const Tokens& tokens, const Outputs& outputs, const TileOf& tile_of,
                          const Factor& factor, WeightTile* weights, Sums& sums) {
  for (size_t first = 0; first < tokens.count; first += kTokensPerTile) {
    const size_t n_tokens = smaller(kTokensPerTile, tokens.count - first);
    for (size_t column = 0; column < n_columns; column += kTile) {
      const size_t n = smaller(kTile, n_columns - column);
      const size_t padded = (n + kProductLanes - 1) / kProductLanes * kProductLanes;
      for (size_t r = 0; r < kRows; r++) {
        tile_of(row + r, column, n, weights[r]);
        for (size_t i = n; i < padded; i++) weights[r][i] = 0;
      }
      size_t token = 0;
      for (; token + kTokensAtOnce <= n_tokens; token += kTokensAtOnce) {
        add_products<kRows, kTokensAtOnce>(weights, tokens.x + (first + token) * tokens.stride + column, tokens.stride, padded, column == 0, token, sums);
      }
      for (; token < n_tokens; token++) {
        add_products<kRows, 1>(weights, tokens.x + (first + token) * tokens.stride + column, tokens.stride, padded, column == 0, token, sums);
      }
    }
    for (size_t r = 0; r < kRows; r++) {
      for (size_t token = 0; token < n_tokens; token++) {
        write(outputs, first + token, row + r, total(sums.of[r][token]) * factor(row + r));
      }
    }
  }
}

template <typename TileOf, typename Factor>
inline void multiply_rows(size_t n_columns, size_t begin, size_t end, const Tokens& tokens, const Outputs& outputs,
                          const TileOf& tile_of, const Factor& factor) {
  alignas(64) WeightTile weights[kRowsAtOnce];
  Sums sums;
  size_t row = begin;
  for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
    multiply_some<kRowsAtOnce>(row, n_columns, tokens, outputs, tile_of, factor, weights, sums);
  }
  for (; row < end; row++) multiply_some<1>(row, n_columns, tokens, outputs, tile_of, factor, weights, sums);
}

inline void replace_outliers(const Outliers& outliers, size_t row, size_t column, size_t n, float* weights) {
  if (outliers.row_begin == nullptr) return;
  int64_t low = outliers.row_begin[row], stop = outliers.row_begin[row + 1];
  while (low < stop) {  // the first one from `column` on
    const int64_t middle = low + (stop - low) / 2;
    if (outliers.column[middle] < column) {
      low = middle + 1;
    } else {
      stop = middle;
    }
  }
  for (; low < outliers.row_begin[row + 1] && outliers.column[low] < column + n; low++) {
    weights[outliers.column[low] - column] = outliers.value[low];
  }
}

// What a code stands for, before scales.
inline float value_of(const Codes& codes, unsigned code) {
  if (codes.values != nullptr) return codes.values[code];
  const int sign = codes.is_signed ? 1 << (codes.bits - 1) : 0;
  return static_cast<float>((static_cast<int>(code) ^ sign) - sign);
}

// A row's outliers, from `next` on, up to column `end`: what each is more than the weight of its code, times activations, which are
// [n_tokens, n_columns]. `scale`, times `unit`, and `offset` are those of groups from `first_group` on.
[[maybe_unused]] inline void add_outliers(const Codes& codes, size_t n_columns, const Groups& groups, const Outliers& outliers, size_t row,
                                          size_t first_group, size_t end, const float* scale, float unit, const float* offset,
                                          const float* x, size_t n_tokens, int64_t& next, float* more) {
  const unsigned bits = codes.bits, per = 8 / bits;
  for (; next < outliers.row_begin[row + 1] && outliers.column[next] < end; next++) {
    const size_t column = outliers.column[next], at = codes.first + row * n_columns + column;
    const float code = value_of(codes, codes.bytes[at / per] >> at % per * bits & ((1u << bits) - 1));
    const size_t group = column / groups.group_size - first_group;
    const float factor = scale[group] / unit;
    float weight = factor * code;
    if (groups.kind == GroupOffset::zero_point) weight = factor * (code - offset[group]);
    if (groups.kind == GroupOffset::minimum) weight -= offset[group];
    const float difference = outliers.value[next] - weight;
    for (size_t t = 0; t < n_tokens; t++) more[t] += difference * x[t * n_columns + column];
  }
}

// Codes as they are: the row's factor is left for the end, that of a column is in the tokens.
inline void code_tile(const Codes& codes, size_t n_columns, size_t row, size_t column, size_t n, TileCodes& room,
                      float* __restrict weights) {
  const size_t first = codes.first + row * n_columns + column;
  if (codes.bits == 8 && codes.is_signed) {
    const int8_t* __restrict from = reinterpret_cast<const int8_t*>(codes.bytes) + first;
    size_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(weights + i, widen(from + i));
#endif
    for (; i < n; i++) weights[i] = static_cast<float>(from[i]);
    return;
  }
  const int16_t* __restrict from = unpack(codes, first, n, room);
  for (size_t i = 0; i < n; i++) weights[i] = static_cast<float>(from[i]);
}

void uniform_multiply(const Codes& codes, size_t n_columns, const UniformScales& scales, const Outliers& outliers, size_t begin,
                      size_t end, const Tokens& tokens, const Outputs& outputs) {
  alignas(64) TileCodes room;
  if (outliers.row_begin == nullptr && scales.column == nullptr) {
    multiply_rows(
        n_columns, begin, end, tokens, outputs,
        [&](size_t row, size_t column, size_t n, float* weights) { code_tile(codes, n_columns, row, column, n, room, weights); },
        [&](size_t row) { return scales.row[row]; });
    return;
  }
  multiply_rows(
      n_columns, begin, end, tokens, outputs,
      [&](size_t row, size_t column, size_t n, float* weights) {
        uniform_tile(codes, n_columns, scales, row, column, n, room, weights);
        replace_outliers(outliers, row, column, n, weights);
      },
      [](size_t) { return 1.0f; });
}

// The numbers of the groups that a tile touches.
struct TileNumbers {
  float scale[kTile + 1];
  float offset[kTile + 1];
  alignas(64) float values[kTile];
};

// Weights (row, column)..(row, column + n - 1), n <= kTile; the row is row `group_row` of the groups.
inline void numbered_tile(const Codes& codes, size_t n_columns, const Groups& groups, size_t row, size_t group_row, size_t column,
                          size_t n, TileCodes& room, TileNumbers& numbers, float* __restrict weights) {
  const size_t size = groups.group_size, n_groups = (n_columns - 1) / size + 1;
  const size_t first = column / size, touched = (column + n - 1) / size - first + 1, line = line_of(groups, group_row);
  group_numbers(groups.scale, n_groups, line, first, touched, numbers.scale);
  if (groups.kind != GroupOffset::none) group_numbers(groups.offset, n_groups, line, first, touched, numbers.offset);
  const int16_t* code = unpack(codes, codes.first + row * n_columns + column, n, room);
  const float* values = nullptr;
  if (codes.values != nullptr) {
    look_up(code, n, codes, numbers.values);
    values = numbers.values;
  }
  for (size_t i = 0; i < n;) {
    const size_t group = (column + i) / size - first;
    // A group can pass the end of the tile, and of the row: the last one may be shorter than group_size.
    const size_t n_here = smaller(n - i, size - (column + i) % size);
    const float offset = groups.kind == GroupOffset::none ? 0.0f : numbers.offset[group];
    if (values != nullptr) {
      scale_group(values + i, n_here, numbers.scale[group], offset, groups.kind, weights + i);
    } else {
      scale_group(code + i, n_here, numbers.scale[group], offset, groups.kind, weights + i);
    }
    i += n_here;
  }
}

void grouped_multiply(const Codes& codes, size_t n_columns, const Groups& groups, size_t first_row, const Outliers& outliers,
                      size_t begin, size_t end, const Tokens& tokens, const Outputs& outputs) {
  alignas(64) TileCodes room;
  TileNumbers numbers;
  multiply_rows(
      n_columns, begin, end, tokens, outputs,
      [&](size_t row, size_t column, size_t n, float* weights) {
        numbered_tile(codes, n_columns, groups, row, first_row + row, column, n, room, numbers, weights);
        replace_outliers(outliers, row, column, n, weights);
      },
      [](size_t) { return 1.0f; });
}

float round_token(const float* __restrict x, size_t n_columns, int8_t* __restrict codes) {
  uint32_t largest = 0;  // magnitudes compare like their bits
  for (size_t i = 0; i < n_columns; i++) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float quotient = float_of(largest) / 127;
  const float scale = quotient > 0 ? quotient : 1;
  // Adding and subtracting 1.5 * 2^23, whose last place is 1, lets the adder round.
  for (size_t i = 0; i < n_columns; i++) {
    const float rounded = (x[i] / scale + 0x1.8p23f) - 0x1.8p23f;
    const float above = rounded > -127.0f ? rounded : -127.0f;  // also for what is not a number
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(above < 127.0f ? above : 127.0f));
  }
  return scale;
}

void scale_row_sums(const int32_t* __restrict sums, const float* __restrict row, float scale, size_t n_rows, size_t token,
                    const Outputs& outputs) {
  if (outputs.place != nullptr || outputs.bias.values != nullptr) {
    for (size_t i = 0; i < n_rows; i++) write(outputs, token, i, static_cast<float>(sums[i]) * row[i] * scale);
    return;
  }
  alignas(64) float values[kTile];
  for (size_t first = 0; first < n_rows; first += kTile) {
    const size_t n = smaller(kTile, n_rows - first);
    for (size_t i = 0; i < n; i++) values[i] = static_cast<float>(sums[first + i]) * row[first + i] * scale;
    store(values, n, outputs.type, token * outputs.stride + outputs.first + first, static_cast<uint8_t*>(outputs.y));
  }
}

void write_sums(const float* sums, size_t n_rows, size_t token, const Outputs& outputs) {
  for (size_t i = 0; i < n_rows; i++) write(outputs, token, i, sums[i]);
}

constexpr MultiplyKernels kMultiply = {uniform_multiply, grouped_multiply, round_token, scale_row_sums, write_sums, widen_halves};

}  // namespace
}  // namespace spqfmt
