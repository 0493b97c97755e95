// JSON as FORMAT.md section 3 allows it: checked once as a whole, then read where something is wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace spqfmt {

// Throws DataError unless the text is one object that keeps every rule of section 3. The memory that it takes is that
// of the keys of the objects that are open at once, 8 bytes each.
void check_json(const uint8_t* text, size_t size);

// A string's bytes between the quotes, as they stand in the text.
struct JsonString {
  const uint8_t* data;
  size_t size;
  bool has_escapes;
};

// Appends what a string stands for, in UTF-8.
void append_unescaped(const JsonString& string, std::string& out);

// Walks over values of a text that check_json has passed. On any other text it throws DataError or goes wrong in what
// it says, but never reads outside of [begin, end).
class JsonCursor {
 public:
  JsonCursor(const uint8_t* text, size_t begin, size_t end) : text_(text), at_(begin), end_(end) {}

  // The first character of the next value; nothing is consumed but white space.
  uint8_t peek();
  size_t position() const { return at_; }
  JsonCursor from(size_t position) const { return {text_, position, end_}; }
  // The next value and all that is in it.
  void skip();
  JsonString string();
  // A number of at most 16 digits.
  int64_t integer();

  // Calls f(key) for each member of an object; f has to consume the value.
  template <typename F>
  void members(F f) {
    take('{');
    for (bool more = peek() != '}'; more; more = again('}')) {
      const JsonString key = string();
      take(':');
      f(key);
    }
    take('}');
  }

  // Calls f() for each element of a list; f has to consume it.
  template <typename F>
  void elements(F f) {
    take('[');
    for (bool more = peek() != ']'; more; more = again(']')) f();
    take(']');
  }

 private:
  void take(char expected);
  // After a member: whether another one follows.
  bool again(char closing);

  const uint8_t* text_;
  size_t at_, end_;
};

}  // namespace spqfmt
