// Codes of 4 or 8 bits in groups times activations that are rounded to int8. Included by one file for each instruction set, like
// multiply_rows.hpp.
//
// A vector is 64 bytes of a row's codes, a lane four bytes of it: neighbouring columns, which lie in one group. A lane's sum of
// products of integers is exact; times the scales of its group and of its activations it is added to one of kVectorLanes sums
// in binary32, without fused multiply-add. So every instruction set gives the same bits.
#pragma once

#include "integer_lanes.hpp"
#include "line_numbers.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {
namespace {

// What belongs to the groups of some rows in the columns of a tile, which is kGroupsAtOnce whole groups or what a row has.
struct IntTileGroups {
  alignas(64) float scale[kIntRows][kRoomOfGroups];
  alignas(64) float offset[kIntRows][kRoomOfGroups];
  alignas(64) float coefficient[kIntRows][kRoomOfGroups];
};

struct IntSums {
  alignas(64) float of[kIntRows][kTokensPerTile][kVectorLanes];
};

// What does not change from row to row. `log2`: lanes of a group, where groups are less than a vector. `tile`: columns.
struct IntCall {
  const Codes& codes;
  const IntegerCodes& integers;
  size_t n_columns;
  const Groups& groups;
  size_t n_groups;
  size_t first_row;
  const Outliers& outliers;
  const IntegerTokens& tokens;
  const Outputs& outputs;
  unsigned log2;
  size_t tile;
  LineNumbers scales, offsets;
};

struct IntTile {
  size_t row, column, n;
  size_t first_group, n_groups;
};

// How codes become factors of products: they are these, after a flip, or by a look-up of four bits.
enum class Turned { not_at_all, by_flip, by_table };

// The bytes of a unit of codes as factors, those of every `8 / kBits`th column together.
template <unsigned kBits, Turned kTurned>
inline void factors(Ints bytes, const Ints& table, uint8_t flip, Ints (&to)[8 / kBits]) {
  if constexpr (kTurned == Turned::by_table) {
    to[0] = looked_up<0>(bytes, table);
    to[1] = looked_up<4>(bytes, table);
    return;
  }
  if constexpr (kTurned == Turned::by_flip) bytes = flipped(bytes, flip);
  if constexpr (kBits == 8) {
    to[0] = bytes;
  } else {
    to[0] = four_bits<0>(bytes);
    to[1] = four_bits<4>(bytes);
  }
}

// The activations of a unit's columns: of each token `stride` further, its lanes' `lanes_stride`.
struct UnitTokens {
  const int8_t* x;
  const float* scales;
  const int32_t* start;
  size_t stride, lanes_stride;
};

// Adds a unit of a row: the sum of each lane, times the scales of its group and of its activations.
template <unsigned kBits, Turned kTurned, bool kSigned, size_t kT>
[[gnu::always_inline]] inline void add_unit(const Ints& bytes, const Ints& table, uint8_t flip, const Reals& scale, const UnitTokens& tokens,
                                            Reals (&acc)[kT]) {
  constexpr size_t kPer = 8 / kBits;
  Ints codes[kPer];
  factors<kBits, kTurned>(bytes, table, flip, codes);
  for (size_t t = 0; t < kT; t++) {
    const int8_t* x = tokens.x + t * tokens.stride;
    Sums32 sum = load_sums(tokens.start + t * tokens.lanes_stride);
    for (size_t k = 0; k < kPer; k++) sum = dot<kSigned>(sum, codes[k], load_ints(x + k * kVectorBytes64));
    acc[t] = plus(acc[t], times(to_reals(sum), times(scale, load_reals(tokens.scales + t * tokens.lanes_stride))));
  }
}

// Which group a unit of a vector belongs to, counted from the tile's first.
template <unsigned kBits, bool kSmall>
class VectorGroups {
 public:
  VectorGroups(const IntCall& call, const IntTile& tile) : log2_(call.log2), size_(call.groups.group_size), spread_(spread_by(call.log2)) {
    if constexpr (!kSmall) left_ = size_ >= call.n_columns ? call.n_columns + kColumns : size_ - tile.column % size_;
  }

  Reals scale_of(const float* scales, size_t unit) const {
    if constexpr (kSmall) return spread(scales + first_ + (unit * kUnitLanes >> log2_), spread_);
    return same_reals(scales[first_]);
  }

