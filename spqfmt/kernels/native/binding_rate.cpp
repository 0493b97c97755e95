// Python's side of rate_sweep.hpp: turns buffers into pointers, after checking that each is as long as the numbers say.
#include "binding.hpp"
#include "checked.hpp"
#include "parallel.hpp"
#include "rate_sweep.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

constexpr size_t kRowsPerJob = 16;

void choose(nb::handle weights_object, size_t n_rows, size_t stride, size_t first, size_t n_columns, nb::handle upper_object,
            nb::handle row_object, nb::handle column_object, nb::handle slope_object, nb::handle bits_object,
            nb::handle codes_object, nb::handle errors_object, size_t n_threads) {
  const Target weights(weights_object), codes(codes_object), errors(errors_object);
  const Source upper(upper_object), row(row_object), column(column_object), slope(slope_object), bits(bits_object);
  float* all = array_of<float>(weights, "weights are not float32");
  require(weights.size() / sizeof(float) == product(n_rows, stride), "weights are not a matrix of rows by stride");
  require(first <= stride && n_columns <= stride - first, "the block is not inside the matrix");
  const size_t n = product(n_rows, n_columns);
  require(codes.size() == n, "codes are not one byte a weight of the block");
  float* left = array_of<float>(errors, "errors are not float32");
  require(errors.size() / sizeof(float) == n, "errors are not one a weight of the block");
  const RateBlock block{all + first, stride, n_columns,
                        checked_floats(upper, product(n_columns, n_columns), "upper is not columns by columns"),
                        checked_floats(column, n_columns, "column steps are not one a column")};
  const RateCosts costs{checked_floats(row, n_rows, "row steps are not one a row"),
                        checked_floats(slope, n_rows, "slopes are not one a row"),
                        checked_floats(bits, 256, "bits are not one for each code")};
  int8_t* chosen = reinterpret_cast<int8_t*>(codes.data());
  const nb::gil_scoped_release release;
  parallel_for((n_rows + kRowsPerJob - 1) / kRowsPerJob, n_threads, [&](size_t job) {
    const size_t begin = job * kRowsPerJob, end = begin + kRowsPerJob < n_rows ? begin + kRowsPerJob : n_rows;
    choose_codes(block, costs, begin, end, chosen, left);
  });
}

void improve(nb::handle gradients_object, size_t n_rows, size_t stride, size_t first, size_t n_columns, nb::handle hessian_object,
             nb::handle row_object, nb::handle column_object, nb::handle slope_object, nb::handle bits_object,
             nb::handle codes_object, nb::handle changes_object, size_t n_threads) {
  const Target gradients(gradients_object), codes(codes_object), changes(changes_object);
  const Source hessian(hessian_object), row(row_object), column(column_object), slope(slope_object), bits(bits_object);
  float* all = array_of<float>(gradients, "gradients are not float32");
  require(gradients.size() / sizeof(float) == product(n_rows, stride), "gradients are not a matrix of rows by stride");
  require(first <= stride && n_columns <= stride - first, "the block is not inside the matrix");
  const size_t n = product(n_rows, n_columns);
  require(codes.size() == n, "codes are not one byte a weight of the block");
  float* changed = array_of<float>(changes, "changes are not float32");
  require(changes.size() / sizeof(float) == n, "changes are not one a weight of the block");
  const DescentBlock block{all + first, stride, n_columns,
                           checked_floats(hessian, product(n_columns, n_columns), "hessian is not columns by columns"),
                           checked_floats(column, n_columns, "column steps are not one a column")};
  const RateCosts costs{checked_floats(row, n_rows, "row steps are not one a row"),
                        checked_floats(slope, n_rows, "slopes are not one a row"),
                        checked_floats(bits, 256, "bits are not one for each code")};
  int8_t* chosen = reinterpret_cast<int8_t*>(codes.data());
  const nb::gil_scoped_release release;
  parallel_for((n_rows + kRowsPerJob - 1) / kRowsPerJob, n_threads, [&](size_t job) {
    const size_t begin = job * kRowsPerJob, end = begin + kRowsPerJob < n_rows ? begin + kRowsPerJob : n_rows;
    improve_codes(block, costs, begin, end, chosen, changed);
  });
}

}  // namespace

void bind_rate(nb::module_& m) {
  m.def("choose_codes", &choose, nb::arg("weights"), nb::arg("n_rows"), nb::arg("stride"), nb::arg("first"),
        nb::arg("n_columns"), nb::arg("upper"), nb::arg("row_step"), nb::arg("column_step"), nb::arg("slope"),
        nb::arg("bits"), nb::arg("codes"), nb::arg("errors"), nb::arg("n_threads"));
  m.def("improve_codes", &improve, nb::arg("gradients"), nb::arg("n_rows"), nb::arg("stride"), nb::arg("first"),
        nb::arg("n_columns"), nb::arg("hessian"), nb::arg("row_step"), nb::arg("column_step"), nb::arg("slope"),
        nb::arg("bits"), nb::arg("codes"), nb::arg("changes"), nb::arg("n_threads"));
}

}  // namespace spqfmt
