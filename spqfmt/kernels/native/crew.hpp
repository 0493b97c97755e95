// Threads that wait busily for the small loops of one of them, their master.
//
// A loop is offered as runs of rows, which all take one by one, the master too: a thread that another program holds back takes
// none, and nobody waits for it but where it is in the middle of one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace spqfmt {

class Crew {
 public:
  // Called by the master: calls rows(begin, end) for runs of `length` rows that cover 0..n_rows, on whoever is there.
  void over_rows(size_t n_rows, size_t length, const std::function<void(size_t, size_t)>& rows);

  // Called by the others: takes runs until the master has dismissed all.
  void help();

  // Called by the master at the end.
  void dismiss();

 private:
  bool take_run();

  // The number of a loop in the upper half, then its runs, then the runs that were taken: who takes one by a compare and swap
  // knows what loop it is of, and a loop does not end before its runs have.
  std::atomic<uint64_t> offer_{0};
  alignas(64) std::atomic<size_t> n_done_{0};
  std::atomic<bool> is_over_{false};
  const std::function<void(size_t, size_t)>* rows_ = nullptr;
  size_t n_rows_ = 0, length_ = 0;
};

}  // namespace spqfmt
