// What the core does over threads, called by several threads at once on the same inputs, for ThreadSanitizer: jobs with and
// without checksums, dequantizing, products alone and of a crew, turns, narrow codes and norms give what one thread alone gives, while another
// thread changes the process's kernels. `make sanitize-threads` runs it twice: with threads that are started, and with a team,
// for which this program brings the entry of OpenMP's runtimes (team.hpp), since theirs are not made for ThreadSanitizer.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "chunk.hpp"
#include "dispatch.hpp"
#include "errors.hpp"
#include "jobs.hpp"
#include "multiply.hpp"
#include "narrow.hpp"
#include "norm.hpp"
#include "team.hpp"
#include "turn.hpp"
#include "wire.hpp"

using namespace spqfmt;

#if !defined(__clang__)
// The core tells the fuzz targets' driver where it goes; nobody listens here. It must not be watched itself.
extern "C" __attribute__((no_sanitize("thread"))) void __sanitizer_cov_trace_pc() {}
#endif

#if defined(WITH_TEAM)
extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*function)(void*), void* data, unsigned n_threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < n_threads; i++) others.emplace_back(function, data);
  function(data);
  for (std::thread& other : others) other.join();
}
#endif

namespace {

constexpr size_t kRows = 700, kColumns = 512, kTokens = 5, kCallers = 4, kThreads = 4, kChunks = 9, kChunkBytes = size_t{3} << 18;
using Bytes = std::vector<uint8_t>;

Bytes made(size_t n, unsigned seed, unsigned spread) {
  Bytes found(n);
  uint32_t state = seed;
  for (uint8_t& byte : found) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<uint8_t>((state >> 24) % spread * ((state >> 16) % spread) / spread);
  }
  return found;
}

std::vector<float> floats(size_t n, unsigned seed) {
  const Bytes from = made(n, seed, 200);
  std::vector<float> found(n);
  for (size_t i = 0; i < n; i++) found[i] = (static_cast<float>(from[i]) - 50) / 64;
  return found;
}

struct Stored {
  Bytes bytes;
  std::vector<DecodeJob> jobs;
};

Stored stored(const Bytes& raw) {
  Stored found;
  for (size_t i = 0; i < kChunks; i++) {
    const uint8_t* from = raw.data() + i * kChunkBytes;
    Bytes chunk(from, from + kChunkBytes);
    if (i % 3 != 0) {
      chunk.resize(max_chunk_bytes(kChunkBytes, 0));
      chunk.resize(encode_chunk(from, kChunkBytes, 0, chunk.data(), chunk.size()));
    }
    const auto number = [](size_t n) { return static_cast<int64_t>(n); };
    found.jobs.push_back({number(found.bytes.size()), number(chunk.size()), i % 3 != 0 ? wire::codec_rans : wire::codec_raw,
                          active_kernels().crc32(0, chunk.data(), chunk.size()), number(i * kChunkBytes), number(kChunkBytes)});
    found.bytes.insert(found.bytes.end(), chunk.begin(), chunk.end());
  }
  return found;
}

}  // namespace

