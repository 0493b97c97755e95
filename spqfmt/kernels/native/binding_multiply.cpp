// Python's side of multiply.hpp: a matrix whose parameters are checked once, when it is made.

#include <deque>
#include <vector>

#include "binding.hpp"
#include "binding_multiply.hpp"
#include "binding_narrow.hpp"
#include "bitstream.hpp"
#include "checked.hpp"
#include "multiply.hpp"

namespace nb = nanobind;

namespace spqfmt {
namespace {

// Numbers of rows or columns, each once; null for None.
const int64_t* checked_order(const Source* buffer, size_t n, const char* message) {
  if (buffer == nullptr) return nullptr;
  const int64_t* order = array_of<const int64_t>(*buffer, message);
  require(buffer->size() / sizeof(int64_t) == n, message);
  for (size_t i = 0; i < n; i++) require(order[i] >= 0 && static_cast<uint64_t>(order[i]) < n, message);
  return order;
}

// Borrowed: `begin` None for no outliers.
class OutlierBuffers {
 public:
  OutlierBuffers(nb::handle begin, nb::handle column, nb::handle value) : begin_(begin), column_(column), value_(value) {}

  Outliers checked(size_t n_rows, size_t n_columns) const {
    if (begin_.get() == nullptr) return {nullptr, nullptr, nullptr};
    require(column_.get() != nullptr && value_.get() != nullptr, "outliers have no columns or no values");
    const int64_t* begin = array_of<const int64_t>(*begin_.get(), "row_begin is not int64");
    const uint32_t* column = array_of<const uint32_t>(*column_.get(), "outlier columns are not uint32");
    const float* value = array_of<const float>(*value_.get(), "outlier values are not float32");
    const size_t n = column_.get()->size() / sizeof(uint32_t);
    require(begin_.get()->size() / sizeof(int64_t) == n_rows + 1, "row_begin is not one a row and one more");
    require(value_.get()->size() / sizeof(float) == n, "outlier columns and values differ in number");
    require(begin[0] >= 0 && static_cast<uint64_t>(begin[n_rows]) <= n, "row_begin passes the outliers");
    for (size_t row = 0; row < n_rows; row++) {
      require(begin[row] <= begin[row + 1], "row_begin does not ascend");
      for (int64_t i = begin[row]; i < begin[row + 1]; i++) {
        require(column[i] < n_columns && (i == begin[row] || column[i - 1] < column[i]), "outlier columns do not ascend");
      }
    }
    return {begin, column, value};
  }

 private:
  OptionalSource begin_, column_, value_;
};

// One number for each group, borrowed: (values, type, table or None, steps or None, type, zeros or None, type, minimums or None,
// type, tile_rows, tile_groups).
class NumberBuffers {
 public:
  explicit NumberBuffers(const nb::tuple& given)
      : values_(given[0]), table_(given[2]), steps_(given[3]), zeros_(given[5]), minimums_(given[7]),
        types_{type(given[1]), type(given[4]), type(given[6]), type(given[8])}, tile_rows_(nb::cast<size_t>(given[9])),
        tile_groups_(nb::cast<size_t>(given[10])) {}

  GroupNumbers checked(size_t n_lines, size_t n_groups) const {
    GroupNumbers numbers{};
    numbers.values = array(values_, types_[0], product(n_lines, n_groups), "values are not one a group");
    numbers.type = types_[0];
    if (table_.get() != nullptr) {
      require(types_[0] == NumberType::u8, "values with a table are not u8");
      numbers.table = checked_floats(*table_.get(), 256, "a table is not float32[256]");
    }
    if (steps_.get() == nullptr) return numbers;
    require(tile_rows_ > 0 && tile_groups_ > 0, "a supergroup is empty");
    const size_t n = product(ceil_div(n_lines, tile_rows_), ceil_div(n_groups, tile_groups_));
    numbers.steps = array(*steps_.get(), types_[1], n, "steps are not one a supergroup");
    numbers.steps_type = types_[1];
    if (zeros_.get() != nullptr) {
      numbers.zeros = array(*zeros_.get(), types_[2], n, "zeros are not one a supergroup");
      numbers.zeros_type = types_[2];
    }
    if (minimums_.get() != nullptr) {
      require(zeros_.get() == nullptr, "zeros and minimums exclude each other");
      numbers.minimums = array(*minimums_.get(), types_[3], n, "minimums are not one a supergroup");
      numbers.minimums_type = types_[3];
    }
    numbers.tile_rows = tile_rows_;
    numbers.tile_groups = tile_groups_;
    return numbers;
  }

