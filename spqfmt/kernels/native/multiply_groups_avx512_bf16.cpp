// Codes in groups times BF16 activations, with the processor's dot products of BF16 pairs.
//
// Codes become BF16 numbers by a look-up among registers, exactly; values that BF16 does not hold become the sum of two. A group's sum of products is scaled as a whole, and its
// offset times the sum of its activations is subtracted at the end: scale * sum(code * x) - coefficient * sum(x).
#include <immintrin.h>

#include <cstring>

#include "line_numbers.hpp"
#include "multiply_rows.hpp"

namespace spqfmt {
namespace {

constexpr size_t kBlock = kGroupBlock;
constexpr size_t kRows = 4;
constexpr size_t kTokens = 4;
constexpr size_t kLanes = kVectorLanes;
constexpr size_t kGroupsOfTile = kRoomOfGroups;
static_assert(kTile / kLeastPairGroup <= kGroupsAtOnce, "a tile's groups are read at once");

struct BlockSums {
  alignas(64) float of[kRows][kTokensPerTile][kLanes];
};

// What belongs to the groups of some rows in the columns of a tile.
struct TileGroups {
  alignas(64) float scale[kRows][kGroupsOfTile];
  alignas(64) float offset[kRows][kGroupsOfTile];
  alignas(64) float coefficient[kRows][kGroupsOfTile];
};

// Columns 4j and 4j + 2 of a block in lane j, and columns 4j + 1 and 4j + 3.
struct CodePairs {
  __m512bh even, odd;
};

// The BF16 number of each code and what it lacks. Of at most 4 bits `first` and `rest` have a word for each, as often as 32
// places have room for it; of 8 bits `low` and `high` have the bytes of all 256.
struct CodeTable {
  alignas(64) uint16_t first[32], rest[32];
  alignas(64) uint8_t low[256], high[256];

  explicit CodeTable(const Codes& codes) {
    const unsigned n = 1u << codes.bits;
    for (unsigned i = 0; i < (n < 32 ? 32 : n); i++) {
      const float value = value_of(codes, i % n);
      const uint16_t bits = to_bf16(value);
      if (n < 32) {
        first[i] = bits;
        rest[i] = to_bf16(value - widened_bf16(bits));
      } else {
        low[i] = static_cast<uint8_t>(bits);
        high[i] = static_cast<uint8_t>(bits >> 8);
      }
    }
  }
};

inline __m512bh looked_up(__m512i codes, const uint16_t* table) {
  return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(codes, _mm512_load_si512(table)));
}

inline __m512i bytes_of(__m512i codes, const uint8_t* table) {
  const __m512i lower = _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
  const __m512i upper = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), codes, _mm512_load_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper);
}

// Codes of 8 bits: the even ones are the low bytes of words.
inline CodePairs byte_pairs(const uint8_t* from, const CodeTable& table) {
  constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;
  const __m512i codes = _mm512_loadu_si512(from);
  const __m512i low = bytes_of(codes, table.low), high = bytes_of(codes, table.high);
  return {reinterpret_cast<__m512bh>(_mm512_mask_blend_epi8(kOdd, low, _mm512_slli_epi16(high, 8))),
          reinterpret_cast<__m512bh>(_mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(low, 8), high))};
}

// Places in the tables of the codes of a CodePairs.
struct Places {
  __m512i even, odd;
};

template <unsigned kBits>
inline Places unpack_block(const uint8_t* from) {
  if constexpr (kBits == 4) {
    // The look-up takes 5 bits of each word: of the low nibble the table does not mind the fifth.
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {words, _mm512_srli_epi16(words, 4)};
  } else {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m512i low = _mm512_set1_epi32(3), high = _mm512_set1_epi32(3 << 16);
    const __m512i even = _mm512_or_si512(_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_slli_epi32(bytes, 12), high));
    const __m512i odd = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(bytes, 2), low),
                                        _mm512_and_si512(_mm512_slli_epi32(bytes, 10), high));
    return {even, odd};
  }
}

inline __m512bh block_of(const uint16_t* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }

// What does not change from row to row.
struct Call {
  const Codes& codes;
  size_t n_columns;
  const Groups& groups;
  size_t n_groups;
  size_t first_row;
  const Outliers& outliers;
  const GroupTokens& tokens;
  const Outputs& outputs;
  const CodeTable& table;
  LineNumbers scales, offsets;
};

// Columns column..column + n - 1, at most kTile, of kR rows from `row` on.
struct Tile {
  size_t row, column, n;
  size_t first_group, n_groups;
};

