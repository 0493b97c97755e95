#include "multiply.hpp"

#include <cmath>
#include <cstring>
#include <memory>

#include "bitstream.hpp"
#include "dispatch.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

inline float as_is(float value) { return value; }

template <typename Stored, float (*kConvert)(Stored)>
void convert(const Stored* __restrict from, size_t n_columns, const int64_t* permutation, float* __restrict to) {
  if (permutation != nullptr) {
    for (size_t i = 0; i < n_columns; i++) to[i] = kConvert(from[permutation[i]]);
  } else {
    for (size_t i = 0; i < n_columns; i++) to[i] = kConvert(from[i]);
  }
}

void convert_token(const Inputs& inputs, size_t token, size_t n_columns, const float* __restrict column, float* __restrict to) {
  const size_t at = token * n_columns;
  const int64_t* permutation = inputs.permutation;
  const Floats x = inputs.x;
  switch (x.type) {
    case FloatType::f32: convert<float, as_is>(static_cast<const float*>(x.values) + at, n_columns, permutation, to); break;
    case FloatType::bf16: convert<uint16_t, widened_bf16>(static_cast<const uint16_t*>(x.values) + at, n_columns, permutation, to); break;
    case FloatType::f16: convert<uint16_t, widened_f16>(static_cast<const uint16_t*>(x.values) + at, n_columns, permutation, to); break;
  }
  if (column != nullptr) {
    for (size_t i = 0; i < n_columns; i++) to[i] = to[i] * column[i];
  }
}

// The memory of Tokens.
class Converted {
 public:
  Converted(const Inputs& inputs, size_t n_columns, const float* column, size_t n_threads)
      : stride_(round_up(n_columns, kProductLanes)), count_(inputs.count), values_(new float[count_ * stride_]) {
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; token++) {
        float* to = values_.get() + token * stride_;
        convert_token(inputs, token, n_columns, column, to);
        std::memset(to + n_columns, 0, (stride_ - n_columns) * sizeof(float));
      }
    });
  }

  Tokens tokens() const { return {values_.get(), stride_, count_}; }

 private:
  size_t stride_, count_;
  std::unique_ptr<float[]> values_;
};

#if defined(SPQFMT_X86)
bool multiplies_pairs() {
  static const bool supported = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  return supported && active_kernels().multiply == &multiply_avx512;
}

// Round to nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The memory of PairTokens, where the activations cannot be taken as they are.
class Pairs {
 public:
  Pairs(const Inputs& inputs, size_t n_columns, const float* column, size_t n_threads)
      : given_(static_cast<const uint16_t*>(inputs.x.values)), stride_(n_columns), count_(inputs.count) {
    if (column == nullptr && inputs.permutation == nullptr && n_columns % kProductLanes == 0) return;
    stride_ = round_up(n_columns, kProductLanes);
    made_.reset(new uint16_t[stride_ * count_]);
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; token++) {
        const uint16_t* from = given_ + token * n_columns;
        uint16_t* to = made_.get() + token * stride_;
        for (size_t i = 0; i < n_columns; i++) {
          const uint16_t x = from[inputs.permutation == nullptr ? i : static_cast<size_t>(inputs.permutation[i])];
          to[i] = column == nullptr ? x : to_bf16(widened_bf16(x) * column[i]);
        }
        std::memset(to + n_columns, 0, (stride_ - n_columns) * sizeof(uint16_t));
      }
    });
  }

  PairTokens tokens() const { return {made_ ? made_.get() : given_, stride_, count_}; }

 private:
  const uint16_t* given_;
  size_t stride_, count_;
  std::unique_ptr<uint16_t[]> made_;
};

void multiply_pairs(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, const Outliers& outliers,
                    const Inputs& inputs, const Outputs& outputs, size_t n_threads) {
  const Pairs pairs(inputs, n_columns, scales.column, n_threads);
  const int8_t* from = reinterpret_cast<const int8_t*>(codes.bytes + codes.first);
  over_rows(n_rows, n_columns * inputs.count, n_threads, [&](size_t begin, size_t end) {
    pair_multiply_avx512_bf16(from, n_columns, scales.row, outliers, inputs, begin, end, pairs.tokens(), outputs);
  });
}

// Whether codes stand for BF16 numbers, or of at most 4 bits for sums of two. The processor takes subnormal ones for 0, and what
// has no weight in a block's empty places must not be infinite.
bool values_are_pairs(const Codes& codes) {
  if (codes.values == nullptr) return true;
  const size_t n = size_t{1} << codes.bits;
  bool fit = std::isfinite(codes.values[0]);
  for (size_t i = 0; i < n; i++) {
    const float value = codes.values[i], magnitude = std::fabs(value);
    const bool is_normal = magnitude == 0 || (magnitude > 0x1p-100f && magnitude < 0x1p100f);
    fit = fit && (codes.bits < 8 ? is_normal : !(is_normal ? widened_bf16(to_bf16(value)) != value : std::isfinite(value)));
  }
  return fit;
}

