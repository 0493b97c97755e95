// Python's buffers for the binding files.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace spqfmt {

// A borrowed C-contiguous buffer of any element type, as bytes.
class Buffer {
 public:
  Buffer(nanobind::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nanobind::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  size_t size() const { return static_cast<size_t>(view_.len); }
  uint8_t* data() const { return static_cast<uint8_t*>(view_.buf); }

 private:
  Py_buffer view_;
};

struct Source : Buffer {
  explicit Source(nanobind::handle object) : Buffer(object, PyBUF_SIMPLE) {}
};
struct Target : Buffer {
  explicit Target(nanobind::handle object) : Buffer(object, PyBUF_WRITABLE) {}
};

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// The buffer as an array of T.
template <typename T>
T* array_of(const Buffer& buffer, const char* message) {
  require(buffer.size() % sizeof(T) == 0 && reinterpret_cast<uintptr_t>(buffer.data()) % alignof(T) == 0, message);
  return reinterpret_cast<T*>(buffer.data());
}

}  // namespace spqfmt
