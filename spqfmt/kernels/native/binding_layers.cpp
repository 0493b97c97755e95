// Python's side of token_layer.hpp: a layer whose parts are put together once. Activations, weights of norms and caches are
// addresses, as in binding_multiply.cpp.

#include <cstring>
#include <utility>
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

// Items of dicts, lengths and classes as they were. What Python's collector finds through it is all that it keeps.
class Unchanged {
 public:
  // (dict, key, what it has), or None for what it has not; (dict, key) of what has no items; (object, class); (tensor, address).
  Unchanged(const nb::list& same, const nb::list& empty, const nb::list& kinds, const nb::list& tensors) {
    for (nb::handle given : same) same_.push_back({part(given, 0), part(given, 1), part(given, 2)});
    for (nb::handle given : empty) empty_.push_back({part(given, 0), part(given, 1)});
    for (nb::handle given : kinds) kinds_.push_back({part(given, 0), part(given, 1)});
    for (nb::handle given : tensors) tensors_.push_back({part(given, 0), nb::cast<uintptr_t>(part(given, 1))});
  }

  bool is_so() const {
    for (const Same& item : same_) {
      PyObject* found = PyDict_GetItemWithError(item.dict.ptr(), item.key.ptr());
      if ((found == nullptr ? Py_None : found) != item.value.ptr()) return false;
    }
    for (const Pair& item : empty_) {
      PyObject* found = PyDict_GetItemWithError(item.first.ptr(), item.second.ptr());
      if (found == nullptr || PyObject_Size(found) != 0) return false;
    }
    for (const Pair& item : kinds_) {
      if (reinterpret_cast<PyObject*>(Py_TYPE(item.first.ptr())) != item.second.ptr()) return false;
    }
    for (const auto& [tensor, address] : tensors_) {
      if (nb::cast<uintptr_t>(tensor.attr("data_ptr")()) != address) return false;
    }
    return true;
  }

  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const Unchanged& own = *nb::inst_ptr<Unchanged>(self);
    for (const Same& item : own.same_) {
      Py_VISIT(item.dict.ptr());
      Py_VISIT(item.key.ptr());
      Py_VISIT(item.value.ptr());
    }
    for (const std::vector<Pair>* items : {&own.empty_, &own.kinds_}) {
      for (const Pair& item : *items) {
        Py_VISIT(item.first.ptr());
        Py_VISIT(item.second.ptr());
      }
    }
    for (const auto& item : own.tensors_) Py_VISIT(item.first.ptr());
    return 0;
  }

  static int clear(PyObject* self) {
    if (!nb::inst_ready(self)) return 0;
    Unchanged& own = *nb::inst_ptr<Unchanged>(self);
    // What goes may call Python, which must not find it half gone.
    const std::vector<Same> same = std::move(own.same_);
    const std::vector<Pair> empty = std::move(own.empty_), kinds = std::move(own.kinds_);
    const std::vector<std::pair<nb::object, uintptr_t>> tensors = std::move(own.tensors_);
    return 0;
  }

 private:
  struct Same {
    nb::object dict, key, value;
  };
  using Pair = std::pair<nb::object, nb::object>;

  static nb::object part(nb::handle given, size_t i) { return nb::borrow(nb::cast<nb::tuple>(given)[i]); }

  std::vector<Same> same_;
  std::vector<Pair> empty_, kinds_;
  std::vector<std::pair<nb::object, uintptr_t>> tensors_;
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
  PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&Unchanged::traverse)},
                         {Py_tp_clear, reinterpret_cast<void*>(&Unchanged::clear)},
                         {0, nullptr}};
  nb::class_<Unchanged>(m, "Unchanged", nb::type_slots(slots))
      .def(nb::init<const nb::list&, const nb::list&, const nb::list&, const nb::list&>(), nb::arg("same"), nb::arg("empty"),
           nb::arg("kinds"), nb::arg("tensors"))
      .def("is_so", &Unchanged::is_so);
  m.def("step_layers", &step);
  m.def("same_bytes", &same_bytes);
}

}  // namespace spqfmt
