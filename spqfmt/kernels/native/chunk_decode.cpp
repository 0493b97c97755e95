#include <algorithm>
#include <cstring>
#include <string>

#include "chunk.hpp"
#include "dispatch.hpp"
#include "errors.hpp"
#include "frequencies.hpp"
#include "little_endian.hpp"

namespace spqfmt {
namespace {

[[noreturn]] void fail_block(size_t block, const char* reason) {
  throw DataError("rans block " + std::to_string(block) + ": " + reason);
}

// No step takes more than one word: a longer block is refused before anything is read from it.
size_t max_block_bytes(size_t n_symbols) { return kStateBytes + 2 * round_up(n_symbols, kGroupSymbols) + 2; }

}  // namespace

ChunkDecoder::ChunkDecoder(const uint8_t* src, size_t chunk_bytes, size_t readable_bytes, size_t raw_bytes)
    : src_(src), chunk_bytes_(chunk_bytes), raw_bytes_(raw_bytes) {
  if (raw_bytes == 0) throw DataError("rans chunk of no symbols");
  if (chunk_bytes < kConstantChunkBytes) throw DataError("rans chunk is shorter than its header");
  if (src[0] != kCoderRans) throw DataError("rans coder " + std::to_string(src[0]), Fault::unsupported);
  if (src[1] == kKindConstant) {
    if (src[2] != 0) throw DataError("constant rans chunk with a block size");
    if (chunk_bytes != kConstantChunkBytes) throw DataError("constant rans chunk is not 4 bytes");
    constant_ = true;
    n_batches_ = 1;
    return;
  }
  if (src[1] != kKindBlocks) throw DataError("unknown kind " + std::to_string(src[1]) + " of rans chunk");
  if (chunk_bytes < kHeaderBytes) throw DataError("rans chunk is shorter than its header");
  const unsigned block_log2 = src[2], first = src[4], last = src[5];
  if (block_log2 < kMinBlockLog2 || block_log2 > kMaxBlockLog2) throw DataError("rans block_log2 is not 7..16");
  if (src[3] != 0) throw DataError("reserved byte of the rans header is not zero");
  if (first >= last) throw DataError("rans first_symbol is not below last_symbol");

  const size_t table_bytes = load_u16(src + 6);
  if (table_bytes > chunk_bytes - kHeaderBytes) throw DataError("rans frequency table passes the end of the chunk");
  const Frequencies frequencies = read_frequencies(src + kHeaderBytes, table_bytes, first, last);
  directory_ = kHeaderBytes + round_up(table_bytes, 4);
  if (directory_ > chunk_bytes) throw DataError("rans frequency table passes the end of the chunk");
  for (size_t i = kHeaderBytes + table_bytes; i < directory_; i++) {
    if (src[i] != 0) throw DataError("padding of the rans frequency table is not zero");
  }
  block_size_ = size_t{1} << block_log2;
  n_blocks_ = ceil_div(raw_bytes, block_size_);
  if (n_blocks_ > (chunk_bytes - directory_) / 4) throw DataError("rans block directory passes the end of the chunk");
  first_block_ = directory_ + 4 * n_blocks_;
  validate_directory();
  validate_states();

  build_decode_table(frequencies, table_);
  n_batches_ = ceil_div(n_blocks_, active_kernels().decode_lockstep);
  tail_begin_ = chunk_bytes;
  if (readable_bytes - chunk_bytes < kReadAheadBytes) {
    size_t block = n_blocks_;
    while (block > 0 && readable_bytes - block_end(block - 1) < kReadAheadBytes) block--;
    tail_begin_ = block_begin(block);
    tail_.resize(chunk_bytes - tail_begin_ + kReadAheadBytes);
    std::memcpy(tail_.data(), src + tail_begin_, chunk_bytes - tail_begin_);
  }
}

size_t ChunkDecoder::block_end(size_t block) const { return load_u32(src_ + directory_ + 4 * block); }

size_t ChunkDecoder::block_symbols(size_t block) const {
  return std::min(block_size_, raw_bytes_ - block * block_size_);
}

void ChunkDecoder::validate_directory() const {
  size_t begin = first_block_;
  for (size_t block = 0; block < n_blocks_; block++) {
    const size_t end = block_end(block);
    if (end % 4 != 0) fail_block(block, "end is not a multiple of 4");
    if (end > chunk_bytes_) fail_block(block, "ends past the chunk");
    if (end < begin || end - begin < kStateBytes) fail_block(block, "is shorter than its states");
    if (end - begin > max_block_bytes(block_symbols(block))) fail_block(block, "is longer than its symbols can be");
    begin = end;
  }
  if (begin != chunk_bytes_) throw DataError("rans chunk has bytes after its last block");
}

// Of all blocks before one is decoded: else it would be the number of blocks that go in lockstep what decides which of two
// damages is told.
void ChunkDecoder::validate_states() const {
  for (size_t block = 0; block < n_blocks_; block++) {
    const uint8_t* from = src_ + block_begin(block);
    for (unsigned lane = 0; lane < kLanes; lane++) {
      if (load_u32(from + 4 * lane) < kStateFloor) fail_block(block, "a first state is below 2^16");
    }
  }
}

void ChunkDecoder::start_block(size_t block, uint8_t* dst, DecodeCursor& cursor) const {
  const size_t begin = block_begin(block);
  const uint8_t* from = begin >= tail_begin_ ? tail_.data() + (begin - tail_begin_) : src_ + begin;
  for (unsigned lane = 0; lane < kLanes; lane++) {
    cursor.state[lane] = load_u32(from + 4 * lane);
  }
  cursor.next = from + kStateBytes;
  cursor.clamp = from + (block_end(block) - begin) + 2;
  cursor.out = dst + block * block_size_;
}

void ChunkDecoder::finish_block(size_t block, const DecodeCursor& cursor) const {
  const uint8_t* end = cursor.clamp - 2;
  if (cursor.next > end) fail_block(block, "ends before its symbols");
  if (end - cursor.next > 2) fail_block(block, "has words left after its symbols");
  if (end - cursor.next == 2 && load_u16(cursor.next) != 0) fail_block(block, "padding word is not zero");
  for (unsigned lane = 0; lane < kLanes; lane++) {
    if (cursor.state[lane] != kStateFloor) fail_block(block, "a last state is not 2^16");
  }
}

void ChunkDecoder::decode_batch(size_t i, uint8_t* dst) const {
  if (constant_) {
    std::memset(dst, src_[3], raw_bytes_);
    return;
  }
  const Kernels& kernels = active_kernels();
  const size_t first = batch_block(i), n = batch_block(i + 1) - first;
  DecodeCursor cursors[kMaxLockstep];
  for (size_t k = 0; k < n; k++) start_block(first + k, dst, cursors[k]);

  // Only the last block of a batch can be short: it goes along as far as it has whole groups.
  const size_t n_short = block_symbols(first + n - 1);
  const size_t n_common = n_short / kGroupSymbols;
  kernels.decode_groups(cursors, n, n_common, table_);
  kernels.decode_groups(cursors, n - 1, block_size_ / kGroupSymbols - n_common, table_);
  if (const size_t rest = n_short % kGroupSymbols; rest != 0) {
    uint8_t group[kGroupSymbols];
    DecodeCursor& last = cursors[n - 1];
    uint8_t* out = last.out;
    last.out = group;
    kernels.decode_groups(&last, 1, 1, table_);
    std::memcpy(out, group, rest);
  }
  for (size_t k = 0; k < n; k++) finish_block(first + k, cursors[k]);
}

void decode_chunk(const uint8_t* src, size_t chunk_bytes, size_t readable_bytes, uint8_t* dst, size_t raw_bytes) {
  const ChunkDecoder decoder(src, chunk_bytes, readable_bytes, raw_bytes);
  for (size_t i = 0; i < decoder.n_batches(); i++) decoder.decode_batch(i, dst);
}

}  // namespace spqfmt
