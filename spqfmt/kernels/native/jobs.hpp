// Many chunks at once: checksum and codec in one pass, over threads. The result is the same for any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// One chunk to decode. The raw ranges of jobs must not overlap.
struct DecodeJob {
  int64_t src_offset, stored_bytes, codec, crc32, dst_offset, raw_bytes;
};

// Numbers that do not fit the buffers, or another codec than raw and rans, throw std::invalid_argument before anything runs.
// A bad chunk throws DataError with its job, the lowest one; dst is unspecified then.
void decode_chunks(const uint8_t* src, size_t src_bytes, const DecodeJob* jobs, size_t n_jobs, uint8_t* dst,
                   size_t dst_bytes, size_t n_threads);

// As decode_chunks for chunks whose checksums were compared before: they are not again. Pieces of one chunk go to several
// threads (team.hpp), so that a single chunk is decoded as fast as the machine can. A bad chunk throws DataError with its job.
void decode_verified_chunks(const uint8_t* src, size_t src_bytes, const DecodeJob* jobs, size_t n_jobs, uint8_t* dst,
                            size_t dst_bytes, size_t n_threads);

}  // namespace spqfmt
