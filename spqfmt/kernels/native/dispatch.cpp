#include "dispatch.hpp"

#if defined(SPQFMT_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <atomic>
#include <stdexcept>

namespace spqfmt {
namespace {

const TokenKernels token_scalar{attend_scalar, gate_values_scalar};
#if defined(SPQFMT_X86)
const TokenKernels token_avx2{attend_avx2, gate_values_avx2};
const TokenKernels token_avx512{attend_avx512, gate_values_avx512};
#endif

struct Candidate {
  Kernels kernels;
  const char* variant;
  bool (*preferred)();  // by `kernels.name`
  bool (*supported)();  // by `variant`
};

#if defined(SPQFMT_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("popcnt");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
         __builtin_cpu_supports("pclmul");
}
bool has_sse41() { return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("pclmul"); }
// Measured on Zen 5: single loads decode a quarter faster than gathers; on Intel's processors gathers win.
bool has_slow_gather() { return __builtin_cpu_is("amd"); }
#endif

#if defined(SPQFMT_ARM64)
// NEON is part of AArch64; the instructions for checksums may be absent from its first version.
bool has_crc32() {
#if defined(__linux__)
  constexpr unsigned long kHwcapCrc32 = 1ul << 7;  // HWCAP_CRC32 of the kernel's header
  return (getauxval(AT_HWCAP) & kHwcapCrc32) != 0;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}
#endif

// Best first; of two with one name the first that is supported is meant. The others of a name can be chosen by name:variant.
// SPQFMT_X86 and SPQFMT_ARM64 are defined by the build where the files of these are compiled; another architecture adds its files
// and rows likewise.
const Candidate kCandidates[] = {
#if defined(SPQFMT_X86)
    {{"avx512", decode_groups_avx512_loads, 4, encode_groups_avx512, 4, crc32_vpclmul,
      uniform_rows_avx512, grouped_rows_avx512, &multiply_avx512, &integers_avx512, &lanes_avx512, &token_avx512, unfold_rows_avx512},
     "avx512:loads", [] { return has_avx512() && has_slow_gather(); }, has_avx512},
    {{"avx512", decode_groups_avx512_gather, 8, encode_groups_avx512, 4, crc32_vpclmul,
      uniform_rows_avx512, grouped_rows_avx512, &multiply_avx512, &integers_avx512, &lanes_avx512, &token_avx512, unfold_rows_avx512},
     "avx512:gather", has_avx512, has_avx512},
    {{"avx2", decode_groups_avx2_loads, 3, encode_groups_avx2, 1, crc32_pclmul,
      uniform_rows_avx2, grouped_rows_avx2, &multiply_avx2, &integers_avx2, &lanes_avx2, &token_avx2, unfold_rows_avx2},
     "avx2:loads", [] { return has_avx2() && has_slow_gather(); }, has_avx2},
    {{"avx2", decode_groups_avx2_gather, 3, encode_groups_avx2, 1, crc32_pclmul,
      uniform_rows_avx2, grouped_rows_avx2, &multiply_avx2, &integers_avx2, &lanes_avx2, &token_avx2, unfold_rows_avx2},
     "avx2:gather", has_avx2, has_avx2},
    {{"sse41", decode_groups_sse41, 1, encode_groups_scalar, 1, crc32_pclmul,
      uniform_rows_scalar, grouped_rows_scalar, &multiply_scalar, &integers_scalar, &lanes_scalar, &token_scalar, unfold_rows_scalar},
     "sse41", has_sse41, has_sse41},
#endif
#if defined(SPQFMT_ARM64)
    {{"neon", decode_groups_neon, 2, encode_groups_scalar, 1, crc32_arm,
      uniform_rows_scalar, grouped_rows_scalar, &multiply_scalar, &integers_scalar, &lanes_scalar, &token_scalar, unfold_rows_scalar},
     "neon:crc", has_crc32, has_crc32},
    {{"neon", decode_groups_neon, 2, encode_groups_scalar, 1, crc32_scalar,
      uniform_rows_scalar, grouped_rows_scalar, &multiply_scalar, &integers_scalar, &lanes_scalar, &token_scalar, unfold_rows_scalar},
     "neon:plain", [] { return true; }, [] { return true; }},
#endif
    {{"scalar", decode_groups_scalar, 1, encode_groups_scalar, 1, crc32_scalar,
      uniform_rows_scalar, grouped_rows_scalar, &multiply_scalar, &integers_scalar, &lanes_scalar, &token_scalar, unfold_rows_scalar},
     "scalar", [] { return true; }, [] { return true; }},
};

const Candidate& best() {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.preferred()) return candidate;
  }
  throw std::logic_error("the scalar kernels run everywhere");
}

const Kernels& named(const std::string& name) {
  for (const Candidate& candidate : kCandidates) {
    const bool by_name = name == candidate.kernels.name && candidate.preferred();
    if (by_name || (name == candidate.variant && candidate.supported())) return candidate.kernels;
  }
  throw std::invalid_argument("no kernels named '" + name + "' on this machine");
}

std::atomic<const Kernels*> of_process{nullptr};
thread_local const Kernels* of_thread = nullptr;

}  // namespace

const Kernels& active_kernels() {
  if (of_thread != nullptr) return *of_thread;
  const Kernels* kernels = of_process.load(std::memory_order_acquire);
  if (kernels == nullptr) {
    kernels = &best().kernels;
    of_process.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

const Kernels* thread_kernels() { return of_thread; }

void take_kernels(const Kernels* kernels) { of_thread = kernels; }

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.preferred() && (names.empty() || names.back() != candidate.kernels.name)) {
      names.emplace_back(candidate.kernels.name);
    }
  }
  return names;
}

std::vector<std::string> kernel_variants() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) names.emplace_back(candidate.variant);
  }
  return names;
}

void select_kernels(const std::string& name) { of_thread = name.empty() ? nullptr : &named(name); }

void default_kernels(const std::string& name) { of_process.store(&named(name), std::memory_order_release); }

}  // namespace spqfmt
