// Codes of 2, 4 or 8 bits in groups of 16 or 32 columns times activations of 14 bits. Included by one file for each instruction set,
// like multiply_integers.hpp.
//
// A lane is a group: so scales are multiplied once for 16 or 32 columns, not for four bytes. Activations are 128 * high + low times
// a scale of each lane. Both sums of a lane's products are exact: with codes up to 255 and parts of at most 64 they stay below 2^20,
// and together below 2^27, whatever a file says. They become binary32 once, are multiplied by both scales and added to one of
// kVectorLanes sums, without fused multiply-add. So every instruction set gives the same bits.
#pragma once

#include "group_lanes.hpp"
#include "line_numbers.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {
namespace {

// How codes lie in bytes, and how they become factors from 0 on.
enum class Held { bytes, flipped_bytes, halves, flipped_halves, looked_up_halves, quarters };

constexpr size_t columns_in_byte(Held held) { return held == Held::quarters ? 4 : held <= Held::flipped_bytes ? 1 : 2; }

// Supergroups whose steps are read at a time.
constexpr size_t kSupersAtOnce = 16;

struct LaneSteps {
  alignas(64) float scale[4][kSupersAtOnce + kVectorLanes];
  alignas(64) float minimum[4][kSupersAtOnce + kVectorLanes];
};

struct LaneSums {
  alignas(64) float of[4][kTokensPerTile][kVectorLanes];
};

// What does not change from row to row.
struct LaneCall {
  const Codes& codes;
  const IntegerCodes& integers;
  size_t n_columns;
  const Groups& groups;
  size_t n_groups, n_supers, n_blocks;
  size_t first_row;
  const LaneTokens& tokens;
  const Outputs& outputs;
  alignas(16) uint8_t places[kVectorLanes];  // which of a block's groups a lane is of
};

// A vector's bytes as factors, those of every columns_in_byte-th column together.
template <Held kHeld>
inline void lane_factors(Ints bytes, const Ints& table, uint8_t flip, Ints* to) {
  if constexpr (kHeld == Held::flipped_bytes || kHeld == Held::flipped_halves) bytes = flipped(bytes, flip);
  if constexpr (columns_in_byte(kHeld) == 1) {
    to[0] = bytes;
  } else if constexpr (kHeld == Held::quarters) {
    to[0] = two_bits<0>(bytes);
    to[1] = two_bits<2>(bytes);
    to[2] = two_bits<4>(bytes);
    to[3] = two_bits<6>(bytes);
  } else if constexpr (kHeld == Held::looked_up_halves) {
    to[0] = looked_up<0>(bytes, table);
    to[1] = looked_up<4>(bytes, table);
  } else {
    to[0] = four_bits<0>(bytes);
    to[1] = four_bits<4>(bytes);
  }
}

// Where the codes and numbers of some rows are, from a block on.
template <size_t kR>
struct LaneRows {
  const uint8_t* codes;
  const uint8_t* next;  // what is fetched ahead
  size_t row_bytes;
  const uint8_t* scale_bytes[kR];
  const uint8_t* minimum_bytes[kR];
  const float* scale_steps[kR];
  const float* minimum_steps[kR];
};

// Hides how an address was made, so that the compiler does not keep each of its multiples in a register.
inline const uint8_t* as_it_is(const uint8_t* address) {
  asm volatile("" : "+r"(address));
  return address;
}

// What is used more than once is loaded once: compilers would rather load it again, and loads are what these loops have most of.
template <size_t kN>
[[gnu::always_inline]] inline void keep_loaded([[maybe_unused]] Ints (&vectors)[kN]) {
#if defined(__AVX2__)
  for (Ints& vector : vectors) asm("" : "+v"(vector));
#endif
}

// Adds a block of some rows to sums of some tokens, whose first has the block as number `at`; the block after it is `stride` further.
// Of one that is not whole `left` bytes are there, and half of the groups.
template <Held kHeld, size_t kWords, bool kIsWhole, size_t kR, size_t kT>
[[gnu::always_inline]] inline void add_block(const LaneCall& call, const LaneRows<kR>& rows, size_t block, size_t left, size_t at,
                                             const Ints& table, Reals (&acc)[kR][kUnits][kT]) {
  constexpr size_t kPer = columns_in_byte(kHeld), kVectors = kWords * kPer, kBytes = kWords * kVectorBytes64;
  constexpr size_t kBlock = kBytes * kPer, kSupers = kBlock / kSuperColumns;
  const LaneTokens& tokens = call.tokens;
  const bool has_minimums = call.groups.kind == GroupOffset::minimum, is_shifted = call.integers.shift != 0;
  const bool scales_have_sign = call.groups.scale.type == NumberType::i8, minimums_have_sign = call.groups.offset.type == NumberType::i8;
  const uint8_t* near = as_it_is(rows.next + block * kR * kBytes);
  const uint8_t* far = as_it_is(near + kR * rows.row_bytes);
  const uint8_t* from = rows.codes + block * kBytes;
  for (size_t u = 0; u < kUnits; u++) {
    Ints codes[kR][kVectors];
    Reals scale[kR], minimum[kR] = {};
    const uint8_t* places = call.places + u * kUnitLanes;
    for (size_t r = 0; r < kR; r++) {
      const uint8_t* bytes = from + r * rows.row_bytes + u * kUnitBytes;
      Ints words[kWords];
      for (size_t w = 0; w < kWords; w++) {
        const size_t first = w * kVectorBytes64 + u * kUnitBytes;
        if (u == 0) fetch_line(near + (r * kWords + w) * kVectorBytes64, far + (r * kWords + w) * kVectorBytes64);
        const uint8_t* here = bytes + w * kVectorBytes64;
        words[w] = kIsWhole ? load_ints(here) : load_some(here, left > first ? left - first : 0);
      }
      keep_loaded(words);
      exchange(words);
      for (size_t w = 0; w < kWords; w++) lane_factors<kHeld>(words[w], table, call.integers.flip, codes[r] + w * kPer);
      const GroupBytes scale_bytes = load_groups(rows.scale_bytes[r] + block * kVectorLanes, !kIsWhole);
      const Reals step = lane_steps<kSupers == 2>(rows.scale_steps[r] + block * kSupers);
      scale[r] = times(lane_numbers(scale_bytes, places, scales_have_sign), step);
      if (!has_minimums) continue;
      const GroupBytes minimum_bytes = load_groups(rows.minimum_bytes[r] + block * kVectorLanes, !kIsWhole);
      const Reals minimum_step = lane_steps<kSupers == 2>(rows.minimum_steps[r] + block * kSupers);
      minimum[r] = times(lane_numbers(minimum_bytes, places, minimums_have_sign), minimum_step);
    }
    for (size_t t = 0; t < kT; t++) {
      const size_t here = at + t * call.n_blocks, first_lane = here * kVectorLanes + u * kUnitLanes;
      const int8_t* x = tokens.x + here * 2 * kBlock + u * kUnitBytes;
      const int32_t* start = tokens.start + here * 2 * kVectorLanes + u * kUnitLanes;
      Sums32 high[kR], low[kR];
      for (size_t r = 0; r < kR; r++) {
        high[r] = is_shifted ? load_sums(start) : no_sums();
        low[r] = is_shifted ? load_sums(start + kVectorLanes) : no_sums();
      }
      for (size_t v = 0; v < kVectors; v++) {
        Ints parts[2] = {load_ints(x + v * kVectorBytes64), load_ints(x + kBlock + v * kVectorBytes64)};
        keep_loaded(parts);
        for (size_t r = 0; r < kR; r++) {
          high[r] = dot_bytes(high[r], codes[r][v], parts[0]);
          low[r] = dot_bytes(low[r], codes[r][v], parts[1]);
        }
      }
      const Reals x_scale = load_reals(tokens.scales + first_lane);
      for (size_t r = 0; r < kR; r++) {
        acc[r][u][t] = plus(acc[r][u][t], times(to_reals(of_parts(high[r], low[r])), times(scale[r], x_scale)));
      }
      if (!has_minimums) continue;
      const Reals x_sum = load_reals(tokens.sums + first_lane);
      for (size_t r = 0; r < kR; r++) acc[r][u][t] = minus(acc[r][u][t], times(minimum[r], x_sum));
    }
  }
}

// Adds some blocks of some rows to the sums of some tokens.
template <Held kHeld, size_t kWords, size_t kR, size_t kT>
inline void add_blocks(const LaneCall& call, const LaneSteps& steps, size_t row, size_t first_block, size_t n_blocks, size_t first_token,
                       size_t token, LaneSums& sums) {
  constexpr size_t kPer = columns_in_byte(kHeld), kBytes = kWords * kVectorBytes64;
  const size_t at = (first_token + token) * call.n_blocks + first_block, row_bytes = call.n_columns / kPer;
  const uint8_t* from = call.codes.bytes + (call.codes.first + row * call.n_columns) / kPer + first_block * kBytes;
  LaneRows<kR> rows{from, from + kR * row_bytes + (kR - 1) * first_block * kBytes, row_bytes, {}, {}, {}, {}};
  for (size_t r = 0; r < kR; r++) {
    const size_t number = line_of(call.groups, call.first_row + row + r) * call.n_groups + first_block * kVectorLanes;
    rows.scale_bytes[r] = static_cast<const uint8_t*>(call.groups.scale.values) + number;
    rows.scale_steps[r] = steps.scale[r];
    if (call.groups.kind != GroupOffset::minimum) continue;
    rows.minimum_bytes[r] = static_cast<const uint8_t*>(call.groups.offset.values) + number;
    rows.minimum_steps[r] = steps.minimum[r];
  }
  const Ints table = table_of(call.integers.table);
  Reals acc[kR][kUnits][kT];
  for (size_t r = 0; r < kR; r++) {
    for (size_t u = 0; u < kUnits; u++) {
      for (size_t t = 0; t < kT; t++) {
        acc[r][u][t] = first_block == 0 ? same_reals(0) : load_reals(sums.of[r][token + t] + u * kUnitLanes);
      }
    }
  }
  const size_t left = row_bytes - first_block * kBytes, n_whole = smaller(n_blocks, left / kBytes);
  for (size_t block = 0; block < n_whole; block++) {
    add_block<kHeld, kWords, true, kR, kT>(call, rows, block, kBytes, at + block, table, acc);
  }
  if (n_whole < n_blocks) {
    add_block<kHeld, kWords, false, kR, kT>(call, rows, n_whole, left - n_whole * kBytes, at + n_whole, table, acc);
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t u = 0; u < kUnits; u++) save_reals(acc[r][u][t], sums.of[r][token + t] + u * kUnitLanes);
    }
  }
}