 private:
  static NumberType type(nb::handle given) {
    const unsigned number = nb::cast<unsigned>(given);
    require(number <= static_cast<unsigned>(NumberType::i8), "unknown type of numbers");
    return static_cast<NumberType>(number);
  }

  static const void* array(const Buffer& buffer, NumberType type, size_t n, const char* message) {
    const size_t size = type == NumberType::f32 ? 4 : type == NumberType::bf16 || type == NumberType::f16 ? 2 : 1;
    require(buffer.size() == product(n, size) && reinterpret_cast<uintptr_t>(buffer.data()) % size == 0, message);
    return buffer.data();
  }

  Source values_;
  OptionalSource table_, steps_, zeros_, minimums_;
  NumberType types_[4];
  size_t tile_rows_, tile_groups_;
};

// Holds the buffers that it was made from. Activations and outputs are addresses: checking them is left to the caller, who has
// made them a moment before.
class CodeMatrix {
 public:
  CodeMatrix(size_t n_rows, size_t n_columns, unsigned bits, bool is_signed, nb::handle values, nb::handle row, nb::handle column,
         nb::handle begin, nb::handle outlier_columns, nb::handle outlier_values, nb::handle permutation, nb::handle order,
         size_t group_size, size_t group_rows, size_t stacked_rows, unsigned kind, nb::handle group_scale, nb::handle group_offset)
      : n_rows_(n_rows), n_columns_(n_columns), bits_(bits), is_signed_(is_signed), values_buffer_(values),
        outlier_buffers_(begin, outlier_columns, outlier_values), permutation_buffer_(permutation), order_buffer_(order) {
    product(n_rows, n_columns);
    require(bits == 2 || bits == 4 || bits == 8, "bits is not 2, 4 or 8");
    if (values_buffer_.get() != nullptr) {
      require(!is_signed && !group_scale.is_none(), "codes with values are numbers of them, in groups");
      values_ = checked_floats(*values_buffer_.get(), size_t{1} << bits, "values is not float32[2^bits]");
    }
    if (!row.is_none()) {
      parameters_.emplace(row, column);
      scales_ = parameters_->checked(n_rows, n_columns);
    }
    if (!group_scale.is_none()) {
      require(group_size > 0, "group_size is 0");
      require(kind <= static_cast<unsigned>(GroupOffset::minimum), "unknown kind of offset");
      require((kind == static_cast<unsigned>(GroupOffset::none)) == group_offset.is_none(), "offset and its kind do not fit together");
      require(group_rows > 0 && stacked_rows > 0 && n_rows % stacked_rows == 0, "rows do not make whole matrices of groups");
      const size_t n_groups = ceil_div(n_columns, group_size);
      const size_t n_lines = product(n_rows / stacked_rows, ceil_div(stacked_rows, group_rows));
      groups_.emplace();
      groups_->kind = static_cast<GroupOffset>(kind);
      groups_->group_size = group_size;
      groups_->group_rows = group_rows;
      groups_->stacked_rows = stacked_rows;
      group_scale_.emplace(nb::cast<nb::tuple>(group_scale));
      groups_->scale = group_scale_->checked(n_lines, n_groups);
      if (!group_offset.is_none()) {
        group_offset_.emplace(nb::cast<nb::tuple>(group_offset));
        groups_->offset = group_offset_->checked(n_lines, n_groups);
      }
    }
    outliers_ = outlier_buffers_.checked(n_rows, n_columns);
    permutation_ = checked_order(permutation_buffer_.get(), n_columns, "permutation is not int64, one a column");
    order_ = checked_order(order_buffer_.get(), n_rows, "order is not int64, one a row");
  }

