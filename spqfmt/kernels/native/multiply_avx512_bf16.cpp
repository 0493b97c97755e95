// 8-bit codes times BF16 activations with the processor's dot products of BF16 pairs: codes are BF16 numbers, products of two
// are exact in binary32, only the sums are rounded. Twice the rate of binary32, and half the memory for activations.
#include <immintrin.h>

#include <cstring>

#include "multiply_rows.hpp"
#include "narrow.hpp"

namespace spqfmt {
namespace {

constexpr size_t kPairs = 32;  // columns in a register
constexpr size_t kRows = 4;
constexpr size_t kTokens = 4;
using CodeTile = uint16_t[kTile + kPairs];

struct PairSums {
  alignas(64) float of[kRows][kTokensPerTile][16];
};

// kPairs codes as BF16.
inline __m512bh as_pairs(const int8_t* codes) { return _mm512_cvtne2ps_pbh(widen(codes + 16), widen(codes)); }

// Codes as BF16; zeros up to a multiple of kPairs.
inline void fill(const int8_t* codes, size_t n, size_t ahead, uint16_t* to) {
  alignas(64) int8_t last[kPairs];
  for (size_t i = 0; i < n; i += kPairs) {
    const int8_t* from = codes + i;
    prefetch(from + ahead);
    if (n - i < kPairs) {
      std::memset(last, 0, sizeof last);
      std::memcpy(last, from, n - i);
      from = last;
    }
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(as_pairs(from)));
  }
}

// What the 16 halves stand for, twice.
inline __m512i values_of(const Narrow& narrow) {
  alignas(64) uint16_t values[kPairs];
  for (size_t i = 0; i < kPairs; i++) values[i] = to_bf16(static_cast<float>(static_cast<int8_t>(narrow.least + i % 16)));
  return _mm512_load_si512(values);
}

// The two halves of a byte are the places of a pair in `values_of`, which has them twice: of a word its four lowest bits count.
inline __m512i pairs_of(__m128i halves) {
  const __m512i shifts = _mm512_set1_epi64(0x0c0c080804040000);
  return _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(halves));
}

// Eight bits fit.
inline uint16_t bf16_code(uint8_t code) { return static_cast<uint16_t>(bits_of(static_cast<float>(static_cast<int8_t>(code))) >> 16); }

// Codes first..first + n - 1 as `fill` has them; `first` is even.
inline void fill_narrow(const Narrow& narrow, __m512i values, size_t first, size_t n, size_t ahead, uint16_t* to) {
  const uint8_t* from = narrow.halves + first / 2;
  size_t i = 0;
  for (; i + kPairs <= n; i += kPairs) {
    prefetch(from + i / 2 + ahead / 2);
    const __m512i pair = pairs_of(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i / 2)));
    _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(pair, values));
  }
  if (i < n) {
    const __mmask16 bytes = static_cast<__mmask16>((1u << (n - i + 1) / 2) - 1);
    const __m512i pair = pairs_of(_mm_maskz_loadu_epi8(bytes, from + i / 2));
    _mm512_storeu_si512(to + i, _mm512_maskz_permutexvar_epi16((__mmask32{1} << (n - i)) - 1, pair, values));
  }
  over_escapes(narrow, first, n, [&](size_t i, uint8_t code) { to[i] = bf16_code(code); });
}

inline __m512bh pairs(const uint16_t* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

template <size_t kR, size_t kT>
inline void add_pairs(const CodeTile* weights, const uint16_t* x, size_t stride, size_t n, bool is_first, size_t token, PairSums& sums) {
  __m512 acc[kR][kT];
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) acc[r][t] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(sums.of[r][token + t]);
  }
  for (size_t i = 0; i < n; i += kPairs) {
    __m512bh activation[kT];
    for (size_t t = 0; t < kT; t++) activation[t] = pairs(x + t * stride + i);
    for (size_t r = 0; r < kR; r++) {
      const __m512bh weight = pairs(weights[r] + i);
      for (size_t t = 0; t < kT; t++) acc[r][t] = _mm512_dpbf16_ps(acc[r][t], weight, activation[t]);
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) _mm512_store_ps(sums.of[r][token + t], acc[r][t]);
  }
}

