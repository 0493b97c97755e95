// Activations in the forms that the products take them in, and which of these forms a matrix takes. Included by multiply.cpp.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>

#include "bitstream.hpp"
#include "dispatch.hpp"
#include "multiply.hpp"
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
  const size_t at = token * inputs.stride;
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
      : given_(static_cast<const uint16_t*>(inputs.x.values)), stride_(inputs.stride), count_(inputs.count) {
    if (column == nullptr && inputs.permutation == nullptr && n_columns % kProductLanes == 0) return;
    stride_ = round_up(n_columns, kProductLanes);
    made_.reset(new uint16_t[stride_ * count_]);
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; token++) {
        const uint16_t* from = given_ + token * inputs.stride;
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
        const uint16_t* from = given + token * inputs.stride;
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

// The shift that leaves no integer below 0.
inline int shift_to_zero(int least, int) { return -least; }

// Codes as integers for kernels that want them shifted so; false where they do not stand for integers of 8 bits times a power of two.
bool integers_of(const Codes& codes, int (*shift)(int least, int most), IntegerCodes& to) {
  const int n = 1 << codes.bits, half = codes.is_signed ? n / 2 : 0;
  int least = -half, most = n - 1 - half, values[16];
  to.unit = 1;
  if (codes.bits < 8) {
    for (int i = 0; i < n; i++) values[i] = (i ^ half) - half;
    if (codes.values != nullptr) {
      float largest = 0;
      for (int i = 0; i < n; i++) largest = std::fmax(largest, std::isfinite(codes.values[i]) ? std::fabs(codes.values[i]) : INFINITY);
      if (!(largest > 0x1p-100f && largest < 0x1p100f)) return false;
      int exponent, used = 0;
      std::frexp(largest, &exponent);
      to.unit = std::ldexp(1.0f, exponent - 7);  // the largest is 64 to 127 of these
      for (int i = 0; i < n; i++) {
        const float in_units = codes.values[i] / to.unit;
        if (in_units != std::nearbyint(in_units)) return false;
        values[i] = static_cast<int>(in_units);
        used |= values[i];
      }
      // The fewer bits, the more products have room in sums.
      for (; used % 2 == 0; used /= 2) {
        to.unit *= 2;
        for (int i = 0; i < n; i++) values[i] /= 2;
      }
      least = most = values[0];
      for (int i = 1; i < n; i++) least = values[i] < least ? values[i] : least, most = values[i] > most ? values[i] : most;
    }
  } else if (codes.values != nullptr) {
    return false;
  }
  to.least = least;
  to.shift = shift(least, most);
  to.flip = to.shift == 0 ? 0 : 0x80;
  to.flips = codes.bits == 4;
  std::memset(to.table, 0, sizeof to.table);
  if (codes.bits == 8) return true;
  for (int i = 0; i < n; i++) to.table[i] = static_cast<uint8_t>(values[i] + to.shift);
  // What is flipped has four bits, as the codes have.
  for (int i = 0; i < n; i++) to.flips = to.flips && to.table[i] < 16 && to.table[i] == (i ^ to.table[0]);
  to.flip = static_cast<uint8_t>(to.table[0] * 0x11);
  return true;
}

// Lanes of 2-bit codes have 16 columns: models of so few bits were not found to bear that rounding.
bool groups_are_rounded(const Codes& codes, size_t n_columns, const Groups& groups, const Inputs& inputs) {
  const size_t size = groups.group_size, lane = 4 * (8 / codes.bits), vector = kVectorLanes * lane;
  const bool has_lanes = size % lane == 0 && vector % size == 0;
  return codes.bits > 2 && inputs.x.type != FloatType::f32 && inputs.count <= kMostRounded && (has_lanes || size % vector == 0 || size >= n_columns) &&
         n_columns * codes.bits % 8 == 0 && codes.first * codes.bits % 8 == 0;
}

// The memory of IntegerTokens.
class Rounded {
 public:
  Rounded(const Inputs& inputs, size_t n_columns, size_t per, const Groups& groups, int shift, bool has_outliers, size_t n_threads)
      : lane_(4 * per),
        n_vectors_(ceil_div(n_columns, kVectorLanes * lane_)),
        lanes_(n_vectors_ * kVectorLanes),
        sums_stride_(round_up(ceil_div(n_columns, groups.group_size), kProductLanes) + kProductLanes),
        count_(inputs.count),
        x_(new int8_t[count_ * lanes_ * lane_]),
        scales_(new float[count_ * lanes_]),
        start_(new int32_t[2 * count_ * lanes_]),
        sums_(groups.kind == GroupOffset::none ? nullptr : new float[count_ * sums_stride_]()),
        columns_(has_outliers ? new float[count_ * n_columns] : nullptr) {
    const IntegerKernels& kernels = *active_kernels().integers;
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      const std::unique_ptr<float[]> wide(new float[lanes_ * lane_]);
      for (size_t token = begin; token < end; token++) {
        convert_token(inputs, token, n_columns, nullptr, wide.get());
        std::memset(wide.get() + n_columns, 0, (lanes_ * lane_ - n_columns) * sizeof(float));
        float* scales = scales_.get() + token * lanes_;
        int32_t* lane_sums = start_.get() + (count_ + token) * lanes_;
        kernels.round(wide.get(), n_vectors_, per, shift, x_.get() + token * lanes_ * lane_, scales, start_.get() + token * lanes_,
                      lane_sums);
        if (columns_) std::memcpy(columns_.get() + token * n_columns, wide.get(), n_columns * sizeof(float));
        if (sums_ == nullptr) continue;
        float* sums = sums_.get() + token * sums_stride_;
        for (size_t lane = 0; lane < ceil_div(n_columns, lane_); lane++) {
          sums[lane * lane_ / groups.group_size] += scales[lane] * static_cast<float>(lane_sums[lane]);
        }
      }
    });
  }

  IntegerTokens tokens() const {
    return {x_.get(), lanes_ * lane_, scales_.get(), start_.get(), lanes_, sums_.get(), sums_stride_, columns_.get(), count_};
  }

 private:
  size_t lane_, n_vectors_, lanes_, sums_stride_, count_;
  std::unique_ptr<int8_t[]> x_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<int32_t[]> start_;
  std::unique_ptr<float[]> sums_, columns_;
};

