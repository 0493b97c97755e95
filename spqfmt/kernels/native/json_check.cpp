#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "errors.hpp"
#include "json.hpp"
#include "wire.hpp"

namespace spqfmt {
namespace {

constexpr uint64_t kMaxInteger = (uint64_t{1} << 53) - 1;

[[noreturn]] void fail(const std::string& reason, Fault fault = Fault::corrupt) { throw DataError("index: " + reason, fault); }

unsigned hex_digit(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  const uint8_t lower = c | 0x20;
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 16;
}

class Checker {
 public:
  Checker(const uint8_t* text, size_t size) : text_(text), size_(size) {}

  void run() {
    space();
    if (look() != '{') bad("is not an object");
    do {
      value();
    } while (after_value());
    space();
    if (at_ != size_) bad("goes on after its object");
  }

 private:
  // A key as it stands in the text, or in `decoded_` where it had escapes.
  struct Key {
    uint32_t offset;
    uint32_t size : 31;
    uint32_t is_decoded : 1;
  };
  struct Level {
    bool is_object;
    size_t first_key, first_decoded;
  };

  [[noreturn]] void bad(const char* what) const { fail("at byte " + std::to_string(at_) + " it " + what); }

  uint8_t look() const { return at_ < size_ ? text_[at_] : 0; }