// Adds a block of a row, whose codes are at `from`: the sum of each lane's four columns, times their group's scale.
template <unsigned kBits, bool kSplit, size_t kT>
inline void add_block(const Call& call, const uint8_t* from, __m512 scale, const uint16_t* x, __m512 (&acc)[kT]) {
  CodePairs codes, rest{};
  if constexpr (kBits == 8) {
    codes = byte_pairs(from, call.table);
  } else {
    const Places places = unpack_block<kBits>(from);
    codes = {looked_up(places.even, call.table.first), looked_up(places.odd, call.table.first)};
    if constexpr (kSplit) rest = {looked_up(places.even, call.table.rest), looked_up(places.odd, call.table.rest)};
  }
  for (size_t t = 0; t < kT; t++) {
    const __m512bh even = block_of(x + t * call.tokens.stride), odd = block_of(x + t * call.tokens.stride + kBlock / 2);
    __m512 sum = _mm512_dpbf16_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), codes.even, even), codes.odd, odd);
    if constexpr (kSplit) sum = _mm512_dpbf16_ps(_mm512_dpbf16_ps(sum, rest.even, even), rest.odd, odd);
    acc[t] = _mm512_fmadd_ps(scale, sum, acc[t]);
  }
}

// Which groups the lanes of a block belong to, counted from the tile's first.
template <bool kSmall>
class BlockGroups {
 public:
  BlockGroups(const Call& call, const Tile& tile) : size_(call.groups.group_size) {
    if constexpr (kSmall) {
      const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      spread_ = _mm512_srlv_epi32(lane, _mm512_set1_epi32(__builtin_ctz(static_cast<unsigned>(size_)) - 2));
    } else {
      left_ = size_ >= call.n_columns ? call.n_columns + kBlock : size_ - tile.column % size_;
    }
  }

  __m512 scale_of(const float* scales) const {
    if constexpr (kSmall) return _mm512_permutexvar_ps(spread_, _mm512_loadu_ps(scales + first_));
    return _mm512_set1_ps(scales[first_]);
  }

  void advance() {
    if constexpr (kSmall) {
      first_ += kBlock / size_;
    } else if ((left_ -= kBlock) == 0) {
      first_++;
      left_ = size_;
    }
  }

 private:
  size_t size_, first_ = 0, left_ = 0;
  __m512i spread_ = _mm512_setzero_si512();
};

template <unsigned kBits, bool kSplit, bool kSmall, size_t kR, size_t kT>
inline void add_blocks(const Call& call, const Tile& tile, const TileGroups& groups, size_t first_token, size_t token, BlockSums& sums) {
  const uint16_t* x = call.tokens.x + (first_token + token) * call.tokens.stride + tile.column;
  const uint8_t* from[kR];
  __m512 acc[kR][kT];
  for (size_t r = 0; r < kR; r++) {
    from[r] = call.codes.bytes + (call.codes.first + (tile.row + r) * call.n_columns + tile.column) * kBits / 8;
    for (size_t t = 0; t < kT; t++) acc[r][t] = tile.column == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums.of[r][token + t]);
  }
  const size_t ahead = kR * call.n_columns * kBits / 8;
  BlockGroups<kSmall> of(call, tile);
  const size_t whole = tile.n / kBlock * kBlock;
  size_t block = 0;
  for (; block < whole; block += kBlock, of.advance()) {
    for (size_t r = 0; r < kR; r++) {
      const uint8_t* at = from[r] + block * kBits / 8;
      prefetch(at + ahead);
      add_block<kBits, kSplit>(call, at, of.scale_of(groups.scale[r]), x + block, acc[r]);
    }
  }
  if (block < tile.n) {
    alignas(64) uint8_t last[kBlock * kBits / 8] = {};
    for (size_t r = 0; r < kR; r++) {
      std::memcpy(last, from[r] + block * kBits / 8, ((tile.n - block) * kBits + 7) / 8);
      add_block<kBits, kSplit>(call, last, of.scale_of(groups.scale[r]), x + block, acc[r]);
    }
  }
  if (call.groups.kind != GroupOffset::none) {
    const float* x_sums = call.tokens.sums + (first_token + token) * call.tokens.sums_stride + tile.first_group;
    for (size_t i = 0; i < tile.n_groups; i += kLanes) {
      for (size_t t = 0; t < kT; t++) {
        const __m512 x_sum = _mm512_loadu_ps(x_sums + t * call.tokens.sums_stride + i);
        for (size_t r = 0; r < kR; r++) {
          acc[r][t] = _mm512_fnmadd_ps(_mm512_load_ps(groups.coefficient[r] + i), x_sum, acc[r][t]);
        }
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) _mm512_store_ps(sums.of[r][token + t], acc[r][t]);
  }
}