// The outliers of a row.
struct RowOutliers {
  const uint32_t* column;
  const float* value;
  size_t n;
};

inline RowOutliers outliers_of(const Outliers& outliers, size_t row) {
  if (outliers.row_begin == nullptr) return {nullptr, nullptr, 0};
  const int64_t begin = outliers.row_begin[row];
  return {outliers.column + begin, outliers.value + begin, static_cast<size_t>(outliers.row_begin[row + 1] - begin)};
}

// What stands in the codes where outliers are counts for nothing.
inline void forget_outliers(const RowOutliers& outliers, size_t column, size_t n, uint16_t* weights) {
  for (size_t i = 0; i < outliers.n; i++) {
    if (outliers.column[i] >= column && outliers.column[i] < column + n) weights[outliers.column[i] - column] = 0;
  }
}

inline float outlier_products(const RowOutliers& outliers, const Inputs& given, size_t token) {
  float sum = 0;
  for (size_t i = 0; i < outliers.n; i++) {
    const size_t column = given.permutation == nullptr ? outliers.column[i] : static_cast<size_t>(given.permutation[outliers.column[i]]);
    sum += outliers.value[i] * read_float(given.x, token * given.stride + column);
  }
  return sum;
}

// What does not change from row to row.
struct Call {
  const PairCodes& codes;
  __m512i narrow_values;
  size_t n_columns;
  const float* factors;
  const Outliers& outliers;
  const Inputs& given;
  const PairTokens& tokens;
  const Outputs& outputs;
};

template <size_t kR>
inline void multiply_some(const Call& call, size_t row, CodeTile* weights, PairSums& sums) {
  const PairTokens& tokens = call.tokens;
  RowOutliers outliers[kR];
  for (size_t r = 0; r < kR; r++) outliers[r] = outliers_of(call.outliers, row + r);
  for (size_t first = 0; first < tokens.count; first += kTokensPerTile) {
    const size_t n_tokens = smaller(kTokensPerTile, tokens.count - first);
    for (size_t column = 0; column < call.n_columns; column += kTile) {
      const size_t n = smaller(kTile, call.n_columns - column);
      for (size_t r = 0; r < kR; r++) {
        const size_t from = (row + r) * call.n_columns + column, ahead = kR * call.n_columns;
        if (call.codes.narrow != nullptr) {
          fill_narrow(*call.codes.narrow, call.narrow_values, from, n, ahead, weights[r]);
        } else {
          fill(call.codes.codes + from, n, ahead, weights[r]);
        }
        forget_outliers(outliers[r], column, n, weights[r]);
      }
      const uint16_t* x = tokens.x + first * tokens.stride + column;
      size_t token = 0;
      for (; token + kTokens <= n_tokens; token += kTokens) {
        add_pairs<kR, kTokens>(weights, x + token * tokens.stride, tokens.stride, n, column == 0, token, sums);
      }
      for (; token < n_tokens; token++) {
        add_pairs<kR, 1>(weights, x + token * tokens.stride, tokens.stride, n, column == 0, token, sums);
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t token = 0; token < n_tokens; token++) {
        const float product = _mm512_reduce_add_ps(_mm512_load_ps(sums.of[r][token])) * call.factors[row + r];
        write(call.outputs, first + token, row + r, product + outlier_products(outliers[r], call.given, first + token));
      }
    }
  }
}

