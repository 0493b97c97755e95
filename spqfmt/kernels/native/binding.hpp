// What the binding's files share.
#pragma once

#include <nanobind/nanobind.h>

namespace spqfmt {

void bind_blocks(nanobind::module_& m);
void bind_dequantize(nanobind::module_& m);
void bind_json(nanobind::module_& m);
void bind_layers(nanobind::module_& m);
void bind_multiply(nanobind::module_& m);
void bind_narrow(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_norm(nanobind::module_& m);
void bind_rate(nanobind::module_& m);

}  // namespace spqfmt