// Steps of n supergroups from number `at` on, times `unit`, and zeros behind them.
inline void read_steps(const GroupNumbers& numbers, size_t at, size_t n, float unit, float* to) {
#if defined(__AVX512F__)
  const bool are_halves = numbers.steps_type == NumberType::f16;
  const __m512 steps = are_halves ? some_halves(numbers.steps, at, n) : some_numbers(numbers.steps, numbers.steps_type, at, n);
  _mm512_store_ps(to, _mm512_mul_ps(steps, _mm512_set1_ps(unit)));
#else
  widen_numbers(numbers.steps, numbers.steps_type, at, n, to);
  for (size_t i = 0; i < n; i++) to[i] = to[i] * unit;
  to[n] = 0;
#endif
}

template <Held kHeld, size_t kWords, size_t kR, size_t kT>
inline void multiply_lane_rows(const LaneCall& call, size_t row, LaneSteps& steps, LaneSums& sums) {
  constexpr size_t kSupers = kWords * kVectorBytes64 * columns_in_byte(kHeld) / kSuperColumns, kBlocksAtOnce = kSupersAtOnce / kSupers;
  const LaneTokens& tokens = call.tokens;
  for (size_t first = 0; first < tokens.count; first += kTokensPerTile) {
    const size_t n_tokens = smaller(kTokensPerTile, tokens.count - first);
    for (size_t block = 0; block < call.n_blocks; block += kBlocksAtOnce) {
      const size_t n_blocks = smaller(kBlocksAtOnce, call.n_blocks - block);
      const size_t super = block * kSupers, n_supers = smaller(kSupersAtOnce, call.n_supers - super);
      for (size_t r = 0; r < kR; r++) {
        const size_t at = line_of(call.groups, call.first_row + row + r) * call.n_supers + super;
        read_steps(call.groups.scale, at, n_supers, call.integers.unit, steps.scale[r]);
        if (call.groups.kind == GroupOffset::minimum) read_steps(call.groups.offset, at, n_supers, 1, steps.minimum[r]);
      }
      size_t token = 0;
      for (; token + kT <= n_tokens; token += kT) {
        add_blocks<kHeld, kWords, kR, kT>(call, steps, row, block, n_blocks, first, token, sums);
      }
      for (; token < n_tokens; token++) add_blocks<kHeld, kWords, kR, 1>(call, steps, row, block, n_blocks, first, token, sums);
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t token = 0; token < n_tokens; token++) write(call.outputs, first + token, row + r, total_of_lanes(sums.of[r][token]));
    }
  }
}

