// Some blocks at a time, so that what one field has written is in the nearest cache for the next one.
#include "blocks.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace spqfmt {
namespace {

constexpr size_t kAtOnce = 16;
constexpr size_t kMost = size_t{1} << 20;
constexpr size_t kRoleNumbers = 5, kFieldNumbers = 6;

// Reads numbers, none negative and none that is too large to add up.
class Numbers {
 public:
  Numbers(const int64_t* numbers, size_t n) : at_(numbers), end_(numbers + n) {}
  bool empty() const { return at_ == end_; }
  const int64_t* take(size_t n) {
    if (static_cast<size_t>(end_ - at_) < n) throw std::invalid_argument("layout ends too early");
    const int64_t* found = at_;
    at_ += n;
    for (size_t i = 0; i < n; i++) {
      if (found[i] < 0 || found[i] > static_cast<int64_t>(kMost)) throw std::invalid_argument("layout has a number out of range");
    }
    return found;
  }

 private:
  const int64_t* at_;
  const int64_t* end_;
};

// Whether elements lie in blocks as they are.
bool is_plain(const BlockRole& role) { return role.n_parts == 1 && role.offset == 0 && role.mask == 255 && role.limit == 0; }

size_t most_elements(const BlockLayout& layout) {
  size_t most = 0;
  for (const BlockRole& role : layout.roles) most = std::max(most, role.n_elements);
  return most;
}

}  // namespace

BlockLayout block_layout(const int64_t* numbers, size_t n) {
  Numbers rest(numbers, n);
  const int64_t* head = rest.take(2);
  BlockLayout layout{static_cast<size_t>(head[0]), 0, {}, {}};
  if (layout.block_bytes == 0) throw std::invalid_argument("layout has blocks of no bytes");
  for (int64_t i = 0; i < head[1]; i++) {
    const int64_t* role = rest.take(kRoleNumbers);
    if (role[1] == 0 || role[0] % role[1] != 0 || role[2] > 255 || role[3] > 255) {
      throw std::invalid_argument("layout has a role that is none");
    }
    layout.roles.push_back({static_cast<size_t>(role[0]), static_cast<size_t>(role[1]), static_cast<uint8_t>(role[2]),
                            static_cast<uint8_t>(role[3]), static_cast<unsigned>(role[4])});
    layout.n_parts += layout.roles.back().n_parts;
  }
  while (!rest.empty()) {
    const int64_t* field = rest.take(kFieldNumbers);
    const size_t role = static_cast<size_t>(field[0]), n_places = static_cast<size_t>(field[5]);
    if (role >= layout.roles.size()) throw std::invalid_argument("layout has a field of no role");
    const auto* places = reinterpret_cast<const BitPlace*>(rest.take(4 * n_places));
    const BitField found = {layout.block_bytes, static_cast<size_t>(field[1]), static_cast<size_t>(field[2]),
                            static_cast<size_t>(field[3]), static_cast<size_t>(field[4]), layout.roles[role].n_elements,
                            places, n_places};
    if (!is_sound(found)) throw std::invalid_argument("field does not lie in its block and its elements");
    layout.fields.push_back({role, found});
  }
  return layout;
}

size_t part_bytes(const BlockLayout& layout, size_t part) {
  for (const BlockRole& role : layout.roles) {
    if (part < role.n_parts) return role.n_elements / role.n_parts;
    part -= role.n_parts;
  }
  return 0;
}

void take_blocks(const BlockLayout& layout, const uint8_t* blocks, size_t n_blocks, uint8_t* const* parts) {
  std::vector<uint8_t> room(kAtOnce * most_elements(layout));
  for (size_t first = 0; first < n_blocks; first += kAtOnce) {
    const size_t n = std::min(kAtOnce, n_blocks - first);
    const uint8_t* some = blocks + first * layout.block_bytes;
    size_t part = 0;
    for (size_t r = 0; r < layout.roles.size(); part += layout.roles[r++].n_parts) {
      const BlockRole& role = layout.roles[r];
      const size_t n_found = n * role.n_elements, size = role.n_elements / role.n_parts;
      if (n_found == 0) continue;
      uint8_t* found = role.n_parts == 1 ? parts[part] + first * size : room.data();
      std::memset(found, 0, n_found);
      for (const RoleField& of : layout.fields) {
        if (of.role == r) take_bits(of.field, some, n, found);
      }
      if (role.offset != 0) {
        for (size_t i = 0; i < n_found; i++) found[i] = static_cast<uint8_t>(found[i] - role.offset);
      }
      for (size_t p = 0; role.n_parts > 1 && p < role.n_parts; p++) {
        uint8_t* out = parts[part + p] + first * size;
        for (size_t b = 0; b < n; b++) std::memcpy(out + b * size, found + b * role.n_elements + p * size, size);
      }
    }
  }
}

size_t put_blocks(const BlockLayout& layout, const uint8_t* const* parts, size_t n_blocks, uint8_t* blocks) {
  std::vector<uint8_t> room(kAtOnce * most_elements(layout));
  for (size_t first = 0; first < n_blocks; first += kAtOnce) {
    const size_t n = std::min(kAtOnce, n_blocks - first);
    uint8_t* some = blocks + first * layout.block_bytes;
    size_t part = 0;
    for (size_t r = 0; r < layout.roles.size(); part += layout.roles[r++].n_parts) {
      const BlockRole& role = layout.roles[r];
      const size_t n_given = n * role.n_elements, size = role.n_elements / role.n_parts;
      if (n_given == 0) continue;
      const uint8_t* given = parts[part] + first * size;
      if (!is_plain(role)) {
        uint8_t* moved = room.data();
        for (size_t p = 0; p < role.n_parts; p++) {
          const uint8_t* from = parts[part + p] + first * size;
          if (role.n_parts == 1) std::memcpy(moved, from, n_given);
          for (size_t b = 0; role.n_parts > 1 && b < n; b++) std::memcpy(moved + b * role.n_elements + p * size, from + b * size, size);
        }
        uint8_t most = 0;
        for (size_t i = 0; i < n_given; i++) {
          moved[i] = static_cast<uint8_t>((moved[i] + role.offset) & role.mask);
          most = std::max(most, moved[i]);
        }
        if (role.limit != 0 && most >= role.limit) return r;
        given = moved;
      }
      for (const RoleField& of : layout.fields) {
        if (of.role == r) put_bits(of.field, given, n, some);
      }
    }
  }
  return layout.roles.size();
}

}  // namespace spqfmt
