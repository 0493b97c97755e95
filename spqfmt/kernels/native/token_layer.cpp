#include "token_layer.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "bitstream.hpp"
#include "dequantize_rows.hpp"
#include "dispatch.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

constexpr size_t kLine = 64;  // of a cache, in bytes
// Loops of a layer that are shared out, and the multiplications in one for which another thread of a crew is worth its looking.
constexpr size_t kLoops = 5, kThreadProducts = size_t{1} << 16;

inline float as_it_is(float value) { return value; }

template <typename Stored, float (*kWide)(Stored), Stored (*kNarrow)(float)>
void add(const void* a, const void* b, size_t n, void* sum) {
  const Stored* __restrict first = static_cast<const Stored*>(a);
  const Stored* __restrict second = static_cast<const Stored*>(b);
  Stored* __restrict to = static_cast<Stored*>(sum);
  for (size_t i = 0; i < n; i++) to[i] = kNarrow(kWide(first[i]) + kWide(second[i]));
}

void add_values(const void* a, const void* b, FloatType type, size_t n, void* sum) {
  switch (type) {
    case FloatType::f32: add<float, as_it_is, as_it_is>(a, b, n, sum); return;
    case FloatType::bf16: add<uint16_t, widened_bf16, to_bf16>(a, b, n, sum); return;
    case FloatType::f16: add<uint16_t, widened_f16, to_f16>(a, b, n, sum); return;
  }
}

// Memory for what a layer computes on the way, used anew by each.
class Scratch {
 public:
  explicit Scratch(size_t n_bytes) : memory_(new uint8_t[n_bytes + kLine]) {}

  uint8_t* take(size_t n_bytes) {
    const size_t begin = round_up(reinterpret_cast<uintptr_t>(memory_.get()) + used_, kLine) - reinterpret_cast<uintptr_t>(memory_.get());
    used_ = begin + n_bytes;
    return memory_.get() + begin;
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  size_t used_ = 0;
};

class Step {
 public:
  Step(const TokenLayer& layer, FloatType type, size_t n_texts, size_t n_threads)
      : layer_(layer), type_(type), n_texts_(n_texts), n_threads_(n_threads), scratch_(n_bytes()) {}

  void run(const void* x, const void* cos, const void* sin, const LayerCache& cache, void* y) {
    const void* seen = attended(normed(x, layer_.before_attention, numbers(layer_.n_hidden)), cos, sin, cache);
    void* middle = numbers(layer_.n_hidden);
    add_values(x, normed(multiplied(layer_.output, seen), layer_.after_attention, numbers(layer_.n_hidden)), type_, n_texts_ * layer_.n_hidden, middle);
    const void* made = network(normed(middle, layer_.before_network, numbers(layer_.n_hidden)));
    add_values(middle, normed(made, layer_.after_network, numbers(layer_.n_hidden)), type_, n_texts_ * layer_.n_hidden, y);
  }

 private:
  size_t n_queries() const { return layer_.attention.n_heads * layer_.attention.n_shared; }

  size_t n_bytes() const {
    const Attention& by = layer_.attention;
    const size_t heads = 2 * (n_queries() + by.n_heads) * by.key_size + (by.n_heads + n_queries()) * by.value_size;
    constexpr size_t kPieces = 16;
    return n_texts_ * (heads + 7 * layer_.n_hidden + 2 * layer_.n_gated) * float_bytes(type_) + kPieces * kLine;
  }

  // So many of each text.
  void* numbers(size_t n) { return scratch_.take(n_texts_ * n * float_bytes(type_)); }

  const void* normed(const void* x, const RootMeanSquare& norm, void* y) const {
    if (norm.weight == nullptr) return x;
    root_mean_square({x, type_}, n_texts_, layer_.n_hidden, norm, y, 1);
    return y;
  }

  void multiply(const TokenProducts& by, const void* x, std::initializer_list<void*> ys) const {
    RowsProduct products[3];
    size_t n = 0;
    for (void* y : ys) {
      products[n] = by.products[n];
      products[n].outputs.y = y;
      products[n].outputs.type = type_;
      n++;
    }
    multiply_rows_of(products, n, by.n_columns, {x, type_}, n_texts_, by.rounding, n_threads_);
  }