  void space() {
    while (at_ < size_ && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }

  // One value, or the begin of a list or object down to the first scalar or empty one in it.
  void value() {
    for (;;) {
      space();
      const uint8_t c = look();
      if (c == '{' || c == '[') {
        if (depth_ == wire::max_json_depth)
          fail("nesting passes " + std::to_string(wire::max_json_depth) + " levels", Fault::limit);
        levels_[depth_++] = {c == '{', keys_.size(), decoded_.size()};
        ++at_;
        space();
        if (look() == (c == '{' ? '}' : ']')) return close();
        if (c == '{') key();
        continue;
      }
      if (c == '"') {
        string(nullptr);
      } else if (c == '-' || (c >= '0' && c <= '9')) {
        number();
      } else if (!literal("true") && !literal("false") && !literal("null")) {
        bad("is not JSON");
      }
      return;
    }
  }

  // What follows a value; whether another value is due.
  bool after_value() {
    while (depth_ > 0) {
      space();
      const bool is_object = levels_[depth_ - 1].is_object;
      if (look() == ',') {
        ++at_;
        if (is_object) key();
        return true;
      }
      if (look() != (is_object ? '}' : ']')) bad("is not JSON");
      close();
    }
    return false;
  }

  void close() {
    ++at_;
    const Level& level = levels_[--depth_];
    if (!level.is_object) return;
    unique(level.first_key);
    keys_.resize(level.first_key);
    decoded_.resize(level.first_decoded);
  }

  void key() {
    space();
    if (look() != '"') bad("has no key");
    JsonString string{};
    this->string(&string);
    Key key{static_cast<uint32_t>(string.data - text_), static_cast<uint32_t>(string.size), 0};
    if (string.has_escapes) {
      key = {static_cast<uint32_t>(decoded_.size()), 0, 1};
      append_unescaped(string, decoded_);
      key.size = static_cast<uint32_t>(decoded_.size() - key.offset);
    }
    keys_.push_back(key);
    space();
    if (look() != ':') bad("has no colon behind a key");
    ++at_;
  }

  const uint8_t* bytes(const Key& key) const {
    return (key.is_decoded ? reinterpret_cast<const uint8_t*>(decoded_.data()) : text_) + key.offset;
  }

  bool equal(const Key& a, const Key& b) const { return a.size == b.size && std::memcmp(bytes(a), bytes(b), a.size) == 0; }

  void unique(size_t first) {
    const auto begin = keys_.begin() + static_cast<ptrdiff_t>(first), end = keys_.end();
    bool repeated = false;
    if (end - begin <= 16) {
      for (auto a = begin; a != end; ++a)
        for (auto b = begin; b != a; ++b) repeated |= equal(*a, *b);
    } else {
      std::sort(begin, end, [this](const Key& a, const Key& b) {
        return a.size != b.size ? a.size < b.size : std::memcmp(bytes(a), bytes(b), a.size) < 0;
      });
      repeated = std::adjacent_find(begin, end, [this](const Key& a, const Key& b) { return equal(a, b); }) != end;
    }
    if (repeated) fail("a key is repeated");
  }

  void string(JsonString* found) {
    const size_t begin = ++at_;
    bool has_escapes = false;
    for (;;) {
      if (at_ >= size_) bad("ends in a string");
      const uint8_t c = text_[at_];
      if (c == '"') break;
      if (c < 0x20) bad("has a control character in a string");
      if (c == '\\') {
        has_escapes = true;
        escape();
      } else if (c < 0x80) {
        ++at_;
      } else {
        utf8();
      }
    }
    if (found != nullptr) *found = {text_ + begin, at_ - begin, has_escapes};
    ++at_;
  }

  void escape() {
    ++at_;
    const uint8_t c = look();
    ++at_;
    if (c == 'u') {
      const unsigned unit = hex4();
      if (unit < 0xD800 || unit > 0xDFFF) return;
      const bool pair = unit < 0xDC00 && at_ + 1 < size_ && text_[at_] == '\\' && text_[at_ + 1] == 'u';
      if (pair) at_ += 2;
      if (!pair || (hex4() & 0xFC00) != 0xDC00) fail("half a surrogate pair in a string");
    } else if (c == 0 || std::strchr("\"\\/bfnrt", c) == nullptr) {
      bad("has an unknown escape");
    }
  }

  unsigned hex4() {
    unsigned unit = 0;
    for (int k = 0; k < 4; ++k, ++at_) {
      const unsigned digit = hex_digit(look());
      if (digit > 15) bad("has an unknown escape");
      unit = unit << 4 | digit;
    }
    return unit;
  }

  // RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF.
  void utf8() {
    const uint8_t c = text_[at_];
    const size_t more = c >= 0xC2 && c <= 0xDF ? 1 : c >= 0xE0 && c <= 0xEF ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 0;
    if (more == 0 || at_ + more >= size_) bad("is not UTF-8");
    const uint8_t second = text_[at_ + 1];
    const uint8_t low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (second < low || second > high) bad("is not UTF-8");
    for (size_t k = 2; k <= more; ++k)
      if ((text_[at_ + k] & 0xC0) != 0x80) bad("is not UTF-8");
    at_ += more + 1;
  }

  void number() {
    if (look() == '-') ++at_;
    const size_t begin = at_;
    uint64_t magnitude = 0;
    while (look() >= '0' && look() <= '9') {
      if (at_ - begin < 17) magnitude = magnitude * 10 + (look() - '0');
      ++at_;
    }
    const size_t digits = at_ - begin;
    if (digits == 0 || (digits > 1 && text_[begin] == '0')) bad("is not JSON");
    if (look() == '.' || look() == 'e' || look() == 'E') bad("has a number that is no integer");
    if (digits > 16 || magnitude > kMaxInteger) fail("an integer passes 2^53 - 1");
  }

  bool literal(const char* word) {
    const size_t n = std::strlen(word);
    if (size_ - at_ < n || std::memcmp(text_ + at_, word, n) != 0) return false;
    at_ += n;
    return true;
  }

  const uint8_t* text_;
  size_t size_, at_ = 0, depth_ = 0;
  Level levels_[wire::max_json_depth];
  std::vector<Key> keys_;
  std::string decoded_;
};

}  // namespace

void check_json(const uint8_t* text, size_t size) {
  if (size >> 31) fail("more than 2 GiB");
  Checker(text, size).run();
}

void append_unescaped(const JsonString& string, std::string& out) {
  const uint8_t* p = string.data;
  const uint8_t* end = p + string.size;
  const auto hex4 = [&p, end]() {
    unsigned unit = 0;
    for (int k = 0; k < 4 && p < end; ++k) unit = unit << 4 | (hex_digit(*p++) & 15);
    return unit;
  };
  while (p < end) {
    if (*p != '\\') {
      out.push_back(static_cast<char>(*p++));
      continue;
    }
    if (++p == end) break;
    const uint8_t c = *p++;
    if (c != 'u') {
      static constexpr char kLetters[] = "bfnrt", kMeanings[] = "\b\f\n\r\t";
      const char* letter = c == 0 ? nullptr : std::strchr(kLetters, c);
      out.push_back(letter == nullptr ? static_cast<char>(c) : kMeanings[letter - kLetters]);
      continue;
    }
    unsigned code = hex4();
    if (code >= 0xD800 && code < 0xDC00 && end - p >= 6) {
      p += 2;
      code = 0x10000 + ((code - 0xD800) << 10) + (hex4() & 0x3FF);
    }
    const auto put = [&out](unsigned byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xC0 | code >> 6), put(0x80 | (code & 63));
    } else if (code < 0x10000) {
      put(0xE0 | code >> 12), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    } else {
      put(0xF0 | code >> 18), put(0x80 | (code >> 12 & 63)), put(0x80 | (code >> 6 & 63)), put(0x80 | (code & 63));
    }
  }
}

}  // namespace spqfmt
