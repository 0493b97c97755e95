// Narrow codes as Python holds them.
#pragma once

#include <deque>
#include <vector>

#include "buffer.hpp"
#include "checked.hpp"
#include "narrow.hpp"

namespace spqfmt {

// Runs of whole rows, one after the other, borrowed: (bytes, rows) each.
class NarrowCodes {
 public:
  NarrowCodes(const nanobind::list& parts, size_t n_columns) : n_columns_(n_columns) {
    size_t row = 0;
    for (nanobind::handle part : parts) {
      const nanobind::tuple pair = nanobind::cast<nanobind::tuple>(part);
      const Source& bytes = buffers_.emplace_back(pair[0]);
      const size_t n_rows = nanobind::cast<size_t>(pair[1]);
      require(n_rows > 0, "a part has no rows");
      parts_.push_back({narrow_at(bytes.data(), bytes.size(), product(n_rows, n_columns)), row, row + n_rows});
      row += n_rows;
    }
    rows_ = {parts_.data(), row};
  }

  NarrowCodes(const NarrowCodes&) = delete;
  NarrowCodes& operator=(const NarrowCodes&) = delete;

  size_t n_columns() const { return n_columns_; }
  const NarrowRows& rows() const { return rows_; }

 private:
  size_t n_columns_;
  std::deque<Source> buffers_;
  std::vector<NarrowRows::Part> parts_;
  NarrowRows rows_;
};

}  // namespace spqfmt
