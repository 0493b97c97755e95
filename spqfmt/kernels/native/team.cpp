#include "team.hpp"

#include <algorithm>
#include <atomic>

#include "bitstream.hpp"
#include "parallel.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace spqfmt {
namespace {

// Waking a thread that waits costs some microseconds, starting one some ten.
constexpr size_t kTeamProducts = size_t{1} << 15;
constexpr size_t kStartedProducts = size_t{1} << 20;
// Runs for each thread: so many that one which is held up does not hold up all.
constexpr size_t kRunsPerThread = 4;
// Kernels take rows by fours.
constexpr size_t kRowStep = 4;

// void GOMP_parallel(void (*function)(void*), void* data, unsigned n_threads, unsigned flags): the entry that compiled
// `omp parallel` regions use, of GNU's runtime and, for compatibility, of LLVM's.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

Parallel team() {
#if defined(__linux__)
  static std::atomic<Parallel> found{nullptr};
  Parallel parallel = found.load(std::memory_order_relaxed);
  if (parallel == nullptr) {  // torch can be imported later
    parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    found.store(parallel, std::memory_order_relaxed);
  }
  return parallel;
#else
  return nullptr;
#endif
}

}  // namespace

size_t team_size(size_t n_threads, size_t work, size_t least, size_t least_started) {
  if (n_threads != 1) {
    const size_t usable = usable_threads();
    n_threads = n_threads == 0 ? usable : std::min(n_threads, usable);
  }
  if (n_threads == 1) return 1;
  return std::max<size_t>(1, std::min(n_threads, ceil_div(work, team() != nullptr ? least : least_started)));
}

void on_team(size_t n_threads, const std::function<void()>& work) {
  const Parallel parallel = n_threads > 1 ? team() : nullptr;
  if (n_threads <= 1) {
    work();
  } else if (parallel != nullptr) {
    parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); }, const_cast<std::function<void()>*>(&work),
             static_cast<unsigned>(n_threads), 0);
  } else {
    parallel_for(n_threads, n_threads, [&](size_t) { work(); });
  }
}

void over_rows(size_t n_rows, size_t row_products, size_t n_threads, const std::function<void(size_t, size_t)>& rows) {
  if (n_rows == 0 || row_products == 0) return;
  const size_t least = ceil_div(team() != nullptr ? kTeamProducts : kStartedProducts, row_products);
  n_threads = team_size(n_threads, n_rows, least, least);
  if (n_threads == 1) {
    rows(0, n_rows);
    return;
  }
  const size_t length = round_up(std::max(least, ceil_div(n_rows, n_threads * kRunsPerThread)), kRowStep);
  std::atomic<size_t> next{0};
  on_team(n_threads, [&] {
    for (size_t begin; (begin = next.fetch_add(length)) < n_rows;) rows(begin, std::min(n_rows, begin + length));
  });
}

}  // namespace spqfmt