bool groups_are_pairs(const Codes& codes, size_t n_columns, const Groups& groups, const Inputs& inputs) {
  const size_t size = groups.group_size;
  const bool has_lanes = size >= kLeastPairGroup && kGroupBlock % size == 0;
  return inputs.x.type == FloatType::bf16 && (has_lanes || size % kGroupBlock == 0 || size >= n_columns) &&
         n_columns * codes.bits % 8 == 0 && codes.first * codes.bits % 8 == 0 && values_are_pairs(codes) && multiplies_pairs();
}

// The memory of GroupTokens.
class GroupPairs {
 public:
  GroupPairs(const Inputs& inputs, size_t n_columns, size_t group_size, bool has_outliers, size_t n_threads)
      : stride_(round_up(n_columns, kGroupBlock)),
        sums_stride_(round_up(ceil_div(n_columns, group_size), kProductLanes) + kProductLanes),
        count_(inputs.count),
        x_(new uint16_t[stride_ * count_]),
        sums_(new float[sums_stride_ * count_]),
        columns_(has_outliers ? new float[n_columns * count_] : nullptr) {
    const uint16_t* given = static_cast<const uint16_t*>(inputs.x.values);
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; token++) {
        const uint16_t* from = given + token * n_columns;
        uint16_t* to = x_.get() + token * stride_;
        float* sums = sums_.get() + token * sums_stride_;
        std::memset(to, 0, stride_ * sizeof(uint16_t));
        std::memset(sums, 0, sums_stride_ * sizeof(float));
        for (size_t column = 0, group = 0, left = group_size; column < n_columns; column++) {
          const uint16_t x = from[inputs.permutation == nullptr ? column : static_cast<size_t>(inputs.permutation[column])];
          const size_t in_block = column % kGroupBlock;
          to[column - in_block + in_block % 2 * (kGroupBlock / 2) + in_block / 2] = x;
          const float wide = widened_bf16(x);
          sums[group] += wide;
          if (columns_) columns_[token * n_columns + column] = wide;
          if (--left == 0) group++, left = group_size;
        }
      }
    });
  }

  GroupTokens tokens() const { return {x_.get(), stride_, sums_.get(), sums_stride_, columns_.get(), count_}; }

 private:
  size_t stride_, sums_stride_, count_;
  std::unique_ptr<uint16_t[]> x_;
  std::unique_ptr<float[]> sums_, columns_;
};
#endif

}  // namespace

void multiply_uniform(const Codes& codes, size_t n_rows, size_t n_columns, const UniformScales& scales, const Outliers& outliers,
                      const Inputs& inputs, const Outputs& outputs, size_t n_threads) {
#if defined(SPQFMT_X86)
  if (codes.bits == 8 && codes.is_signed && inputs.x.type == FloatType::bf16 && multiplies_pairs()) {
    multiply_pairs(codes, n_rows, n_columns, scales, outliers, inputs, outputs, n_threads);
    return;
  }
#endif
  // Without outliers, which replace whole weights, a column's factor can go to the tokens once instead of to every row.
  const bool moves = outliers.row_begin == nullptr;
  const Converted converted(inputs, n_columns, moves ? scales.column : nullptr, n_threads);
  const UniformScales left{scales.row, moves ? nullptr : scales.column};
  over_rows(n_rows, n_columns * inputs.count, n_threads, [&](size_t begin, size_t end) {
    active_kernels().multiply->uniform(codes, n_columns, left, outliers, begin, end, converted.tokens(), outputs);
  });
}

void multiply_grouped(const Codes& codes, size_t first_row, size_t n_rows, size_t n_columns, const Groups& groups,
                      const Outliers& outliers, const Inputs& inputs, const Outputs& outputs, size_t n_threads) {
#if defined(SPQFMT_X86)
  if (groups_are_pairs(codes, n_columns, groups, inputs)) {
    const GroupPairs pairs(inputs, n_columns, groups.group_size, outliers.row_begin != nullptr, n_threads);
    over_rows(n_rows, n_columns * inputs.count, n_threads, [&](size_t begin, size_t end) {
      group_multiply_avx512_bf16(codes, n_columns, groups, first_row, outliers, begin, end, pairs.tokens(), outputs);
    });
    return;
  }
#endif
  const Converted converted(inputs, n_columns, nullptr, n_threads);
  over_rows(n_rows, n_columns * inputs.count, n_threads, [&](size_t begin, size_t end) {
    active_kernels().multiply->grouped(codes, n_columns, groups, first_row, outliers, begin, end, converted.tokens(), outputs);
  });
}

void round_tokens(const Inputs& inputs, size_t n_columns, const float* column, int8_t* codes, float* scales, size_t n_threads) {
  const Converted converted(inputs, n_columns, column, n_threads);
  const Tokens tokens = converted.tokens();
  over_rows(tokens.count, n_columns, n_threads, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
      scales[i] = active_kernels().multiply->round_token(tokens.x + i * tokens.stride, n_columns, codes + i * n_columns);
    }
  });
}

void scale_sums(const int32_t* sums, size_t n_tokens, size_t n_rows, const float* row, const float* scales, const Outputs& outputs,
                size_t n_threads) {
  over_rows(n_tokens, n_rows, n_threads, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; token++) {
      active_kernels().multiply->scale_sums(sums + token * n_rows, row, scales[token], n_rows, token, outputs);
    }
  });
}

}  // namespace spqfmt