template <Held kHeld, size_t kWords>
void multiply_lane_range(LaneCall& call, size_t begin, size_t end) {
  constexpr size_t kR = kBlockRows<kWords * columns_in_byte(kHeld)>;
  for (size_t place = 0; place < kVectorLanes; place++) call.places[place] = static_cast<uint8_t>(lane_at<kWords>(place));
  LaneSteps steps;
  LaneSums sums;
  size_t row = begin;
  if (call.tokens.count < kBlockTokens) {
    for (; row + kR <= end; row += kR) multiply_lane_rows<kHeld, kWords, kR, 1>(call, row, steps, sums);
  } else {
    for (; row + kR <= end; row += kR) multiply_lane_rows<kHeld, kWords, kR, kBlockTokens>(call, row, steps, sums);
  }
  for (; row < end; row++) multiply_lane_rows<kHeld, kWords, 1, 1>(call, row, steps, sums);
}

template <Held kHeld>
void multiply_halves(LaneCall& call, size_t begin, size_t end) {
  call.groups.group_size == 16 ? multiply_lane_range<kHeld, 2>(call, begin, end) : multiply_lane_range<kHeld, 4>(call, begin, end);
}

void lanes_multiply(const Codes& codes, const IntegerCodes& integers, size_t n_columns, const Groups& groups, size_t first_row,
                    size_t begin, size_t end, const LaneTokens& tokens, const Outputs& outputs) {
  const size_t block = groups.group_size * kVectorLanes;
  LaneCall call{codes, integers, n_columns, groups, n_columns / groups.group_size, n_columns / kSuperColumns, (n_columns - 1) / block + 1,
                first_row, tokens, outputs, {}};
  if (codes.bits == 8) {
    integers.flip != 0 ? multiply_lane_range<Held::flipped_bytes, 4>(call, begin, end) : multiply_lane_range<Held::bytes, 4>(call, begin, end);
  } else if (codes.bits == 2) {
    multiply_lane_range<Held::quarters, 1>(call, begin, end);
  } else if (!integers.flips) {
    multiply_halves<Held::looked_up_halves>(call, begin, end);
  } else {
    integers.flip != 0 ? multiply_halves<Held::flipped_halves>(call, begin, end) : multiply_halves<Held::halves>(call, begin, end);
  }
}

