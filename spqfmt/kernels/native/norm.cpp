#include "norm.hpp"

#include <cmath>

#include "dequantize_rows.hpp"
#include "group_numbers.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

inline float as_it_is(float value) { return value; }

template <typename Stored, float (*kWide)(Stored)>
float sum_of_squares(const Stored* __restrict x, size_t n) {
  float sums[kProductLanes] = {};
  size_t i = 0;
  for (; i + kProductLanes <= n; i += kProductLanes) {
    for (size_t lane = 0; lane < kProductLanes; lane++) sums[lane] += kWide(x[i + lane]) * kWide(x[i + lane]);
  }
  for (size_t lane = 0; i + lane < n; lane++) sums[lane] += kWide(x[i + lane]) * kWide(x[i + lane]);
  for (size_t half = kProductLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void norm_tokens(const Floats& x, size_t begin, size_t end, size_t n_columns, const RootMeanSquare& norm, void* y) {
  const Stored* __restrict weight = static_cast<const Stored*>(norm.weight);
  for (size_t token = begin; token < end; token++) {
    const Stored* __restrict from = static_cast<const Stored*>(x.values) + token * n_columns;
    Stored* __restrict to = static_cast<Stored*>(y) + token * n_columns;
    const float mean = sum_of_squares<Stored, kWide>(from, n_columns) / static_cast<float>(n_columns);
    const float factor = 1.0f / std::sqrt(mean + norm.epsilon);
    if (norm.rounds_first) {
      for (size_t i = 0; i < n_columns; i++) to[i] = kNarrow((norm.offset + kWide(weight[i])) * kWide(kNarrow(kWide(from[i]) * factor)));
    } else {
      for (size_t i = 0; i < n_columns; i++) to[i] = kNarrow((norm.offset + kWide(weight[i])) * (kWide(from[i]) * factor));
    }
  }
}

}  // namespace

void root_mean_square(const Floats& x, size_t n_tokens, size_t n_columns, const RootMeanSquare& norm, void* y, size_t n_threads) {
  over_rows(n_tokens, n_columns, n_threads, [&](size_t begin, size_t end) {
    switch (x.type) {
      case FloatType::f32: norm_tokens<float, as_it_is, as_it_is>(x, begin, end, n_columns, norm, y); return;
      case FloatType::bf16: norm_tokens<uint16_t, widened_bf16, to_bf16>(x, begin, end, n_columns, norm, y); return;
      case FloatType::f16: norm_tokens<uint16_t, widened_f16, to_f16>(x, begin, end, n_columns, norm, y); return;
    }
  });
}

}  // namespace spqfmt
