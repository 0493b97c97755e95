// The rans chunk: header, frequency table, block directory, blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bitstream.hpp"
#include "decoder.hpp"

namespace spqfmt {

// ---- encode

// Most bytes that encoding `raw_bytes` symbols can take.
size_t max_chunk_bytes(size_t raw_bytes, unsigned block_log2);

// The smallest blocks that encode_chunk would choose: the largest power of two up to 64 KiB that still gives 4 blocks, but
// 16 KiB at least. Four blocks in lockstep decode nearly as fast as more; 16 KiB blocks cost 1 % for states and directory,
// 4 KiB ones would cost 3.5 %.
unsigned least_block_log2(size_t raw_bytes);

// Encodes `raw_bytes` >= 1 symbols into dst and returns the size of the chunk, or 0 if it does not fit in `capacity`.
// block_log2 is 7..16, or 0 to choose: least_block_log2, and more where the symbols cost so little that blocks would show.
// The result depends on nothing but the symbols and block_log2.
size_t encode_chunk(const uint8_t* src, size_t raw_bytes, unsigned block_log2, uint8_t* dst, size_t capacity);

// ---- decode

// A chunk whose header, table and directory have been validated against each other and against `raw_bytes`.
// Decode batch by batch, so that the caller can do something with the bytes while they are in cache.
class ChunkDecoder {
 public:
  // `readable_bytes` >= chunk_bytes: how far src may be read (a chunk inside a file is followed by others).
  // Throws DataError.
  ChunkDecoder(const uint8_t* src, size_t chunk_bytes, size_t readable_bytes, size_t raw_bytes);

  size_t n_batches() const { return n_batches_; }
  // Cuts the blocks into batches that `n_threads` can share evenly.
  void share_among(size_t n_threads) {
    if (!constant_) n_batches_ = std::min(n_blocks_, round_up(n_batches_, n_threads));
  }
  // The bytes of the chunk that batch `i` reads, beyond those of the batches before: [begin, end).
  size_t batch_begin(size_t i) const { return i == 0 ? 0 : block_begin(batch_block(i)); }
  size_t batch_end(size_t i) const { return i + 1 == n_batches_ ? chunk_bytes_ : block_begin(batch_block(i + 1)); }
  // Decodes into dst, the start of the chunk's raw_bytes. Throws DataError.
  void decode_batch(size_t i, uint8_t* dst) const;

 private:
  size_t block_begin(size_t block) const { return block == 0 ? first_block_ : block_end(block - 1); }
  size_t block_end(size_t block) const;
  size_t block_symbols(size_t block) const;
  // Batches differ by at most one block: 9 blocks go as 5 + 4, not as 8 + 1, for one block alone is slow.
  size_t batch_block(size_t i) const { return n_blocks_ * i / n_batches_; }
  void validate_directory() const;
  void validate_states() const;
  void start_block(size_t block, uint8_t* dst, DecodeCursor& cursor) const;
  void finish_block(size_t block, const DecodeCursor& cursor) const;

  const uint8_t* src_;
  size_t chunk_bytes_, raw_bytes_;
  size_t n_blocks_ = 0, n_batches_ = 0;
  size_t block_size_ = 0, directory_ = 0, first_block_ = 0;
  bool constant_ = false;
  DecodeTable table_;
  // The last blocks once more, followed by padding, if a decoder could read past the end of src.
  std::vector<uint8_t> tail_;
  size_t tail_begin_ = 0;
};

// Decodes a whole chunk into dst of exactly raw_bytes. Throws DataError; dst is then unspecified.
void decode_chunk(const uint8_t* src, size_t chunk_bytes, size_t readable_bytes, uint8_t* dst, size_t raw_bytes);

}  // namespace spqfmt
