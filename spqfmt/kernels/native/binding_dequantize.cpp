// Python's side of dequantize.hpp: turns buffers into pointers, after checking that each is as long as the numbers say.
#include <optional>

#include "binding.hpp"
#include "bitstream.hpp"
#include "buffer.hpp"
#include "checked.hpp"
#include "dequantize.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

FloatType checked_type(unsigned type) {
  require(type <= static_cast<unsigned>(FloatType::f16), "unknown float type");
  return static_cast<FloatType>(type);
}

uint8_t* checked_weights(const Buffer& dst, size_t n, FloatType type) {
  require(dst.size() == product(n, float_bytes(type)), "dst is not as large as the matrix");
  require(reinterpret_cast<uintptr_t>(dst.data()) % float_bytes(type) == 0, "dst is not aligned");
  return dst.data();
}

void uniform(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             nb::handle row_object, nb::handle column_object, unsigned type_number, nb::handle dst_object, size_t n_threads) {
  const Source codes_buffer(codes_object), row(row_object);
  std::optional<Source> column;
  if (!column_object.is_none()) column.emplace(column_object);
  const Target dst(dst_object);
  const size_t n = product(n_rows, n_columns);
  const Codes codes = checked_codes(codes_buffer, first, bits, is_signed, n);
  const UniformScales scales{
      checked_floats(row, n_rows, "row factors are not one float32 a row"),
      column ? checked_floats(*column, n_columns, "column factors are not one float32 a column") : nullptr};
  const FloatType type = checked_type(type_number);
  uint8_t* weights = checked_weights(dst, n, type);
  const nb::gil_scoped_release release;
  dequantize_uniform(codes, n_rows, n_columns, scales, type, weights, n_threads);
}

void grouped(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             size_t group_size, nb::handle scale_object, unsigned kind, nb::handle offset_object, unsigned type_number,
             nb::handle dst_object, size_t n_threads) {
  const Source codes_buffer(codes_object), scale(scale_object);
  std::optional<Source> offset;
  if (!offset_object.is_none()) offset.emplace(offset_object);
  const Target dst(dst_object);
  const Codes codes = checked_codes(codes_buffer, first, bits, is_signed, product(n_rows, n_columns));
  const GroupScales scales = checked_groups(scale, offset ? &*offset : nullptr, kind, n_rows, n_columns, group_size);
  const FloatType type = checked_type(type_number);
  uint8_t* weights = checked_weights(dst, product(n_rows, n_columns), type);
  const nb::gil_scoped_release release;
  dequantize_grouped(codes, n_rows, n_columns, scales, type, weights, n_threads);
}

}  // namespace

void bind_dequantize(nb::module_& m) {
  m.def("dequantize_uniform", &uniform, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("row"), nb::arg("column").none(), nb::arg("type"), nb::arg("dst"),
        nb::arg("n_threads"));
  m.def("dequantize_grouped", &grouped, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("group_size"), nb::arg("scale"), nb::arg("kind"),
        nb::arg("offset").none(), nb::arg("type"), nb::arg("dst"), nb::arg("n_threads"));
}

}  // namespace spqfmt