// Bytes of a block in the order of codes: those of every kPer-th column together, then words of four as exchange() leaves them.
template <size_t kPer, size_t kWords>
inline void put_words(const int8_t* __restrict from, int8_t* __restrict to) {
  constexpr size_t kBytes = kWords * kVectorBytes64;
  alignas(64) int8_t together[kPer][kBytes];
  for (size_t k = 0; k < kPer; k++) {
    for (size_t i = 0; i < kBytes; i++) together[k][i] = from[i * kPer + k];
  }
  for (size_t w = 0; w < kWords; w++) {
    for (size_t k = 0; k < kPer; k++) {
      for (size_t p = 0; p < kVectorLanes; p++) {
        std::memcpy(to + (w * kPer + k) * kVectorBytes64 + 4 * p, together[k] + 4 * (lane_at<kWords>(p) * kWords + w), 4);
      }
    }
  }
}

// A block of activations as high and low parts in the order of codes, with a scale and sums for each lane.
template <size_t kPer, size_t kWords>
inline void round_block(const float* __restrict x, int shift, int8_t* __restrict parts, float* __restrict scales, int32_t* __restrict start,
                        float* __restrict sums) {
  constexpr size_t kLane = 4 * kPer * kWords, kBlock = kLane * kVectorLanes;
  alignas(64) int8_t high[kBlock], low[kBlock];
  alignas(64) float factor[kVectorLanes];
  float scale[kVectorLanes], sum[kVectorLanes];
  for (size_t lane = 0; lane < kVectorLanes; lane++) {
    uint32_t most = 0;  // magnitudes compare like their bits
    for (size_t i = 0; i < kLane; i++) {
      const uint32_t magnitude = bits_of(x[lane * kLane + i]) & 0x7fffffff;
      most = magnitude > most ? magnitude : most;
    }
    // What is no number stays none; the least are 0, for their quotient would be infinite.
    const bool is_nothing = float_of(most) < 0x1p-100f;
    scale[lane] = is_nothing ? 0 : float_of(most) / kMostOfLane;
    factor[lane] = is_nothing ? 0 : kMostOfLane / float_of(most);
  }
  for (size_t lane = 0; lane < kVectorLanes; lane++) {
    int32_t of_high = 0, of_low = 0;
    for (size_t i = lane * kLane; i < (lane + 1) * kLane; i++) {
      // Adding and subtracting 1.5 * 2^23, whose last place is 1, lets the adder round.
      const float near = (x[i] * factor[lane] + 0x1.8p23f) - 0x1.8p23f;
      const int32_t code = static_cast<int32_t>(near == near ? near : 0.0f), above = (code + 64) >> 7;
      high[i] = static_cast<int8_t>(above);
      low[i] = static_cast<int8_t>(code - 128 * above);
      of_high += above;
      of_low += code - 128 * above;
    }
    sum[lane] = scale[lane] * static_cast<float>(128 * of_high + of_low);
    start[lane] = -shift * of_high;
    start[kVectorLanes + lane] = -shift * of_low;
  }
  int32_t turned[2 * kVectorLanes];
  for (size_t p = 0; p < kVectorLanes; p++) {
    const size_t lane = lane_at<kWords>(p);
    scales[p] = scale[lane];
    sums[p] = sum[lane];
    turned[p] = start[lane];
    turned[kVectorLanes + p] = start[kVectorLanes + lane];
  }
  std::memcpy(start, turned, sizeof turned);
  put_words<kPer, kWords>(high, parts);
  put_words<kPer, kWords>(low, parts + kBlock);
}

