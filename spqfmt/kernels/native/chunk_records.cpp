#include "chunk_records.hpp"

#include <algorithm>
#include <string>

#include "errors.hpp"
#include "wire.hpp"

namespace spqfmt {
namespace {

constexpr int64_t kMostBytes = static_cast<int64_t>(wire::max_file_bytes);

[[noreturn]] void fail(size_t chunk, const char* what, Fault fault = Fault::corrupt) {
  throw DataError("chunk " + std::to_string(chunk) + " " + what, fault);
}

}  // namespace

int64_t check_chunks(const int64_t* rows, size_t n, const ChunkRules& rules, int64_t* table) {
  const size_t width = 1 + 3 * rules.planes;
  const int64_t byte_bits = std::min(rules.bits, 8u);
  int64_t first = 0, offset = rules.begin;
  for (size_t chunk = 0; chunk < n; ++chunk, rows += width) {
    if (std::any_of(rows, rows + width, [](int64_t value) { return value < 0; })) fail(chunk, "has a negative integer");
    const int64_t elements = rows[0];
    if (elements > int64_t{8} * wire::max_chunk_raw_bytes) fail(chunk, "has too many elements", Fault::limit);
    const int64_t raw_bytes = (elements * byte_bits + 7) / 8;
    if (raw_bytes > wire::max_chunk_raw_bytes) fail(chunk, "has too many raw bytes", Fault::limit);
    if (chunk + 1 < n && elements * byte_bits % 8 != 0) fail(chunk, "does not end at a whole byte");
    if (elements == 0 && (!rules.may_be_empty || std::any_of(rows, rows + width, [](int64_t value) { return value != 0; })))
      fail(chunk, "is empty");
    *table++ = first;
    *table++ = raw_bytes;
    for (const int64_t* plane = rows + 1; plane < rows + width; plane += 3) {
      if (plane[2] >> 32) fail(chunk, "has a crc32 of more than 32 bits");
      if (plane[1] == wire::codec_raw && plane[0] != raw_bytes) fail(chunk, "is raw and not as large as its elements");
      if (plane[0] > kMostBytes - rules.alignment - offset) fail(chunk, "lies behind the end of any file");
      *table++ = offset;
      offset += (plane[0] + rules.alignment - 1) / rules.alignment * rules.alignment;
    }
    first += elements;
  }
  return first;
}

}  // namespace spqfmt
