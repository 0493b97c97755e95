// Python's side of dequantize.hpp: turns buffers into pointers, after checking that each is as long as the numbers say.

#include "binding.hpp"
#include "bitstream.hpp"
#include "buffer.hpp"
#include "checked.hpp"
#include "dequantize.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

uint8_t* checked_weights(const Buffer& dst, size_t n, FloatType type) {
  require(dst.size() == product(n, float_bytes(type)), "dst is not as large as the matrix");
  require(reinterpret_cast<uintptr_t>(dst.data()) % float_bytes(type) == 0, "dst is not aligned");
  return dst.data();
}

void uniform(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             nb::handle row, nb::handle column, unsigned type_number, nb::handle dst_object, size_t n_threads) {
  const Source codes_buffer(codes_object);
  const UniformParameters parameters(row, column);
  const Target dst(dst_object);
  const size_t n = product(n_rows, n_columns);
  const Codes codes = checked_codes(codes_buffer, first, bits, is_signed, n);
  const UniformScales scales = parameters.checked(n_rows, n_columns);
  const FloatType type = checked_type(type_number);
  uint8_t* weights = checked_weights(dst, n, type);
  const nb::gil_scoped_release release;
  dequantize_uniform(codes, n_rows, n_columns, scales, type, weights, n_threads);
}

void grouped(nb::handle codes_object, size_t first, unsigned bits, bool is_signed, size_t n_rows, size_t n_columns,
             nb::handle values_object, size_t group_size, nb::handle scale, unsigned kind, nb::handle offset, unsigned type_number,
             nb::handle dst_object, size_t n_threads) {
  const Source codes_buffer(codes_object);
  const OptionalSource values(values_object);
  const GroupParameters parameters(group_size, scale, kind, offset);
  const Target dst(dst_object);
  const size_t n = product(n_rows, n_columns);
  Codes codes = checked_codes(codes_buffer, first, bits, is_signed, n);
  if (const Source* known = values.get()) {
    require(!is_signed, "codes with values are numbers of them");
    codes.values = checked_floats(*known, size_t{1} << bits, "values is not float32[2^bits]");
  }
  const GroupScales scales = parameters.checked(n_rows, n_columns);
  const FloatType type = checked_type(type_number);
  uint8_t* weights = checked_weights(dst, n, type);
  const nb::gil_scoped_release release;
  dequantize_grouped(codes, n_rows, n_columns, scales, type, weights, n_threads);
}

}  // namespace

void bind_dequantize(nb::module_& m) {
  m.def("dequantize_uniform", &uniform, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("row"), nb::arg("column").none(), nb::arg("type"), nb::arg("dst"),
        nb::arg("n_threads"));
  m.def("dequantize_grouped", &grouped, nb::arg("codes"), nb::arg("first"), nb::arg("bits"), nb::arg("is_signed"),
        nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("values").none(), nb::arg("group_size"), nb::arg("scale"), nb::arg("kind"),
        nb::arg("offset").none(), nb::arg("type"), nb::arg("dst"), nb::arg("n_threads"));
}

}  // namespace spqfmt
