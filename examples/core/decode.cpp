// Decodes chunks of a packed file with the core alone: `decode FILE.spq OUT THREADS < chunks.txt`. chunks.py makes chunks.txt.
// Each line is one chunk: its offset in the file, its bytes, its codec, its CRC-32, and how many bytes it decodes to.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "dispatch.hpp"
#include "errors.hpp"
#include "jobs.hpp"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<spqfmt::DecodeJob> jobs;
  spqfmt::DecodeJob job{};
  int64_t n = 0;  // what is decoded lies one behind the other
  while (std::cin >> job.src_offset >> job.stored_bytes >> job.codec >> job.crc32 >> job.raw_bytes) {
    job.dst_offset = n;
    n += job.raw_bytes;
    jobs.push_back(job);
  }
  std::vector<uint8_t> decoded(n);
  try {
    spqfmt::decode_chunks(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), jobs.data(), jobs.size(),
                          decoded.data(), decoded.size(), std::max(1, std::atoi(argv[3])));
  } catch (const spqfmt::DataError& error) {
    std::fprintf(stderr, "%s: a chunk of it is damaged: %s\n", argv[1], error.what());
    return 1;
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
    return 2;
  }
  std::ofstream(argv[2], std::ios::binary).write(reinterpret_cast<const char*>(decoded.data()), n);
  std::printf("%zu chunks, %lld bytes, by %s\n", jobs.size(), static_cast<long long>(n), spqfmt::available_kernels().front().c_str());
}
