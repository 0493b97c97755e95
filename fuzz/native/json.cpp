// Hostile texts: checked or refused; a walk over any text stays inside of it; the places of chunks; records of chunks.
#include "json.hpp"

#include "chunk_records.hpp"
#include "index_places.hpp"
#include "input.hpp"

using namespace spqfmt;

namespace {

void walk(JsonCursor& at, size_t depth, size_t& steps) {
  if (++steps > 2000 || depth > 20) return at.skip();
  const uint8_t c = at.peek();
  std::string text;
  if (c == '{') {
    at.members([&](const JsonString& key) {
      if (key.has_escapes) append_unescaped(key, text);
      walk(at, depth + 1, steps);
    });
  } else if (c == '[') {
    at.elements([&] { walk(at, depth + 1, steps); });
  } else if (c == '"') {
    const JsonString found = at.string();
    append_unescaped(found, text);
    fuzz::check(text.size() <= found.size, "a string grows");
  } else if (c == '-' || (c >= '0' && c <= '9')) {
    at.integer();
  } else {
    at.skip();
  }
}

void places(JsonCursor at) {
  JsonString name{};
  Place place{};
  for (const int64_t alignment : {int64_t{64}, int64_t{4096}}) {
    if (place_tensor(at, alignment, name, place)) fuzz::check(place.tail <= place.extent, "a place ends before it begins");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte();
  const std::vector<uint8_t> text = in.rest();
  if (kind % 4 == 3) {
    const ChunkRules rules{1 + kind / 4 % 8, 1 + kind / 32, static_cast<int64_t>(64), kind & 64 ? 4096 : 64, (kind & 128) != 0};
    const size_t width = 1 + 3 * rules.planes, n = text.size() / (8 * width);
    std::vector<int64_t> rows(n * width), table(n * (2 + rules.planes));
    if (n != 0) std::memcpy(rows.data(), text.data(), 8 * rows.size());
    fuzz::outcome([&] { check_chunks(rows.data(), n, rules, table.data()); });
    return 0;
  }
  const bool is_sound = fuzz::outcome([&] { check_json(text.data(), text.size()); }).empty();
  const JsonCursor whole(text.data(), 0, text.size());
  fuzz::outcome([&] { places(whole); });
  size_t steps = 0;
  const std::string said = fuzz::outcome([&] {
    JsonCursor at = whole;
    walk(at, 0, steps);
  });
  // Numbers of more than 16 digits are refused by the walk alone where a number is in an unknown key; the check refuses them all.
  if (is_sound) fuzz::check(said.empty(), "a text that was checked cannot be walked over");
  return 0;
}
