// Symbols of many shapes of statistics: every set of kernels writes the same chunk, and reads it back.
#include "chunk.hpp"
#include "histogram.hpp"
#include "input.hpp"

using namespace spqfmt;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned block = in.byte() % 11, mask = in.byte(), most = in.byte();
  const size_t n = 1 + (in.bits(2) >> in.byte() % 16), capacity_cut = in.bits(2), run = 1 + in.byte() % 64;
  std::vector<uint8_t> symbols = in.filled(n, 4096);
  for (size_t i = 0; i < n; i++) symbols[i] = symbols[i - i % run] & mask;
  if (most & 1) {
    for (size_t i = 0; i < n; i++) symbols[i] = i % 251 == most ? symbols[i] : static_cast<uint8_t>(most);
  }
  const unsigned block_log2 = block == 0 ? 0 : kMinBlockLog2 + block - 1;
  const unsigned smallest = block_log2 == 0 ? least_block_log2(n) : block_log2;
  const size_t room = max_chunk_bytes(n, smallest);
  fuzz::Same<std::vector<uint8_t>> chunks;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> chunk(room);
    const size_t used = encode_chunk(symbols.data(), n, block_log2, chunk.data(), room);
    fuzz::check(used <= room, "a chunk is larger than its room");
    if (used == 0) return;
    chunk.resize(used);
    chunk.shrink_to_fit();
    chunks.see(chunk, "kernels write other chunks");
    std::vector<uint8_t> found(n);
    decode_chunk(chunk.data(), used, used, found.data(), n);
    fuzz::check(found == symbols, "a chunk does not give its symbols");
    const size_t less = capacity_cut % (used + 1);
    std::vector<uint8_t> small(less);
    const size_t fits = encode_chunk(symbols.data(), n, block_log2, small.data(), less);
    fuzz::check(fits <= less, "a chunk passes its capacity");
  });
  uint64_t counts[256] = {};
  histogram(symbols.data(), n, counts);
  uint64_t total = 0;
  for (const uint64_t count : counts) total += count;
  fuzz::check(total == n, "a histogram does not count all");
  return 0;
}
