#include "trellis.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "bitstream.hpp"
#include "dispatch.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

// Of columns of one tile that threads share.
constexpr size_t kColumns = 256;

}  // namespace

bool unfold(const PathRows& whole, uint8_t* history, size_t n_threads) {
  if (whole.n_rows == 0 || whole.n_columns == 0) return true;
  PathRows rows = whole;
  rows.height = std::min(rows.height, rows.passed + rows.n_rows);  // no tile ends later: sums below have room
  const UnfoldRows loop = active_kernels().unfold_rows;
  const size_t n_tiles = ceil_div(rows.passed + rows.n_rows, rows.height);
  std::atomic<bool> fits{true};
  if (n_tiles == 1) {
    over_rows(ceil_div(rows.n_columns, kColumns), kColumns * rows.n_rows, n_threads, [&](size_t begin, size_t end) {
      if (!loop(rows, begin * kColumns, std::min(rows.n_columns, end * kColumns), history, history)) fits = false;
    });
    return fits;
  }
  // The last run may be through before the first one begins.
  const std::vector<uint8_t> before(history, rows.passed == 0 ? history : history + kHistoryRows * rows.n_columns);
  over_rows(n_tiles, rows.height * rows.n_columns, n_threads, [&](size_t begin, size_t end) {
    const size_t first = begin == 0 ? 0 : begin * rows.height - rows.passed;
    const size_t stop = std::min(rows.n_rows, end * rows.height - rows.passed);
    const PathRows some{rows.codes + first * rows.n_columns, stop - first, rows.n_columns, rows.height, begin == 0 ? rows.passed : 0};
    if (!loop(some, 0, rows.n_columns, before.data(), end == n_tiles ? history : nullptr)) fits = false;
  });
  return fits;
}

}  // namespace spqfmt
