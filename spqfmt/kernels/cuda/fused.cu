// y = x W^T of 1 to 8 tokens straight from rans blocks (FORMAT.md 4.3, 5.2, 5.3, 5.5): what is decoded is multiplied in
// registers and written nowhere. Of BF16 the high bytes are in blocks, the low ones beside, as they are. A warp goes through a block, each of its lanes one lane of the coder; where a row of
// the matrix ends, or the block, the lanes add up what they have and leave one sum for each token. `finish` adds the sums
// of a row in the order of its codes, and puts scale, outliers and bias to it. So the order of every addition is fixed.
//
// A row has at least as many codes as a turn, 128 symbols, and a multiple of those in a lane's share of it: a turn meets
// one end of a row at most, and a lane's share lies in one row.
#include "lanes.cuh"

enum Scheme { ROWS, COLUMNS, GROUPS, BFLOATS };
constexpr u32 WARPS = 16;  // of a program; their blocks share one table
constexpr u32 SLOTS = 4096;
constexpr u32 LEAST_STATE = 65536;
constexpr u32 TURN = 128;  // symbols: four of each lane
constexpr u32 AHEAD = 28;  // where words are looked at ahead: what a turn takes at most from there on is readable
constexpr u32 ROWS_AT_ONCE = 4;  // of a program of `finish`, a warp each

// Numbers of scales and offsets.
constexpr u32 IS_F32 = 0, IS_BF16 = 1, IS_F16 = 2, IS_U8 = 3;

// spqfmt.kernels.device.fusing writes these.
struct Block {
  u32 begin;      // of the states, in u32 of `stored`
  u32 end;        // of the words, in u16 of `stored`
  u32 n_symbols;  // 0: no block
  u32 table;
  u32 slot;    // of its first sum
  u32 column;  // of its first code
  u32 row;     // likewise, counted from the first of the matrix
  u32 low;     // of the low bytes, in u32 of `stored`
};

// spqfmt.kernels.cuda.launches has the same two.
struct Multiply {
  const u32 *stored;
  const u32 *cumulative;  // [tables, 256]
  const Block *blocks;    // [programs, WARPS]
  const u16 *x;           // [n_tokens, n_columns], bfloat16 or float16
  const float *columns;   // scales [n_columns], or null
  const void *scale;      // [rows, n_groups]
  const void *offset;     // likewise, or null
  float *sums;            // [slots, TOKENS]
  u32 *error;  // or null
  u32 n_columns, n_tokens, x_is_half;
  u32 turned;             // exclusive or that makes of a symbol what its codes are above the least one
  float bias, high_bias;  // what a code is less than its bits in a float (put_codes), of the second in a byte too
  u32 group_log2, n_groups, n_rows, scale_is, offset_is, offset_is_zero_point;
};

struct Finish {
  const float *sums;         // [slots, at_once]
  const u32 *first_slots;    // [n_rows + 1]
  const float *row_scale;    // [matrix rows], or null
  const u32 *outlier_begin;  // [matrix rows + 1], or null
  const u32 *outlier_columns;
  const float *changes;  // what an outlier is more than the weight of its code
  const u16 *x;
  const u16 *bias;  // [matrix rows], or null
  u16 *y;           // [n_tokens, matrix rows]
  u32 first_row, n_rows, matrix_rows, n_columns, n_tokens, at_once, x_is_half;
};

// The two 16-bit floats of a word.
DEVICE float low_half(u32 pair, u32 is_half) {
  return is_half ? half_to_float(static_cast<u16>(pair)) : as_float(pair << 16);
}

DEVICE float high_half(u32 pair, u32 is_half) {
  return is_half ? half_to_float(static_cast<u16>(pair >> 16)) : as_float(pair & 0xffff0000u);
}


