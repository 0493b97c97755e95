// A loop over independent jobs on several threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>

namespace spqfmt {

// Threads that can really run at once: what the process may use, not what the machine has.
size_t usable_threads();

// How many of n_threads threads, the calling one among them, the system lets this process have now: the others are started,
// and end at once.
size_t startable_threads(size_t n_threads);

// job(i) for every i < n_jobs, shared among the threads that call work(). Jobs are handed out in order: when job i
// throws, all below i have been handed out and will report, and none above is needed any more. So rethrow(), called when
// all threads are done, throws the exception of the lowest i without waiting for the rest, however many threads there are.
class SharedJobs {
 public:
  SharedJobs(size_t n_jobs, std::function<void(size_t)> job) : n_jobs_(n_jobs), job_(std::move(job)), failed_(n_jobs) {}
  void work();
  void rethrow() const;

 private:
  const size_t n_jobs_;
  const std::function<void(size_t)> job_;
  std::atomic<size_t> next_{0};
  std::mutex mutex_;
  size_t failed_;
  std::exception_ptr error_;
};

// Threads that may help the calling one: n_threads - 1, less those that help others in this process meanwhile.
class Helpers {
 public:
  explicit Helpers(size_t n_threads);
  ~Helpers();
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;
  size_t n() const { return n_; }

 private:
  size_t n_;
};

// In a forked child: those that helped the parent's other threads are not here.
void forget_helpers();

// Calls work() on the calling thread and on up to n_helpers that are started for it; fewer where the system starts no more.
void on_started(size_t n_helpers, const std::function<void()>& work);

// Calls job(i) for every i < n_jobs on up to n_threads threads (never more than usable or than jobs), the calling one
// among them. If jobs throw, the exception of the lowest such i is thrown, whatever the number of threads;
// jobs above it may not have run.
void parallel_for(size_t n_jobs, size_t n_threads, const std::function<void(size_t)>& job);

}  // namespace spqfmt
