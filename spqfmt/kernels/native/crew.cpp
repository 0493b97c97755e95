#include "crew.hpp"

#include <algorithm>
#include <thread>

#include "bitstream.hpp"
#include "dispatch.hpp"

#if defined(SPQFMT_X86)
#include <immintrin.h>
#endif

namespace spqfmt {
namespace {

constexpr unsigned kLoopShift = 32, kRunsShift = 16;
constexpr uint64_t kMostRuns = 0xffff;
// Looks at a loop before the processor is offered to other programs: some ten microseconds.
constexpr unsigned kPatience = 1024;

class Wait {
 public:
  void once() {
    if (++n_ % kPatience == 0) {
      std::this_thread::yield();
      return;
    }
#if defined(SPQFMT_X86)
    _mm_pause();
#endif
  }

 private:
  unsigned n_ = 0;
};

}  // namespace

bool Crew::take_run() {
  uint64_t offer = offer_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t n_runs = offer >> kRunsShift & kMostRuns, run = offer & kMostRuns;
    if (run >= n_runs) return false;
    if (offer_.compare_exchange_weak(offer, offer + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      const size_t begin = run * length_;
      (*rows_)(begin, std::min(n_rows_, begin + length_));
      n_done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

void Crew::over_rows(size_t n_rows, size_t length, const std::function<void(size_t, size_t)>& rows) {
  length = std::max(length, ceil_div(n_rows, static_cast<size_t>(kMostRuns)));
  const uint64_t n_runs = ceil_div(n_rows, length);
  if (n_runs <= 1) {
    rows(0, n_rows);
    return;
  }
  rows_ = &rows;
  n_rows_ = n_rows;
  length_ = length;
  n_done_.store(0, std::memory_order_relaxed);
  const uint64_t loop = (offer_.load(std::memory_order_relaxed) >> kLoopShift) + 1;
  offer_.store(loop << kLoopShift | n_runs << kRunsShift, std::memory_order_release);
  while (take_run()) {
  }
  for (Wait wait; n_done_.load(std::memory_order_acquire) < n_runs;) wait.once();
}

void Crew::help() {
  for (Wait wait; !is_over_.load(std::memory_order_acquire);) {
    if (!take_run()) wait.once();
  }
}

void Crew::dismiss() { is_over_.store(true, std::memory_order_release); }

}  // namespace spqfmt
