// Which set of kernels runs. Chosen once per process by what the processor can do, or by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "crc32.hpp"
#include "decoder.hpp"
#include "dequantize.hpp"
#include "encoder.hpp"
#include "multiply.hpp"

namespace spqfmt {

inline constexpr size_t kMaxLockstep = 8;

struct Kernels {
  const char* name;
  DecodeGroups decode_groups;
  size_t decode_lockstep;  // blocks that decode_groups likes to get at once, at most kMaxLockstep
  EncodeGroups encode_groups;
  size_t encode_lockstep;
  Crc32 crc32;
  UniformRows uniform_rows;
  GroupedRows grouped_rows;
  const MultiplyKernels* multiply;
};

// The kernels in use.
const Kernels& active_kernels();
// Names that select_kernels takes on this machine, best first; "scalar" is always there.
std::vector<std::string> available_kernels();
// All sets that this machine can run, also those that it has a faster one of the same name for. For tests and measurements.
std::vector<std::string> kernel_variants();
// Takes a name or a variant. Throws std::invalid_argument for one that this machine cannot run. Not for use while kernels run elsewhere:
// that is safe, but a chunk in progress may finish with either set. Both give the same bytes.
void select_kernels(const std::string& name);

}  // namespace spqfmt
