// The loops of attention.hpp, written so that a compiler makes vectors of them. Included by one file for each instruction set.
#pragma once

#include "attention.hpp"
#include "dequantize_rows.hpp"
#include "group_numbers.hpp"

namespace spqfmt {
namespace {

constexpr size_t kAttentionLanes = 16;
constexpr size_t kHeadsAtOnce = 8;
constexpr size_t kTokensAtOnce = 64;  // a multiple of the lanes

inline float same(float value) { return value; }

// e^x within 2 units of the last place, for x in [-87, 88]; beyond that, as at the end of the range. A NaN stays one.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * (rest * rest) + rest + 1.0f;
  return sum * float_of((bits_of(shifted) + 127) << 23);
}

inline float halved(float* sums) {
  for (size_t half = kAttentionLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

inline size_t whole_lanes(size_t n) { return (n + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes; }

template <typename Stored, float (*kWide)(Stored)>
inline void widen(const Stored* __restrict from, size_t n, float* __restrict to) {
  for (size_t i = 0; i < n; i++) to[i] = kWide(from[i]);
}

// What some heads of a query have seen of a cache so far.
struct Seen {
  float most[kHeadsAtOnce];  // the largest score
  float sum[kHeadsAtOnce];   // of e^(score - most)
  alignas(64) float values[kHeadsAtOnce][kMostOfHead];
};

// Scores become their exponentials, less the largest so far; what was seen before is scaled to that.
inline void weigh(float* __restrict scores, size_t n, size_t head, size_t value_size, Seen& seen) {
  float most = seen.most[head];
  for (size_t i = 0; i < n; i++) most = scores[i] > most ? scores[i] : most;
  const float factor = exponential(seen.most[head] - most);
  seen.most[head] = most;
  float sums[kAttentionLanes] = {};
  for (size_t i = n; i < whole_lanes(n); i++) scores[i] = -1e30f;
  for (size_t i = 0; i < whole_lanes(n); i += kAttentionLanes) {
    for (size_t lane = 0; lane < kAttentionLanes; lane++) scores[i + lane] = exponential(scores[i + lane] - most);
  }
  for (size_t i = n; i < whole_lanes(n); i++) scores[i] = 0;
  for (size_t i = 0; i < n; i += kAttentionLanes) {
    for (size_t lane = 0; lane < kAttentionLanes; lane++) sums[lane] += scores[i + lane];
  }
  seen.sum[head] = seen.sum[head] * factor + halved(sums);
  for (size_t i = 0; i < value_size; i++) seen.values[head][i] *= factor;
}

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void attend_heads(const Stored* q, const Stored* keys, size_t key_step, const Stored* values, size_t value_step,
                  const Attention& by, size_t n_heads, Stored* y) {
  const size_t padded = whole_lanes(by.key_size);
  alignas(64) float query[kHeadsAtOnce][kMostOfHead];
  alignas(64) float row[kMostOfHead];
  alignas(64) float scores[kHeadsAtOnce][kTokensAtOnce];
  Seen seen;
  for (size_t head = 0; head < n_heads; head++) {
    widen<Stored, kWide>(q + head * by.key_size, by.key_size, query[head]);
    for (size_t i = by.key_size; i < padded; i++) query[head][i] = 0;
    seen.most[head] = -1e30f;
    seen.sum[head] = 0;
    for (size_t i = 0; i < by.value_size; i++) seen.values[head][i] = 0;
  }
  for (size_t i = by.key_size; i < padded; i++) row[i] = 0;
  for (size_t first = 0; first < by.n_tokens; first += kTokensAtOnce) {
    const size_t n = smaller(kTokensAtOnce, by.n_tokens - first);
    for (size_t token = 0; token < n; token++) {
      widen<Stored, kWide>(keys + (first + token) * key_step, by.key_size, row);
      for (size_t head = 0; head < n_heads; head++) {
        float sums[kAttentionLanes] = {};
        for (size_t i = 0; i < padded; i += kAttentionLanes) {
          for (size_t lane = 0; lane < kAttentionLanes; lane++) sums[lane] += query[head][i + lane] * row[i + lane];
        }
        scores[head][token] = halved(sums) * by.scale;
      }
    }
    for (size_t head = 0; head < n_heads; head++) weigh(scores[head], n, head, by.value_size, seen);
    for (size_t token = 0; token < n; token++) {
      const Stored* __restrict from = values + (first + token) * value_step;
      for (size_t head = 0; head < n_heads; head++) {
        const float weight = scores[head][token];
        float* __restrict to = seen.values[head];
        for (size_t i = 0; i < by.value_size; i++) to[i] += weight * kWide(from[i]);
      }
    }
  }
  for (size_t head = 0; head < n_heads; head++) {
    for (size_t i = 0; i < by.value_size; i++) y[head * by.value_size + i] = kNarrow(seen.values[head][i] / seen.sum[head]);
  }
}

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void attend_pairs(const void* q, const Cached& keys, const Cached& values, const Attention& by, size_t begin, size_t end, void* y) {
  for (size_t pair = begin; pair < end; pair++) {
    const size_t text = pair / by.n_heads, head = pair % by.n_heads;
    const Stored* its_keys = static_cast<const Stored*>(keys.values) + text * keys.text + head * keys.head;
    const Stored* its_values = static_cast<const Stored*>(values.values) + text * values.text + head * values.head;
    for (size_t shared = 0; shared < by.n_shared; shared += kHeadsAtOnce) {
      const size_t row = pair * by.n_shared + shared;
      attend_heads<Stored, kWide, kNarrow>(
          static_cast<const Stored*>(q) + row * by.key_size, its_keys, keys.token, its_values, values.token, by,
          smaller(kHeadsAtOnce, by.n_shared - shared), static_cast<Stored*>(y) + row * by.value_size);
    }
  }
}

inline void attend(const void* q, const Cached& keys, const Cached& values, const Attention& by, size_t begin, size_t end, void* y) {
  switch (by.type) {
    case FloatType::f32: attend_pairs<float, same, same>(q, keys, values, by, begin, end, y); return;
    case FloatType::bf16: attend_pairs<uint16_t, widened_bf16, to_bf16>(q, keys, values, by, begin, end, y); return;
    case FloatType::f16: attend_pairs<uint16_t, widened_f16, to_f16>(q, keys, values, by, begin, end, y); return;
  }
}

template <Gate kForm>
inline float gated(float x) {
  float inner = x;
  if constexpr (kForm == Gate::gelu_tanh) inner = 1.59576912f * (x + 0.044715f * (x * x * x));
  return x / (1.0f + exponential(-inner));
}

template <Gate kForm, typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void gate_all(void* gate, const void* up, size_t n) {
  Stored* __restrict to = static_cast<Stored*>(gate);
  const Stored* __restrict from = static_cast<const Stored*>(up);
  for (size_t i = 0; i < n; i++) to[i] = kNarrow(kWide(kNarrow(gated<kForm>(kWide(to[i])))) * kWide(from[i]));
}

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void gate_form(void* gate, const void* up, Gate form, size_t n) {
  switch (form) {
    case Gate::silu: gate_all<Gate::silu, Stored, kWide, kNarrow>(gate, up, n); return;
    case Gate::gelu_tanh: gate_all<Gate::gelu_tanh, Stored, kWide, kNarrow>(gate, up, n); return;
  }
}

inline void gate_values(void* gate, const void* up, FloatType type, Gate form, size_t n) {
  switch (type) {
    case FloatType::f32: gate_form<float, same, same>(gate, up, form, n); return;
    case FloatType::bf16: gate_form<uint16_t, widened_bf16, to_bf16>(gate, up, form, n); return;
    case FloatType::f16: gate_form<uint16_t, widened_f16, to_f16>(gate, up, form, n); return;
  }
}

}  // namespace
}  // namespace spqfmt
