// What a decoder's layer does between its products for one token of each text: rotary positions, attention to the keys of a
// cache, and the gate of a feed-forward network. Each is one pass here and some operations in torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "multiply.hpp"

namespace spqfmt {

// The most numbers of a head that attend takes.
inline constexpr size_t kMostOfHead = 512;

// A cache's keys or values [texts, heads, tokens, size]: numbers of a token lie side by side, all else is that many numbers on.
struct Cached {
  const void* values;
  size_t text, head, token;
};

// `n_shared` heads of the query to one of keys and values, whose numbers have one type.
struct Attention {
  FloatType type;
  size_t n_texts, n_heads, n_shared, n_tokens, key_size, value_size;
  float scale;
};

// For the (text, head of keys) pairs `begin` to `end`: y = softmax(scale * q K^T) V, q [texts, heads * shared, key_size] and
// y [texts, heads * shared, value_size] of the type. In binary32, rounded once. The same bits on every machine: sums of
// products have kAttentionLanes lanes, which are halved, and nothing is fused.
using Attend = void (*)(const void* q, const Cached& keys, const Cached& values, const Attention& attention, size_t begin,
                        size_t end, void* y);

void attend_scalar(const void* q, const Cached& keys, const Cached& values, const Attention& attention, size_t begin, size_t end, void* y);
void attend_avx2(const void* q, const Cached& keys, const Cached& values, const Attention& attention, size_t begin, size_t end, void* y);
void attend_avx512(const void* q, const Cached& keys, const Cached& values, const Attention& attention, size_t begin, size_t end, void* y);

// x [tokens, heads, size], in place: the first `rotary` numbers of a head in two halves a and b become a cos - b sin and
// b cos + a sin, with cos and sin [tokens, rotary]. Each product and each sum is rounded to the type, as torch's are.
void rotate(void* x, FloatType type, size_t n_tokens, size_t n_heads, size_t size, const void* cos, const void* sin, size_t rotary);

enum class Gate : unsigned { silu, gelu_tanh };

// gate = f(gate) * up, in place, [n]; f's result is rounded to the type before it is multiplied.
using GateValues = void (*)(void* gate, const void* up, FloatType type, Gate form, size_t n);

void gate_values_scalar(void* gate, const void* up, FloatType type, Gate form, size_t n);
void gate_values_avx2(void* gate, const void* up, FloatType type, Gate form, size_t n);
void gate_values_avx512(void* gate, const void* up, FloatType type, Gate form, size_t n);

struct TokenKernels {
  Attend attend;
  GateValues gate_values;
};

}  // namespace spqfmt
