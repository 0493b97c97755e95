// Python's side of blocks.hpp, and of elements narrower than a byte.
#include "blocks.hpp"

#include <nanobind/nanobind.h>

#include <deque>
#include <vector>

#include "binding.hpp"
#include "bitstream.hpp"
#include "buffer.hpp"
#include "planes.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

// The layout, the blocks and all parts, checked to be of equally many blocks.
template <typename Blocks, typename Part, typename Byte>
class Moved {
 public:
  Moved(nb::handle layout, nb::handle blocks, const nb::list& parts) : numbers_(layout), blocks_(blocks) {
    const int64_t* list = array_of<const int64_t>(numbers_, "layout is no int64");
    layout_ = block_layout(list, numbers_.size() / sizeof(int64_t));
    require(blocks_.size() % layout_.block_bytes == 0, "no whole number of blocks");
    require(parts.size() == layout_.n_parts, "not as many parts as the layout has");
    for (const nb::handle part : parts) {
      const size_t n_bytes = part_bytes(layout_, parts_.size());
      parts_.emplace_back(part);
      require(parts_.back().size() == n_blocks() * n_bytes, "blocks and elements do not fit");
      pointers_.push_back(parts_.back().data());
    }
  }
  const BlockLayout& layout() const { return layout_; }
  size_t n_blocks() const { return blocks_.size() / layout_.block_bytes; }
  uint8_t* blocks() const { return blocks_.data(); }
  Byte* const* parts() const { return pointers_.data(); }

 private:
  const Source numbers_;
  const Blocks blocks_;
  BlockLayout layout_;
  std::deque<Part> parts_;  // none is ever moved
  std::vector<Byte*> pointers_;
};

void take(nb::handle layout, nb::handle blocks, const nb::list& parts) {
  const Moved<Source, Target, uint8_t> moved(layout, blocks, parts);
  const nb::gil_scoped_release release;
  take_blocks(moved.layout(), moved.blocks(), moved.n_blocks(), moved.parts());
}

size_t put(nb::handle layout, const nb::list& parts, nb::handle blocks) {
  const Moved<Target, Source, const uint8_t> moved(layout, blocks, parts);
  const nb::gil_scoped_release release;
  return put_blocks(moved.layout(), moved.parts(), moved.n_blocks(), moved.blocks());
}

void pack(nb::handle src_object, unsigned bits, nb::handle dst_object) {
  const Source src(src_object);
  const Target dst(dst_object);
  require(bits == 2 || bits == 4, "bits is not 2 or 4");
  require(src.size() % (8 / bits) == 0 && dst.size() == src.size() / (8 / bits), "dst is not the packed elements of src");
  const nb::gil_scoped_release release;
  pack_bits(src.data(), dst.size(), bits, dst.data());
}

}  // namespace

void bind_blocks(nb::module_& m) {
  m.def("take_blocks", &take, nb::arg("layout"), nb::arg("blocks"), nb::arg("parts"));
  m.def("put_blocks", &put, nb::arg("layout"), nb::arg("parts"), nb::arg("blocks"));
  m.def("pack_bits", &pack, nb::arg("src"), nb::arg("bits"), nb::arg("dst"));
}

}  // namespace spqfmt