// Scales, offsets, and what each group's sum of activations is multiplied by: 0 where an earlier tile did it.
template <size_t kR>
inline void read_groups(const Call& call, const Tile& tile, TileGroups& groups) {
  for (size_t r = 0; r < kR; r++) {
    const size_t line = line_of(call.groups, call.first_row + tile.row + r);
    call.scales.read(line, tile.first_group, tile.n_groups, groups.scale[r]);
    if (call.groups.kind == GroupOffset::none) continue;
    call.offsets.read(line, tile.first_group, tile.n_groups, groups.offset[r]);
    const bool is_product = call.groups.kind == GroupOffset::zero_point;
    for (size_t i = 0; i < tile.n_groups; i += kLanes) {
      const __m512 scale = is_product ? _mm512_load_ps(groups.scale[r] + i) : _mm512_set1_ps(1);
      _mm512_store_ps(groups.coefficient[r] + i, _mm512_mul_ps(_mm512_load_ps(groups.offset[r] + i), scale));
    }
    if (tile.first_group * call.groups.group_size < tile.column) groups.coefficient[r][0] = 0;
  }
}

template <unsigned kBits, bool kSplit, bool kSmall, size_t kR>
inline void multiply_some(const Call& call, size_t row, TileGroups& groups, BlockSums& sums) {
  const GroupTokens& tokens = call.tokens;
  for (size_t first = 0; first < tokens.count; first += kTokensPerTile) {
    const size_t n_tokens = smaller(kTokensPerTile, tokens.count - first);
    float more[kR][kTokensPerTile] = {};
    int64_t next[kR] = {};
    if (call.outliers.row_begin != nullptr) {
      for (size_t r = 0; r < kR; r++) next[r] = call.outliers.row_begin[row + r];
    }
    for (size_t column = 0; column < call.n_columns; column += kTile) {
      const size_t n = smaller(kTile, call.n_columns - column), first_group = column / call.groups.group_size;
      const Tile tile{row, column, n, first_group, (column + n - 1) / call.groups.group_size - first_group + 1};
      read_groups<kR>(call, tile, groups);
      size_t token = 0;
      for (; token + kTokens <= n_tokens; token += kTokens) {
        add_blocks<kBits, kSplit, kSmall, kR, kTokens>(call, tile, groups, first, token, sums);
      }
      for (; token < n_tokens; token++) add_blocks<kBits, kSplit, kSmall, kR, 1>(call, tile, groups, first, token, sums);
      if (call.outliers.row_begin == nullptr) continue;
      for (size_t r = 0; r < kR; r++) {
        const float* x = tokens.columns + first * call.n_columns;
        add_outliers(call.codes, call.n_columns, call.groups, call.outliers, row + r, first_group, column + n, groups.scale[r], 1,
                     groups.offset[r], x, n_tokens, next[r], more[r]);
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t token = 0; token < n_tokens; token++) {
        write(call.outputs, first + token, row + r, _mm512_reduce_add_ps(_mm512_load_ps(sums.of[r][token])) + more[r][token]);
      }
    }
  }
}

template <unsigned kBits, bool kSplit, bool kSmall>
void multiply_range(const Call& call, size_t begin, size_t end) {
  TileGroups groups = {};
  BlockSums sums;
  size_t row = begin;
  for (; row + kRows <= end; row += kRows) multiply_some<kBits, kSplit, kSmall, kRows>(call, row, groups, sums);
  for (; row < end; row++) multiply_some<kBits, kSplit, kSmall, 1>(call, row, groups, sums);
}

}  // namespace

void group_multiply_avx512_bf16(const Codes& codes, size_t n_columns, const Groups& groups, size_t first_row, const Outliers& outliers,
                                size_t begin, size_t end, const GroupTokens& tokens, const Outputs& outputs) {
  const size_t size = groups.group_size;
  const CodeTable table(codes);
  const size_t n_groups = (n_columns - 1) / size + 1;
  const Call call{codes, n_columns, groups, n_groups, first_row, outliers, tokens, outputs, table,
                  LineNumbers(groups.scale, n_groups), LineNumbers(groups.offset, n_groups)};
  const bool is_small = size < kBlock && size < n_columns;
  if (codes.bits == 8) {
    is_small ? multiply_range<8, false, true>(call, begin, end) : multiply_range<8, false, false>(call, begin, end);
    return;
  }
  bool splits = false;
  for (const uint16_t rest : table.rest) splits = splits || (rest & 0x7fff) != 0;
  if (codes.bits == 4 && splits) {
    is_small ? multiply_range<4, true, true>(call, begin, end) : multiply_range<4, true, false>(call, begin, end);
  } else if (codes.bits == 4) {
    is_small ? multiply_range<4, false, true>(call, begin, end) : multiply_range<4, false, false>(call, begin, end);
  } else if (splits) {
    is_small ? multiply_range<2, true, true>(call, begin, end) : multiply_range<2, true, false>(call, begin, end);
  } else {
    is_small ? multiply_range<2, false, true>(call, begin, end) : multiply_range<2, false, false>(call, begin, end);
  }
}

}  // namespace spqfmt
