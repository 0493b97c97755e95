// Python's side of norm.hpp. Activations, weights and outputs are addresses, as in binding_multiply.cpp.

#include "binding.hpp"
#include "checked.hpp"
#include "norm.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

void norm(uintptr_t x, unsigned type, size_t n_tokens, size_t n_columns, uintptr_t weight, float epsilon, float offset,
          bool rounds_first, uintptr_t y, size_t n_threads) {
  const Floats from{reinterpret_cast<const void*>(x), checked_type(type)};
  const RootMeanSquare form{reinterpret_cast<const void*>(weight), epsilon, offset, rounds_first};
  product(n_tokens, n_columns);
  const nb::gil_scoped_release release;
  root_mean_square(from, n_tokens, n_columns, form, reinterpret_cast<void*>(y), n_threads);
}

}  // namespace

void bind_norm(nb::module_& m) { m.def("root_mean_square", &norm); }

}  // namespace spqfmt
