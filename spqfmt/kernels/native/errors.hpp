// What kernels throw. The binding turns these into spqfmt.errors; std::invalid_argument becomes ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace spqfmt {

// The bytes break a rule of the format.
struct CorruptError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The bytes are not the ones that were written.
struct ChecksumError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace spqfmt
