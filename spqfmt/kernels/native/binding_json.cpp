// JSON texts for Python: checked, and what is wanted of them as Python objects.
#include <nanobind/stl/string.h>

#include <cstring>
#include <string>
#include <vector>

#include "binding.hpp"
#include "buffer.hpp"
#include "chunk_records.hpp"
#include "errors.hpp"
#include "index_places.hpp"
#include "json.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

void check(nb::handle text_object) {
  const Source text(text_object);
  const nb::gil_scoped_release release;
  check_json(text.data(), text.size());
}

nb::object python_string(const JsonString& string) {
  const char* data = reinterpret_cast<const char*>(string.data);
  size_t size = string.size;
  std::string unescaped;
  if (string.has_escapes) {
    append_unescaped(string, unescaped);
    data = unescaped.data();
    size = unescaped.size();
  }
  nb::object found = nb::steal(PyUnicode_DecodeUTF8(data, static_cast<Py_ssize_t>(size), nullptr));
  if (!found.is_valid()) throw nb::python_error();
  return found;
}

bool at_number(JsonCursor& at) {
  const uint8_t c = at.peek();
  return c == '-' || (c >= '0' && c <= '9');
}

nb::object other() { return nb::borrow(Py_Ellipsis); }

nb::object scalar(JsonCursor& at) {
  if (at_number(at)) return nb::int_(at.integer());
  const uint8_t c = at.peek();
  if (c == '"') return python_string(at.string());
  at.skip();
  switch (c) {
    case 't': return nb::bool_(true);
    case 'f': return nb::bool_(false);
    case 'n': return nb::none();
    default: return other();
  }
}

// Memory of a bytes object that is filled before anybody sees it.
template <typename T>
T* room_for(size_t n, nb::object& bytes) {
  bytes = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(n * sizeof(T))));
  if (!bytes.is_valid()) throw nb::python_error();
  return reinterpret_cast<T*>(PyBytes_AsString(bytes.ptr()));
}

// A list of integers, or with `rows` a list of lists of them that all have one length: int64 bytes, and that length.
nb::object integers(JsonCursor& at, bool rows) {
  if (at.peek() != '[') return scalar(at);
  size_t n = 0, width = 0;
  bool good = true;
  const auto count = [&](JsonCursor& in) {
    good = good && at_number(in);
    in.skip();
    ++n;
  };
  JsonCursor first = at;
  first.elements([&] {
    if (!rows) return count(first);
    const size_t before = n;
    if (first.peek() == '[') {
      first.elements([&] { count(first); });
    } else {
      good = false;
      first.skip();
    }
    if (before == 0) width = n;
    good = good && n - before == width && width > 0;
  });
  if (!good) {
    at.skip();
    return other();
  }
  nb::object bytes;
  int64_t* out = room_for<int64_t>(n, bytes);
  at.elements([&] {
    if (!rows) *out++ = at.integer();
    else at.elements([&] { *out++ = at.integer(); });
  });
  return rows ? nb::make_tuple(bytes, width) : nb::object(bytes);
}

// A list of lists of integers: their int64 bytes, and the int64 bytes of the lists' lengths.
nb::object lists(JsonCursor& at) {
  if (at.peek() != '[') return scalar(at);
  size_t n = 0, n_lists = 0;
  bool good = true;
  JsonCursor first = at;
  first.elements([&] {
    ++n_lists;
    if (first.peek() != '[') {
      good = false;
      first.skip();
      return;
    }
    first.elements([&] {
      good = good && at_number(first);
      first.skip();
      ++n;
    });
  });
  if (!good) {
    at.skip();
    return other();
  }
  nb::object integers_bytes, lengths_bytes;
  int64_t* out = room_for<int64_t>(n, integers_bytes);
  int64_t* length = room_for<int64_t>(n_lists, lengths_bytes);
  at.elements([&] {
    const int64_t* begin = out;
    at.elements([&] { *out++ = at.integer(); });
    *length++ = out - begin;
  });
  return nb::make_tuple(integers_bytes, lengths_bytes);
}

nb::object strings(JsonCursor& at) {
  if (at.peek() != '{') return scalar(at);
  nb::dict found;
  bool good = true;
  JsonCursor first = at;
  first.members([&](const JsonString&) {
    good = good && first.peek() == '"';
    first.skip();
  });
  if (!good) {
    at.skip();
    return other();
  }
  at.members([&](const JsonString& key) { found[python_string(key)] = python_string(at.string()); });
  return found;
}

nb::object spans(JsonCursor& at, size_t most) {
  if (at.peek() != '[') return scalar(at);
  size_t n = 0;
  JsonCursor first = at;
  first.elements([&] {
    if (++n > most) throw DataError("index: a list has more than " + std::to_string(most) + " members", Fault::limit);
    first.skip();
  });
  nb::object bytes;
  int64_t* out = room_for<int64_t>(2 * n, bytes);
  at.elements([&] {
    at.peek();
    *out++ = static_cast<int64_t>(at.position());
    at.skip();
    *out++ = static_cast<int64_t>(at.position());
  });
  return bytes;
}

