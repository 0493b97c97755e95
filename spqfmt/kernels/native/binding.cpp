// Python's side of the kernels; nothing but binding*.cpp and buffer.hpp knows Python. Every function takes C-contiguous
// buffers, checks their sizes and releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "binding.hpp"
#include "buffer.hpp"
#include "chunk.hpp"
#include "dispatch.hpp"
#include "errors.hpp"
#include "histogram.hpp"
#include "jobs.hpp"
#include "parallel.hpp"
#include "planes.hpp"
#include "team.hpp"
#include "trellis.hpp"
#include "turn.hpp"

namespace nb = nanobind;

namespace {

using namespace spqfmt;

nb::bytes rans_encode(nb::handle src_object, unsigned block_log2) {
  const Source src(src_object);
  std::unique_ptr<uint8_t[]> out;  // not a vector, which would set all of it to zero first
  size_t n_bytes;
  {
    const nb::gil_scoped_release release;
    require(src.size() > 0, "a rans chunk holds at least one symbol");
    require(block_log2 == 0 || (block_log2 >= kMinBlockLog2 && block_log2 <= kMaxBlockLog2), "block_log2 is not 0 or 7..16");
    const unsigned smallest = block_log2 == 0 ? least_block_log2(src.size()) : block_log2;
    const size_t capacity = max_chunk_bytes(src.size(), smallest);
    out.reset(new uint8_t[capacity]);
    n_bytes = encode_chunk(src.data(), src.size(), block_log2, out.get(), capacity);
  }
  require(n_bytes > 0, "too many symbols for one rans chunk");
  return nb::bytes(reinterpret_cast<const char*>(out.get()), n_bytes);
}

void rans_decode(nb::handle src_object, nb::handle dst_object) {
  const Source src(src_object);
  const Target dst(dst_object);
  const nb::gil_scoped_release release;
  decode_chunk(src.data(), src.size(), src.size(), dst.data(), dst.size());
}

uint32_t crc32(nb::handle src_object, uint32_t value) {
  const Source src(src_object);
  const nb::gil_scoped_release release;
  return active_kernels().crc32(value, src.data(), src.size());
}

void histogram_into(nb::handle src_object, nb::handle counts_object) {
  const Source src(src_object);
  const Target counts(counts_object);
  uint64_t* bins = array_of<uint64_t>(counts, "counts is not 256 uint64");
  require(counts.size() == 256 * sizeof(uint64_t), "counts is not 256 uint64");
  const nb::gil_scoped_release release;
  histogram(src.data(), src.size(), bins);
}

template <void (*kLoop)(const uint8_t*, size_t, size_t, bool, uint8_t*)>
void planes(nb::handle src_object, size_t itemsize, bool rotate, nb::handle dst_object) {
  const Source src(src_object);
  const Target dst(dst_object);
  require(itemsize == 1 || itemsize == 2 || itemsize == 4 || itemsize == 8, "itemsize is not 1, 2, 4 or 8");
  require(src.size() % itemsize == 0, "src is not a whole number of elements");
  require(src.size() == dst.size(), "src and dst differ in size");
  const nb::gil_scoped_release release;
  kLoop(src.data(), src.size() / itemsize, itemsize, rotate, dst.data());
}

void turn_codes(nb::handle src_object, size_t n_channels, size_t width, unsigned bits, nb::handle dst_object, size_t n_threads) {
  const Source src(src_object);
  const Target dst(dst_object);
  require(bits == 2 || bits == 4 || bits == 8, "bits is not 2, 4 or 8");
  size_t n_codes;
  require(!__builtin_mul_overflow(n_channels, width, &n_codes), "matrix is too large");
  require(src.size() == ceil_div(n_codes, 8 / bits) && dst.size() == src.size(), "src and dst are not the matrix's codes");
  const nb::gil_scoped_release release;
  turn(src.data(), n_channels, width, bits, dst.data(), n_threads);
}

bool unfold_paths(nb::handle codes_object, size_t n_columns, size_t height, size_t passed, nb::handle history_object, size_t n_threads) {
  const Target codes(codes_object), history(history_object);
  require(n_columns > 0 && codes.size() % n_columns == 0, "codes are no whole rows");
  require(height > 0 && passed < height, "no row of a tile");
  require(history.size() % kHistoryRows == 0 && history.size() / kHistoryRows == n_columns, "history is not of three rows");
  const nb::gil_scoped_release release;
  return unfold({codes.data(), codes.size() / n_columns, n_columns, height, passed}, history.data(), n_threads);
}

template <auto kDecode>
void decode_many(nb::handle src_object, nb::handle jobs_object, nb::handle dst_object, size_t n_threads) {
  const Source src(src_object), jobs(jobs_object);
  const Target dst(dst_object);
  const DecodeJob* list = array_of<const DecodeJob>(jobs, "jobs is not an array of whole records");
  const nb::gil_scoped_release release;
  kDecode(src.data(), src.size(), list, jobs.size() / sizeof(DecodeJob), dst.data(), dst.size(), n_threads);
}

// spqfmt.errors stays the one place of the classes; `job` is set where many chunks were decoded at once.
void raise(const DataError& error) {
  const nb::module_ errors = nb::module_::import_("spqfmt.errors");
  nb::object raised;
  switch (error.fault) {
    case Fault::corrupt: raised = errors.attr("CorruptError")(error.what()); break;
    case Fault::limit: raised = errors.attr("LimitError")(error.what()); break;
    case Fault::checksum: raised = errors.attr("ChecksumError")(error.what()); break;
    case Fault::unsupported:
      raised = errors.attr("UnsupportedError")(std::string("unknown ") + error.what(), error.what());
      break;
  }
  if (error.job) raised.attr("job") = *error.job;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())), raised.ptr());
}

}  // namespace

