#include "dispatch.hpp"

#include <atomic>
#include <stdexcept>

namespace spqfmt {
namespace {

struct Candidate {
  Kernels kernels;
  bool (*supported)();
};

// Best first. SPQFMT_X86 is set by the build where the x86 files are compiled.
const Candidate kCandidates[] = {
    {{"scalar", decode_groups_scalar, 1, encode_groups_scalar, 1, crc32_scalar}, [] { return true; }},
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
