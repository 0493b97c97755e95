// Tables of frequencies: hostile bits are refused or are a table; counts become a table that comes back.
#include "frequencies.hpp"

#include "input.hpp"

using namespace spqfmt;

namespace {

void must_be_sound(const Frequencies& frequencies) {
  unsigned sum = 0, n = 0;
  for (const uint16_t one : frequencies.of) {
    sum += one;
    n += one != 0;
  }
  fuzz::check(sum == 4096 && n >= 2, "a table is none");
}

void must_come_back(const Frequencies& frequencies) {
  must_be_sound(frequencies);
  std::vector<uint8_t> written(kMaxTableBytes);
  const size_t n = write_frequencies(frequencies, written.data());
  fuzz::check(n <= kMaxTableBytes, "a table is too long");
  written.resize(n);
  written.shrink_to_fit();
  const Frequencies again = read_frequencies(written.data(), n, first_symbol(frequencies), last_symbol(frequencies));
  fuzz::check(std::memcmp(again.of, frequencies.of, sizeof again.of) == 0, "a table does not come back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte();
  if (kind % 2 == 0) {
    const unsigned first = in.byte(), last = in.byte();
    const std::vector<uint8_t> bits = in.rest();
    Frequencies found;
    if (!fuzz::outcome([&] { found = read_frequencies(bits.data(), bits.size(), first, last); }).empty()) return 0;
    must_be_sound(found);
    fuzz::check(first_symbol(found) == first && last_symbol(found) == last, "a table has other ends");
    std::vector<uint8_t> written(kMaxTableBytes);
    written.resize(write_frequencies(found, written.data()));
    fuzz::check(written == bits, "two tables of bits mean one");
    return 0;
  }
  uint64_t counts[256] = {};
  const size_t n_bytes = 1 + kind / 2 % 8;
  unsigned n = 0;
  while (in.left() != 0) counts[in.byte()] = in.bits(n_bytes) >> (n_bytes == 8 ? 9 : 0);
  for (const uint64_t count : counts) n += count != 0;
  if (n >= 2) must_come_back(normalize(counts));
  return 0;
}
