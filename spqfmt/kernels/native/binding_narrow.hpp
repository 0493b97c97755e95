// Narrow codes as Python holds them.
#pragma once

#include <deque>
#include <vector>

#include "buffer.hpp"
#include "checked.hpp"
#include "multiply.hpp"
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

// Codes of all rows whose columns lie apart, borrowed: bytes or NarrowCodes, and their columns.
class PieceCodes {
 public:
  PieceCodes(const nanobind::list& pieces, size_t n_rows) : n_rows_(n_rows) {
    require(pieces.size() > 0, "there are no pieces");
    for (nanobind::handle given : pieces) {
      const nanobind::tuple pair = nanobind::cast<nanobind::tuple>(given);
      const size_t n_columns = nanobind::cast<size_t>(pair[1]);
      require(n_columns > 0 && n_columns < SIZE_MAX / 2 - n_columns_, "a piece has no columns");
      HeldCodes held{{nullptr, 0, 8, true, nullptr}};
      if (nanobind::isinstance<NarrowCodes>(pair[0])) {
        const NarrowCodes* narrow = nanobind::cast<const NarrowCodes*>(pair[0]);
        require(narrow->n_columns() == n_columns && narrow->rows().n_rows == n_rows, "narrow codes are of another piece");
        held.rows = &narrow->rows();
      } else {
        const Source& bytes = buffers_.emplace_back(pair[0]);
        require(bytes.size() == product(n_rows, n_columns), "a piece has other codes");
        held.codes.bytes = bytes.data();
      }
      kept_.push_back(nanobind::borrow(pair[0]));
      pieces_.push_back({held, n_columns_, n_columns});
      n_columns_ += n_columns;
    }
    all_ = {pieces_.data(), pieces_.size()};
  }

  PieceCodes(const PieceCodes&) = delete;
  PieceCodes& operator=(const PieceCodes&) = delete;

  size_t n_rows() const { return n_rows_; }
  size_t n_columns() const { return n_columns_; }
  const ColumnPieces& pieces() const { return all_; }

 private:
  size_t n_rows_, n_columns_ = 0;
  std::deque<Source> buffers_;
  std::vector<nanobind::object> kept_;
  std::vector<ColumnPiece> pieces_;
  ColumnPieces all_{};
};

}  // namespace spqfmt