nb::object project(JsonCursor& at, nb::handle wanted);

nb::object object(JsonCursor& at, nb::dict wanted) {
  if (at.peek() != '{') return scalar(at);
  nb::dict found;
  at.members([&](const JsonString& key) {
    const nb::object name = python_string(key);
    const nb::handle of_member = PyDict_GetItemWithError(wanted.ptr(), name.ptr());
    if (of_member.is_valid()) {
      found[name] = project(at, of_member);
    } else {
      at.skip();
    }
  });
  return found;
}

nb::object records(JsonCursor& at, nb::tuple wanted) {
  if (at.peek() != '[') return scalar(at);
  const size_t most = nb::cast<size_t>(wanted[0]);
  nb::list found;
  at.elements([&] {
    if (nb::len(found) == most) throw DataError("index: a list has more than " + std::to_string(most) + " members");
    found.append(project(at, wanted[1]));
  });
  return found;
}

nb::object project(JsonCursor& at, nb::handle wanted) {
  if (nb::isinstance<nb::dict>(wanted)) return object(at, nb::borrow<nb::dict>(wanted));
  if (nb::isinstance<nb::tuple>(wanted)) return records(at, nb::borrow<nb::tuple>(wanted));
  if (nb::isinstance<nb::int_>(wanted)) return spans(at, nb::cast<size_t>(wanted));
  const std::string kind = nb::cast<std::string>(wanted);
  if (kind == "scalar") return scalar(at);
  if (kind == "integers" || kind == "rows") return integers(at, kind == "rows");
  if (kind == "lists") return lists(at);
  require(kind == "strings", "wanted is not what the documentation says");
  return strings(at);
}

nb::object json_project(nb::handle text_object, size_t begin, size_t end, nb::handle wanted) {
  const Source text(text_object);
  require(begin <= end && end <= text.size(), "no such part of the text");
  JsonCursor at(text.data(), begin, end);
  return project(at, wanted);
}

nb::list places(nb::handle text_object, nb::handle spans_object, int64_t alignment, nb::handle out_object) {
  const Source text(text_object), spans(spans_object);
  const Target out(out_object);
  const int64_t* span = array_of<const int64_t>(spans, "spans is not int64[n, 2]");
  Place* place = array_of<Place>(out, "out is not int64[n, 4]");
  require(alignment >= 1, "alignment is not positive");
  const size_t n = spans.size() / (2 * sizeof(int64_t));
  require(spans.size() == n * 2 * sizeof(int64_t) && out.size() == n * sizeof(Place), "out is not int64[n, 4]");
  nb::list names;
  for (size_t k = 0; k < n; ++k, span += 2) {
    require(span[0] >= 0 && span[0] <= span[1] && static_cast<size_t>(span[1]) <= text.size(), "no such part of the text");
    JsonString name{};
    const JsonCursor record(text.data(), static_cast<size_t>(span[0]), static_cast<size_t>(span[1]));
    if (!place_tensor(record, alignment, name, place[k])) break;
    names.append(python_string(name));
  }
  return names;
}

int64_t chunk_table(nb::handle rows_object, size_t planes, unsigned bits, int64_t begin, int64_t alignment, bool may_be_empty,
                    nb::handle out_object) {
  const Source rows(rows_object);
  const Target out(out_object);
  const int64_t* row = array_of<const int64_t>(rows, "rows is not int64[n, 1 + 3 * planes]");
  int64_t* table = array_of<int64_t>(out, "out is not int64[n, 2 + planes]");
  require(planes >= 1 && planes <= 8 && bits >= 1 && alignment >= 1, "no such planes");
  const size_t row_bytes = (1 + 3 * planes) * sizeof(int64_t);
  const size_t n = rows.size() / row_bytes;
  require(rows.size() == n * row_bytes, "rows is not int64[n, 1 + 3 * planes]");
  require(out.size() == n * (2 + planes) * sizeof(int64_t), "out is not int64[n, 2 + planes]");
  return check_chunks(row, n, {planes, bits, begin, alignment, may_be_empty}, table);
}

}  // namespace

void bind_json(nb::module_& m) {
  m.def("check_json", &check, nb::arg("text"));
  m.def("project_json", &json_project, nb::arg("text"), nb::arg("begin"), nb::arg("end"), nb::arg("wanted"));
  m.def("tensor_places", &places, nb::arg("text"), nb::arg("spans"), nb::arg("alignment"), nb::arg("out"));
  m.def("chunk_table", &chunk_table, nb::arg("rows"), nb::arg("planes"), nb::arg("bits"), nb::arg("begin"),
        nb::arg("alignment"), nb::arg("may_be_empty"), nb::arg("out"));
}

}  // namespace spqfmt
