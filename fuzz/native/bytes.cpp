// Loops over bytes that other loops undo: planes, turns, fields of blocks, narrow codes; checksums and paths by every set of kernels.
#include <algorithm>
#include <stdexcept>

#include "blocks.hpp"
#include "input.hpp"
#include "narrow.hpp"
#include "planes.hpp"
#include "trellis.hpp"
#include "turn.hpp"

using namespace spqfmt;

namespace {

void planes_come_back(fuzz::Input& in) {
  const size_t itemsize = size_t{1} << in.byte() % 4, n = in.number(300);
  const bool rotate = in.coin();
  const std::vector<uint8_t> src = in.filled(n * itemsize, 512);
  std::vector<uint8_t> split(src.size()), merged(src.size());
  split_planes(src.data(), n, itemsize, rotate, split.data());
  merge_planes(split.data(), n, itemsize, rotate, merged.data());
  fuzz::check(merged == src, "planes do not come back");
}

void turned_twice_is_the_same(fuzz::Input& in) {
  const unsigned bits = 2u << in.byte() % 3;
  const size_t channels = in.number(140), width = in.number(140), n_threads = 1 + in.byte() % 2;
  const size_t n_bytes = (channels * width * bits + 7) / 8;
  std::vector<uint8_t> src = in.filled(n_bytes, 512);
  const size_t unused = n_bytes * 8 - channels * width * bits;
  if (unused != 0) src.back() &= static_cast<uint8_t>(0xff >> unused);
  std::vector<uint8_t> once(n_bytes), twice(n_bytes);
  turn(src.data(), channels, width, bits, once.data(), n_threads);
  turn(once.data(), width, channels, bits, twice.data(), n_threads);
  fuzz::check(twice == src, "a matrix turned twice is another");
}

void fields_stay_inside(fuzz::Input& in) {
  size_t numbers[6];
  for (size_t& number : numbers) number = in.byte() < 250 ? in.byte() % 64 : in.bits(8) >> 1;
  std::vector<BitPlace> found(1 + in.byte() % 3);
  for (BitPlace& place : found) {
    for (int64_t* number : {&place.bit, &place.bits, &place.first, &place.shift})
      *number = in.byte() < 250 ? static_cast<int64_t>(in.byte() % 9) : static_cast<int64_t>(in.bits(8));
  }
  const BitField field{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], found.data(), found.size()};
  if (!is_sound(field) || field.block_bytes == 0 || field.block_bytes > 4096 || field.n_elements > 4096) return;
  const size_t n_blocks = in.number(9);
  const std::vector<uint8_t> blocks = in.filled(n_blocks * field.block_bytes, 512);
  std::vector<uint8_t> elements(n_blocks * field.n_elements), again(blocks.size()), second(elements.size());
  take_bits(field, blocks.data(), n_blocks, elements.data());
  put_bits(field, elements.data(), n_blocks, again.data());
  take_bits(field, again.data(), n_blocks, second.data());
}

// Layouts that are sound for the most part: roles, then fields, each with its places.
void layouts_stay_inside(fuzz::Input& in) {
  const auto number = [&](unsigned below) { return in.byte() < 252 ? static_cast<int64_t>(in.byte() % below) : static_cast<int64_t>(in.bits(8)); };
  const int64_t n_roles = in.byte() % 4, n_fields = in.byte() % 4;
  std::vector<int64_t> numbers = {number(64), n_roles};
  for (int64_t r = 0; r < n_roles; r++) {
    const int64_t n_parts = 1 + in.byte() % 3, n_elements = number(100);
    for (const int64_t n : {n_elements - n_elements % n_parts, n_parts, number(256), number(256), number(300)}) numbers.push_back(n);
  }
  for (int64_t f = 0; f < n_fields; f++) {
    const int64_t n_places = 1 + in.byte() % 3;
    for (const int64_t n : {number(3), number(20), number(3), number(17), number(40), n_places}) numbers.push_back(n);
    for (int64_t p = 0; p < 4 * n_places; p++) numbers.push_back(number(9));
  }
  if (in.byte() > 240) numbers.resize(in.number(60));
  BlockLayout layout;
  try {
    layout = block_layout(numbers.data(), numbers.size());
  } catch (const std::invalid_argument&) {  // refused
    return;
  }
  size_t elements = 0;
  for (const BlockRole& role : layout.roles) elements += role.n_elements;
  if (layout.block_bytes > 4096 || elements > 4096 || layout.n_parts > 64) return;
  const size_t n_blocks = in.number(40);
  const std::vector<uint8_t> blocks = in.filled(n_blocks * layout.block_bytes, 512);
  std::vector<std::vector<uint8_t>> parts;
  std::vector<uint8_t*> out;
  for (size_t p = 0; p < layout.n_parts; p++) {
    parts.emplace_back(n_blocks * part_bytes(layout, p));
    out.push_back(parts.back().data());
  }
  std::vector<uint8_t> again(blocks.size());
  take_blocks(layout, blocks.data(), n_blocks, out.data());
  fuzz::check(put_blocks(layout, out.data(), n_blocks, again.data()) <= layout.roles.size(), "a role that is none");
}

