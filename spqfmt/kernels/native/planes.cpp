// One plain loop per element type. Compilers turn it into packs and unpacks; written for that: no branch inside,
// pointers that do not alias, a constant number of planes.
#include "planes.hpp"

#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "little_endian.hpp"

namespace spqfmt {
namespace {

template <typename T>
constexpr unsigned kBits = 8 * sizeof(T);

template <typename T, bool kRotate>
void split(const uint8_t* __restrict src, size_t n, uint8_t* __restrict dst) {
  for (size_t i = 0; i < n; i++) {
    T v = 0;
    for (size_t p = 0; p < sizeof(T); p++) v = static_cast<T>(v | static_cast<T>(src[i * sizeof(T) + p]) << (8 * p));
    if (kRotate) v = static_cast<T>(v << 1 | v >> (kBits<T> - 1));
    for (size_t p = 0; p < sizeof(T); p++) dst[p * n + i] = static_cast<uint8_t>(v >> (8 * p));
  }
}

template <typename T, bool kRotate>
void merge(const uint8_t* __restrict src, size_t n, uint8_t* __restrict dst) {
  for (size_t i = 0; i < n; i++) {
    T v = 0;
    for (size_t p = 0; p < sizeof(T); p++) v = static_cast<T>(v | static_cast<T>(src[p * n + i]) << (8 * p));
    if (kRotate) v = static_cast<T>(v >> 1 | v << (kBits<T> - 1));
    for (size_t p = 0; p < sizeof(T); p++) dst[i * sizeof(T) + p] = static_cast<uint8_t>(v >> (8 * p));
  }
}

using PlaneLoop = void (*)(const uint8_t* __restrict, size_t, uint8_t* __restrict);

PlaneLoop pick(size_t itemsize, bool rotate, bool splitting) {
  switch (itemsize * 4 + rotate * 2 + splitting) {
    case 1 * 4 + 0: return merge<uint8_t, false>;
    case 1 * 4 + 1: return split<uint8_t, false>;
    case 1 * 4 + 2: return merge<uint8_t, true>;
    case 1 * 4 + 3: return split<uint8_t, true>;
    case 2 * 4 + 0: return merge<uint16_t, false>;
    case 2 * 4 + 1: return split<uint16_t, false>;
    case 2 * 4 + 2: return merge<uint16_t, true>;
    case 2 * 4 + 3: return split<uint16_t, true>;
    case 4 * 4 + 0: return merge<uint32_t, false>;
    case 4 * 4 + 1: return split<uint32_t, false>;
    case 4 * 4 + 2: return merge<uint32_t, true>;
    case 4 * 4 + 3: return split<uint32_t, true>;
    case 8 * 4 + 0: return merge<uint64_t, false>;
    case 8 * 4 + 1: return split<uint64_t, false>;
    case 8 * 4 + 2: return merge<uint64_t, true>;
    case 8 * 4 + 3: return split<uint64_t, true>;
    default: throw std::invalid_argument("itemsize is not 1, 2, 4 or 8");
  }
}

}  // namespace

void split_planes(const uint8_t* src, size_t n_elements, size_t itemsize, bool rotate, uint8_t* dst) {
  pick(itemsize, rotate, true)(src, n_elements, dst);
}

void merge_planes(const uint8_t* src, size_t n_elements, size_t itemsize, bool rotate, uint8_t* dst) {
  pick(itemsize, rotate, false)(src, n_elements, dst);
}

void pack_bits(const uint8_t* __restrict src, size_t n_bytes, unsigned bits, uint8_t* __restrict dst) {
  if (bits == 4) {
    for (size_t i = 0; i < n_bytes; i++) dst[i] = static_cast<uint8_t>((src[2 * i] & 15) | src[2 * i + 1] << 4);
    return;
  }
  for (size_t i = 0; i < n_bytes; i++) {
    const uint8_t* of = src + 4 * i;
    dst[i] = static_cast<uint8_t>((of[0] & 3) | (of[1] & 3) << 2 | (of[2] & 3) << 4 | of[3] << 6);
  }
}

}  // namespace spqfmt
