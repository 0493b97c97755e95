#include "attention.hpp"

#include "dequantize_rows.hpp"
#include "group_numbers.hpp"

namespace spqfmt {
namespace {

inline float as_it_is(float value) { return value; }

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void rotate_heads(void* x, size_t n_tokens, size_t n_heads, size_t size, const void* cos, const void* sin, size_t rotary) {
  const size_t half = rotary / 2;
  for (size_t token = 0; token < n_tokens; token++) {
    const Stored* __restrict c = static_cast<const Stored*>(cos) + token * rotary;
    const Stored* __restrict s = static_cast<const Stored*>(sin) + token * rotary;
    for (size_t head = 0; head < n_heads; head++) {
      Stored* __restrict a = static_cast<Stored*>(x) + (token * n_heads + head) * size;
      Stored* __restrict b = a + half;
      for (size_t i = 0; i < half; i++) {
        const float first = kWide(a[i]), second = kWide(b[i]);
        a[i] = kNarrow(kWide(kNarrow(first * kWide(c[i]))) + kWide(kNarrow(-second * kWide(s[i]))));
        b[i] = kNarrow(kWide(kNarrow(second * kWide(c[half + i]))) + kWide(kNarrow(first * kWide(s[half + i]))));
      }
    }
  }
}

}  // namespace

void rotate(void* x, FloatType type, size_t n_tokens, size_t n_heads, size_t size, const void* cos, const void* sin, size_t rotary) {
  switch (type) {
    case FloatType::f32: rotate_heads<float, as_it_is, as_it_is>(x, n_tokens, n_heads, size, cos, sin, rotary); return;
    case FloatType::bf16: rotate_heads<uint16_t, widened_bf16, to_bf16>(x, n_tokens, n_heads, size, cos, sin, rotary); return;
    case FloatType::f16: rotate_heads<uint16_t, widened_f16, to_f16>(x, n_tokens, n_heads, size, cos, sin, rotary); return;
  }
}

}  // namespace spqfmt