void checksums_are_one(fuzz::Input& in) {
  const uint32_t value = static_cast<uint32_t>(in.bits(4));
  const size_t cut = in.number(2000);
  const std::vector<uint8_t> src = in.filled(in.number(2000), 512);
  const size_t first = cut % (src.size() + 1);
  fuzz::Same<uint32_t> sums;
  fuzz::with_each_variant([&] {
    const Crc32 crc32 = active_kernels().crc32;
    sums.see(crc32(value, src.data(), src.size()), "kernels differ in a checksum");
    sums.see(crc32(crc32(value, src.data(), first), src.data() + first, src.size() - first), "a checksum in two pieces is another");
  });
}

void narrow_codes_come_back(fuzz::Input& in) {
  const size_t n = in.number(9000), n_threads = 1 + in.byte() % 2;
  const unsigned spread = in.byte();
  std::vector<uint8_t> codes = in.filled(n, 700);
  for (uint8_t& code : codes) code = static_cast<uint8_t>((code & 15) + (code % (1 + spread) == 0 ? code : 0));
  std::vector<uint8_t> narrow(narrow_bytes(n, in.coin() ? n : in.number(9000)));
  if (!narrow_codes(codes.data(), n, narrow.data(), narrow.size())) return;
  const auto widened = [&](const std::vector<uint8_t>& from) {
    const Narrow found = narrow_at(from.data(), from.size(), n);
    fuzz::Same<std::vector<uint8_t>> same;
    fuzz::with_each_variant([&] {
      std::vector<uint8_t> all(n), some(n - n / 3);
      widen_all(found, all.data(), n_threads);
      same.see(all, "kernels differ in a widened code");
      widen_codes(found, n / 3, some.size(), some.data());
      fuzz::check(std::equal(some.begin(), some.end(), all.begin() + static_cast<std::ptrdiff_t>(n / 3)), "codes differ in the middle");
      if (&from == &narrow) fuzz::check(all == codes, "narrow codes do not come back");
    });
  };
  widened(narrow);
  std::vector<uint8_t> hostile = narrow;
  for (size_t i = in.byte() % 5; i > 0; i--) hostile[in.bits(3) % hostile.size()] ^= static_cast<uint8_t>(1 + in.byte());
  hostile.resize(in.coin() ? hostile.size() : in.number(9000));
  hostile.shrink_to_fit();
  try {
    widened(hostile);
  } catch (const std::invalid_argument&) {  // refused
  }
}

// In one run and in two, on any number of threads.
void paths_unfold_to_one(fuzz::Input& in) {
  const size_t columns = 1 + in.number(600), rows = in.number(70), n_threads = 1 + in.byte() % 2;
  const size_t height = in.coin() ? 1 + in.byte() % 80 : static_cast<size_t>(1 + (in.bits(8) >> 1)), passed = in.number(100) % height;
  std::vector<uint8_t> paths = in.filled(rows * columns, 512);
  const std::vector<uint8_t> before = in.filled(kHistoryRows * columns, 64);
  const size_t cut = in.number(70) % (rows + 1);
  const bool all = !in.coin();
  if (!all) {
    for (uint8_t& path : paths) path = static_cast<uint8_t>(static_cast<int8_t>(path) >> 1);
  }
  bool right = true;
  for (const uint8_t path : paths) right &= static_cast<uint8_t>(path + 64) < 128;
  fuzz::Same<std::vector<uint8_t>> same;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> whole = paths, parts = paths, after = before, stepwise = before;
    const bool fits = unfold({whole.data(), rows, columns, height, passed}, after.data(), n_threads);
    bool fit = unfold({parts.data(), cut, columns, height, passed}, stepwise.data(), n_threads);
    fit &= unfold({parts.data() + cut * columns, rows - cut, columns, height, (passed % height + cut) % height}, stepwise.data(), 1);
    fuzz::check(fits == right && fit == right, "a path code is judged in another way");
    fuzz::check(whole == parts, "paths in two pieces are others");
    if (rows != 0) fuzz::check(after == stepwise, "what follows has another history");
    whole.insert(whole.end(), after.begin(), after.end());
    same.see(whole, "kernels differ in a path");
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte();
  if (kind > 239) {
    paths_unfold_to_one(in);
    return 0;
  }
  if (kind > 209) {
    layouts_stay_inside(in);
    return 0;
  }
  switch (kind % 5) {
    case 0: planes_come_back(in); break;
    case 1: turned_twice_is_the_same(in); break;
    case 2: fields_stay_inside(in); break;
    case 3: narrow_codes_come_back(in); break;
    default: checksums_are_one(in);
  }
  return 0;
}
