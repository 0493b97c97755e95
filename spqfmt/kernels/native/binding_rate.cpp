// Python's side of rate_sweep.hpp and path_sweep.hpp: turns buffers into pointers, after checking that each is as long as the numbers say.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <string>

#include "binding.hpp"
#include "checked.hpp"
#include "parallel.hpp"
#include "path_sweep.hpp"
#include "rate_sweep.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

// Some rows at a time of `function`, one of the four of the two headers; `name` is what the square matrix is called. `borders`, uint64, are 0,
// the last rows + 1 of each time, and so the number of rows: for paths tiles.
template <void (*function)(const RateBlock&, const RateCosts&, size_t, size_t, int8_t*, float*)>
void sweep(const std::string& name, nb::handle values_object, size_t n_rows, size_t stride, size_t first, size_t n_columns,
           nb::handle square_object, nb::handle row_object, nb::handle column_object, nb::handle slope_object, nb::handle bits_object,
           nb::handle codes_object, nb::handle out_object, nb::handle borders_object, size_t n_threads) {
  const Target values(values_object), codes(codes_object), out(out_object);
  const Source square(square_object), row(row_object), column(column_object), slope(slope_object), bits(bits_object), borders(borders_object);
  float* all = array_of<float>(values, "values are not float32");
  require(values.size() / sizeof(float) == product(n_rows, stride), "values are not a matrix of rows by stride");
  require(first <= stride && n_columns <= stride - first, "the block is not inside the matrix");
  const size_t n = product(n_rows, n_columns);
  require(codes.size() == n, "codes are not one byte a weight of the block");
  float* told = array_of<float>(out, "errors or changes are not float32");
  require(out.size() / sizeof(float) == n, "errors or changes are not one a weight of the block");
  const std::string not_square = name + " is not columns by columns";
  const RateBlock block{all + first, stride, n_columns, checked_floats(square, product(n_columns, n_columns), not_square.c_str()),
                        checked_floats(column, n_columns, "column steps are not one a column")};
  const RateCosts costs{checked_floats(row, n_rows, "row steps are not one a row"),
                        checked_floats(slope, n_rows, "slopes are not one a row"),
                        checked_floats(bits, 256, "bits are not one for each code")};
  int8_t* chosen = reinterpret_cast<int8_t*>(codes.data());
  const uint64_t* border = array_of<uint64_t>(borders, "borders are not uint64");
  const size_t n_borders = borders.size() / sizeof(uint64_t);
  require(n_borders > 0 && border[0] == 0 && border[n_borders - 1] == n_rows && std::is_sorted(border, border + n_borders),
          "borders do not rise from 0 to the number of rows");
  const nb::gil_scoped_release release;
  parallel_for(n_borders - 1, n_threads,
               [&](size_t job) { function(block, costs, border[job], border[job + 1], chosen, told); });
}

}  // namespace

void bind_rate(nb::module_& m) {
  const auto define = [&](const char* name, auto function) {
    m.def(name, function, nb::arg("name"), nb::arg("values"), nb::arg("n_rows"), nb::arg("stride"), nb::arg("first"),
          nb::arg("n_columns"), nb::arg("square"), nb::arg("row_step"), nb::arg("column_step"), nb::arg("slope"), nb::arg("bits"),
          nb::arg("codes"), nb::arg("out"), nb::arg("borders"), nb::arg("n_threads"));
  };
  define("choose_codes", &sweep<choose_codes>);
  define("improve_codes", &sweep<improve_codes>);
  define("choose_paths", &sweep<choose_paths>);
  define("improve_paths", &sweep<improve_paths>);
}

}  // namespace spqfmt
