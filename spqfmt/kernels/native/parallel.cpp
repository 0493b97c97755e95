#include "parallel.hpp"

#include "dispatch.hpp"

#include <algorithm>
#include <future>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace spqfmt {
namespace {

std::atomic<size_t> helping{0};

}  // namespace

size_t usable_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<size_t>(std::max(1, CPU_COUNT(&set)));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

size_t startable_threads(size_t n_threads) {
  std::promise<void> all;
  const std::shared_future<void> wait = all.get_future().share();
  std::vector<std::thread> started;
  started.reserve(n_threads);
  try {
    while (started.size() + 1 < n_threads) started.emplace_back([wait] { wait.wait(); });
  } catch (const std::system_error&) {  // a limit, or no memory for another stack
  }
  all.set_value();
  for (std::thread& thread : started) thread.join();
  return started.size() + 1;
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

Helpers::Helpers(size_t n_threads) : n_(0) {
  const size_t most = std::max<size_t>(1, n_threads) - 1;
  size_t busy = helping.load();
  do {
    n_ = most - std::min(most, busy);
  } while (!helping.compare_exchange_weak(busy, busy + n_));
}

Helpers::~Helpers() { helping.fetch_sub(n_); }

void forget_helpers() { helping.store(0); }

void on_started(size_t n_helpers, const std::function<void()>& work) {
  std::vector<std::thread> helpers;
  helpers.reserve(n_helpers);
  for (size_t t = 0; t < n_helpers; t++) {
    try {
      helpers.emplace_back([&work, kernels = thread_kernels()] {
        take_kernels(kernels);
        work();
      });
    } catch (const std::system_error&) {  // no memory for another stack, or a limit: the threads there are do it
      break;
    }
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

void parallel_for(size_t n_jobs, size_t n_threads, const std::function<void(size_t)>& job) {
  const Helpers helpers(std::min({n_threads, usable_threads(), n_jobs}));
  SharedJobs jobs(n_jobs, job);
  on_started(helpers.n(), [&] { jobs.work(); });
  jobs.rethrow();
}

}  // namespace spqfmt
