// Python's side of token_layer.hpp: a layer whose parts are put together once. Activations, weights of norms and caches are
// addresses, as in binding_multiply.cpp.

#include <cstring>
#include <vector>

#include "binding.hpp"
#include "binding_multiply.hpp"
#include "checked.hpp"
#include "token_layer.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

// (weight, epsilon, offset, rounds_first), or None.
RootMeanSquare norm_of(nb::handle given) {
  if (given.is_none()) return {nullptr, 0, 0, false};
  const nb::tuple numbers = nb::cast<nb::tuple>(given);
  return {reinterpret_cast<const void*>(nb::cast<uintptr_t>(numbers[0])), nb::cast<float>(numbers[1]), nb::cast<float>(numbers[2]),
          nb::cast<bool>(numbers[3])};
}

// Keeps the matrices. Norms are those before and after attention, before and after the network, of q and of k.
class Layer {
 public:
  Layer(const nb::tuple& norms, bool norms_heads, const nb::tuple& products, unsigned gate, size_t n_heads, size_t n_shared,
        size_t key_size, size_t value_size, float scale, size_t rotary)
      : kept_(products) {
    require(norms.size() == 6 && products.size() == 4, "a layer has six places for norms and four sets of products");
    require(gate <= static_cast<unsigned>(Gate::gelu_tanh), "unknown form of a gate");
    require(key_size <= kMostOfHead && value_size <= kMostOfHead, "a head has more numbers than attention takes");
    require(rotary <= key_size && rotary % 2 == 0, "a head has fewer numbers than are rotated, or an odd number of them");
    const size_t n_queries = product(n_heads, n_shared);
    const TokenProducts inputs = products_at(0), output = products_at(1), gates = products_at(2), down = products_at(3);
    const size_t n_hidden = inputs.n_columns, n_gated = down.n_columns;
    require(has_rows(inputs, {product(n_queries, key_size), product(n_heads, key_size), product(n_heads, value_size)}) &&
                output.n_columns == product(n_queries, value_size) && has_rows(output, {n_hidden}) && gates.n_columns == n_hidden &&
                has_rows(gates, {n_gated, n_gated}) && has_rows(down, {n_hidden}),
            "products of a layer do not fit together");
    layer_ = {n_hidden, n_gated, norm_of(norms[0]), norm_of(norms[1]), norm_of(norms[2]), norm_of(norms[3]), norm_of(norms[4]),
              norm_of(norms[5]), norms_heads, inputs, output, gates, down,
              {FloatType::f32, 0, n_heads, n_shared, 0, key_size, value_size, scale}, rotary, static_cast<Gate>(gate)};
  }

  const TokenLayer& layer() const { return layer_; }

 private:
  // (matrices, biases, rounds).
  TokenProducts products_at(size_t i) const {
    const nb::tuple given = nb::cast<nb::tuple>(kept_[i]);
    return {products_of(given[0], nb::cast<nb::tuple>(given[1])), n_columns_of(given[0]),
            nb::cast<bool>(given[2]) ? Rounding::few : Rounding::none};
  }

  static bool has_rows(const TokenProducts& products, std::initializer_list<size_t> wanted) {
    if (products.products.size() != wanted.size()) return false;
    size_t i = 0;
    for (const size_t n_rows : wanted) {
      if (products.products[i++].n_rows != n_rows) return false;
    }
    return true;
  }

  nb::tuple kept_;
  TokenLayer layer_;
};

// `caches` has (keys, values, room, tokens) of each layer, one after the other. All outputs [layers, texts, hidden] are in `copies`,
// and each is where its address says.
void step(const nb::list& layers, uintptr_t x, unsigned type, size_t n_texts, uintptr_t cos, uintptr_t sin, const nb::list& caches,
          uintptr_t copies, const nb::list& outputs, size_t n_threads) {
  const size_t n = layers.size();
  require(caches.size() == 4 * n && outputs.size() == n, "caches are not four numbers for each layer, or outputs not one");
  std::vector<uint8_t*> ys;
  std::vector<const TokenLayer*> of;
  std::vector<LayerCache> cached;
  for (size_t i = 0; i < n; i++) {
    of.push_back(&nb::cast<const Layer&>(layers[i]).layer());
    require(of[i]->n_hidden == of[0]->n_hidden, "layers differ in columns");
    ys.push_back(reinterpret_cast<uint8_t*>(nb::cast<uintptr_t>(outputs[i])));
    const size_t room = nb::cast<size_t>(caches[4 * i + 2]), n_tokens = nb::cast<size_t>(caches[4 * i + 3]);
    require(n_tokens < room, "a cache has no room for a token");
    cached.push_back({reinterpret_cast<void*>(nb::cast<uintptr_t>(caches[4 * i])),
                      reinterpret_cast<void*>(nb::cast<uintptr_t>(caches[4 * i + 1])), room, n_tokens});
  }
  const FloatType floats = checked_type(type);
  const nb::gil_scoped_release release;
  step_layers(of.data(), n, floats, n_texts, reinterpret_cast<const void*>(x), reinterpret_cast<const void*>(cos),
              reinterpret_cast<const void*>(sin), cached.data(), reinterpret_cast<void*>(copies), n_threads);
  const uint8_t* from = reinterpret_cast<const uint8_t*>(copies);
  for (size_t i = 0; i < n; i++) {
    const size_t n_bytes = n_texts * of[i]->n_hidden * float_bytes(floats);
    std::memcpy(ys[i], from, n_bytes);
    from += n_bytes;
  }
}

bool same_bytes(uintptr_t a, uintptr_t b, size_t n) {
  return std::memcmp(reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b), n) == 0;
}

}  // namespace

void bind_layers(nb::module_& m) {
  nb::class_<Layer>(m, "TokenLayer")
      .def(nb::init<const nb::tuple&, bool, const nb::tuple&, unsigned, size_t, size_t, size_t, size_t, float, size_t>(),
           nb::arg("norms"), nb::arg("norms_heads"), nb::arg("products"), nb::arg("gate"), nb::arg("n_heads"), nb::arg("n_shared"),
           nb::arg("key_size"), nb::arg("value_size"), nb::arg("scale"), nb::arg("rotary"));
  m.def("step_layers", &step);
  m.def("same_bytes", &same_bytes);
}

}  // namespace spqfmt