template <size_t kPer, size_t kWords>
inline void round_blocks(const float* x, size_t n_blocks, int shift, int8_t* parts, float* scales, int32_t* start, float* sums) {
  constexpr size_t kBlock = 4 * kPer * kWords * kVectorLanes;
  for (size_t b = 0; b < n_blocks; b++) {
    round_block<kPer, kWords>(x + b * kBlock, shift, parts + 2 * b * kBlock, scales + b * kVectorLanes, start + 2 * b * kVectorLanes,
                              sums + b * kVectorLanes);
  }
}

void lanes_round(const float* x, size_t n_blocks, unsigned bits, size_t lane, int shift, int8_t* parts, float* scales, int32_t* start,
                 float* sums) {
  if (bits == 8) {
    round_blocks<1, 4>(x, n_blocks, shift, parts, scales, start, sums);
  } else if (bits == 2) {
    round_blocks<4, 1>(x, n_blocks, shift, parts, scales, start, sums);
  } else if (lane == 16) {
    round_blocks<2, 2>(x, n_blocks, shift, parts, scales, start, sums);
  } else {
    round_blocks<2, 4>(x, n_blocks, shift, parts, scales, start, sums);
  }
}

constexpr LaneKernels kLanes = {lanes_multiply, lanes_round};

}  // namespace
}  // namespace spqfmt
