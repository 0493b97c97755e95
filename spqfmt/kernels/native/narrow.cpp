#include "narrow.hpp"

#include <cstring>
#include <stdexcept>

#include "dispatch.hpp"
#include "histogram.hpp"
#include "little_endian.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

constexpr size_t kValues = 16;

// The least of the 16 neighbouring values, 255 and 0 being neighbours too, that most codes have, and how many have none of them.
struct Window {
  uint8_t least;
  size_t n_escapes;
};

Window best_window(const uint8_t* codes, size_t n_codes) {
  uint64_t counts[256];
  histogram(codes, n_codes, counts);
  uint64_t inside = 0, most = 0;
  size_t least = 0;
  for (size_t i = 0; i < kValues; i++) inside += counts[i];
  for (size_t i = 0; i < 256; i++) {
    if (inside > most) most = inside, least = i;
    inside += counts[(i + kValues) % 256] - counts[i];
  }
  return {static_cast<uint8_t>(least), n_codes - static_cast<size_t>(most)};
}

}  // namespace

bool narrow_codes(const uint8_t* codes, size_t n_codes, uint8_t* to, size_t room) {
  if (n_codes == 0 || n_codes > UINT32_MAX) return false;
  const Window window = best_window(codes, n_codes);
  if (narrow_bytes(n_codes, window.n_escapes) > room) return false;
  store_u32(to, window.least);
  store_u32(to + 4, static_cast<uint32_t>(window.n_escapes));
  uint8_t* halves = to + kNarrowHeader;
  uint8_t* begins = halves + ceil_div(n_codes, 2);
  uint8_t* places = begins + 4 * (ceil_div(n_codes, kEscapeBlock) + 1);
  uint8_t* values = places + 2 * window.n_escapes;
  size_t n = 0;
  for (size_t first = 0; first < n_codes; first += kEscapeBlock) {
    const size_t here = n_codes - first < kEscapeBlock ? n_codes - first : kEscapeBlock;
    const uint8_t* __restrict from = codes + first;
    uint8_t* __restrict half = halves + first / 2;
    store_u32(begins + 4 * (first / kEscapeBlock), static_cast<uint32_t>(n));
    for (size_t i = 0; i < here / 2; i++) {
      const uint8_t low = from[2 * i] - window.least, high = from[2 * i + 1] - window.least;
      half[i] = static_cast<uint8_t>((low & 15) | high << 4);
    }
    if (here % 2 != 0) half[here / 2] = static_cast<uint8_t>(from[here - 1] - window.least) & 15;
    constexpr size_t kRun = 64;
    for (size_t run = 0; run < here; run += kRun) {
      const size_t stop = here - run < kRun ? here : run + kRun;
      uint8_t high = 0;
      for (size_t i = run; i < stop; i++) high |= static_cast<uint8_t>(from[i] - window.least);
      for (size_t i = run; high >= kValues && i < stop; i++) {
        if (static_cast<uint8_t>(from[i] - window.least) < kValues) continue;
        store_u16(places + 2 * n, static_cast<uint16_t>(i));
        values[n++] = from[i];
      }
    }
  }
  store_u32(begins + 4 * ceil_div(n_codes, kEscapeBlock), static_cast<uint32_t>(n));
  return true;
}

Narrow narrow_at(const uint8_t* bytes, size_t size, size_t n_codes) {
  const size_t n_blocks = ceil_div(n_codes, kEscapeBlock);
  bool fits = size >= narrow_bytes(n_codes, 0);
  const size_t n_escapes = fits ? load_u32(bytes + 4) : 0;
  fits = fits && size >= narrow_bytes(n_codes, n_escapes);
  Narrow found{};
  if (fits) {
    found.least = bytes[0];
    found.n_codes = n_codes;
    found.halves = bytes + kNarrowHeader;
    found.begins = found.halves + ceil_div(n_codes, 2);
    found.places = found.begins + 4 * (n_blocks + 1);
    found.values = found.places + 2 * n_escapes;
    fits = load_u32(found.begins + 4 * n_blocks) == n_escapes;
    for (size_t i = 0; i < n_blocks; i++) fits = fits && load_u32(found.begins + 4 * i) <= load_u32(found.begins + 4 * i + 4);
  }
  if (!fits) throw std::invalid_argument("no narrow form of so many codes");
  return found;
}

void widen_codes(const Narrow& narrow, size_t first, size_t n, uint8_t* to) {
  const size_t odd = first % 2 < n ? first % 2 : n;
  if (odd != 0) to[0] = static_cast<uint8_t>(narrow.least + (narrow.halves[first / 2] >> 4));
  active_kernels().multiply->widen(narrow.halves + (first + odd) / 2, n - odd, narrow.least, to + odd);
  over_escapes(narrow, first, n, [&](size_t i, uint8_t value) { to[i] = value; });
}

void widen_all(const Narrow& narrow, uint8_t* to, size_t n_threads) {
  over_rows(ceil_div(narrow.n_codes, kEscapeBlock), kEscapeBlock, n_threads, [&](size_t begin, size_t end) {
    const size_t first = begin * kEscapeBlock, stop = end * kEscapeBlock < narrow.n_codes ? end * kEscapeBlock : narrow.n_codes;
    widen_codes(narrow, first, stop - first, to + first);
  });
}

}  // namespace spqfmt