  void multiply(nb::handle codes_object, size_t first_row, size_t n_rows, uintptr_t x, unsigned x_type, size_t n_tokens, uintptr_t y,
                uintptr_t bias, unsigned bias_type, size_t n_threads, bool rounds) const {
    std::optional<Source> codes_buffer;
    RowsProduct product = rows_product(codes_object, codes_buffer, first_row, n_rows);
    product.outputs = outputs_at(first_row, y, x_type, bias, bias_type);
    const Inputs inputs = inputs_at(x, x_type, n_tokens);
    const nb::gil_scoped_release release;
    multiply_rows_of(&product, 1, n_columns_, inputs.x, n_tokens, rounds ? Rounding::few : Rounding::none, n_threads);
  }

  void multiply_exactly(nb::handle codes_object, size_t first_row, size_t n_rows, uintptr_t x, unsigned x_type, size_t n_tokens,
                        uintptr_t y, uintptr_t bias, unsigned bias_type, size_t n_threads) const {
    multiply(codes_object, first_row, n_rows, x, x_type, n_tokens, y, bias, bias_type, n_threads, false);
  }

  // Products in binary32, of all rows and without a bias, whatever the type of x.
  void multiply_to_floats(nb::handle codes_object, uintptr_t x, unsigned x_type, size_t n_tokens, uintptr_t y, size_t n_threads) const {
    std::optional<Source> codes_buffer;
    RowsProduct product = rows_product(codes_object, codes_buffer, 0, n_rows_);
    product.outputs = outputs_at(0, y, static_cast<unsigned>(FloatType::f32), 0, 0);
    const Inputs inputs = inputs_at(x, x_type, n_tokens);
    const nb::gil_scoped_release release;
    multiply_rows_of(&product, 1, n_columns_, inputs.x, n_tokens, Rounding::none, n_threads);
  }

  // A product with some rows, but for its outputs. The buffer is that of codes that are not narrow.
  RowsProduct rows_product(nb::handle codes, std::optional<Source>& buffer, size_t first_row, size_t n_rows) const {
    require(scales_.row != nullptr || groups_, "the matrix has neither row factors nor groups");
    const HeldCodes held = held_run(codes, buffer, first_row, n_rows);
    const UniformScales scales{groups_ ? nullptr : scales_.row + first_row, scales_.column};
    return {held, first_row, n_rows, groups_ ? &*groups_ : nullptr, scales, outliers_from(first_row), permutation_, {}};
  }

  Outputs outputs_at(size_t first_row, uintptr_t y, unsigned type, uintptr_t bias, unsigned bias_type) const {
    return {reinterpret_cast<void*>(y), checked_type(type), n_rows_, first_row, order_ == nullptr ? nullptr : order_ + first_row,
            {reinterpret_cast<const void*>(bias), checked_type(bias_type)}};
  }

  size_t n_rows() const { return n_rows_; }
  size_t n_columns() const { return n_columns_; }

  void round(uintptr_t x, unsigned x_type, size_t n_tokens, uintptr_t codes, uintptr_t scales, size_t n_threads) const {
    const Inputs inputs = inputs_at(x, x_type, n_tokens);
    const nb::gil_scoped_release release;
    round_tokens(inputs, n_columns_, scales_.column, reinterpret_cast<int8_t*>(codes), reinterpret_cast<float*>(scales), n_threads);
  }