// The same sums for one token, without outliers: codes need no tile to be in.
template <size_t kR>
inline void multiply_one(const Call& call, size_t row) {
  const size_t n = call.n_columns, whole = n / kPairs * kPairs;
  const int8_t* from = call.codes.codes + row * n;
  // The rows after these as the one stream that they are, and those after them: see integer_lanes.hpp.
  const int8_t* next = from + kR * n;
  __m512 acc[kR];
  for (size_t r = 0; r < kR; r++) acc[r] = _mm512_setzero_ps();
  size_t i = 0;
  for (; i < whole; i += kPairs) {
    for (size_t line = 0; line < kR * kPairs; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(next + kR * n + line), _MM_HINT_T1);
    }
    next += kR * kPairs;
    const __m512bh x = pairs(call.tokens.x + i);
    for (size_t r = 0; r < kR; r++) acc[r] = _mm512_dpbf16_ps(acc[r], as_pairs(from + r * n + i), x);
  }
  if (i < n) {
    alignas(64) int8_t last[kPairs] = {};
    for (size_t r = 0; r < kR; r++) {
      std::memcpy(last, from + r * n + i, n - i);
      acc[r] = _mm512_dpbf16_ps(acc[r], as_pairs(last), pairs(call.tokens.x + i));
    }
  }
  // With 0 added, as where there could be outliers: a zero has no sign then, however many tokens there are.
  for (size_t r = 0; r < kR; r++) write(call.outputs, 0, row + r, _mm512_reduce_add_ps(acc[r]) * call.factors[row + r] + 0.0f);
}

// The escapes of narrow codes, as some rows after the others want them: of each register of codes which of them are escapes, and for
// those registers that have one, in order, a line with their BF16 numbers.
class EscapeLines {
 public:
  EscapeLines(const Narrow& narrow, size_t n_columns, size_t first_row)
      : narrow_(narrow),
        n_columns_(n_columns),
        per_row_((n_columns + kPairs - 1) / kPairs),
        n_blocks_((narrow.n_codes + kEscapeBlock - 1) / kEscapeBlock),
        masks_(new uint32_t[kRows * per_row_]),
        room_(new uint16_t[kPairs * (kRows * per_row_ + 2)]),
        lines_(reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(room_.get()) + 63) / 64 * 64)),
        block_(first_row * n_columns / kEscapeBlock),
        next_(load_u32(narrow.begins + 4 * block_)) {
    const size_t within = first_row * n_columns % kEscapeBlock, last = load_u32(narrow.begins + 4 * block_ + 4);
    while (next_ < last && load_u16(narrow.places + 2 * next_) < within) next_++;
  }

  // Take those of the next n_rows rows, from `row` on.
  void take(size_t row, size_t n_rows) {
    std::memset(masks_.get(), 0, n_rows * per_row_ * sizeof(uint32_t));
    uint16_t* line = lines_ - kPairs;
    for (size_t r = 0; r < n_rows; r++) {
      first_[r] = line + kPairs;
      const size_t begin = (row + r) * n_columns_, stop = begin + n_columns_;
      uint32_t* masks = masks_.get() + r * per_row_;
      for (;;) {
        const size_t base = block_ * kEscapeBlock;
        const uint32_t last = block_ < n_blocks_ ? load_u32(narrow_.begins + 4 * block_ + 4) : 0;
        for (; next_ < last; next_++) {
          const size_t column = base + load_u16(narrow_.places + 2 * next_) - begin;
          if (column >= n_columns_) break;
          uint32_t& mask = masks[column / kPairs];
          line += mask == 0 ? kPairs : 0;
          mask |= uint32_t{1} << column % kPairs;
          line[column % kPairs] = bf16_code(narrow_.values[next_]);
        }
        if (base + kEscapeBlock >= stop || block_ >= n_blocks_) break;
        block_++;
      }
    }
  }

  const uint32_t* masks(size_t r) const { return masks_.get() + r * per_row_; }
  const uint16_t* lines(size_t r) const { return first_[r]; }

 private:
  static constexpr size_t kAhead = 256;

  const Narrow& narrow_;
  const size_t n_columns_, per_row_, n_blocks_;
  const std::unique_ptr<uint32_t[]> masks_;
  const std::unique_ptr<uint16_t[]> room_;
  uint16_t* const lines_;
  const uint16_t* first_[kRows];
  size_t block_, next_;
};

