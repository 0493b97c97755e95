// Which set of kernels runs: what the calling thread has selected, else the process's default, which is what the processor
// can do best. Threads that help another take its selection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "crc32.hpp"
#include "decoder.hpp"
#include "dequantize.hpp"
#include "encoder.hpp"
#include "multiply.hpp"
#include "trellis.hpp"

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
  const IntegerKernels* integers;
  const LaneKernels* lanes;
  const TokenKernels* token;
  UnfoldRows unfold_rows;
};

// The kernels in use by the calling thread.
const Kernels& active_kernels();
// Names that select_kernels takes on this machine, best first; "scalar" is always there.
std::vector<std::string> available_kernels();
// All sets that this machine can run, also those that it has a faster one of the same name for. For tests and measurements.
std::vector<std::string> kernel_variants();
// For the calling thread, by a name or a variant; "" goes back to the default. Throws std::invalid_argument for one that this machine
// cannot run.
void select_kernels(const std::string& name);
// For all threads that have selected none. Throws likewise.
void default_kernels(const std::string& name);
// What the calling thread has selected, nullptr for nothing; and how a thread that helps it takes that over.
const Kernels* thread_kernels();
void take_kernels(const Kernels* kernels);

}  // namespace spqfmt
