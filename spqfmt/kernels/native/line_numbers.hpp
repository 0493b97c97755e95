// Numbers of a line's groups as the products want them, many at a time. Of one instruction set, that of the file which includes this.
#pragma once

#include "multiply_rows.hpp"

namespace spqfmt {
namespace {

#if defined(__AVX512F__)
// The first n lanes of a register, or all.
inline __mmask16 first_lanes(size_t n) {
  return static_cast<__mmask16>(_bzhi_u32(0xffff, static_cast<unsigned>(smaller(n, kVectorLanes))));
}

// Numbers first..first + 15, those from n on 0 and not read.
inline __m512 some_halves(const void* values, size_t first, size_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), static_cast<const uint16_t*>(values) + first));
}

inline __m512 some_numbers(const void* values, NumberType type, size_t first, size_t n) {
  const __mmask16 mask = first_lanes(n);
  switch (type) {
    case NumberType::f32: return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(values) + first);
    case NumberType::f16: return some_halves(values, first, n);
    case NumberType::bf16: {
      const __m256i bits = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(values) + first);
      return reinterpret_cast<__m512>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    case NumberType::u8:
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, static_cast<const uint8_t*>(values) + first)));
    case NumberType::i8: break;
  }
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, static_cast<const int8_t*>(values) + first)));
}
#endif

// Groups that are read at a time, at most, and the memory for them.
constexpr size_t kGroupsAtOnce = 256, kRoomOfGroups = kGroupsAtOnce + 2 * kVectorLanes;

// Reads numbers by the operations of group_numbers in their order.
class LineNumbers {
 public:
  LineNumbers(const GroupNumbers& numbers, size_t n_groups) : numbers_(numbers), n_groups_(n_groups) {
#if defined(__AVX512F__)
    if (numbers.values == nullptr || numbers.table != nullptr) return;
    if (numbers.steps == nullptr) {
      form_ = Form::direct;
      return;
    }
    // Tiles of other sizes have no whole number of bits in a group's number.
    const size_t tile = numbers.tile_groups;
    if ((tile & (tile - 1)) != 0 || tile > kGroupsAtOnce) return;
    form_ = Form::tiles;
    log2_ = static_cast<unsigned>(__builtin_ctzll(tile));
    tiles_ = ((n_groups - 1) >> log2_) + 1;
#endif
  }

  // Those of groups first..first + n - 1 of a line to `to`, and zeros for a register more; n is at most kGroupsAtOnce.
  [[gnu::always_inline]] void read(size_t line, size_t first, size_t n, float* to) const {
#if defined(__AVX512F__)
    const bool is_at_tile = (first & ((size_t{1} << log2_) - 1)) == 0;
    if (form_ == Form::direct || (form_ == Form::tiles && is_at_tile)) {
      form_ == Form::direct ? read_direct(line * n_groups_ + first, n, to) : read_tiles(line, first, n, to);
      _mm512_storeu_ps(to + n, _mm512_setzero_ps());
      return;
    }
#endif
    group_numbers(numbers_, n_groups_, line, first, n, to);
    std::memset(to + n, 0, kVectorLanes * sizeof(float));
  }

 private:
  const GroupNumbers& numbers_;
  size_t n_groups_;

#if defined(__AVX512F__)
  enum class Form { other, direct, tiles };

