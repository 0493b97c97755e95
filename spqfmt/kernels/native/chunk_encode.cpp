#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "chunk.hpp"
#include "dispatch.hpp"
#include "encoder.hpp"
#include "frequencies.hpp"
#include "histogram.hpp"
#include "little_endian.hpp"

namespace spqfmt {
namespace {

// A block as it is written from its end downwards, with room for a last store that is not kept.
size_t scratch_bytes(size_t block_size) { return 2 * round_up(block_size, kGroupSymbols) + kStateBytes + 64; }

// Kept between calls: fresh pages for every chunk would cost a good part of the encoding.
uint8_t* thread_scratch(size_t n_bytes) {
  thread_local std::vector<uint8_t> scratch;
  if (scratch.size() < n_bytes) scratch.resize(n_bytes);
  return scratch.data();
}

struct BlockEncoder {
  const uint8_t* src;
  size_t raw_bytes, block_size;
  uint8_t fill;  // takes the places past the last symbol
  const EncodeTable& table;

  // Blocks [first, first + n), all but the chunk's last one full; scratch is n areas of scratch_bytes.
  void encode(size_t first, size_t n, uint8_t* scratch, EncodeCursor* cursors) const {
    const Kernels& kernels = active_kernels();
    const size_t area = scratch_bytes(block_size);
    size_t n_full = 0;  // groups of the shortest block, which is the last one
    for (size_t k = 0; k < n; k++) {
      const size_t begin = (first + k) * block_size;
      const size_t n_symbols = std::min(block_size, raw_bytes - begin);
      const size_t rest = n_symbols % kGroupSymbols;
      EncodeCursor& cursor = cursors[k];
      std::fill_n(cursor.state, kLanes, kStateFloor);
      cursor.out = scratch + (k + 1) * area;
      n_full = n_symbols / kGroupSymbols;
      if (rest != 0) {
        uint8_t padded[kGroupSymbols];
        std::memset(padded, fill, sizeof padded);
        std::memcpy(padded, src + begin + n_symbols - rest, rest);
        cursor.in = padded + kGroupSymbols;
        kernels.encode_groups(&cursor, 1, 1, table);
      }
      cursor.in = src + begin + n_symbols - rest;
    }
    kernels.encode_groups(cursors, n, n_full, table);
    kernels.encode_groups(cursors, n - 1, block_size / kGroupSymbols - n_full, table);
    for (size_t k = 0; k < n; k++) {
      cursors[k].out -= kStateBytes;
      for (unsigned lane = 0; lane < kLanes; lane++) store_u32(cursors[k].out + 4 * lane, cursors[k].state[lane]);
    }
  }
};

size_t encode_constant(uint8_t symbol, uint8_t* dst, size_t capacity) {
  if (capacity < kConstantChunkBytes) return 0;
  dst[0] = kCoderRans;
  dst[1] = kKindConstant;
  dst[2] = 0;
  dst[3] = symbol;
  return kConstantChunkBytes;
}

// What the symbols cost at their frequencies, in bytes.
double coded_bytes(const uint64_t counts[256], const Frequencies& frequencies) {
  double bits = 0;
  for (unsigned s = 0; s < 256; s++) {
    if (counts[s] != 0) bits += static_cast<double>(counts[s]) * (kFreqBits - std::log2(frequencies.of[s]));
  }
  return bits / 8;
}

// What a block costs beside its symbols, at least. It begins with all states at 2^16 and stores them in 32 bits, so its
// states cost 16 bits a lane more than they carry. Steps round by about 1e-5 of a symbol's cost, far less than that.
constexpr size_t kLeastBlockBytes = 4 + kStateBytes / 2;

// Blocks grow beyond what lockstep wants while they would cost more than this part of the symbols: few or cheap symbols.
constexpr size_t kLeastPart = 150;
unsigned grow_blocks(unsigned log2, size_t raw_bytes, double coded) {
  while (log2 < kMaxBlockLog2) {
    const size_t n_blocks = ceil_div(raw_bytes, size_t{1} << log2);
    if (n_blocks == 1 || static_cast<double>(n_blocks * kLeastBlockBytes * kLeastPart) <= coded) break;
    log2++;
  }
  return log2;
}

}  // namespace

size_t max_chunk_bytes(size_t raw_bytes, unsigned block_log2) {
  const size_t n_blocks = ceil_div(raw_bytes, size_t{1} << block_log2);
  return kHeaderBytes + round_up(kMaxTableBytes, 4) + n_blocks * (4 + kStateBytes + kGroupWordBytes + 2) + 2 * raw_bytes;
}

unsigned least_block_log2(size_t raw_bytes) {
  unsigned log2 = kMaxBlockLog2;
  while (log2 > 14 && ceil_div(raw_bytes, size_t{1} << log2) < 4) log2--;
  return log2;
}

size_t encode_chunk(const uint8_t* src, size_t raw_bytes, unsigned block_log2, uint8_t* dst, size_t capacity) {
  if (raw_bytes == 0) throw std::invalid_argument("a rans chunk holds at least one symbol");
  const bool choose = block_log2 == 0;
  if (choose) block_log2 = least_block_log2(raw_bytes);
  if (block_log2 < kMinBlockLog2 || block_log2 > kMaxBlockLog2) throw std::invalid_argument("block_log2 is not 7..16");

  uint64_t counts[256];
  histogram(src, raw_bytes, counts);
  const uint8_t fill = static_cast<uint8_t>(std::max_element(counts, counts + 256) - counts);
  if (counts[fill] == raw_bytes) return encode_constant(fill, dst, capacity);

  const Frequencies frequencies = normalize(counts);
  const double coded = coded_bytes(counts, frequencies);
  if (choose) block_log2 = grow_blocks(block_log2, raw_bytes, coded);
  const size_t block_size = size_t{1} << block_log2;
  const size_t n_blocks = ceil_div(raw_bytes, block_size);
  uint8_t table_bits[kMaxTableBytes];
  const size_t table_bytes = write_frequencies(frequencies, table_bits);
  const size_t directory = kHeaderBytes + round_up(table_bytes, 4);
  size_t at = directory + 4 * n_blocks;
  if (at > capacity || n_blocks > UINT32_MAX / 4) return 0;
  // Noise is refused here, without encoding it.
  if (coded + static_cast<double>(directory + n_blocks * kLeastBlockBytes) > static_cast<double>(capacity)) return 0;

  dst[0] = kCoderRans;
  dst[1] = kKindBlocks;
  dst[2] = static_cast<uint8_t>(block_log2);
  dst[3] = 0;
  dst[4] = static_cast<uint8_t>(first_symbol(frequencies));
  dst[5] = static_cast<uint8_t>(last_symbol(frequencies));
  store_u16(dst + 6, static_cast<uint16_t>(table_bytes));
  std::memset(dst + kHeaderBytes, 0, directory - kHeaderBytes);
  std::memcpy(dst + kHeaderBytes, table_bits, table_bytes);

  EncodeTable table;
  build_encode_table(frequencies, table);
  const BlockEncoder blocks{src, raw_bytes, block_size, fill, table};
  const size_t lockstep = std::min(active_kernels().encode_lockstep, n_blocks);
  const size_t area = scratch_bytes(block_size);
  uint8_t* scratch = thread_scratch(lockstep * area);
  EncodeCursor cursors[kMaxLockstep];
  const size_t n_batches = ceil_div(n_blocks, lockstep);
  for (size_t batch = 0; batch < n_batches; batch++) {
    const size_t first = n_blocks * batch / n_batches;
    const size_t n = n_blocks * (batch + 1) / n_batches - first;
    blocks.encode(first, n, scratch, cursors);
    for (size_t k = 0; k < n; k++) {
      const size_t n_bytes = static_cast<size_t>(scratch + (k + 1) * area - cursors[k].out);
      const size_t padded = round_up(n_bytes, 4);
      if (padded > capacity - at || padded > UINT32_MAX - at) return 0;
      std::memcpy(dst + at, cursors[k].out, n_bytes);
      std::memset(dst + at + n_bytes, 0, padded - n_bytes);
      at += padded;
      store_u32(dst + directory + 4 * (first + k), static_cast<uint32_t>(at));
    }
  }
  return at;
}

}  // namespace spqfmt