int main(int n_arguments, char** arguments) {
  const int rounds = n_arguments > 1 ? std::atoi(arguments[1]) : 3;
  const Bytes raw = made(kChunks * kChunkBytes, 1, 60), codes = made(kRows * kColumns, 2, 100);
  const Stored whole = stored(raw);
  Stored broken = whole;
  for (const size_t i : {4, 7}) broken.bytes[static_cast<size_t>(broken.jobs[i].src_offset) + 1000] ^= 1;
  const std::vector<float> row = floats(kRows, 3), x = floats(kTokens * kColumns, 4), scale = floats(kRows * kColumns / 64, 5);
  Bytes narrow(narrow_bytes(codes.size(), codes.size()));
  if (!narrow_codes(codes.data(), codes.size(), narrow.data(), narrow.size())) return 2;
  const NarrowRows::Part part{narrow_at(narrow.data(), narrow.size(), codes.size()), 0, kRows};
  const NarrowRows rows{&part, kRows};
  const Codes of{codes.data(), 0, 8, false}, none{nullptr, 0, 8, false};
  Groups groups{};
  groups.scale.values = reinterpret_cast<const uint8_t*>(scale.data());
  groups.scale.type = NumberType::f32;
  groups.kind = GroupOffset::none;
  groups.group_size = 64;
  groups.group_rows = groups.stacked_rows = 1;
  const auto multiply = [&](const HeldCodes& held, const Groups* groups, Bytes& y, size_t n) {
    const Outputs outputs{y.data(), FloatType::f32, kRows, 0, nullptr, {nullptr, FloatType::f32}};
    const RowsProduct product{held, 0, kRows, groups, {row.data(), nullptr}, {nullptr, nullptr, nullptr}, nullptr, outputs};
    multiply_rows_of(&product, 1, kColumns, {x.data(), FloatType::f32}, kTokens, Rounding::few, n);
  };

  const std::vector<std::pair<const char*, std::function<Bytes(size_t)>>> calls = {
      {"jobs",
       [&](size_t n) {
         Bytes y(raw.size());
         decode_chunks(whole.bytes.data(), whole.bytes.size(), whole.jobs.data(), kChunks, y.data(), y.size(), n);
         return y;
       }},
      {"jobs, verified",
       [&](size_t n) {
         Bytes y(raw.size());
         decode_verified_chunks(whole.bytes.data(), whole.bytes.size(), whole.jobs.data(), kChunks, y.data(), y.size(), n);
         return y;
       }},
      {"broken jobs",
       [&](size_t n) {
         Bytes y(raw.size());
         try {
           decode_chunks(broken.bytes.data(), broken.bytes.size(), broken.jobs.data(), kChunks, y.data(), y.size(), n);
         } catch (const DataError& error) {
           return Bytes(1, static_cast<uint8_t>(*error.job));
         }
         return Bytes();
       }},
      {"dequantize",
       [&](size_t n) {
         Bytes y(kRows * kColumns * 4);
         dequantize_uniform(of, kRows, kColumns, {row.data(), nullptr}, FloatType::f32, y.data(), n);
         return y;
       }},
      {"uniform product",
       [&](size_t n) {
         Bytes y(kTokens * kRows * 4);
         multiply({of}, nullptr, y, n);
         return y;
       }},
      {"grouped product",
       [&](size_t n) {
         Bytes y(kTokens * kRows * 4);
         multiply({of}, &groups, y, n);
         return y;
       }},
      {"narrow product",
       [&](size_t n) {
         Bytes y(kTokens * kRows * 4);
         multiply({none, &rows}, nullptr, y, n);
         return y;
       }},
      {"widened",
       [&](size_t n) {
         Bytes y(codes.size());
         widen_all(part.narrow, y.data(), n);
         return y;
       }},
      {"turned",
       [&](size_t n) {
         Bytes y(codes.size());
         turn(codes.data(), kRows, kColumns, 8, y.data(), n);
         return y;
       }},
      {"rounded",
       [&](size_t n) {
         Bytes y(kTokens * kColumns);
         std::vector<float> scales(kTokens);
         round_tokens({{x.data(), FloatType::f32}, kTokens, nullptr}, kColumns, nullptr, reinterpret_cast<int8_t*>(y.data()), scales.data(), n);
         return y;
       }},
      {"norm",
       [&](size_t n) {
         Bytes y(kTokens * kColumns * 4);
         root_mean_square({x.data(), FloatType::f32}, kTokens, kColumns, {row.data(), 1e-6f, 0, false}, y.data(), n);
         return y;
       }},
      {"loops of a crew",
       [&](size_t n) {
         Bytes y(2 * kTokens * kRows * 4), first(kTokens * kRows * 4);
         std::string said;
         try {
           with_crew(n, [&] {
             for (size_t i = 0; i < 2; i++) {
               multiply({of}, i == 0 ? nullptr : &groups, first, n);
               std::copy(first.begin(), first.end(), y.begin() + static_cast<std::ptrdiff_t>(i * first.size()));
             }
             throw std::runtime_error("done");
           });
         } catch (const std::runtime_error& error) {
           said = error.what();
         }
         return said == "done" ? y : Bytes();
       }},
  };
  std::vector<Bytes> alone;
  for (const auto& [name, call] : calls) alone.push_back(call(1));

  std::atomic<int> wrong{0};
  std::atomic<bool> ended{false};
  std::thread changes([&] {
    const std::vector<std::string> names = available_kernels();
    for (size_t i = 0; !ended; i++) {
      default_kernels(names[i % names.size()]);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < kCallers; caller++) {
    callers.emplace_back([&, caller] {
      const std::vector<std::string> variants = kernel_variants();
      for (int round = 0; round < rounds; round++) {
        if (caller == 0) select_kernels(variants[static_cast<size_t>(round) % variants.size()]);
        for (size_t i = 0; i < calls.size(); i++) {
          const size_t which = (i + caller) % calls.size();
          if (calls[which].second(kThreads) == alone[which]) continue;
          std::fprintf(stderr, "threads: %s: another result than one thread's\n", calls[which].first);
          wrong++;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  ended = true;
  changes.join();
  std::printf("threads: %zu callers, %d rounds of %zu calls, %d wrong\n", kCallers, rounds, calls.size(), wrong.load());
  return wrong.load() == 0 ? 0 : 1;
}