NB_MODULE(_native, m) {
  // What lives when a program ends is the system's to take back: programs end without a last collection (cli/main.py).
  nb::set_leak_warnings(false);
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const DataError& error) {
      raise(error);
    }
  });

  m.def("rans_encode", &rans_encode, nb::arg("src"), nb::arg("block_log2") = 0);
  m.def("rans_decode", &rans_decode, nb::arg("src"), nb::arg("dst"));
  m.def("crc32", &crc32, nb::arg("src"), nb::arg("value") = 0);
  m.def("histogram", &histogram_into, nb::arg("src"), nb::arg("counts"));
  m.def("split_planes", &planes<split_planes>, nb::arg("src"), nb::arg("itemsize"), nb::arg("rotate"), nb::arg("dst"));
  m.def("merge_planes", &planes<merge_planes>, nb::arg("src"), nb::arg("itemsize"), nb::arg("rotate"), nb::arg("dst"));
  m.def("turn", &turn_codes, nb::arg("src"), nb::arg("n_channels"), nb::arg("width"), nb::arg("bits"), nb::arg("dst"),
        nb::arg("n_threads"));
  m.def("unfold_paths", &unfold_paths, nb::arg("codes"), nb::arg("n_columns"), nb::arg("height"), nb::arg("passed"),
        nb::arg("history"), nb::arg("n_threads"));
  m.def("decode_chunks", &decode_many<decode_chunks>, nb::arg("src"), nb::arg("jobs"), nb::arg("dst"), nb::arg("n_threads"));
  m.def("decode_verified_chunks", &decode_many<decode_verified_chunks>, nb::arg("src"), nb::arg("jobs"), nb::arg("dst"),
        nb::arg("n_threads"));
  m.def("usable_threads", &usable_threads);
  m.def("startable_threads", &startable_threads, nb::arg("n_threads"), nb::call_guard<nb::gil_scoped_release>());
  m.def("disband_team", &disband_team);
  m.def("after_fork", &after_fork, nb::arg("disbanded"));
  m.def("available_kernels", &available_kernels);
  m.def("kernel_variants", &kernel_variants);
  m.def("active_kernels", [] { return std::string(active_kernels().name); });
  m.def("select_kernels", &select_kernels, nb::arg("name"));
  m.def("default_kernels", &default_kernels, nb::arg("name"));
  bind_blocks(m);
  bind_dequantize(m);
  bind_json(m);
  bind_narrow(m);
  bind_multiply(m);
  bind_attention(m);
  bind_layers(m);
  bind_norm(m);
  bind_rate(m);
}