  void advance() {
    if constexpr (kSmall) {
      first_ += kVectorLanes >> log2_;
    } else if ((left_ -= kColumns) == 0) {
      first_++;
      left_ = size_;
    }
  }

 private:
  static constexpr size_t kColumns = kVectorBytes64 * (8 / kBits);
  unsigned log2_;
  size_t size_, first_ = 0, left_ = 0;
  Spread spread_;
};

template <unsigned kBits, Turned kTurned, bool kSigned, bool kSmall, size_t kR, size_t kT>
inline void add_vectors(const IntCall& call, const IntTile& tile, const IntTileGroups& groups, size_t first_token, size_t token,
                        IntSums& sums) {
  constexpr size_t kPer = 8 / kBits, kColumns = kVectorBytes64 * kPer;
  const IntegerTokens& tokens = call.tokens;
  const size_t first_lane = (first_token + token) * tokens.lanes_stride + tile.column / (4 * kPer);
  UnitTokens at{tokens.x + (first_token + token) * tokens.stride + tile.column, tokens.scales + first_lane, tokens.start + first_lane,
                tokens.stride, tokens.lanes_stride};
  const Ints table = table_of(call.integers.table);
  const uint8_t flip = call.integers.flip;
  const size_t row_bytes = call.n_columns / kPer;
  const uint8_t* from = call.codes.bytes + (call.codes.first + tile.row * call.n_columns + tile.column) / kPer;
  const uint8_t* next = from + kR * row_bytes + (kR - 1) * tile.column / kPer;
  Reals acc[kR][kUnits][kT];
  for (size_t r = 0; r < kR; r++) {
    for (size_t u = 0; u < kUnits; u++) {
      for (size_t t = 0; t < kT; t++) {
        acc[r][u][t] = tile.column == 0 ? same_reals(0) : load_reals(sums.of[r][token + t] + u * kUnitLanes);
      }
    }
  }
  VectorGroups<kBits, kSmall> of(call, tile);
  size_t column = 0;
  for (; column + kColumns <= tile.n; column += kColumns, from += kVectorBytes64, of.advance()) {
    for (size_t u = 0; u < kUnits; u++) {
      for (size_t r = 0; r < kR; r++) {
        const uint8_t* bytes = from + r * row_bytes + u * kUnitBytes;
        if (u == 0) fetch_ahead(next, kR * row_bytes), next += kVectorBytes64;
        add_unit<kBits, kTurned, kSigned, kT>(load_ints(bytes), table, flip, of.scale_of(groups.scale[r], u), at, acc[r][u]);
      }
      at.x += kUnitBytes;
      at.scales += kUnitLanes;
      at.start += kUnitLanes;
    }
    at.x += kVectorBytes64 * (kPer - 1);
  }
  if (column < tile.n) {
    const size_t left = (tile.n - column) / kPer;
    for (size_t u = 0; u < kUnits; u++) {
      for (size_t r = 0; r < kR; r++) {
        const Ints bytes = load_some(from + r * row_bytes + u * kUnitBytes, left > u * kUnitBytes ? left - u * kUnitBytes : 0);
        add_unit<kBits, kTurned, kSigned, kT>(bytes, table, flip, of.scale_of(groups.scale[r], u), at, acc[r][u]);
      }
      at.x += kUnitBytes;
      at.scales += kUnitLanes;
      at.start += kUnitLanes;
    }
  }
  if (call.groups.kind != GroupOffset::none) {
    const float* x_sums = tokens.sums + (first_token + token) * tokens.sums_stride + tile.first_group;
    for (size_t i = 0; i < tile.n_groups; i += kVectorLanes) {
      for (size_t u = 0; u < kUnits; u++) {
        for (size_t t = 0; t < kT; t++) {
          const Reals x_sum = load_reals(x_sums + t * tokens.sums_stride + i + u * kUnitLanes);
          for (size_t r = 0; r < kR; r++) {
            const Reals less = load_reals(groups.coefficient[r] + i + u * kUnitLanes);
            acc[r][u][t] = minus(acc[r][u][t], times(less, x_sum));
          }
        }
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t u = 0; u < kUnits; u++) save_reals(acc[r][u][t], sums.of[r][token + t] + u * kUnitLanes);
    }
  }
}

// Scales in units of the codes' integers, offsets where outliers want them, and what each group's sum of activations is multiplied by.
// Zeros to a register more: those are read, too.
template <size_t kR>
inline void read_int_groups(const IntCall& call, const IntTile& tile, IntTileGroups& groups) {
  const size_t first = tile.first_group, n = tile.n_groups;
  for (size_t r = 0; r < kR; r++) {
    const size_t line = line_of(call.groups, call.first_row + tile.row + r);
    float* __restrict scale = groups.scale[r];
    float* __restrict offset = groups.offset[r];
    float* __restrict coefficient = groups.coefficient[r];
    call.scales.read(line, first, n, scale);
    if (call.groups.kind == GroupOffset::zero_point) {
      call.offsets.read(line, first, n, offset);
      for (size_t i = 0; i < n + kVectorLanes; i++) coefficient[i] = offset[i] * scale[i];
    } else if (call.groups.kind == GroupOffset::minimum) {
      call.offsets.read(line, first, n, coefficient);
      if (call.outliers.row_begin != nullptr) std::memcpy(offset, coefficient, n * sizeof(float));
    }
    if (call.integers.unit != 1) {
      for (size_t i = 0; i < n; i++) scale[i] = scale[i] * call.integers.unit;
    }
  }
}

template <unsigned kBits, Turned kTurned, bool kSigned, bool kSmall, size_t kR>
inline void multiply_some_integers(const IntCall& call, size_t row, IntTileGroups& groups, IntSums& sums) {
  const IntegerTokens& tokens = call.tokens;
  for (size_t first = 0; first < tokens.count; first += kTokensPerTile) {
    const size_t n_tokens = smaller(kTokensPerTile, tokens.count - first);
    float more[kR][kTokensPerTile] = {};
    int64_t next[kR] = {};
    if (call.outliers.row_begin != nullptr) {
      for (size_t r = 0; r < kR; r++) next[r] = call.outliers.row_begin[row + r];
    }
    size_t first_group = 0;
    for (size_t column = 0; column < call.n_columns; column += call.tile, first_group += kGroupsAtOnce) {
      const size_t n = smaller(call.tile, call.n_columns - column), n_groups = smaller(kGroupsAtOnce, call.n_groups - first_group);
      const IntTile tile{row, column, n, first_group, n_groups};
      read_int_groups<kR>(call, tile, groups);
      size_t token = 0;
      for (; token + kIntTokens <= n_tokens; token += kIntTokens) {
        add_vectors<kBits, kTurned, kSigned, kSmall, kR, kIntTokens>(call, tile, groups, first, token, sums);
      }
      for (; token < n_tokens; token++) add_vectors<kBits, kTurned, kSigned, kSmall, kR, 1>(call, tile, groups, first, token, sums);
      if (call.outliers.row_begin == nullptr) continue;
      for (size_t r = 0; r < kR; r++) {
        const float* x = tokens.columns + first * call.n_columns;
        add_outliers(call.codes, call.n_columns, call.groups, call.outliers, row + r, first_group, column + n, groups.scale[r],
                     call.integers.unit, groups.offset[r], x, n_tokens, next[r], more[r]);
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t token = 0; token < n_tokens; token++) {
        write(call.outputs, first + token, row + r, total_of_lanes(sums.of[r][token]) + more[r][token]);
      }
    }
  }
}

template <unsigned kBits, Turned kTurned, bool kSigned, bool kSmall>
void multiply_some_range(const IntCall& call, size_t begin, size_t end) {
  IntTileGroups groups;
  IntSums sums;
  size_t row = begin;
  for (; row + kIntRows <= end; row += kIntRows) multiply_some_integers<kBits, kTurned, kSigned, kSmall, kIntRows>(call, row, groups, sums);
  for (; row < end; row++) multiply_some_integers<kBits, kTurned, kSigned, kSmall, 1>(call, row, groups, sums);
}

template <unsigned kBits, Turned kTurned, bool kSigned>
void multiply_integers_range(const IntCall& call, size_t begin, size_t end) {
  const size_t size = call.groups.group_size;
  if (size < kVectorBytes64 * (8 / kBits) && size < call.n_columns) {
    multiply_some_range<kBits, kTurned, kSigned, true>(call, begin, end);
  } else {
    multiply_some_range<kBits, kTurned, kSigned, false>(call, begin, end);
  }
}

void integers_multiply(const Codes& codes, const IntegerCodes& integers, size_t n_columns, const Groups& groups, size_t first_row,
                       const Outliers& outliers, size_t begin, size_t end, const IntegerTokens& tokens, const Outputs& outputs) {
  const size_t size = groups.group_size, lanes = size / (4 * (8 / codes.bits));
  unsigned log2 = 0;
  while ((size_t{2} << log2) <= lanes) log2++;
  const size_t n_groups = (n_columns - 1) / size + 1, tile = size < n_columns ? kGroupsAtOnce * size : n_columns;
  const IntCall call{codes, integers, n_columns, groups, n_groups, first_row, outliers, tokens, outputs, log2, tile,
                     LineNumbers(groups.scale, n_groups), LineNumbers(groups.offset, n_groups)};
  const bool is_signed = integers.least + integers.shift < 0, is_flipped = integers.flip != 0;
  if (codes.bits == 8 && is_signed) {
    is_flipped ? multiply_integers_range<8, Turned::by_flip, true>(call, begin, end)
               : multiply_integers_range<8, Turned::not_at_all, true>(call, begin, end);
  } else if (codes.bits == 8) {
    is_flipped ? multiply_integers_range<8, Turned::by_flip, false>(call, begin, end)
               : multiply_integers_range<8, Turned::not_at_all, false>(call, begin, end);
  } else if (is_signed) {
    multiply_integers_range<4, Turned::by_table, true>(call, begin, end);
  } else if (!integers.flips) {
    multiply_integers_range<4, Turned::by_table, false>(call, begin, end);
  } else {
    is_flipped ? multiply_integers_range<4, Turned::by_flip, false>(call, begin, end)
               : multiply_integers_range<4, Turned::not_at_all, false>(call, begin, end);
  }
}

// Rounds the kPer * 4 columns of each lane, x being zero from the last column on, and puts those of every kPer-th column together.
template <size_t kPer>
inline void round_some_lanes(const float* __restrict x, size_t n_vectors, int shift, int8_t* __restrict codes, float* __restrict scales,
                             int32_t* __restrict start, int32_t* __restrict sums) {
  constexpr size_t kLane = 4 * kPer, kColumns = kVectorBytes64 * kPer;
  alignas(64) int8_t rounded[kColumns];
  for (size_t v = 0; v < n_vectors; v++) {
    const float* __restrict from = x + v * kColumns;
    float largest[kVectorLanes], factor[kVectorLanes];
    for (size_t lane = 0; lane < kVectorLanes; lane++) {
      uint32_t most = 0;  // magnitudes compare like their bits
      for (size_t i = 0; i < kLane; i++) {
        const uint32_t magnitude = bits_of(from[lane * kLane + i]) & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
      }
      largest[lane] = float_of(most);
    }
    for (size_t lane = 0; lane < kVectorLanes; lane++) {
      // What is no number stays none; the least are 0, for their quotient would be infinite.
      scales[v * kVectorLanes + lane] = largest[lane] < 0x1p-100f ? 0 : largest[lane] / 127;
      factor[lane] = largest[lane] < 0x1p-100f ? 0 : 127 / largest[lane];
    }
    for (size_t lane = 0; lane < kVectorLanes; lane++) {
      int32_t sum = 0;
      for (size_t i = 0; i < kLane; i++) {
        // Adding and subtracting 1.5 * 2^23, whose last place is 1, lets the adder round.
        const float near = (from[lane * kLane + i] * factor[lane] + 0x1.8p23f) - 0x1.8p23f;
        const int32_t code = static_cast<int32_t>(near == near ? near : 0.0f);
        rounded[lane * kLane + i] = static_cast<int8_t>(code);
        sum += code;
      }
      sums[v * kVectorLanes + lane] = sum;
      start[v * kVectorLanes + lane] = -shift * sum;
    }
    for (size_t k = 0; k < kPer; k++) {
      for (size_t i = 0; i < kVectorBytes64; i++) codes[v * kColumns + k * kVectorBytes64 + i] = rounded[i * kPer + k];
    }
  }
}

void round_lanes(const float* x, size_t n_vectors, size_t per, int shift, int8_t* codes, float* scales, int32_t* start, int32_t* sums) {
  if (per == 1) {
    round_some_lanes<1>(x, n_vectors, shift, codes, scales, start, sums);
  } else {
    round_some_lanes<2>(x, n_vectors, shift, codes, scales, start, sums);
  }
}

constexpr IntegerKernels kIntegers = {integers_multiply, round_lanes, shift_of_integers};

}  // namespace
}  // namespace spqfmt