  void finish(uintptr_t sums, uintptr_t scales, size_t first_row, size_t n_rows, size_t n_tokens, uintptr_t y, unsigned y_type,
              uintptr_t bias, unsigned bias_type, size_t n_threads) const {
    require(scales_.row != nullptr, "the matrix has no row factors");
    require(first_row <= n_rows_ && n_rows <= n_rows_ - first_row, "rows that the matrix has not");
    const Outputs outputs = outputs_at(first_row, y, y_type, bias, bias_type);
    const nb::gil_scoped_release release;
    scale_sums(reinterpret_cast<const int32_t*>(sums), n_tokens, n_rows, scales_.row + first_row,
               reinterpret_cast<const float*>(scales), outputs, n_threads);
  }

 private:
  Codes checked_run(const Buffer& codes, size_t first_row, size_t n_rows) const {
    require(first_row <= n_rows_ && n_rows <= n_rows_ - first_row, "rows that the matrix has not");
    Codes found = checked_codes(codes, 0, bits_, is_signed_, n_rows * n_columns_);
    found.values = values_;
    return found;
  }

  // Narrow codes and pieces have what they are made of checked; all others are `buffer`.
  HeldCodes held_run(nb::handle object, std::optional<Source>& buffer, size_t first_row, size_t n_rows) const {
    if (nb::isinstance<PieceCodes>(object)) {
      const PieceCodes* pieces = nb::cast<const PieceCodes*>(object);
      require(scales_.row != nullptr && bits_ == 8 && is_signed_ && outliers_.row_begin == nullptr && permutation_ != nullptr,
              "pieces are of 8-bit codes with factors of rows, a permutation, and no outliers");
      require(pieces->n_rows() == n_rows_ && pieces->n_columns() == n_columns_, "pieces are of another matrix");
      require(first_row == 0 && n_rows == n_rows_, "pieces are multiplied as a whole");
      return {{nullptr, 0, bits_, is_signed_, values_}, nullptr, &pieces->pieces()};
    }
    if (!nb::isinstance<NarrowCodes>(object)) return {checked_run(buffer.emplace(object), first_row, n_rows), nullptr};
    const NarrowCodes* narrow = nb::cast<const NarrowCodes*>(object);
    require(first_row <= n_rows_ && n_rows <= n_rows_ - first_row, "rows that the matrix has not");
    require(bits_ == 8 && narrow->n_columns() == n_columns_, "narrow codes are of another matrix");
    require(n_rows <= narrow->rows().n_rows, "codes are fewer than the matrix has");
    return {{nullptr, 0, bits_, is_signed_, values_}, &narrow->rows()};
  }

  Outliers outliers_from(size_t first_row) const {
    return {outliers_.row_begin == nullptr ? nullptr : outliers_.row_begin + first_row, outliers_.column, outliers_.value};
  }

  Inputs inputs_at(uintptr_t x, unsigned type, size_t n_tokens) const {
    return {{reinterpret_cast<const void*>(x), checked_type(type)}, n_tokens, permutation_, n_columns_};
  }

  size_t n_rows_, n_columns_;
  unsigned bits_;
  bool is_signed_;
  OptionalSource values_buffer_;
  const float* values_ = nullptr;
  std::optional<UniformParameters> parameters_;
  OutlierBuffers outlier_buffers_;
  OptionalSource permutation_buffer_, order_buffer_;
  std::optional<NumberBuffers> group_scale_, group_offset_;
  std::optional<Groups> groups_;
  UniformScales scales_{nullptr, nullptr};
  Outliers outliers_;
  const int64_t* permutation_;
  const int64_t* order_;
};

// Matrices with all their codes that take the same tokens. Keeps the matrices, and the buffers of their codes.
class CodeMatrices {
 public:
  explicit CodeMatrices(const nb::list& pairs) {
    for (nb::handle given : pairs) {
      const nb::tuple pair = nb::cast<nb::tuple>(given);
      const CodeMatrix* matrix = nb::cast<const CodeMatrix*>(pair[0]);
      require(matrices_.empty() || matrix->n_columns() == matrices_[0]->n_columns(), "matrices differ in columns");
      kept_.push_back(nb::borrow(given));
      matrices_.push_back(matrix);
      products_.push_back(matrix->rows_product(pair[1], buffers_.emplace_back(), 0, matrix->n_rows()));
    }
    require(!matrices_.empty(), "there are no matrices");
  }

