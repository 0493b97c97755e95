#include "attention_rows.hpp"

namespace spqfmt {

void attend_avx512(const void* q, const Cached& keys, const Cached& values, const Attention& attention, size_t begin, size_t end, void* y) {
  attend(q, keys, values, attention, begin, end, y);
}

void gate_values_avx512(void* gate, const void* up, FloatType type, Gate form, size_t n) { gate_values(gate, up, type, form, n); }

}  // namespace spqfmt