// Numbers of groups that are bytes times a step of each supergroup of a row.
bool are_steps_of_bytes(const GroupNumbers& numbers, size_t group_size) {
  return (numbers.type == NumberType::u8 || numbers.type == NumberType::i8) && numbers.table == nullptr && numbers.steps != nullptr &&
         numbers.zeros == nullptr && numbers.minimums == nullptr && numbers.tile_rows == 1 &&
         numbers.tile_groups * group_size == kSuperColumns;
}

// Whether groups have lanes of their own.
bool groups_are_lanes(const Codes& codes, size_t n_columns, const Groups& groups, const Outliers& outliers, const Inputs& inputs) {
  const size_t size = groups.group_size;
  const bool have_numbers = are_steps_of_bytes(groups.scale, size) &&
                            (groups.kind == GroupOffset::none ||
                             (groups.kind == GroupOffset::minimum && are_steps_of_bytes(groups.offset, size)));
  return (size == 16 || (size == 32 && codes.bits == 4)) && n_columns % kSuperColumns == 0 && have_numbers &&
         inputs.x.type != FloatType::f32 && inputs.count <= kMostRounded && outliers.row_begin == nullptr &&
         codes.first * codes.bits % 8 == 0 && !(codes.bits == 2 && (codes.is_signed || codes.values != nullptr));
}

// An array that begins with a line of the cache: vectors of it lie in one line each.
template <typename T>
class Lines {
 public:
  explicit Lines(size_t n) : room_(new uint8_t[n * sizeof(T) + kLine]) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(room_.get());
    first_ = reinterpret_cast<T*>(room_.get() + (kLine - at % kLine));
  }

  T* get() const { return first_; }

 private:
  static constexpr size_t kLine = 64;
  std::unique_ptr<uint8_t[]> room_;
  T* first_;
};

// The memory of LaneTokens.
class RoundedLanes {
 public:
  RoundedLanes(const Inputs& inputs, size_t n_columns, unsigned bits, size_t lane, int shift, size_t n_threads)
      : n_blocks_(ceil_div(n_columns, lane * kVectorLanes)),
        count_(inputs.count),
        x_(count_ * n_blocks_ * 2 * kVectorLanes * lane),
        scales_(count_ * n_blocks_ * kVectorLanes),
        sums_(count_ * n_blocks_ * kVectorLanes),
        start_(count_ * n_blocks_ * 2 * kVectorLanes) {
    const LaneKernels& kernels = *active_kernels().lanes;
    const size_t block = kVectorLanes * lane, padded = n_blocks_ * block;
    over_rows(count_, n_columns, n_threads, [&](size_t begin, size_t end) {
      const std::unique_ptr<float[]> wide(new float[padded]);
      for (size_t token = begin; token < end; token++) {
        const size_t first = token * n_blocks_;
        convert_token(inputs, token, n_columns, nullptr, wide.get());
        std::memset(wide.get() + n_columns, 0, (padded - n_columns) * sizeof(float));
        kernels.round(wide.get(), n_blocks_, bits, lane, shift, x_.get() + first * 2 * block, scales_.get() + first * kVectorLanes,
                      start_.get() + first * 2 * kVectorLanes, sums_.get() + first * kVectorLanes);
      }
    });
  }

  LaneTokens tokens() const { return {x_.get(), scales_.get(), sums_.get(), start_.get(), count_}; }

 private:
  size_t n_blocks_, count_;
  Lines<int8_t> x_;
  Lines<float> scales_, sums_;
  Lines<int32_t> start_;
};

}  // namespace
}  // namespace spqfmt
