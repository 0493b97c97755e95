// What the targets share: numbers and exact buffers out of a fuzzer's bytes, and how they complain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "errors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

// A finding that no sanitizer sees.
inline void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz: %s (kernels %s)\n", what, spqfmt::active_kernels().name);
  std::abort();
}

// Bytes are taken from the front; past the end all are zero, so that every input means something.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}

  size_t left() const { return left_; }

  uint64_t bits(size_t n_bytes) {
    uint64_t found = 0;
    for (size_t i = 0; i < n_bytes; i++) {
      if (left_ == 0) break;
      found |= uint64_t{*at_++} << 8 * i;
      left_--;
    }
    return found;
  }
  unsigned byte() { return static_cast<unsigned>(bits(1)); }
  // One of 0..most, of two bytes.
  size_t number(size_t most) { return bits(2) % (most + 1); }
  bool coin() { return byte() & 1; }

  // In memory of its own, which ends where the bytes do.
  std::vector<uint8_t> bytes(size_t n) {
    std::vector<uint8_t> found(n);
    const size_t taken = n < left_ ? n : left_;
    if (taken != 0) std::memcpy(found.data(), at_, taken);
    at_ += taken;
    left_ -= taken;
    return found;
  }
  std::vector<uint8_t> rest() { return bytes(left_); }

  // n bytes of a few: what the input has is said again, turned a little each time, so that a small input fills a large matrix.
  std::vector<uint8_t> filled(size_t n, size_t of_at_most) {
    std::vector<uint8_t> found = bytes(n < of_at_most ? n : of_at_most);
    const size_t known = found.size();
    found.resize(n);
    for (size_t i = known; i < n; i++) found[i] = static_cast<uint8_t>(found[i - known] * 5 + 3);
    found.shrink_to_fit();
    return found;
  }

 private:
  const uint8_t* at_;
  size_t left_;
};

// T's in memory of their own; small floats, so that what differs is the order of operations and not what is no number.
inline std::vector<float> floats(Input& in, size_t n, bool any) {
  const std::vector<uint8_t> raw = in.filled(4 * n, 256);
  std::vector<float> found(n);
  if (n != 0) std::memcpy(found.data(), raw.data(), 4 * n);
  for (size_t i = 0; i < n && !any; i++) found[i] = static_cast<float>(static_cast<int8_t>(raw[4 * i])) / static_cast<float>(1 + raw[4 * i + 1] % 64);
  return found;
}

// Runs f with every set of kernels that this machine has.
template <typename F>
void with_each_variant(F f) {
  static const std::vector<std::string> names = spqfmt::kernel_variants();
  for (const std::string& name : names) {
    spqfmt::select_kernels(name);
    f();
  }
  spqfmt::select_kernels("");
}

// What a call ended in: "" or the words of its DataError.
template <typename F>
std::string outcome(F f) {
  try {
    f();
  } catch (const spqfmt::DataError& error) {
    return std::to_string(static_cast<int>(error.fault)) + error.what() + (error.job ? std::to_string(*error.job) : "");
  }
  return "";
}

// Remembers what came first and compares what comes later with it.
template <typename T>
class Same {
 public:
  void see(const T& value, const char* what) {
    if (seen_) check(value == first_, what);
    first_ = value;
    seen_ = true;
  }
  bool none() const { return !seen_; }

 private:
  bool seen_ = false;
  T first_{};
};

}  // namespace fuzz
