#include "parallel.hpp"

#include <algorithm>
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

void SharedJobs::work() {
  for (size_t i; (i = next_.fetch_add(1)) < n_jobs_;) {
    try {
      job_(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (i < failed_) {
        failed_ = i;
        error_ = std::current_exception();
      }
      next_.store(n_jobs_);
    }
  }
}

void SharedJobs::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

void parallel_for(size_t n_jobs, size_t n_threads, const std::function<void(size_t)>& job) {
  const size_t usable = usable_threads();
  n_threads = std::min({n_threads == 0 ? usable : n_threads, usable, n_jobs});
  SharedJobs jobs(n_jobs, job);
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < n_threads; t++) {
    try {
      helpers.emplace_back([&] { jobs.work(); });
    } catch (const std::system_error&) {  // no memory for another stack: the threads there are do it
      break;
    }
  }
  jobs.work();
  for (std::thread& helper : helpers) helper.join();
  jobs.rethrow();
}

}  // namespace spqfmt
