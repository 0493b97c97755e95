#include "frequencies.hpp"

#include <algorithm>
#include <string>

#include "bitstream.hpp"
#include "errors.hpp"

namespace spqfmt {
namespace {

// Symbols worth less than one slot still need one. Taking those slots away from the rest before the rest is
// scaled leaves a sum that is off by little, so that the repair below takes a few steps, not hundreds.
void scale_counts(const uint64_t counts[256], uint32_t freq[256]) {
  uint64_t total = 0;
  for (unsigned s = 0; s < 256; s++) total += counts[s];
  uint64_t rest_total = total;
  uint64_t rest_slots = kFreqTotal;
  bool rare[256] = {};
  for (bool again = true; again;) {  // a symbol becomes rare at most once: at most 256 rounds, two in practice
    again = false;
    const uint64_t bound_total = rest_total, bound_slots = rest_slots;
    for (unsigned s = 0; s < 256; s++) {
      if (counts[s] == 0 || rare[s] || counts[s] * bound_slots >= bound_total) continue;
      rare[s] = again = true;
      rest_total -= counts[s];
      rest_slots -= 1;
    }
  }
  for (unsigned s = 0; s < 256; s++) {
    if (counts[s] == 0) {
      freq[s] = 0;
    } else if (rare[s]) {
      freq[s] = 1;
    } else {
      const uint64_t rounded = (2 * counts[s] * rest_slots + rest_total) / (2 * rest_total);
      freq[s] = static_cast<uint32_t>(std::clamp<uint64_t>(rounded, 1, kFreqMax));
    }
  }
}

// Moving a symbol between f and f+1 slots changes the size by count * log2((f+1)/f) bits, and
// ln((f+1)/f) = 1/(f + 1/2) up to 1/(12 f^3): comparing count/(2f+1) picks the cheapest slot to give or take
// without a logarithm, whose last bit would depend on the C library.
void repair_sum(const uint64_t counts[256], uint32_t freq[256]) {
  int64_t excess = -static_cast<int64_t>(kFreqTotal);
  for (unsigned s = 0; s < 256; s++) excess += freq[s];
  while (excess != 0) {
    const bool take = excess > 0;
    int best = -1;
    uint64_t best_count = 0, best_weight = 1;
    for (unsigned s = 0; s < 256; s++) {
      if (counts[s] == 0 || (take ? freq[s] == 1 : freq[s] == kFreqMax)) continue;
      const uint64_t weight = take ? 2 * freq[s] - 1 : 2 * freq[s] + 1;
      const uint64_t here = counts[s] * best_weight, there = best_count * weight;
      if (best < 0 || (take ? here < there : here > there)) {
        best = static_cast<int>(s);
        best_count = counts[s];
        best_weight = weight;
      }
    }
    freq[best] += take ? -1 : 1;  // found: 2..256 symbols of 1..4095 slots can always reach 4096
    excess += take ? -1 : 1;
  }
}

struct BitReader {
  const uint8_t* src;
  size_t n_bits;
  size_t at = 0;

  uint32_t read(unsigned n) {
    if (n > n_bits - at) throw DataError("frequency table ends early");
    uint32_t value = 0;
    for (unsigned i = 0; i < n; i++, at++) value |= static_cast<uint32_t>(src[at / 8] >> (at % 8) & 1) << i;
    return value;
  }
};

unsigned bit_length(uint32_t value) {
  unsigned n = 0;
  for (; value != 0; value >>= 1) n++;
  return n;
}

}  // namespace

Frequencies normalize(const uint64_t counts[256]) {
  // Counts of chunks beyond 2^40 bytes would overflow the products above; a common factor changes nothing that matters.
  uint64_t small[256];
  uint64_t total = 0;
  for (unsigned s = 0; s < 256; s++) total += counts[s];
  unsigned shift = 0;
  while (total >> shift >= uint64_t{1} << 40) shift++;
  for (unsigned s = 0; s < 256; s++) small[s] = counts[s] == 0 ? 0 : std::max<uint64_t>(1, counts[s] >> shift);

  uint32_t freq[256];
  scale_counts(small, freq);
  repair_sum(small, freq);
  Frequencies result;
  for (unsigned s = 0; s < 256; s++) result.of[s] = static_cast<uint16_t>(freq[s]);
  return result;
}

unsigned first_symbol(const Frequencies& frequencies) {
  unsigned s = 0;
  while (s < 255 && frequencies.of[s] == 0) s++;
  return s;
}

unsigned last_symbol(const Frequencies& frequencies) {
  unsigned s = 255;
  while (s > 0 && frequencies.of[s] == 0) s--;
  return s;
}

// Per symbol: 4 bits L, the bit length of the frequency, then its L-1 bits below the leading one.
size_t write_frequencies(const Frequencies& frequencies, uint8_t* dst) {
  uint64_t pending = 0;
  unsigned n_pending = 0;
  size_t at = 0;
  const unsigned last = last_symbol(frequencies);
  for (unsigned s = first_symbol(frequencies); s <= last; s++) {
    const uint32_t freq = frequencies.of[s];
    const unsigned length = bit_length(freq);
    pending |= uint64_t{length} << n_pending;
    n_pending += 4;
    if (length > 1) {
      pending |= uint64_t{freq - (1u << (length - 1))} << n_pending;
      n_pending += length - 1;
    }
    for (; n_pending >= 8; n_pending -= 8, pending >>= 8) dst[at++] = static_cast<uint8_t>(pending);
  }
  if (n_pending > 0) dst[at++] = static_cast<uint8_t>(pending);
  return at;
}

Frequencies read_frequencies(const uint8_t* src, size_t n_bytes, unsigned first, unsigned last) {
  BitReader bits{src, 8 * n_bytes};
  Frequencies result;
  uint32_t sum = 0;
  for (unsigned s = first; s <= last; s++) {
    const uint32_t length = bits.read(4);
    if (length > kFreqBits) {
      throw DataError("frequency of symbol " + std::to_string(s) + " has " + std::to_string(length) + " bits");
    }
    const uint32_t freq = length == 0 ? 0 : (1u << (length - 1)) + bits.read(length - 1);
    result.of[s] = static_cast<uint16_t>(freq);
    sum += freq;
  }
  if (result.of[first] == 0 || result.of[last] == 0) {
    throw DataError("first or last symbol of the frequency table has frequency 0");
  }
  if (sum != kFreqTotal) throw DataError("frequencies sum to " + std::to_string(sum) + ", not 4096");
  if (bits.n_bits - bits.at >= 8) throw DataError("frequency table is longer than its symbols");
  while (bits.at < bits.n_bits) {
    if (bits.read(1) != 0) throw DataError("unused bits of the frequency table are not zero");
  }
  return result;
}

}  // namespace spqfmt
