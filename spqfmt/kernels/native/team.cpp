#include "team.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "bitstream.hpp"
#include "crew.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace spqfmt {
namespace {

// Waking a thread that waits costs some microseconds, starting one some ten.
constexpr size_t kTeamProducts = size_t{1} << 15;
constexpr size_t kStartedProducts = size_t{1} << 20;
// A thread of a crew takes a run some hundred nanoseconds after it is offered.
constexpr size_t kCrewProducts = size_t{1} << 13;
// Runs for each thread: so many that one which is held up does not hold up all.
constexpr size_t kRunsPerThread = 4;
// Kernels take rows by fours.
constexpr size_t kRowStep = 4;
// omp_pause_soft: what is needed to go on is kept.
constexpr int kPauseSoft = 1;

// void GOMP_parallel(void (*function)(void*), void* data, unsigned n_threads, unsigned flags): the entry that compiled
// `omp parallel` regions use, of GNU's runtime and, for compatibility, of LLVM's.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Not used where it may wait for threads that a fork has left behind.
std::atomic<bool> lost{false};

Parallel team() {
#if defined(__linux__)
  static std::atomic<Parallel> found{nullptr};
  if (lost.load(std::memory_order_relaxed)) return nullptr;
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

// The crew of the calling thread's work, and how many threads it has at most.
thread_local Crew* crew = nullptr;
thread_local size_t crew_threads = 1;

// How many threads the system was asked for, and started, for the calling thread's team.
thread_local size_t asked = 1, found = 1;

// How many of n_threads the calling thread's team can have. GNU's runtime ends the process where the system starts no thread.
size_t startable_in_team(size_t n_threads) {
  if (n_threads > asked) {
    found += startable_threads(n_threads - asked + 1) - 1;
    asked = n_threads;
  }
  return std::min(found, n_threads);
}

}  // namespace

size_t team_size(size_t n_threads, size_t work, size_t least, size_t least_started) {
  n_threads = std::min(n_threads, usable_threads());
  if (n_threads <= 1) return 1;
  return std::max<size_t>(1, std::min(n_threads, ceil_div(work, team() != nullptr ? least : least_started)));
}

void on_team(size_t n_threads, const std::function<void()>& work) {
  const Helpers helpers(n_threads);
  const Parallel parallel = helpers.n() > 0 ? team() : nullptr;
  if (parallel == nullptr) {
    on_started(helpers.n(), work);
  } else {
    // The team's threads serve others too, so each takes the kernels anew.
    std::function<void()> with_kernels = [&work, kernels = thread_kernels()] {
      take_kernels(kernels);
      work();
    };
    parallel([](void* data) { (*static_cast<const std::function<void()>*>(data))(); }, &with_kernels,
             static_cast<unsigned>(startable_in_team(helpers.n() + 1)), 0);
  }
}

void over_rows(size_t n_rows, size_t row_products, size_t n_threads, const std::function<void(size_t, size_t)>& rows) {
  if (n_rows == 0 || row_products == 0) return;
  if (crew != nullptr) {
    const size_t fewest = ceil_div(kCrewProducts, row_products);
    const size_t length = round_up(std::max(fewest, ceil_div(n_rows, crew_threads * kRunsPerThread)), kRowStep);
    crew->over_rows(n_rows, length, rows);
    return;
  }
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

void with_crew(size_t n_threads, const std::function<void()>& work) {
  n_threads = std::min(n_threads, usable_threads());
  if (n_threads <= 1 || crew != nullptr) {
    work();
    return;
  }
  Crew own;
  std::exception_ptr error;
  const std::thread::id caller = std::this_thread::get_id();
  on_team(n_threads, [&] {
    if (std::this_thread::get_id() != caller) {
      own.help();
      return;
    }
    crew = &own;
    crew_threads = n_threads;
    try {
      work();
    } catch (...) {  // not through the runtime's frames
      error = std::current_exception();
    }
    crew = nullptr;
    own.dismiss();
  });
  if (error) std::rethrow_exception(error);
}

bool disband_team() {
  asked = found = 1;
#if defined(__linux__)
  const Parallel parallel = team();
  Dl_info library;
  if (parallel == nullptr || dladdr(reinterpret_cast<void*>(parallel), &library) == 0) return parallel == nullptr;
  void* const runtime = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (runtime == nullptr) return false;
  const bool knows_fork = dlsym(runtime, "__kmpc_fork_call") != nullptr;  // LLVM's: its children call teams of their own
  const auto pause = reinterpret_cast<int (*)(int)>(dlsym(runtime, "omp_pause_resource_all"));
  const bool disbanded = knows_fork || (pause != nullptr && pause(kPauseSoft) == 0);
  dlclose(runtime);
  return disbanded;
#else
  return true;
#endif
}

void after_fork(bool disbanded) {
  forget_helpers();
  if (!disbanded) lost.store(true);
}

}  // namespace spqfmt
