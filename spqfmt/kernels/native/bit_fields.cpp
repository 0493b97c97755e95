// Bits of sixteen or eight bytes are moved at once, as a word, where a run has so many; no bit leaves its byte, for a mask
// stands behind every shift to the right and before every one to the left.
#include "bit_fields.hpp"

#include <cstring>
#include <initializer_list>
#include <type_traits>

namespace spqfmt {
namespace {

typedef uint64_t TwoWords __attribute__((vector_size(16)));

template <typename Word>
Word load(const uint8_t* from) {
  Word word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

template <typename Word>
void store(uint8_t* to, Word word) {
  std::memcpy(to, &word, sizeof word);
}

// `bits` lowest bits of every byte.
template <typename Word>
Word mask_of(int64_t bits) {
  const uint64_t mask = static_cast<uint64_t>((1u << bits) - 1) * 0x0101010101010101u;
  if constexpr (std::is_integral_v<Word>) {
    return static_cast<Word>(mask);
  } else {
    return Word{mask, mask};
  }
}

template <typename Word>
void take(const BitField& field, const uint8_t* blocks, size_t n_blocks, uint8_t* elements) {
  for (size_t p = 0; p < field.n_places; p++) {
    const BitPlace place = field.places[p];
    const Word mask = mask_of<Word>(place.bits);
    for (size_t b = 0; b < n_blocks; b++) {
      const uint8_t* in = blocks + b * field.block_bytes + field.at;
      uint8_t* out = elements + b * field.n_elements + place.first;
      for (size_t run = 0; run < field.n_runs; run++, in += field.size, out += field.span) {
        for (size_t i = 0; i < field.size; i += sizeof(Word)) {
          const Word found = static_cast<Word>(load<Word>(in + i) >> static_cast<unsigned>(place.bit) & mask);
          store(out + i, static_cast<Word>(load<Word>(out + i) | static_cast<Word>(found << static_cast<unsigned>(place.shift))));
        }
      }
    }
  }
}

// Place after place, so that what is the same for all words stands outside of the loops: the first one sets the bytes.
template <typename Word, bool kSets>
void put_place(const BitField& field, const BitPlace& place, const uint8_t* elements, size_t n_blocks, uint8_t* blocks) {
  const Word mask = mask_of<Word>(place.bits);
  const unsigned shift = static_cast<unsigned>(place.shift), bit = static_cast<unsigned>(place.bit);
  for (size_t b = 0; b < n_blocks; b++) {
    uint8_t* out = blocks + b * field.block_bytes + field.at;
    const uint8_t* in = elements + b * field.n_elements + place.first;
    for (size_t run = 0; run < field.n_runs; run++, out += field.size, in += field.span) {
      for (size_t i = 0; i < field.size; i += sizeof(Word)) {
        const Word found = static_cast<Word>(static_cast<Word>(load<Word>(in + i) >> shift & mask) << bit);
        store(out + i, kSets ? found : static_cast<Word>(load<Word>(out + i) | found));
      }
    }
  }
}

template <typename Word>
void put(const BitField& field, const uint8_t* elements, size_t n_blocks, uint8_t* blocks) {
  put_place<Word, true>(field, field.places[0], elements, n_blocks, blocks);
  for (size_t p = 1; p < field.n_places; p++) put_place<Word, false>(field, field.places[p], elements, n_blocks, blocks);
}

}  // namespace

bool is_sound(const BitField& field) {
  constexpr size_t kMost = size_t{1} << 20;
  for (const size_t number : {field.block_bytes, field.at, field.n_runs, field.size, field.span, field.n_elements}) {
    if (number > kMost) return false;
  }
  if (field.size == 0 || field.n_places == 0 || field.at + field.n_runs * field.size > field.block_bytes) return false;
  if (field.n_runs * field.span > field.n_elements) return false;
  for (size_t p = 0; p < field.n_places; p++) {
    const auto [bit, bits, first, shift] = field.places[p];
    for (const int64_t number : {bit, bits, shift}) {
      if (number < 0 || number > 8) return false;
    }
    if (bits < 1 || bit + bits > 8 || shift + bits > 8) return false;
    if (first < 0 || static_cast<size_t>(first) > kMost || first + field.size > field.span) return false;
  }
  return true;
}

void take_bits(const BitField& field, const uint8_t* blocks, size_t n_blocks, uint8_t* elements) {
  if (field.n_runs == 0) return;  // blocks or elements may be none then
  if (field.size % 16 == 0) return take<TwoWords>(field, blocks, n_blocks, elements);
  if (field.size % 8 == 0) return take<uint64_t>(field, blocks, n_blocks, elements);
  if (field.size % 4 == 0) return take<uint32_t>(field, blocks, n_blocks, elements);
  if (field.size % 2 == 0) return take<uint16_t>(field, blocks, n_blocks, elements);
  take<uint8_t>(field, blocks, n_blocks, elements);
}

void put_bits(const BitField& field, const uint8_t* elements, size_t n_blocks, uint8_t* blocks) {
  if (field.n_runs == 0) return;  // blocks or elements may be none then
  if (field.size % 16 == 0) return put<TwoWords>(field, elements, n_blocks, blocks);
  if (field.size % 8 == 0) return put<uint64_t>(field, elements, n_blocks, blocks);
  if (field.size % 4 == 0) return put<uint32_t>(field, elements, n_blocks, blocks);
  if (field.size % 2 == 0) return put<uint16_t>(field, elements, n_blocks, blocks);
  put<uint8_t>(field, elements, n_blocks, blocks);
}

}  // namespace spqfmt
