// A loop over independent jobs on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace spqfmt {

// Threads that can really run at once: what the process may use, not what the machine has.
size_t usable_threads();

// Calls job(i) for every i < n_jobs on up to n_threads threads (0: all usable; never more than usable or than jobs), the
// calling one among them. If jobs throw, the exception of the lowest such i is thrown, whatever the number of threads;
// jobs above it may not have run.
void parallel_for(size_t n_jobs, size_t n_threads, const std::function<void(size_t)>& job);

}  // namespace spqfmt
