// Work of some ten microseconds on threads that are waiting already.
//
// The threads are those of the OpenMP runtime that torch has loaded, so that they do not compete with torch's own, which wait
// busily for some time after each of its operations. Without one, threads are started (parallel.hpp).
//
// GNU's runtime does not know of fork: a child has the records of the forking thread's team, without its threads, and waits
// for them for ever, in torch's operations as in ours. So before a fork the team is sent home; the next region calls another.
#pragma once

#include <cstddef>
#include <functional>

namespace spqfmt {

// Threads for work that can be cut into pieces of which `least` is worth waking a waiting thread for, and `least_started`
// starting one: at most n_threads or usable, the calling one among them.
size_t team_size(size_t n_threads, size_t work, size_t least, size_t least_started);

// Calls work() on each of n_threads threads at once. It must not throw, and must not wait for the others: there may be fewer.
void on_team(size_t n_threads, const std::function<void()>& work);

// Calls rows(begin, end) for runs that cover 0..n_rows, on up to n_threads threads, the calling one among them.
// `row_products` is the work of one row in multiplications, from which the length of a run follows. `rows` must not throw.
void over_rows(size_t n_rows, size_t row_products, size_t n_threads, const std::function<void(size_t, size_t)>& rows);

// Calls work() on the calling thread. Up to n_threads - 1 others wait busily meanwhile, and take part in each over_rows that it
// calls: one meeting for many small loops, none of which waits for a thread that is not there. work() may throw.
void with_crew(size_t n_threads, const std::function<void()>& work);

// Called before a fork by the thread that forks. False: the runtime cannot part with its team.
bool disband_team();

// Called in the child: without a team from now on, unless it was `disbanded`.
void after_fork(bool disbanded);

}  // namespace spqfmt