  const void* multiplied(const TokenProducts& by, const void* x) {
    void* y = numbers(layer_.n_hidden);
    multiply(by, x, {y});
    return y;
  }

  void* norm_of_heads(void* x, const RootMeanSquare& norm, size_t n_heads) {
    if (norm.weight == nullptr) return x;
    const size_t size = layer_.attention.key_size;
    void* y = numbers(n_heads * size);
    const bool each = layer_.norms_heads;
    root_mean_square({x, type_}, each ? n_texts_ * n_heads : n_texts_, each ? size : n_heads * size, norm, y, 1);
    return y;
  }

  const void* attended(const void* x, const void* cos, const void* sin, const LayerCache& cache) {
    Attention by = layer_.attention;
    by.type = type_;
    by.n_texts = n_texts_;
    by.n_tokens = cache.n_tokens + 1;
    void* q = numbers(n_queries() * by.key_size);
    void* k = numbers(by.n_heads * by.key_size);
    void* v = numbers(by.n_heads * by.value_size);
    multiply(layer_.inputs, x, {q, k, v});
    q = norm_of_heads(q, layer_.q_norm, n_queries());
    k = norm_of_heads(k, layer_.k_norm, by.n_heads);
    if (layer_.rotary > 0) {
      rotate(q, type_, n_texts_, n_queries(), by.key_size, cos, sin, layer_.rotary);
      rotate(k, type_, n_texts_, by.n_heads, by.key_size, cos, sin, layer_.rotary);
    }
    append(k, by.key_size, cache, cache.keys);
    append(v, by.value_size, cache, cache.values);
    void* y = numbers(n_queries() * by.value_size);
    const Cached keys{cache.keys, by.n_heads * cache.room * by.key_size, cache.room * by.key_size, by.key_size};
    const Cached values{cache.values, by.n_heads * cache.room * by.value_size, cache.room * by.value_size, by.value_size};
    const Attend attend = active_kernels().token->attend;
    over_rows(n_texts_ * by.n_heads, by.n_tokens * by.n_shared * (by.key_size + by.value_size), n_threads_,
              [&](size_t begin, size_t end) { attend(q, keys, values, by, begin, end, y); });
    return y;
  }

  // Each head's numbers behind those that the cache has of it.
  void append(const void* given, size_t size, const LayerCache& cache, void* cached) const {
    const size_t n_bytes = size * float_bytes(type_);
    for (size_t head = 0; head < n_texts_ * layer_.attention.n_heads; head++) {
      std::memcpy(static_cast<uint8_t*>(cached) + (head * cache.room + cache.n_tokens) * n_bytes,
                  static_cast<const uint8_t*>(given) + head * n_bytes, n_bytes);
    }
  }

  const void* network(const void* x) {
    void* gate = numbers(layer_.n_gated);
    void* up = numbers(layer_.n_gated);
    multiply(layer_.gates, x, {gate, up});
    active_kernels().token->gate_values(gate, up, type_, layer_.gate, n_texts_ * layer_.n_gated);
    return multiplied(layer_.down, gate);
  }

  const TokenLayer& layer_;
  FloatType type_;
  size_t n_texts_, n_threads_;
  Scratch scratch_;
};

size_t n_products(const TokenLayer& layer) {
  size_t n = 0;
  for (const TokenProducts* by : {&layer.inputs, &layer.output, &layer.gates, &layer.down}) {
    for (const RowsProduct& product : by->products) n += product.n_rows * by->n_columns;
  }
  return n;
}

}  // namespace

void step_layers(const TokenLayer* const* layers, size_t n, FloatType type, size_t n_texts, const void* x, const void* cos,
                 const void* sin, const LayerCache* caches, void* y, size_t n_threads) {
  if (n == 0) return;
  size_t work = 0;
  for (size_t i = 0; i < n; i++) work += n_texts * n_products(*layers[i]);
  with_crew(std::min(n_threads, work / (n * kLoops * kThreadProducts)), [&] {
    const void* from = x;
    uint8_t* to = static_cast<uint8_t*>(y);
    for (size_t i = 0; i < n; i++) {
      Step(*layers[i], type, n_texts, n_threads).run(from, cos, sin, caches[i], to);
      from = to;
      to += n_texts * layers[i]->n_hidden * float_bytes(type);
    }
  });
}

}  // namespace spqfmt
