// Where the chunks of a file's tensors lie (FORMAT.md 2.3), from the records of its index.
#pragma once

#include <cstdint>

#include "json.hpp"

namespace spqfmt {

// Of the chunks of one tensor, in bytes. `extent`: from the begin of the first plane to that of what follows, which is a
// multiple of the chunks' alignment; `tail`: how much of it lies behind the last plane's end.
struct Place {
  int64_t extent, tail, raw_bytes, n_planes;
};

// Whether a record names all that a tensor's has to, and its chunk records say where they lie; then `name` and `place`
// are set. Everything else about the record is not looked at. `alignment` is that of planes of chunks.
bool place_tensor(JsonCursor record, int64_t alignment, JsonString& name, Place& place);

}  // namespace spqfmt
