// The plain encoder.
//
// A step turns state x into (x / freq << 12) + x % freq + cum, after giving up the low word if the result would
// not fit in 32 bits, that is if x >= freq << 20. With q = x / freq this is x + cum + q * (4096 - freq).
//
// q without a division: reciprocal = ceil(2^64 / freq) = (2^64 + e) / freq with e < freq, so
// x * reciprocal / 2^64 = x / freq + x * e / (freq * 2^64). As x * e < 2^32 * 2^12 < 2^64, the second term is below
// 1 / freq and cannot carry the quotient past the next integer: the high half of the product is q exactly.
// (A 32-bit reciprocal, as often seen, is wrong for x >= 2^31; states here reach 2^32 - 1.)
// freq = 1 has no 64-bit reciprocal; 2^64 - 1 gives q = x - 1 there, and the bias makes up for the missing 4095.
#include <cstring>

#include "encoder.hpp"
#include "frequencies.hpp"
#include "little_endian.hpp"

namespace spqfmt {

void build_encode_table(const Frequencies& frequencies, EncodeTable& table) {
  uint32_t cum = 0;
  for (unsigned s = 0; s < 256; s++) {
    const uint32_t freq = frequencies.of[s];
    EncodeTable::Symbol& symbol = table.symbol[s];
    symbol.limit = freq << 20;
    symbol.complement = kFreqTotal - freq;
    symbol.reciprocal = freq < 2 ? ~uint64_t{0} : (~uint64_t{0}) / freq + 1;
    symbol.bias = freq < 2 ? cum + kFreqTotal - 1 : cum;
    table.freq[s] = static_cast<uint16_t>(freq);
    table.cum[s] = static_cast<uint16_t>(cum);
    const float reciprocal = static_cast<float>((1 - 1.0 / (1 << 21)) / freq);
    uint32_t bits;
    std::memcpy(&bits, &reciprocal, sizeof bits);
    table.entry[s] = uint64_t{bits} << 32 | (cum << 16 & 0xffff0000u) | freq;
    cum += freq;
  }
}

namespace {

inline uint64_t high_half(uint64_t a, uint64_t b) {
  __extension__ using uint128 = unsigned __int128;
  return static_cast<uint64_t>(static_cast<uint128>(a) * b >> 64);
}

void encode_block(EncodeCursor& cursor, size_t n_groups, const EncodeTable& table) {
  uint32_t x[kLanes];
  for (unsigned lane = 0; lane < kLanes; lane++) x[lane] = cursor.state[lane];
  const uint8_t* in = cursor.in;
  uint8_t* out = cursor.out;
  for (size_t group = 0; group < n_groups; group++) {
    in -= kGroupSymbols;
    for (unsigned step = 4; step-- > 0;) {
#pragma GCC unroll 32
      for (unsigned behind = 1; behind <= kLanes; behind++) {
        const unsigned lane = kLanes - behind;  // GCC does not unroll a loop that counts down
        const EncodeTable::Symbol& symbol = table.symbol[in[4 * lane + step]];
        uint32_t v = x[lane];
        const uint32_t full = v >= symbol.limit;
        store_u16(out - 2, static_cast<uint16_t>(v));  // stays only if the state gives it up
        out -= 2 * full;
        v >>= 16 * full;
        x[lane] = v + symbol.bias + static_cast<uint32_t>(high_half(symbol.reciprocal, v)) * symbol.complement;
      }
    }
  }
  for (unsigned lane = 0; lane < kLanes; lane++) cursor.state[lane] = x[lane];
  cursor.in = in;
  cursor.out = out;
}

}  // namespace

void encode_groups_scalar(EncodeCursor* cursors, size_t n_cursors, size_t n_groups, const EncodeTable& table) {
  for (size_t i = 0; i < n_cursors; i++) encode_block(cursors[i], n_groups, table);
}

}  // namespace spqfmt
