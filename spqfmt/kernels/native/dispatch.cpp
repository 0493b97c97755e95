#include "dispatch.hpp"

#include <atomic>
#include <stdexcept>

namespace spqfmt {
namespace {

struct Candidate {
  Kernels kernels;
  bool (*supported)();
};

// Best first. SPQFMT_X86 is defined by the build where the x86 files are compiled; another architecture would add its files
// and its rows in the same way.
const Candidate kCandidates[] = {
#if defined(SPQFMT_X86)
    {{"avx512", decode_groups_avx512, 8, encode_groups_avx512, 4, crc32_vpclmul, uniform_rows_avx2, grouped_rows_avx2},
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("vpclmulqdq") &&
              __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("pclmul");
     }},
    {{"avx2", decode_groups_avx2, 3, encode_groups_scalar, 1, crc32_pclmul, uniform_rows_avx2, grouped_rows_avx2},
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
              __builtin_cpu_supports("pclmul");
     }},
    {{"sse41", decode_groups_sse41, 1, encode_groups_scalar, 1, crc32_pclmul, uniform_rows_scalar, grouped_rows_scalar},
     [] { return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("pclmul"); }},
#endif
    {{"scalar", decode_groups_scalar, 1, encode_groups_scalar, 1, crc32_scalar, uniform_rows_scalar, grouped_rows_scalar},
     [] { return true; }},
};

const Candidate& best() {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) return candidate;
  }
  throw std::logic_error("the scalar kernels run everywhere");
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = &best().kernels;
    active.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) names.emplace_back(candidate.kernels.name);
  }
  return names;
}

void select_kernels(const std::string& name) {
  for (const Candidate& candidate : kCandidates) {
    if (name == candidate.kernels.name && candidate.supported()) {
      active.store(&candidate.kernels, std::memory_order_release);
      return;
    }
  }
  throw std::invalid_argument("no kernels named '" + name + "' on this machine");
}

}  // namespace spqfmt
