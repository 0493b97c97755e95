// Python's side of attention.hpp. What is computed with, and outputs, are addresses, as in binding_multiply.cpp.

#include "attention.hpp"
#include "binding.hpp"
#include "checked.hpp"
#include "dispatch.hpp"
#include "team.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

const void* at(uintptr_t address) { return reinterpret_cast<const void*>(address); }

void attend(uintptr_t q, unsigned type, uintptr_t keys, size_t key_text, size_t key_head, size_t key_token, uintptr_t values,
            size_t value_text, size_t value_head, size_t value_token, size_t n_texts, size_t n_heads, size_t n_shared,
            size_t n_tokens, size_t key_size, size_t value_size, float scale, uintptr_t y, size_t n_threads) {
  const Attention attention{checked_type(type), n_texts, n_heads, n_shared, n_tokens, key_size, value_size, scale};
  require(key_size <= kMostOfHead && value_size <= kMostOfHead, "a head has more numbers than attention takes");
  require(n_tokens > 0, "there is nothing to attend to");
  const size_t work = product(n_tokens, product(n_shared, key_size + value_size));
  const Cached its_keys{at(keys), key_text, key_head, key_token}, its_values{at(values), value_text, value_head, value_token};
  const Attend attend = active_kernels().token->attend;
  const nb::gil_scoped_release release;
  over_rows(product(n_texts, n_heads), work, n_threads, [&](size_t begin, size_t end) {
    attend(at(q), its_keys, its_values, attention, begin, end, reinterpret_cast<void*>(y));
  });
}

void rotate_in_place(uintptr_t x, unsigned type, size_t n_tokens, size_t n_heads, size_t size, uintptr_t cos, uintptr_t sin,
                     size_t rotary) {
  require(rotary <= size && rotary % 2 == 0, "a head has fewer numbers than are rotated, or an odd number of them");
  rotate(reinterpret_cast<void*>(x), checked_type(type), n_tokens, n_heads, size, at(cos), at(sin), rotary);
}

void gate_in_place(uintptr_t gate, uintptr_t up, unsigned type, unsigned form, size_t n) {
  require(form <= static_cast<unsigned>(Gate::gelu_tanh), "unknown form of a gate");
  active_kernels().token->gate_values(reinterpret_cast<void*>(gate), at(up), checked_type(type), static_cast<Gate>(form), n);
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attend", &attend);
  m.def("rotate", &rotate_in_place);
  m.def("gate_values", &gate_in_place);
}

}  // namespace spqfmt
