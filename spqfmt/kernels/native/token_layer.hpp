// One token of each text through layers of a decoder: norms, attention to a cache, a gated network and the sums around them.
//
// The same functions in the same order as one by one from Python, so the same bits; what is left out is the way between them.
#pragma once

#include <cstddef>
#include <vector>

#include "attention.hpp"
#include "multiply.hpp"
#include "norm.hpp"

namespace spqfmt {

// Products of the same tokens. Where their outputs lie is said for each call; the rest of `outputs` is there.
struct TokenProducts {
  std::vector<RowsProduct> products;
  size_t n_columns;
  Rounding rounding;
};

// h = x + after_attention(o(attend(q, k, v of before_attention(x)))), y = h + after_network(down(f(gate) * up of before_network(h))).
// Norms whose weights are null are not there. Every product's places are those of its own rows.
struct TokenLayer {
  size_t n_hidden, n_gated;
  RootMeanSquare before_attention, after_attention, before_network, after_network;
  RootMeanSquare q_norm, k_norm;
  bool norms_heads;  // each head by itself, and not all together
  TokenProducts inputs, output, gates, down;  // q, k and v; o; gate and up
  Attention attention;  // texts and tokens are those of a call
  size_t rotary;  // of each head's numbers; 0: none
  Gate gate;
};

// Keys and values [texts, heads, room, size] of which n_tokens < room are written. A step writes the next one.
struct LayerCache {
  void* keys;
  void* values;
  size_t room, n_tokens;
};

// The outputs of all `n` layers, of which each has the one before as input: y [n, texts, hidden], of x [texts, hidden]. cos and
// sin [texts, rotary]. All numbers are of one type.
void step_layers(const TokenLayer* const* layers, size_t n, FloatType type, size_t n_texts, const void* x, const void* cos,
                 const void* sin, const LayerCache* caches, void* y, size_t n_threads);

}  // namespace spqfmt
