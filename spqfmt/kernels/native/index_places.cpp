#include "index_places.hpp"

#include <cstring>

#include "wire.hpp"

namespace spqfmt {
namespace {

constexpr int64_t kMostBytes = static_cast<int64_t>(wire::max_file_bytes);

struct Misplaced {};

void require_place(bool condition) {
  if (!condition) throw Misplaced();
}

bool is(const JsonString& string, const char* word) {
  return string.size == std::strlen(word) && std::memcmp(string.data, word, string.size) == 0;
}

unsigned bits_of(const JsonString& dtype) {
  for (const wire::DType& known : wire::dtypes)
    if (is(dtype, known.name)) return known.bits;
  throw Misplaced();
}

int64_t natural(JsonCursor& at) {
  const uint8_t c = at.peek();
  require_place(c == '-' || (c >= '0' && c <= '9'));
  const int64_t value = at.integer();
  require_place(value >= 0);
  return value;
}

// One chunk record: the number of elements, then stored_bytes, codec and crc32 of each plane.
void place_chunk(JsonCursor& at, unsigned bits, int64_t alignment, Place& place) {
  const int64_t due = 1 + 3 * (bits < 8 ? 1 : bits / 8);
  int64_t n = 0, raw_bytes = 0;
  require_place(at.peek() == '[');
  at.elements([&] {
    const int64_t value = natural(at);
    if (n == 0) {
      require_place(value <= int64_t{8} * wire::max_chunk_raw_bytes);
      raw_bytes = (value * (bits < 8 ? bits : 8) + 7) / 8;
      require_place(raw_bytes <= wire::max_chunk_raw_bytes);
    } else if (n % 3 == 1) {
      const int64_t room = (value + alignment - 1) / alignment * alignment;
      require_place(room <= kMostBytes - place.extent);
      place.extent += room;
      place.tail = room - value;
      place.raw_bytes += raw_bytes;
      ++place.n_planes;
    }
    ++n;
  });
  require_place(n == due);
}

void place_stream(JsonCursor& at, int64_t alignment, Place& place) {
  require_place(at.peek() == '{');
  unsigned bits = 0;
  size_t chunks = 0;
  bool is_shared = false;
  at.members([&](const JsonString& key) {
    const uint8_t c = at.peek();
    if (is(key, "dtype") && c == '"') {
      bits = bits_of(at.string());
      return;
    }
    if (is(key, "chunks") && c == '[') chunks = at.position();
    is_shared |= is(key, "same_as");
    at.skip();
  });
  require_place(bits != 0 && is_shared == (chunks == 0));
  if (is_shared) return;
  JsonCursor inside = at.from(chunks);
  inside.elements([&] { place_chunk(inside, bits, alignment, place); });
}

void place(JsonCursor& at, int64_t alignment, JsonString& name, Place& place) {
  enum { kName = 1, kShape = 2, kDtype = 4, kScheme = 8, kMethod = 16, kParameters = 32, kStreams = 64, kTied = 128 };
  unsigned found = 0;
  require_place(at.peek() == '{');
  at.members([&](const JsonString& key) {
    const uint8_t c = at.peek();
    if (is(key, "name") && c == '"') {
      name = at.string();
      found |= kName;
    } else if (is(key, "scheme") && c == '"') {
      found |= kScheme | (is(at.string(), "tied") ? kTied : 0);
    } else if (is(key, "streams") && c == '[') {
      found |= kStreams;
      at.elements([&] { place_stream(at, alignment, place); });
    } else {
      found |= is(key, "shape") ? kShape : is(key, "dtype") ? kDtype : is(key, "method") ? kMethod : 0;
      found |= is(key, "parameters") ? kParameters : 0;
      at.skip();
    }
  });
  const unsigned due = kName | kShape | kDtype | kScheme | kMethod | (found & kTied ? 0 : kParameters | kStreams);
  require_place((found & due) == due);
}

}  // namespace

bool place_tensor(JsonCursor record, int64_t alignment, JsonString& name, Place& found) {
  found = {};
  try {
    place(record, alignment, name, found);
  } catch (const Misplaced&) {
    return false;
  }
  return true;
}

}  // namespace spqfmt