  [[gnu::always_inline]] void read_direct(size_t at, size_t n, float* to) const {
    size_t i = 0;
    if (numbers_.type == NumberType::f16) {
      const uint16_t* halves = static_cast<const uint16_t*>(numbers_.values) + at;
      for (; i + kVectorLanes <= n; i += kVectorLanes) {
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i))));
      }
    }
    for (; i < n; i += kVectorLanes) _mm512_storeu_ps(to + i, some_numbers(numbers_.values, numbers_.type, at + i, n - i));
  }

  [[gnu::always_inline]] void read_tiles(size_t line, size_t first, size_t n, float* to) const {
    const size_t at = line * n_groups_ + first;
    const size_t tile_at = (numbers_.tile_rows == 1 ? line : line / numbers_.tile_rows) * tiles_ + (first >> log2_);
    if (numbers_.zeros != nullptr) {
      read_some_tiles(tile_at, n, numbers_.zeros, numbers_.zeros_type, [&](size_t i, __m512 step, __m512 zero) {
        _mm512_storeu_ps(to + i, _mm512_mul_ps(step, _mm512_sub_ps(some_numbers(numbers_.values, numbers_.type, at + i, n - i), zero)));
      });
    } else if (numbers_.minimums != nullptr) {
      read_some_tiles(tile_at, n, numbers_.minimums, numbers_.minimums_type, [&](size_t i, __m512 step, __m512 minimum) {
        _mm512_storeu_ps(to + i, _mm512_sub_ps(_mm512_mul_ps(step, some_numbers(numbers_.values, numbers_.type, at + i, n - i)), minimum));
      });
    } else if (numbers_.type == NumberType::u8) {
      read_scaled<NumberType::u8>(at, tile_at, n, to);
    } else if (numbers_.type == NumberType::i8) {
      read_scaled<NumberType::i8>(at, tile_at, n, to);
    } else {
      read_some_tiles(tile_at, n, nullptr, NumberType::f32, [&](size_t i, __m512 step, __m512) {
        _mm512_storeu_ps(to + i, _mm512_mul_ps(step, some_numbers(numbers_.values, numbers_.type, at + i, n - i)));
      });
    }
  }

  // Bytes times steps, as ggml has them.
  template <NumberType kType>
  [[gnu::always_inline]] void read_scaled(size_t at, size_t tile_at, size_t n, float* to) const {
    const uint8_t* bytes = static_cast<const uint8_t*>(numbers_.values) + at;
    read_some_tiles(tile_at, n, nullptr, NumberType::f32, [&](size_t i, __m512 step, __m512) {
      const __m128i some = _mm_maskz_loadu_epi8(first_lanes(n - i), bytes + i);
      const __m512i wide = kType == NumberType::u8 ? _mm512_cvtepu8_epi32(some) : _mm512_cvtepi8_epi32(some);
      _mm512_storeu_ps(to + i, _mm512_mul_ps(step, _mm512_cvtepi32_ps(wide)));
    });
  }

  // Calls put(i, step, other) for every sixteen of n groups, the first ones of tile number `at`, with what their tiles have.
  template <typename Put>
  [[gnu::always_inline]] void read_some_tiles(size_t at, size_t n, const void* others, NumberType others_type, const Put& put) const {
    const size_t n_tiles = ((n - 1) >> log2_) + 1;
    const __m128i log2 = _mm_cvtsi32_si128(static_cast<int>(log2_));
    const __m512i more = _mm512_set1_epi32(kVectorLanes);
    __m512i group = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (size_t t = 0, i = 0; t < n_tiles; t += kVectorLanes) {
      const __m512 steps = numbers_.steps_type == NumberType::f16 ? some_halves(numbers_.steps, at + t, n_tiles - t)
                                                                  : some_numbers(numbers_.steps, numbers_.steps_type, at + t, n_tiles - t);
      const __m512 other = others == nullptr ? _mm512_setzero_ps() : some_numbers(others, others_type, at + t, n_tiles - t);
      const size_t end = smaller(n, (t + kVectorLanes) << log2_);
      for (; i < end; i += kVectorLanes) {
        const __m512i tile = _mm512_srl_epi32(group, log2);  // of which the permutation takes the last four bits
        put(i, _mm512_permutexvar_ps(tile, steps), _mm512_permutexvar_ps(tile, other));
        group = _mm512_add_epi32(group, more);
      }
    }
  }

  Form form_ = Form::other;
  size_t tiles_ = 0;
  unsigned log2_ = 0;
#endif
};

}  // namespace
}  // namespace spqfmt
