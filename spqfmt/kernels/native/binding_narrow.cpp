// Python's side of narrow.hpp.

#include "binding_narrow.hpp"

#include "binding.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

bool narrow(nb::handle codes_object, nb::handle out_object) {
  const Source codes(codes_object);
  const Target out(out_object);
  const nb::gil_scoped_release release;
  return narrow_codes(codes.data(), codes.size(), out.data(), out.size());
}

void widen(nb::handle narrow_object, nb::handle out_object, size_t n_threads) {
  const Source bytes(narrow_object);
  const Target out(out_object);
  const Narrow found = narrow_at(bytes.data(), bytes.size(), out.size());
  const nb::gil_scoped_release release;
  widen_all(found, out.data(), n_threads);
}

}  // namespace

void bind_narrow(nb::module_& m) {
  nb::class_<NarrowCodes>(m, "NarrowCodes").def(nb::init<const nb::list&, size_t>(), nb::arg("parts"), nb::arg("n_columns"));
  nb::class_<PieceCodes>(m, "PieceCodes").def(nb::init<const nb::list&, size_t>(), nb::arg("pieces"), nb::arg("n_rows"));
  m.def("narrow", &narrow, nb::arg("codes"), nb::arg("out"));
  m.def("widen", &widen, nb::arg("narrow"), nb::arg("out"), nb::arg("n_threads"));
}

}  // namespace spqfmt
