#include "errors.hpp"
#include "json.hpp"

namespace spqfmt {
namespace {

[[noreturn]] void lost() { throw DataError("index: not the JSON text that was checked"); }

}  // namespace

uint8_t JsonCursor::peek() {
  while (at_ < end_ && text_[at_] <= ' ') ++at_;
  if (at_ >= end_) lost();
  return text_[at_];
}

void JsonCursor::take(char expected) {
  if (peek() != static_cast<uint8_t>(expected)) lost();
  ++at_;
}

bool JsonCursor::again(char closing) {
  const uint8_t c = peek();
  if (c == static_cast<uint8_t>(closing)) return false;
  if (c != ',') lost();
  ++at_;
  return true;
}

JsonString JsonCursor::string() {
  take('"');
  const size_t begin = at_;
  bool has_escapes = false;
  for (; at_ < end_ && text_[at_] != '"'; ++at_) {
    if (text_[at_] != '\\') continue;
    has_escapes = true;
    if (++at_ >= end_) lost();
  }
  if (at_ >= end_) lost();
  return {text_ + begin, at_++ - begin, has_escapes};
}

int64_t JsonCursor::integer() {
  const bool negative = peek() == '-';
  at_ += negative;
  const size_t begin = at_;
  int64_t value = 0;
  for (; at_ < end_ && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    if (at_ - begin == 16) lost();
    value = value * 10 + (text_[at_] - '0');
  }
  if (at_ == begin) lost();
  return negative ? -value : value;
}

void JsonCursor::skip() {
  const uint8_t first = peek();
  if (first == '"') {
    string();
    return;
  }
  if (first != '{' && first != '[') {
    while (at_ < end_ && text_[at_] > ' ' && text_[at_] != ',' && text_[at_] != '}' && text_[at_] != ']') ++at_;
    return;
  }
  for (size_t depth = 0; at_ < end_;) {
    const uint8_t c = text_[at_];
    if (c == '"') {
      string();
      continue;
    }
    ++at_;
    if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return;
    }
  }
  lost();
}

}  // namespace spqfmt
