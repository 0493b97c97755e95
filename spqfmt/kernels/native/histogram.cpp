// Equal neighbours would make each increment wait for the store of the one before: four tables, taken in turns, keep such runs
// apart. (Eight are slower, on skewed data too: more lines to keep in the nearest cache.)
#include "histogram.hpp"

#include <algorithm>
#include <cstring>

namespace spqfmt {

void histogram(const uint8_t* src, size_t n_bytes, uint64_t counts[256]) {
  std::fill_n(counts, 256, uint64_t{0});
  constexpr size_t kRound = size_t{1} << 30;  // keeps 32-bit counters from overflowing
  while (n_bytes > 0) {
    const size_t now = std::min(n_bytes, kRound);
    uint32_t part[4][256] = {};
    size_t i = 0;
    for (; i + 16 <= now; i += 16) {
      uint64_t words[2];
      std::memcpy(words, src + i, 16);
#pragma GCC unroll 8
      for (unsigned k = 0; k < 8; k++) part[k % 4][words[0] >> (8 * k) & 255]++;
#pragma GCC unroll 8
      for (unsigned k = 0; k < 8; k++) part[k % 4][words[1] >> (8 * k) & 255]++;
    }
    for (; i < now; i++) part[0][src[i]]++;
    for (unsigned s = 0; s < 256; s++) {
      for (const auto& table : part) counts[s] += table[s];
    }
    src += now;
    n_bytes -= now;
  }
}

}  // namespace spqfmt
