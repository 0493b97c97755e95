// A token's attention, rotary positions and gates: each set of kernels gives the same bits for numbers that are some, the
// attention is torch's within a rounding by a plain sum in binary64, and a cache with gaps is read inside of them alone.
#include "attention.hpp"

#include <algorithm>
#include <cmath>

#include "input.hpp"
#include "weights.hpp"

using namespace spqfmt;

namespace {

// Numbers of a type in memory that ends where they do: finite ones of like sizes, or any bits at all.
std::vector<uint8_t> numbers(fuzz::Input& in, size_t n, FloatType type, bool any) {
  std::vector<uint8_t> found = in.filled(n * float_bytes(type), 256);
  for (size_t i = float_bytes(type) - 1; i < found.size() && !any; i += float_bytes(type)) {
    found[i] = static_cast<uint8_t>((found[i] & 0x80) | 0x3c | (found[i] & 3));
  }
  return found;
}

// Keys or values of a cache, with room between tokens, heads and texts.
struct OwnCache {
  OwnCache(fuzz::Input& in, const Attention& by, size_t size, bool any) {
    cached.token = size + in.byte() % 5;
    cached.head = cached.token * (by.n_tokens - 1) + size + in.byte() % 5;
    cached.text = cached.head * (by.n_heads - 1) + cached.token * (by.n_tokens - 1) + size + in.byte() % 5;
    raw = numbers(in, (by.n_texts - 1) * cached.text + (by.n_heads - 1) * cached.head + (by.n_tokens - 1) * cached.token + size, by.type, any);
    cached.values = raw.data();
    floats = fuzz::comparable(raw, by.type);
  }
  OwnCache(const OwnCache&) = delete;

  double at(size_t text, size_t head, size_t token, size_t i) const {
    return floats[text * cached.text + head * cached.head + token * cached.token + i];
  }

  std::vector<uint8_t> raw;
  std::vector<float> floats;
  Cached cached;
};

// Checks what was attended to against sums in binary64.
void check_sums(const Attention& by, const std::vector<float>& q, const OwnCache& keys, const OwnCache& values, const std::vector<float>& y) {
  const double place = by.type == FloatType::f32 ? 0x1p-18 : by.type == FloatType::f16 ? 0x1p-9 : 0x1p-6;
  std::vector<double> weight(by.n_tokens);
  for (size_t row = 0; row < by.n_texts * by.n_heads * by.n_shared; row++) {
    const size_t head = row / by.n_shared % by.n_heads, text = row / by.n_shared / by.n_heads;
    double most = -INFINITY, sum = 0, sizes = 0;
    for (size_t token = 0; token < by.n_tokens; token++) {
      double score = 0, size = 0;
      for (size_t i = 0; i < by.key_size; i++) {
        const double part = double{q[row * by.key_size + i]} * keys.at(text, head, token, i);
        score += part;
        size += std::abs(part);
      }
      weight[token] = score * double{by.scale};
      most = std::max(most, weight[token]);
      sizes = std::max(sizes, size * std::abs(double{by.scale}));
    }
    for (double& w : weight) sum += w = std::exp(w - most);
    // An error of a score is one of its weight, as large as the score's sum is.
    const double apart = place + sizes * 0x1p-19;
    for (size_t i = 0; i < by.value_size; i++) {
      double expected = 0, largest = 0;
      for (size_t token = 0; token < by.n_tokens; token++) {
        expected += weight[token] / sum * values.at(text, head, token, i);
        largest = std::max(largest, std::abs(values.at(text, head, token, i)));
      }
      const double found = y[row * by.value_size + i];
      fuzz::check(std::abs(found - expected) <= apart * largest + 0x1p-24, "attention is not what its sums say");
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte();
  const bool any = kind & 1;
  const FloatType type = static_cast<FloatType>(in.byte() % 3);
  const size_t sizes[] = {1 + in.number(kind & 2 ? kMostOfHead - 1 : 70), 1 + in.number(kind & 2 ? kMostOfHead - 1 : 70)};
  Attention by{type, size_t{1} + in.byte() % 2, size_t{1} + in.byte() % 3, size_t{1} + in.byte() % 10, 1 + in.number(kind & 4 ? 200 : 20),
               sizes[0], sizes[1], 0};
  by.scale = static_cast<float>(1 + in.byte() % 64) / static_cast<float>(1 + in.byte());
  const size_t n_rows = by.n_texts * by.n_heads * by.n_shared;
  const std::vector<uint8_t> q = numbers(in, n_rows * by.key_size, type, any);
  const OwnCache keys(in, by, by.key_size, any), values(in, by, by.value_size, any);

  const size_t rotary = 2 * (in.byte() % (by.key_size / 2 + 1)), n_gates = in.byte();
  const std::vector<uint8_t> cos = numbers(in, n_rows * rotary, type, any), sin = numbers(in, n_rows * rotary, type, any);
  const std::vector<uint8_t> gate = numbers(in, n_gates, type, any), up = numbers(in, n_gates, type, any);
  const Gate form = in.coin() ? Gate::silu : Gate::gelu_tanh;

  std::vector<uint8_t> turned = q;
  rotate(turned.data(), type, n_rows, 1, by.key_size, cos.data(), sin.data(), rotary);

  fuzz::Same<std::vector<float>> seen, gates;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> y(n_rows * by.value_size * float_bytes(type)), in_parts(y.size());
    const TokenKernels& kernels = *active_kernels().token;
    const size_t n_pairs = by.n_texts * by.n_heads, cut = n_pairs / 2;
    kernels.attend(q.data(), keys.cached, values.cached, by, 0, n_pairs, y.data());
    kernels.attend(q.data(), keys.cached, values.cached, by, cut, n_pairs, in_parts.data());
    kernels.attend(q.data(), keys.cached, values.cached, by, 0, cut, in_parts.data());
    fuzz::check(any || y == in_parts, "pairs depend on each other");
    const std::vector<float> found = fuzz::comparable(y, type);
    std::vector<uint8_t> gated = gate;
    kernels.gate_values(gated.data(), up.data(), type, form, n_gates);
    if (any) return;
    if (seen.none()) check_sums(by, fuzz::comparable(q, type), keys, values, found);
    seen.see(found, "kernels differ in an attention");
    gates.see(fuzz::comparable(gated, type), "kernels differ in a gate");
  });
  return 0;
}
