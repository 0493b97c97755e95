#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace spqfmt {

size_t usable_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(size_t n_jobs, size_t n_threads, const std::function<void(size_t)>& job) {
  const size_t usable = usable_threads();
  n_threads = std::min({n_threads == 0 ? usable : n_threads, usable, n_jobs});
  std::atomic<size_t> next{0};
  std::mutex mutex;
  size_t failed = n_jobs;
  std::exception_ptr error;

  // Jobs are handed out in order: when job i fails, all below i have been handed out and will report, and none above is
  // needed any more. So the lowest failure wins without waiting for the rest.
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(1)) < n_jobs;) {
      try {
        job(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (i < failed) {
          failed = i;
          error = std::current_exception();
        }
        next.store(n_jobs);
      }
    }
  };
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < n_threads; t++) {
    try {
      helpers.emplace_back(work);
    } catch (const std::system_error&) {  // no memory for another stack: the threads there are do it
      break;
    }
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace spqfmt