// multiply_one with narrow codes: the same sums.
template <size_t kR>
inline void multiply_one_narrow(const Call& call, size_t row, EscapeLines& escapes) {
  const size_t n = call.n_columns, whole = n / kPairs * kPairs;
  const uint8_t* from = call.codes.narrow->halves + row * n / 2;
  const uint8_t* next = from + kR * n / 2;
  escapes.take(row, kR);
  const uint32_t* masks[kR];
  const uint16_t* lines[kR];
  __m512 acc[kR];
  for (size_t r = 0; r < kR; r++) masks[r] = escapes.masks(r), lines[r] = escapes.lines(r), acc[r] = _mm512_setzero_ps();
  const auto add = [&](size_t r, size_t i, __m128i halves, __m512bh x) {
    const uint32_t mask = masks[r][i / kPairs];
    const __m512i inside = _mm512_permutexvar_epi16(pairs_of(halves), call.narrow_values);
    const __m512i all = _mm512_mask_loadu_epi16(inside, mask, lines[r]);
    lines[r] += mask != 0 ? kPairs : 0;
    return _mm512_dpbf16_ps(acc[r], reinterpret_cast<__m512bh>(all), x);
  };
  size_t i = 0;
  for (; i < whole; i += kPairs) {
    for (size_t line = 0; line < kR * kPairs / 2; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(next + kR * n / 2 + line), _MM_HINT_T1);
    }
    next += kR * kPairs / 2;
    const __m512bh x = pairs(call.tokens.x + i);
    for (size_t r = 0; r < kR; r++) {
      acc[r] = add(r, i, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + (r * n + i) / 2)), x);
    }
  }
  if (i < n) {
    const __mmask16 bytes = static_cast<__mmask16>((1u << (n - i + 1) / 2) - 1);
    for (size_t r = 0; r < kR; r++) acc[r] = add(r, i, _mm_maskz_loadu_epi8(bytes, from + (r * n + i) / 2), pairs(call.tokens.x + i));
  }
  for (size_t r = 0; r < kR; r++) write(call.outputs, 0, row + r, _mm512_reduce_add_ps(acc[r]) * call.factors[row + r] + 0.0f);
}

}  // namespace

void pair_multiply_avx512_bf16(const PairCodes& codes, size_t n_columns, const float* factors, const Outliers& outliers,
                               const Inputs& given, size_t begin, size_t end, const PairTokens& tokens, const Outputs& outputs) {
  alignas(64) CodeTile weights[kRows];
  PairSums sums;
  const __m512i values = codes.narrow != nullptr ? values_of(*codes.narrow) : _mm512_setzero_si512();
  const Call call{codes, values, n_columns, factors, outliers, given, tokens, outputs};
  size_t row = begin;
  if (tokens.count == 1 && codes.narrow != nullptr && outliers.row_begin == nullptr && begin < end) {
    EscapeLines escapes(*codes.narrow, n_columns, begin);
    for (; row + kRows <= end; row += kRows) multiply_one_narrow<kRows>(call, row, escapes);
    for (; row < end; row++) multiply_one_narrow<1>(call, row, escapes);
    return;
  }
  if (tokens.count == 1 && codes.narrow == nullptr && outliers.row_begin == nullptr) {
    for (; row + kRows <= end; row += kRows) multiply_one<kRows>(call, row);
    for (; row < end; row++) multiply_one<1>(call, row);
    return;
  }
  for (; row + kRows <= end; row += kRows) multiply_some<kRows>(call, row, weights, sums);
  for (; row < end; row++) multiply_some<1>(call, row, weights, sums);
}

}  // namespace spqfmt
