// Decodes chunks on AArch64 and compares with what is known of them: `chunks LIST`, where LIST has, for each chunk, its size, the
// size of its symbols, whether it is to be refused, its CRC-32 (four u32), the chunk and, unless it is refused, the symbols.
// Prints how many there were, with one line for each that was decoded wrongly; test_aarch64.py builds and runs it.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "chunk.hpp"
#include "dispatch.hpp"
#include "errors.hpp"

namespace spqfmt {
namespace {

struct Set {
  Kernels kernels;
  const char* name;
};
// What decoding takes of a set, and nothing else, so that few files have to be compiled.
Set neon{}, scalar{};
const Kernels* active = nullptr;

void make_sets() {
  neon.kernels.decode_groups = decode_groups_neon;
  neon.kernels.decode_lockstep = 2;
  neon.kernels.crc32 = crc32_arm;
  neon.name = "neon";
  scalar.kernels.decode_groups = decode_groups_scalar;
  scalar.kernels.decode_lockstep = 1;
  scalar.kernels.crc32 = crc32_scalar;
  scalar.name = "scalar";
}

}  // namespace

const Kernels& active_kernels() { return *active; }

}  // namespace spqfmt

int main(int argc, char** argv) {
  using namespace spqfmt;
  if (argc != 2) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<char> list((std::istreambuf_iterator<char>(file)), {});
  make_sets();
  size_t n_chunks = 0, n_refused = 0, n_wrong = 0;
  const char* at = list.data();
  while (at < list.data() + list.size()) {
    uint32_t head[4];
    std::memcpy(head, at, sizeof head);
    at += sizeof head;
    const auto [chunk_bytes, raw_bytes, is_refused, checksum] = head;
    // A copy, so that nothing can be read behind it.
    const std::vector<uint8_t> chunk(at, at + chunk_bytes);
    at += chunk_bytes;
    const char* expected = at;
    if (!is_refused) at += raw_bytes;
    n_chunks++;
    n_refused += is_refused;
    for (const Set* set : {&neon, &scalar}) {
      active = &set->kernels;
      std::vector<uint8_t> found(raw_bytes);
      bool refused = false;
      try {
        decode_chunk(chunk.data(), chunk.size(), chunk.size(), found.data(), raw_bytes);
      } catch (const DataError&) {
        refused = true;
      }
      const bool same = refused || std::memcmp(found.data(), expected, raw_bytes) == 0;
      if (refused != (is_refused != 0) || !same || set->kernels.crc32(0, chunk.data(), chunk.size()) != checksum) {
        n_wrong++;
        std::printf("%s: chunk %zu of %zu bytes is decoded wrongly\n", set->name, n_chunks - 1, chunk.size());
      }
    }
  }
  std::printf("%zu chunks, %zu of them refused, %zu wrong\n", n_chunks, n_refused, n_wrong);
  return n_wrong != 0;
}