  CodeMatrices(const CodeMatrices&) = delete;
  CodeMatrices& operator=(const CodeMatrices&) = delete;

  // Of each matrix y, bias and bias_type.
  void multiply(uintptr_t x, unsigned x_type, size_t n_tokens, const nb::tuple& outputs, size_t n_threads, bool rounds) const {
    require(outputs.size() == 3 * matrices_.size(), "outputs are not three numbers for each matrix");
    std::vector<RowsProduct> products = products_;
    for (size_t i = 0; i < products.size(); i++) {
      const uintptr_t y = nb::cast<uintptr_t>(outputs[3 * i]), bias = nb::cast<uintptr_t>(outputs[3 * i + 1]);
      products[i].outputs = matrices_[i]->outputs_at(0, y, x_type, bias, nb::cast<unsigned>(outputs[3 * i + 2]));
    }
    const Floats tokens{reinterpret_cast<const void*>(x), checked_type(x_type)};
    const nb::gil_scoped_release release;
    multiply_rows_of(products.data(), products.size(), matrices_[0]->n_columns(), tokens, n_tokens,
                     rounds ? Rounding::few : Rounding::none, n_threads);
  }

  std::vector<RowsProduct> with_biases(const nb::tuple& biases) const {
    require(biases.size() == 2 * matrices_.size(), "biases are not two numbers for each matrix");
    std::vector<RowsProduct> products = products_;
    for (size_t i = 0; i < products.size(); i++) {
      products[i].outputs = matrices_[i]->outputs_at(0, 0, 0, nb::cast<uintptr_t>(biases[2 * i]), nb::cast<unsigned>(biases[2 * i + 1]));
    }
    return products;
  }

  size_t n_columns() const { return matrices_[0]->n_columns(); }

 private:
  std::vector<nb::object> kept_;
  std::vector<const CodeMatrix*> matrices_;
  std::deque<std::optional<Source>> buffers_;
  std::vector<RowsProduct> products_;
};

}  // namespace

std::vector<RowsProduct> products_of(nb::handle matrices, const nb::tuple& biases) {
  return nb::cast<const CodeMatrices&>(matrices).with_biases(biases);
}

size_t n_columns_of(nb::handle matrices) { return nb::cast<const CodeMatrices&>(matrices).n_columns(); }

void bind_multiply(nb::module_& m) {
  nb::class_<CodeMatrix>(m, "CodeMatrix")
      .def(nb::init<size_t, size_t, unsigned, bool, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle, size_t, size_t, size_t, unsigned, nb::handle, nb::handle>(),
           nb::arg("n_rows"), nb::arg("n_columns"), nb::arg("bits"), nb::arg("is_signed"), nb::arg("values").none(),
           nb::arg("row").none(), nb::arg("column").none(), nb::arg("row_begin").none(), nb::arg("outlier_columns").none(),
           nb::arg("outlier_values").none(), nb::arg("permutation").none(), nb::arg("order").none(), nb::arg("group_size"),
           nb::arg("group_rows"), nb::arg("stacked_rows"), nb::arg("kind"), nb::arg("group_scale").none(),
           nb::arg("group_offset").none())
      .def("multiply", &CodeMatrix::multiply)
      .def("multiply", &CodeMatrix::multiply_exactly)
      .def("multiply_to_floats", &CodeMatrix::multiply_to_floats)
      .def("round", &CodeMatrix::round)
      .def("finish", &CodeMatrix::finish);
  nb::class_<CodeMatrices>(m, "CodeMatrices")
      .def(nb::init<const nb::list&>(), nb::arg("pairs"))
      .def("multiply", &CodeMatrices::multiply);
}

}  // namespace spqfmt
