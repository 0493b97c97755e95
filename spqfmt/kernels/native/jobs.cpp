#include "jobs.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "chunk.hpp"
#include "dispatch.hpp"
#include "errors.hpp"
#include "parallel.hpp"
#include "team.hpp"
#include "wire.hpp"

namespace spqfmt {
namespace {

// What a raw chunk is copied in: a piece is still in the nearest cache when it is copied after its checksum.
constexpr size_t kPieceBytes = size_t{1} << 15;
// Raw bytes that are worth waking a waiting thread for, and starting one: some ten, and some hundred microseconds of decoding.
constexpr size_t kTeamBytes = size_t{1} << 15;
constexpr size_t kStartedBytes = size_t{1} << 19;

constexpr const char* kRawSizes = "raw chunk of another size than its raw bytes";

void check_range(int64_t offset, int64_t n_bytes, size_t size, size_t job, const char* what) {
  const bool inside = offset >= 0 && n_bytes >= 0 && static_cast<uint64_t>(offset) <= size &&
                      static_cast<uint64_t>(n_bytes) <= size - static_cast<uint64_t>(offset);
  if (!inside) throw std::invalid_argument("job " + std::to_string(job) + ": " + what + " range is outside its buffer");
}

void check_codec(int64_t codec, size_t job) {
  if (codec != wire::codec_raw && codec != wire::codec_rans) {
    throw std::invalid_argument("job " + std::to_string(job) + ": codec " + std::to_string(codec) + " is not native");
  }
}

uint32_t copy_raw(const uint8_t* src, size_t n_bytes, uint8_t* dst) {
  const Crc32 crc32 = active_kernels().crc32;
  uint32_t crc = 0;
  for (size_t at = 0; at < n_bytes; at += kPieceBytes) {
    const size_t n = std::min(kPieceBytes, n_bytes - at);
    crc = crc32(crc, src + at, n);
    std::memcpy(dst + at, src + at, n);
  }
  return crc;
}

uint32_t decode_rans(const uint8_t* src, size_t stored_bytes, size_t readable_bytes, uint8_t* dst, size_t raw_bytes) {
  const Crc32 crc32 = active_kernels().crc32;
  const ChunkDecoder decoder(src, stored_bytes, readable_bytes, raw_bytes);
  uint32_t crc = 0;
  for (size_t i = 0; i < decoder.n_batches(); i++) {
    const size_t begin = decoder.batch_begin(i);
    crc = crc32(crc, src + begin, decoder.batch_end(i) - begin);
    decoder.decode_batch(i, dst);
  }
  return crc;
}

uint32_t decode_one(const uint8_t* src, const DecodeJob& job, size_t readable_bytes, uint8_t* dst) {
  const size_t stored_bytes = static_cast<size_t>(job.stored_bytes), raw_bytes = static_cast<size_t>(job.raw_bytes);
  if (job.codec == wire::codec_raw) {
    if (stored_bytes != raw_bytes) throw DataError(kRawSizes);
    return copy_raw(src, raw_bytes, dst);
  }
  return decode_rans(src, stored_bytes, readable_bytes, dst, raw_bytes);
}

void decode_checked(const uint8_t* src, const DecodeJob& job, size_t readable_bytes, uint8_t* dst) {
  uint32_t crc;
  try {
    crc = decode_one(src, job, readable_bytes, dst);
  } catch (const DataError&) {
    // Damage to the file explains itself better as a wrong checksum than by the first rule that it happens to break.
    crc = active_kernels().crc32(0, src, static_cast<size_t>(job.stored_bytes));
    if (crc == job.crc32) throw;
  }
  if (crc != job.crc32) throw DataError("a chunk does not match its checksum", Fault::checksum);
}

void check_jobs(const DecodeJob* jobs, size_t n_jobs, size_t src_bytes, size_t dst_bytes) {
  for (size_t i = 0; i < n_jobs; i++) {
    check_range(jobs[i].src_offset, jobs[i].stored_bytes, src_bytes, i, "stored");
    check_range(jobs[i].dst_offset, jobs[i].raw_bytes, dst_bytes, i, "raw");
    check_codec(jobs[i].codec, i);
  }
}

// Decodes a rans chunk piece by piece on n_threads threads. Throws the first piece's DataError.
void decode_by_team(const ChunkDecoder& decoder, uint8_t* dst, size_t n_threads) {
  const auto decode = [&](size_t i) { decoder.decode_batch(i, dst); };
  SharedJobs batches(decoder.n_batches(), decode);
  if (n_threads == 1) {
    batches.work();
  } else {
    on_team(n_threads, [&] { batches.work(); });
  }
  batches.rethrow();
}

}  // namespace

void decode_verified_chunks(const uint8_t* src, size_t src_bytes, const DecodeJob* jobs, size_t n_jobs, uint8_t* dst,
                            size_t dst_bytes, size_t n_threads) {
  check_jobs(jobs, n_jobs, src_bytes, dst_bytes);
  for (size_t i = 0; i < n_jobs; i++) {
    const uint8_t* from = src + jobs[i].src_offset;
    uint8_t* to = dst + jobs[i].dst_offset;
    const size_t stored_bytes = static_cast<size_t>(jobs[i].stored_bytes), raw_bytes = static_cast<size_t>(jobs[i].raw_bytes);
    try {
      if (jobs[i].codec == wire::codec_raw) {
        if (stored_bytes != raw_bytes) throw DataError(kRawSizes);
        if (raw_bytes > 0) std::memcpy(to, from, raw_bytes);  // of nothing there may be no buffer
        continue;
      }
      ChunkDecoder decoder(from, stored_bytes, src_bytes - static_cast<size_t>(jobs[i].src_offset), raw_bytes);
      const size_t threads = team_size(n_threads, raw_bytes, kTeamBytes, kStartedBytes);
      decoder.share_among(threads);
      decode_by_team(decoder, to, threads);
    } catch (DataError& error) {
      error.job = i;
      throw;
    }
  }
}

void decode_chunks(const uint8_t* src, size_t src_bytes, const DecodeJob* jobs, size_t n_jobs, uint8_t* dst,
                   size_t dst_bytes, size_t n_threads) {
  check_jobs(jobs, n_jobs, src_bytes, dst_bytes);
  parallel_for(n_jobs, n_threads, [&](size_t i) {
    const size_t begin = static_cast<size_t>(jobs[i].src_offset);
    try {
      decode_checked(src + begin, jobs[i], src_bytes - begin, dst + jobs[i].dst_offset);
    } catch (DataError& error) {
      error.job = i;
      throw;
    }
  });
}

}  // namespace spqfmt
