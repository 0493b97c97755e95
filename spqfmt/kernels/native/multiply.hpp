// Activations times weights that stay codes: y = x W^T for some tokens, W as in dequantize.hpp with outliers in place.
//
// A row's weights exist as binary32 only in a tile of the nearest cache. Products are summed in kProductLanes partial sums by
// column modulo kProductLanes, then halved; no fused multiply-add. So the result of a token is the same on every machine, for
// every number of threads and of other tokens. Two kernels are an exception in the first: those for AVX512_BF16. Rounded
// activations (IntegerTokens) give the same on every machine again, for up to kMostRounded tokens at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dequantize.hpp"
#include "group_numbers.hpp"

namespace spqfmt {

struct Narrow;
struct NarrowRows;  // narrow.hpp

inline constexpr size_t kProductLanes = 32;

struct ColumnPieces;

// The codes of a run of whole rows: packed, or, where there are such `rows`, narrow 8-bit ones in their place, or `pieces`.
struct HeldCodes {
  Codes codes;
  const NarrowRows* rows = nullptr;
  const ColumnPieces* pieces = nullptr;
};

// Signed 8-bit codes of all rows whose columns lie apart: those from `first` on, n_columns of them, as rows of their own.
struct ColumnPiece {
  HeldCodes held;
  size_t first, n_columns;
};
struct ColumnPieces {
  const ColumnPiece* of;
  size_t n;
};

// Weights that replace the dequantized ones. Those of row i are numbers row_begin[i]..row_begin[i + 1] - 1, columns ascending.
struct Outliers {
  const int64_t* row_begin;  // n_rows + 1, or null where there are none
  const uint32_t* column;
  const float* value;
};

// Floats of some type, as torch holds them.
struct Floats {
  const void* values;
  FloatType type;
};

// Where outputs go: that of row i to y[token, place[i]], or y[token, first + i] where `place` is null, plus bias[the same].
struct Outputs {
  void* y;  // [n_tokens, stride]
  FloatType type;
  size_t stride;
  size_t first;
  const int64_t* place;
  Floats bias;  // [stride], or values null
};

// Activations in binary32: token i is `stride` floats from x + i * stride on, zeros from n_columns to whole kProductLanes.
struct Tokens {
  const float* x;
  size_t stride;
  size_t count;
};

// Activations as they are given, `count` tokens of `stride` numbers. Column i of a token is its number permutation[i], unless null.
struct Inputs {
  Floats x;
  size_t count;
  const int64_t* permutation;
  size_t stride;
};

// The kernels of one instruction set. `begin` to `end` are rows of the run that codes, scales and outliers begin with.
struct MultiplyKernels {
  void (*uniform)(const Codes&, size_t n_columns, const UniformScales&, const Outliers&, size_t begin, size_t end, const Tokens&,
                  const Outputs&);
  // The run's first row is row `first_row` of the groups.
  void (*grouped)(const Codes&, size_t n_columns, const Groups&, size_t first_row, const Outliers&, size_t begin, size_t end,
                  const Tokens&, const Outputs&);
  // One token to codes -127..127, nearest, ties to even. Returns the scale, the largest magnitude / 127; 1 for all zeros.
  float (*round_token)(const float* x, size_t n_columns, int8_t* codes);
  // Outputs of one token from the sums of its codes times int8 weights: sum * row factor * scale.
  void (*scale_sums)(const int32_t* sums, const float* row, float scale, size_t n_rows, size_t token, const Outputs&);
  // Outputs of one token from sums of products.
  void (*write_sums)(const float* sums, size_t n_rows, size_t token, const Outputs&);
  // Codes from their halves: see widen_halves.hpp.
  void (*widen)(const uint8_t* halves, size_t n, uint8_t least, uint8_t* codes);
};

// Activations in BF16, otherwise like Tokens.
struct PairTokens {
  const uint16_t* x;
  size_t stride;
  size_t count;
};

// 8-bit codes with a factor for each row, and BF16 activations in which the factors of columns are, for processors with
// AVX512_BF16. Sums are rounded where the processor does it, so that the last bits of a result are its own. Outliers are
// multiplied with the activations as given, and added in binary32.
//
// The codes are as they are, or narrow, of rows of an even number of columns.
struct PairCodes {
  const int8_t* codes;
  const Narrow* narrow;
};
void pair_multiply_avx512_bf16(const PairCodes& codes, size_t n_columns, const float* factors, const Outliers&, const Inputs& given,
                               size_t begin, size_t end, const PairTokens&, const Outputs&);

// Columns whose products are summed together, and the least group of them that has lanes of its own.
inline constexpr size_t kGroupBlock = 64, kLeastPairGroup = 4;

// Activations in BF16 for codes in groups: in each kGroupBlock columns the even ones, then the odd ones, zeros up to a whole
// block. `sums`: of each group in binary32 [count, sums_stride], zeros from n_groups to sums_stride, at least a register more.
// `columns`: in binary32, [count, n_columns], for outliers; else null.
struct GroupTokens {
  const uint16_t* x;
  size_t stride;
  const float* sums;
  size_t sums_stride;
  const float* columns;
  size_t count;
};

// Codes whose rows begin at whole bytes, for processors with AVX512_BF16 and AVX512_VBMI; values of 8-bit codes are BF16 numbers.
// Groups are of 4, 8, 16, 32, a multiple of kGroupBlock, or all columns. Sums are the processor's own, as above.
void group_multiply_avx512_bf16(const Codes&, size_t n_columns, const Groups&, size_t first_row, const Outliers&, size_t begin,
                                size_t end, const GroupTokens&, const Outputs&);

// A vector of codes has so many bytes, and a lane four of them: 4 * (8 / bits) columns. Lanes have sums of their own.
inline constexpr size_t kVectorBytes64 = 64, kVectorLanes = 16;

// Codes that stand for integers times `unit`, a power of two. `shift` is added to them where they become factors of products:
// those of 4 bits by `table`, whose bytes have it, those of 8 bits by flipping these bits, and so those of 4 where that is
// the same, two in a byte.
struct IntegerCodes {
  int least;
  int shift;
  float unit;
  bool flips;
  uint8_t flip;
  alignas(16) uint8_t table[16];
};

// Activations rounded to -127..127 with a scale for each lane, in whole vectors, zeros from the last column on: in each vector
// every (8 / bits)th column from the first one on, then from the second. `start`: -shift times a lane's sum. `sums`: of each
// group, of the rounded ones in binary32 [count, sums_stride], zeros from n_groups on, at least two registers.
// `columns` as in GroupTokens.
struct IntegerTokens {
  const int8_t* x;
  size_t stride;
  const float* scales;
  const int32_t* start;
  size_t lanes_stride;
  const float* sums;
  size_t sums_stride;
  const float* columns;
  size_t count;
};

// Each lane's columns lie in one group, and a vector's in one group or in as many of the same power of two of lanes.
struct IntegerKernels {
  void (*multiply)(const Codes&, const IntegerCodes&, size_t n_columns, const Groups&, size_t first_row, const Outliers&, size_t begin,
                   size_t end, const IntegerTokens&, const Outputs&);
  // A token's x in binary32, in whole vectors of 8 / bits = `per`: see IntegerTokens; `sums` are those of lanes.
  void (*round)(const float* x, size_t n_vectors, size_t per, int shift, int8_t* codes, float* scales, int32_t* start, int32_t* sums);
  // The shift that products want of integers from `least` to `most`.
  int (*shift)(int least, int most);
};

extern const IntegerKernels integers_scalar, integers_avx2, integers_avx512;

// Supergroups of so many columns have scales of bytes times a step: ggml's "K" blocks. A lane is a group of 16 or 32 of them.
// Activations are at most kMostOfLane times their lane's scale.
inline constexpr size_t kSuperColumns = 256;
inline constexpr float kMostOfLane = 8192;

// Activations as 128 * high + low, both -64..64, times a scale for each lane, in blocks of kVectorLanes lanes, zeros from the last
// column on, in the order of lanes that group_lanes.hpp has: x [count, n_blocks, high and low, a block's columns]; `scales`, and sums of
// the lanes, [count, n_blocks, kVectorLanes]; `start`, -shift times sums of parts, [count, n_blocks, high and low, kVectorLanes].
struct LaneTokens {
  const int8_t* x;
  const float* scales;
  const float* sums;
  const int32_t* start;
  size_t count;
};

// Groups are of 16 columns, or of codes of 4 bits also of 32, without offsets or with minimums that are bytes times steps as scales are; rows
// are whole supergroups. IntegerCodes have the shift that makes all codes 0..255.
struct LaneKernels {
  void (*multiply)(const Codes&, const IntegerCodes&, size_t n_columns, const Groups&, size_t first_row, size_t begin, size_t end,
                   const LaneTokens&, const Outputs&);
  // A token's x in binary32, in whole blocks.
  void (*round)(const float* x, size_t n_blocks, unsigned bits, size_t lane, int shift, int8_t* parts, float* scales, int32_t* start,
                float* sums);
};

extern const LaneKernels lanes_scalar, lanes_avx2, lanes_avx512;

// Tokens that are rounded at most: more are computed faster with activations as they are.
inline constexpr size_t kMostRounded = 32;

extern const MultiplyKernels multiply_scalar, multiply_avx2, multiply_avx512;

// Whether these products may take activations of 16 bits, of few tokens, rounded: in units of 1/127 of a lane's largest, or 1/8192.
enum class Rounding : bool { none, few };

// A product with some rows: codes in `groups`, their first row that of the run, or where these are null with `scales`. Column i of a
// token is its number permutation[i], unless null. With `pieces` there are `scales` and a permutation, and no outliers.
struct RowsProduct {
  HeldCodes held;
  size_t first_row, n_rows;
  const Groups* groups;
  UniformScales scales;
  Outliers outliers;
  const int64_t* permutation;
  Outputs outputs;
};

// All rows of n products of the same tokens [n_tokens, n_columns], over threads, which meet once. The caller has checked every
// buffer, that row_begin ascends within the outliers, that columns ascend in each row below n_columns, and that every place is below
// the stride. Each gives the bits that it gives alone.
void multiply_rows_of(const RowsProduct* products, size_t n, size_t n_columns, const Floats& x, size_t n_tokens, Rounding rounding,
                      size_t n_threads);

// Tokens, times `column` unless it is null, to int8 [count, n_columns] with a scale each.
void round_tokens(const Inputs& inputs, size_t n_columns, const float* column, int8_t* codes, float* scales, size_t n_threads);
// Outputs from int32 sums [n_tokens, n_rows]: sum * row * scale.
void scale_sums(const int32_t* sums, size_t n_tokens, size_t n_rows, const float* row, const float* scales, const Outputs& outputs,
                size_t n_threads);

}  // namespace spqfmt
