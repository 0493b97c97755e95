// A loop over rows on threads that are waiting already, for work of some ten microseconds.
#pragma once

#include <cstddef>
#include <functional>

namespace spqfmt {

// Calls rows(begin, end) for runs that cover 0..n_rows, on up to n_threads threads (0: all usable), the calling one among them.
// `row_products` is the work of one row in multiplications, from which the length of a run follows. `rows` must not throw.
//
// The threads are those of the OpenMP runtime that torch has loaded, so that they do not compete with torch's own, which wait
// busily for some time after each of its operations. Without one, threads are started (parallel.hpp).
void over_rows(size_t n_rows, size_t row_products, size_t n_threads, const std::function<void(size_t, size_t)>& rows);

}  // namespace spqfmt
