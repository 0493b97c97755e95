#include "rate_sweep.hpp"

#include <cmath>

namespace spqfmt {
namespace {

// One weight in units of its step, and what it costs to store it as some code.
struct Choice {
  float scaled;
  float weight;
  float slope;
  const float* bits;
  int code;
  float cost;

  float cost_of(int candidate) const {
    const float distance = scaled - static_cast<float>(candidate);
    return weight * distance * distance + slope * bits[candidate + 128];
  }
  void consider(int candidate) {
    const float now = cost_of(candidate);
    if (now < cost) {
      cost = now;
      code = candidate;
    }
  }
};

// The nearest code, the other neighbour, the two below the nearest, and 0: more never win at slopes of this kind.
int cheapest(float scaled, float weight, float slope, const float* bits, int nearest) {
  Choice choice{scaled, weight, slope, bits, nearest, 0};
  choice.cost = choice.cost_of(nearest);
  const int other = nearest + (scaled > static_cast<float>(nearest) ? 1 : -1);
  if (other >= -kLargestCode && other <= kLargestCode) choice.consider(other);
  const int inward = nearest > 0 ? -1 : 1;
  const int magnitude = nearest > 0 ? nearest : -nearest;
  if (magnitude > 1) choice.consider(nearest + inward);
  if (magnitude > 2) choice.consider(nearest + 2 * inward);
  if (magnitude > 0) choice.consider(0);
  return choice.code;
}

}  // namespace

void choose_codes(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* errors) {
  const size_t n = block.n_columns;
  for (size_t i = begin; i < end; ++i) {
    float* row = block.values + i * block.stride;
    const float slope = costs.slope[i];
    for (size_t k = 0; k < n; ++k) {
      const float* upper = block.square + k * n;
      const float step = costs.row_step[i] * block.column_step[k];
      const float scaled = row[k] / step;
      const float rounded = std::nearbyint(scaled);
      if (!(rounded >= -kLargestCode && rounded <= kLargestCode)) {
        codes[i * n + k] = kEscapeCode;
        errors[i * n + k] = 0;
        continue;
      }
      int code = static_cast<int>(rounded);
      if (slope > 0) {
        const float inverse = step / upper[k];
        code = cheapest(scaled, inverse * inverse, slope, costs.bits, code);
      }
      const float value = static_cast<float>(code) * costs.row_step[i] * block.column_step[k];
      const float error = (row[k] - value) / upper[k];
      codes[i * n + k] = static_cast<int8_t>(code);
      errors[i * n + k] = error;
      for (size_t m = k + 1; m < n; ++m) row[m] -= error * upper[m];
    }
  }
}

void improve_codes(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* changes) {
  const size_t n = block.n_columns;
  for (size_t i = begin; i < end; ++i) {
    float* row = block.values + i * block.stride;
    for (size_t k = 0; k < n; ++k) {
      int8_t& code = codes[i * n + k];
      float& change = changes[i * n + k];
      change = 0;
      if (code == kEscapeCode) continue;
      const float* hessian = block.square + k * n;
      const float step = costs.row_step[i] * block.column_step[k];
      const float scaled = static_cast<float>(code) - row[k] / (hessian[k] * step);
      const float rounded = std::nearbyint(scaled);
      if (!(rounded >= -kLargestCode && rounded <= kLargestCode)) continue;
      const float weight = hessian[k] * step * step;
      const Choice choice{scaled, weight, costs.slope[i], costs.bits, code, 0};
      int best = static_cast<int>(rounded);
      if (costs.slope[i] > 0) best = cheapest(scaled, weight, costs.slope[i], costs.bits, best);
      if (!(choice.cost_of(best) < choice.cost_of(code))) continue;
      change = static_cast<float>(best - code) * costs.row_step[i] * block.column_step[k];
      code = static_cast<int8_t>(best);
      for (size_t m = 0; m < n; ++m) row[m] += change * hessian[m];
    }
  }
}

}  // namespace spqfmt
