// What kernels throw. The binding turns these into spqfmt.errors; std::invalid_argument becomes ValueError.
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>

namespace spqfmt {

enum class Fault {
  corrupt,      // the bytes break a rule of the format
  limit,        // a number passes a limit of the format
  checksum,     // the bytes are not the ones that were written
  unsupported,  // the bytes name something that this version does not know
};

struct DataError : std::runtime_error {
  explicit DataError(const std::string& reason, Fault fault = Fault::corrupt) : std::runtime_error(reason), fault(fault) {}

  Fault fault;
  std::optional<size_t> job;  // number of the chunk, where many are decoded at once
};

}  // namespace spqfmt
