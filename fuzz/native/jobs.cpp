// Hostile records of chunks: whatever they say, nothing outside of the buffers is touched, and any number of threads ends alike.
#include "jobs.hpp"

#include <stdexcept>

#include "chunk.hpp"
#include "input.hpp"

using namespace spqfmt;

namespace {

std::string ended(const std::vector<uint8_t>& src, const std::vector<DecodeJob>& jobs, std::vector<uint8_t>& dst, bool verified, size_t n_threads) {
  try {
    return fuzz::outcome([&] {
      (verified ? decode_verified_chunks : decode_chunks)(src.data(), src.size(), jobs.data(), jobs.size(), dst.data(), dst.size(), n_threads);
    });
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

// A number that fits, or one that may not.
int64_t hostile(fuzz::Input& in, size_t fits) {
  const unsigned kind = in.byte();
  if (kind < 160) return static_cast<int64_t>(fits);
  if (kind < 224) return static_cast<int64_t>(in.bits(2)) - 8;
  return static_cast<int64_t>(in.bits(8));
}

// Whether two jobs that fit into `dst_bytes` write to one byte, which callers must not ask for.
bool overlap(const std::vector<DecodeJob>& jobs, size_t dst_bytes) {
  std::vector<uint8_t> written(dst_bytes);
  for (const DecodeJob& job : jobs) {
    const uint64_t begin = static_cast<uint64_t>(job.dst_offset), n = static_cast<uint64_t>(job.raw_bytes);
    if (begin > dst_bytes || n > dst_bytes - begin) return false;  // all are refused
    for (uint64_t i = begin; i < begin + n; i++) {
      if (written[i]++ != 0) return true;
    }
  }
  return false;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const size_t n_jobs = in.byte() % 9, n_threads = 1 + in.byte() % 3;
  std::vector<uint8_t> src;
  std::vector<DecodeJob> jobs;
  size_t dst_bytes = 0;
  for (size_t i = 0; i < n_jobs; i++) {
    const unsigned kind = in.byte();
    const size_t n = in.number(700);
    std::vector<uint8_t> raw = in.filled(n, 64), stored = raw;
    const bool coded = kind % 2 == 1 && n > 0;
    if (coded) {
      stored.resize(max_chunk_bytes(n, 7));
      stored.resize(encode_chunk(raw.data(), n, 7, stored.data(), stored.size()));
    }
    if (kind & 2 && !stored.empty()) stored[in.number(stored.size() - 1)] ^= static_cast<uint8_t>(1 + in.byte());
    const uint32_t crc = active_kernels().crc32(0, stored.data(), stored.size());
    DecodeJob job;
    job.src_offset = hostile(in, src.size());
    job.stored_bytes = hostile(in, stored.size());
    job.codec = hostile(in, coded ? 2 : 0);
    job.crc32 = hostile(in, crc);
    job.dst_offset = hostile(in, dst_bytes);
    job.raw_bytes = hostile(in, n);
    jobs.push_back(job);
    src.insert(src.end(), stored.begin(), stored.end());
    dst_bytes += n;
  }
  src.shrink_to_fit();
  const size_t threads = overlap(jobs, dst_bytes) ? 1 : n_threads;
  for (const bool verified : {false, true}) {
    fuzz::Same<std::string> words;
    fuzz::Same<std::vector<uint8_t>> bytes;
    fuzz::with_each_variant([&] {
      std::vector<uint8_t> dst(dst_bytes);
      const std::string said = ended(src, jobs, dst, verified, threads);
      words.see(said, "kernels differ in what they refuse");
      if (said.empty()) bytes.see(dst, "kernels differ in what they decode");
    });
    std::vector<uint8_t> dst(dst_bytes);
    words.see(ended(src, jobs, dst, verified, 1), "another number of threads ends otherwise");
  }
  return 0;
}