DEVICE u16 rounded(float value, u32 is_half) {
  if (is_half) return float_to_half(value);
  const u32 bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

DEVICE float number_at(const void *numbers, u32 at, u32 is) {
  if (is == IS_F32) return load(static_cast<const float *>(numbers) + at);
  if (is == IS_U8) return load(static_cast<const u8 *>(numbers) + at);
  return low_half(load(static_cast<const u16 *>(numbers) + at), is == IS_F16);
}

DEVICE float summed(float value) {
  UNROLL for (int lanes = 16; lanes; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

// frequency << 20 | symbol << 12 | slot - cumulative[symbol]. A warp fills the slots of a symbol.
DEVICE void fill(u32 *table, const u32 *cumulative, u32 turned) {
  for (u32 symbol = thread() / 32; symbol < 256; symbol += WARPS) {
    const u32 begin = load(cumulative + symbol);
    const u32 end = symbol < 255 ? load(cumulative + symbol + 1) : SLOTS;
    const u32 entry = (end - begin) << 20 | (symbol ^ turned) << 12;
    for (u32 slot = begin + thread() % 32; slot < end; slot += 32) table[slot] = entry | (slot - begin);
  }
}

// One symbol of each lane: its entry. Words go to the lanes that take one in ascending order.
DEVICE u32 step(u32 &x, const u16 *&words, const u32 *table, u32 below) {
  const u32 entry = table[low_bits(x, SLOTS - 1)];
  x = (entry >> 20) * (x / SLOTS) + (entry & 0xfff);
  const bool takes = x < LEAST_STATE;
  const u32 taken = ballot(takes);
  // all lanes load, which asks for no jump: the words are side by side, and there is room behind the last
  const u32 word = load(words + popcount(taken & below));
  x = takes ? x << 16 | word : x;
  words += popcount(taken);
  return entry;
}

// The inputs of a lane's share of a turn, two in a word.
template <u32 PER_SYMBOL> struct Inputs {
  u32 pairs[2 * PER_SYMBOL];
};

DEVICE void read(Inputs<1> &inputs, const u16 *x) {
  const Pair found = load(reinterpret_cast<const Pair *>(x));
  inputs = {{found.a, found.b}};
}

DEVICE void read(Inputs<2> &inputs, const u16 *x) {
  const Four found = load(reinterpret_cast<const Four *>(x));
  inputs = {{found.a, found.b, found.c, found.d}};
}

// The codes of a symbol. Its bits stand in a float's mantissa, so that none is converted.
DEVICE void put_codes(float (&codes)[4], u32 k, u32 entry, const Multiply &p) {
  codes[k] = as_float((entry & 0xff000) | 0x45000000) - p.bias;
}

DEVICE void put_codes(float (&codes)[8], u32 k, u32 entry, const Multiply &p) {
  codes[2 * k] = as_float((entry & 0xf000) | 0x45000000) - p.bias;
  codes[2 * k + 1] = as_float((entry & 0xf0000) | 0x43000000) - p.high_bias;
}

// Low bytes of four elements, which are stored turned right by one bit, with their bits in order: the sign first.
DEVICE u32 in_order(u32 low) { return merged(low << 7, low >> 1, 0x7f7f7f7f); }

// The weight of a symbol and of byte `k` of `low`, in_order.
DEVICE void put_bfloat(float (&codes)[4], u32 k, u32 entry, u32 low) {
  const u32 others = bytes_of(low, 0, k << 12 | k << 8 | 0x44);
  codes[k] = as_float(merged(others, entry << 11, 0x7f800000));
}

DEVICE void put_bfloat(float (&)[8], u32, u32, u32) {}

// The bits of spqfmt.kernels.torch_rans.FAULTS; where `seen` is 0 none is added: it is there so that what was looked at
// ahead is not left out by compilers.
DEVICE void report(u32 x, u32 faults, const u16 *words, const u16 *end, u32 seen, u32 *error) {
  if (words > end) faults |= 2;
  if (words + 1 < end) faults |= 4;
  if (words + 1 == end && load(end - 1)) faults |= 8;
  if (x != LEAST_STATE) faults |= 16;
  if (faults || !seen) atomic_or(error, faults);
}

template <u32 TOKENS, Scheme SCHEME, u32 PER_SYMBOL> DEVICE void multiply(const Multiply &p) {
  constexpr u32 SHARE = 4 * PER_SYMBOL;  // codes of a lane in a turn, and of a warp
  constexpr int WIDTH = TURN * PER_SYMBOL;
  SHARED u32 table[SLOTS];
  const Block *const block = p.blocks + program() * WARPS + thread() / 32;
  fill(table, p.cumulative + 256 * load(&block->table), p.turned);
  barrier();
  const int n_codes = static_cast<int>(load(&block->n_symbols) * PER_SYMBOL);
  if (n_codes == 0) return;
  const u32 lane = thread() % 32, below = (1u << lane) - 1;
  const u32 begin = load(&block->begin);
  const u16 *const stored_words = reinterpret_cast<const u16 *>(p.stored);
  const u16 *const end = stored_words + load(&block->end);
  const u16 *words = stored_words + 2 * begin + 64;
  u32 x = load(p.stored + begin + lane);
  const u32 first_fault = x < LEAST_STATE;

  const int own = static_cast<int>(lane * SHARE), n_columns = static_cast<int>(p.n_columns);
  const int first_column = static_cast<int>(load(&block->column));
  // Codes from here to where the row ends, or the block; how many more the row has than the block.
  int longer = n_columns - first_column - n_codes;
  int span = longer < 0 ? n_columns - first_column : n_codes;
  int column = first_column + own;
  const u32 last_line = (p.n_rows - 1) * p.n_groups;
  u32 line = (SCHEME == GROUPS) ? load(&block->row) * p.n_groups : 0;
  if (column >= n_columns) {
    column -= n_columns;
    if ((SCHEME == GROUPS) && line < last_line) line += p.n_groups;
  }
  float *sums = p.sums + load(&block->slot) * TOKENS;
  float total[TOKENS] = {};
  const u32 x_is_half = SCHEME == BFLOATS ? 0 : p.x_is_half;
  u32 seen = 0, coming = 0;
  u32 low_at = load(&block->low) + lane;
  u32 next_low = SCHEME == BFLOATS ? load(p.stored + low_at) : 0;
  // a damaged block ends where it passes its end: what it reads until then is there
  while (words <= end) {
    // words are in the first cache when they are wanted
    seen |= coming;
    coming = load(words + AHEAD + 4 * lane);
    Inputs<PER_SYMBOL> inputs[TOKENS];
    UNROLL for (u32 token = 0; token < TOKENS; token++) {
      const u32 there = token < p.n_tokens ? token : 0;
      read(inputs[token], p.x + (there * p.n_columns + static_cast<u32>(column)));
    }
    float codes[SHARE];
    if (SCHEME == BFLOATS) {
      // a turn ahead, as no cache has them yet: 252 bytes behind the last are readable, as is what words look at
      const u32 low = in_order(next_low);
      low_at += 32;
      next_low = load(p.stored + low_at);
      UNROLL for (u32 k = 0; k < 4; k++) put_bfloat(codes, k, step(x, words, table, below), low);
    } else {
      UNROLL for (u32 k = 0; k < 4; k++) put_codes(codes, k, step(x, words, table, below), p);
    }
    float scale = 1, offset = 0;
    if ((SCHEME == GROUPS)) {
      const u32 group = line + (static_cast<u32>(column) >> p.group_log2);
      scale = number_at(p.scale, group, p.scale_is);
      if (p.offset) offset = number_at(p.offset, group, p.offset_is) * (p.offset_is_zero_point ? scale : 1);
    }
    float of_share[TOKENS];
    UNROLL for (u32 token = 0; token < TOKENS; token++) {
      float dot = 0, of_inputs = 0;
      UNROLL for (u32 k = 0; k < SHARE; k++) {
        const u32 pair = inputs[token].pairs[k / 2];
        float input = k % 2 ? high_half(pair, x_is_half) : low_half(pair, x_is_half);
        if (SCHEME == COLUMNS) input *= load(p.columns + column + k);
        dot = k ? fma(codes[k], input, dot) : codes[k] * input;
        if ((SCHEME == GROUPS)) of_inputs = k ? of_inputs + input : input;
      }
      of_share[token] = (SCHEME == GROUPS) ? fma(-offset, of_inputs, scale * dot) : dot;
    }
    column += WIDTH;
    if (column >= n_columns) {
      column -= n_columns;
      if ((SCHEME == GROUPS) && line < last_line) line += p.n_groups;
    }
    if (span > WIDTH) {
      UNROLL for (u32 token = 0; token < TOKENS; token++) total[token] += of_share[token];
      span -= WIDTH;
      continue;
    }
    // Lanes before the end have more of this row, those behind it the first of the next one, as far as the block goes.
    const int rest = longer < 0 ? -longer : 0;
    const bool before = own < span, behind = !before && own - span < rest;
    UNROLL for (u32 token = 0; token < TOKENS; token++) {
      const float sum = summed(before ? total[token] + of_share[token] : total[token]);
      if (lane == 0) store(sums + token, sum);
      total[token] = behind ? of_share[token] : 0;
    }
    sums += TOKENS;
    const int passed = WIDTH - span;
    if (rest <= passed) {
      if (rest == 0) break;
      UNROLL for (u32 token = 0; token < TOKENS; token++) {
        const float sum = summed(total[token]);
        if (lane == 0) store(sums + token, sum);
      }
      break;
    }
    longer = n_columns - rest;
    span = (longer < 0 ? n_columns : rest) - passed;
  }
  if (p.error) report(x, first_fault, words, end, seen, p.error);
}

// Programs of a multiprocessor at once: as many as have registers for one token; others take what they want.
#define PRODUCT(name, tokens, scheme, per_symbol)                              \
  KERNEL void AT_MOST(32 * WARPS, tokens == 1 ? 3 : 1) name(const Multiply p) { \
    multiply<tokens, scheme, per_symbol>(p);                                   \
  }
#define PRODUCTS(tokens)                       \
  PRODUCT(rows_8_##tokens, tokens, ROWS, 1)       \
  PRODUCT(columns_8_##tokens, tokens, COLUMNS, 1) \
  PRODUCT(groups_8_##tokens, tokens, GROUPS, 1)   \
  PRODUCT(groups_4_##tokens, tokens, GROUPS, 2)   \
  PRODUCT(bfloats_##tokens, tokens, BFLOATS, 1)
PRODUCTS(1)
PRODUCTS(4)
PRODUCTS(8)

// A warp to a row: its sums one after the other, times its scale, and what outliers change, added up by lanes.
KERNEL void AT_MOST(32 * ROWS_AT_ONCE, 1) finish(const Finish p) {
  const u32 number_of_row = program() * ROWS_AT_ONCE + thread() / 32, lane = thread() % 32;
  if (number_of_row >= p.n_rows) return;
  const u32 row = p.first_row + number_of_row;
  const u32 first = load(p.first_slots + number_of_row), stop = load(p.first_slots + number_of_row + 1);
  for (u32 token = 0; token < p.n_tokens; token++) {
    float total = 0;
    for (u32 slot = first; slot < stop; slot++) total += load(p.sums + slot * p.at_once + token);
    if (p.row_scale) total *= load(p.row_scale + row);
    if (p.outlier_begin) {
      const u32 end = load(p.outlier_begin + row + 1);
      float change = 0;
      for (u32 at = load(p.outlier_begin + row) + lane; at < end; at += 32) {
        const u32 place = token * p.n_columns + load(p.outlier_columns + at);
        change = fma(load(p.changes + at), low_half(load(p.x + place), p.x_is_half), change);
      }
      total += summed(change);
    }
    if (p.bias) total += low_half(load(p.bias + row), p.x_is_half);
    if (lane == 0) store(p.y + token * p.matrix_rows + row, rounded(total, p.x_is_half));
  }
}
