#include "path_sweep.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace spqfmt {
namespace {

constexpr int kStates = 8;
// Codes around a weight that are looked at: two of each remainder by 4, one on either side. Those beyond cost more by a dozen bits.
constexpr int kWindow = 8;
// State t follows on t / 2, by codes whose remainder by 4 is kRemainder[t], and on t / 2 + 4, by the remainder two apart.
constexpr int kRemainder[kStates] = {0, 2, 1, 3, 2, 0, 3, 1};
// A bound for what an error of one code costs in bits, where slopes are 0 or nearly: sums of it stay in binary32.
constexpr float kDearest = 1e30f;
constexpr float kNever = std::numeric_limits<float>::infinity();

// The cheapest path into each state, row after row of one column.
class Survivors {
 public:
  Survivors(const float* bits, size_t n_rows) : steps_(n_rows) {
    for (int v = -128; v < 128; ++v) prices_[v + 128] = bits[(v - (v & 1)) / 2 + 128];
  }

  void begin() {
    n_ = 0;
    for (float& total : totals_) total = kNever;
    totals_[0] = 0;
  }

  // A weight of so many steps, whose squared error of one step costs `dearness` bits.
  void add(float scaled, float dearness) {
    dearness = dearness < kDearest ? dearness : kDearest;
    const float below = std::floor(scaled) - (kWindow / 2 - 1);
    constexpr int kLast = kLargestCode - kWindow + 1;
    const int first = below >= -kLargestCode ? (below <= kLast ? static_cast<int>(below) : kLast) : -kLargestCode;
    float costs[kWindow];
    for (int i = 0; i < kWindow; ++i) {
      const float distance = scaled - static_cast<float>(first + i);
      costs[i] = dearness * distance * distance + prices_[first + i + 128];
    }
    Step& step = steps_[n_];
    float best[4];
    for (int i = 0; i < 4; ++i) {
      const bool upper = costs[i + 4] < costs[i];
      const int remainder = (first + i) & 3;
      best[remainder] = upper ? costs[i + 4] : costs[i];
      step.codes[remainder] = static_cast<int8_t>(first + i + (upper ? 4 : 0));
    }
    follow(best);
  }

  // A weight that is kept: path code 0, whatever the state.
  void add_escape() {
    constexpr float free[4] = {0, 0, kNever, kNever};
    for (int i = 0; i < 4; ++i) steps_[n_].codes[i] = static_cast<int8_t>(i & 1);
    follow(free);
  }

  // The codes of the cheapest path of all.
  void trace(std::vector<int8_t>& codes) const {
    int state = 0;
    for (int t = 1; t < kStates; ++t) {
      if (totals_[t] < totals_[state]) state = t;
    }
    for (size_t i = n_; i-- > 0;) {
      const Step& step = steps_[i];
      const int is_high = step.highs >> state & 1;
      codes[i] = step.codes[kRemainder[state] ^ (is_high ? 2 : 0)];
      state = state / 2 + (is_high ? 4 : 0);
    }
  }

 private:
  // The best code of each remainder by 4, and which states are best reached from the higher of the two before them.
  struct Step {
    int8_t codes[4];
    uint8_t highs;
  };

  void follow(const float* best) {
    float totals[kStates];
    unsigned highs = 0;
    for (int t = 0; t < kStates; ++t) {
      const float low = totals_[t / 2] + best[kRemainder[t]];
      const float high = totals_[t / 2 + 4] + best[kRemainder[t] ^ 2];
      highs |= static_cast<unsigned>(high < low) << t;
      totals[t] = high < low ? high : low;
    }
    for (int t = 0; t < kStates; ++t) totals_[t] = totals[t];
    steps_[n_++].highs = static_cast<uint8_t>(highs);
  }

  float prices_[256];
  float totals_[kStates];
  std::vector<Step> steps_;
  size_t n_ = 0;
};

bool fits(float scaled) {
  const float rounded = std::nearbyint(scaled);
  return rounded >= -kLargestCode && rounded <= kLargestCode;
}

}  // namespace

void choose_paths(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* errors) {
  const size_t n = block.n_columns;
  Survivors survivors(costs.bits, end - begin);
  std::vector<int8_t> path(end - begin);
  for (size_t k = 0; k < n; ++k) {
    const float* upper = block.square + k * n;
    survivors.begin();
    for (size_t i = begin; i < end; ++i) {
      const float step = costs.row_step[i] * block.column_step[k];
      const float scaled = block.values[i * block.stride + k] / step;
      const bool is_kept = !fits(scaled);
      codes[i * n + k] = is_kept ? kEscapeCode : 0;
      const float inverse = step / upper[k];
      if (is_kept)
        survivors.add_escape();
      else
        survivors.add(scaled, inverse * inverse / costs.slope[i]);
    }
    survivors.trace(path);
    for (size_t i = begin; i < end; ++i) {
      float& error = errors[i * n + k];
      error = 0;
      if (codes[i * n + k] == kEscapeCode) continue;
      float* row = block.values + i * block.stride;
      const int8_t code = codes[i * n + k] = path[i - begin];
      const float value = static_cast<float>(code) * costs.row_step[i] * block.column_step[k];
      error = (row[k] - value) / upper[k];
      for (size_t m = k + 1; m < n; ++m) row[m] -= error * upper[m];
    }
  }
}

void improve_paths(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* changes) {
  const size_t n = block.n_columns;
  Survivors survivors(costs.bits, end - begin);
  std::vector<int8_t> path(end - begin);
  for (size_t k = 0; k < n; ++k) {
    const float* hessian = block.square + k * n;
    survivors.begin();
    for (size_t i = begin; i < end; ++i) {
      const int8_t code = codes[i * n + k];
      const float step = costs.row_step[i] * block.column_step[k];
      const float scaled = static_cast<float>(code) - block.values[i * block.stride + k] / (hessian[k] * step);
      if (code == kEscapeCode)
        survivors.add_escape();
      else
        survivors.add(scaled, hessian[k] * step * step / costs.slope[i]);
    }
    survivors.trace(path);
    for (size_t i = begin; i < end; ++i) {
      int8_t& code = codes[i * n + k];
      float& change = changes[i * n + k];
      change = 0;
      if (code == kEscapeCode || code == path[i - begin]) continue;
      change = static_cast<float>(path[i - begin] - code) * costs.row_step[i] * block.column_step[k];
      code = path[i - begin];
      float* row = block.values + i * block.stride;
      for (size_t m = 0; m < n; ++m) row[m] += change * hessian[m];
    }
  }
}

}  // namespace spqfmt
