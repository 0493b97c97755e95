// Python's side of multiply.hpp.
#include <optional>

#include "binding.hpp"
#include "bitstream.hpp"
#include "checked.hpp"
#include "multiply.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

struct Sizes {
  size_t n_rows, n_columns, n_tokens;
};

// Borrows the buffers of the outliers, all three or none.
class OutlierBuffers {
 public:
  OutlierBuffers(nb::handle begin, nb::handle column, nb::handle value) {
    if (begin.is_none()) return;
    begin_.emplace(begin);
    column_.emplace(column);
    value_.emplace(value);
  }

  Outliers checked(const Sizes& sizes) const {
    if (!begin_) return {nullptr, nullptr, nullptr};
    const int64_t* begin = array_of<const int64_t>(*begin_, "row_begin is not int64");
    const uint32_t* column = array_of<const uint32_t>(*column_, "outlier columns are not uint32");
    const float* value = array_of<const float>(*value_, "outlier values are not float32");
    const size_t n = column_->size() / sizeof(uint32_t);
    require(begin_->size() / sizeof(int64_t) == sizes.n_rows + 1, "row_begin is not one a row and one more");
    require(value_->size() / sizeof(float) == n, "outlier columns and values differ in number");
    require(begin[0] >= 0 && static_cast<uint64_t>(begin[sizes.n_rows]) <= n, "row_begin passes the outliers");
    for (size_t row = 0; row < sizes.n_rows; row++) {
      require(begin[row] <= begin[row + 1], "row_begin does not ascend");
      for (int64_t i = begin[row]; i < begin[row + 1]; i++) {
        require(column[i] < sizes.n_columns && (i == begin[row] || column[i - 1] < column[i]), "outlier columns do not ascend");
      }
    }
    return {begin, column, value};
  }

 private:
  std::optional<Source> begin_, column_, value_;
};

Tokens checked_tokens(const Buffer& x, const Buffer& y, const Sizes& sizes, size_t first_output, size_t y_stride) {
  const float* from = checked_floats(x, product(sizes.n_tokens, sizes.n_columns), "x is not float32[n_tokens, n_columns]");
  const float* to = checked_floats(y, product(sizes.n_tokens, y_stride), "y is not float32[n_tokens, y_stride]");
  require(first_output <= y_stride && sizes.n_rows <= y_stride - first_output, "y has not a place for every row");
  return {from, const_cast<float*>(to) + first_output, sizes.n_tokens, y_stride};
}

void uniform(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             nb::handle row_object, nb::handle column_object, nb::handle begin, nb::handle columns, nb::handle values,
             nb::handle x_object, size_t n_tokens, nb::handle y_object, size_t first_output, size_t y_stride, size_t n_threads) {
  const Sizes sizes{n_rows, n_columns, n_tokens};
  const Source codes_buffer(codes_object), row(row_object), x(x_object);
  std::optional<Source> column;
  if (!column_object.is_none()) column.emplace(column_object);
  const OutlierBuffers outlier_buffers(begin, columns, values);
  const Target y(y_object);
  const Codes codes = checked_codes(codes_buffer, first, bits, is_signed, product(n_rows, n_columns));
  const UniformScales scales{
      checked_floats(row, n_rows, "row factors are not one float32 a row"),
      column ? checked_floats(*column, n_columns, "column factors are not one float32 a column") : nullptr};
  const Tokens tokens = checked_tokens(x, y, sizes, first_output, y_stride);
  const nb::gil_scoped_release release;
  multiply_uniform(codes, n_rows, n_columns, scales, outlier_buffers.checked(sizes), tokens, n_threads);
}

void grouped(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             size_t group_size, nb::handle scale_object, unsigned kind, nb::handle offset_object, nb::handle begin,
             nb::handle columns, nb::handle values, nb::handle x_object, size_t n_tokens, nb::handle y_object,
             size_t first_output, size_t y_stride, size_t n_threads) {
  const Sizes sizes{n_rows, n_columns, n_tokens};
  const Source codes_buffer(codes_object), scale(scale_object), x(x_object);
  std::optional<Source> offset;
  if (!offset_object.is_none()) offset.emplace(offset_object);
  const OutlierBuffers outlier_buffers(begin, columns, values);
  const Target y(y_object);
  const Codes codes = checked_codes(codes_buffer, first, bits, is_signed, product(n_rows, n_columns));
  const GroupScales scales = checked_groups(scale, offset ? &*offset : nullptr, kind, n_rows, n_columns, group_size);
  const Tokens tokens = checked_tokens(x, y, sizes, first_output, y_stride);
  const nb::gil_scoped_release release;
  multiply_grouped(codes, n_rows, n_columns, scales, outlier_buffers.checked(sizes), tokens, n_threads);
}

}  // namespace

void bind_multiply(nb::module_& m) {
  m.def("multiply_uniform", &uniform, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("row"), nb::arg("column").none(), nb::arg("row_begin").none(),
        nb::arg("outlier_columns").none(), nb::arg("outlier_values").none(), nb::arg("x"), nb::arg("n_tokens"), nb::arg("y"),
        nb::arg("first_output"), nb::arg("y_stride"), nb::arg("n_threads"));
  m.def("multiply_grouped", &grouped, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("group_size"), nb::arg("scale"), nb::arg("kind"),
        nb::arg("offset").none(), nb::arg("row_begin").none(), nb::arg("outlier_columns").none(),
        nb::arg("outlier_values").none(), nb::arg("x"), nb::arg("n_tokens"), nb::arg("y"), nb::arg("first_output"),
        nb::arg("y_stride"), nb::arg("n_threads"));
}

}  // namespace spqfmt
