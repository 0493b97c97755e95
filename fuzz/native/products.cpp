// Products with matrices of odd shapes, outliers, orders and tiles: the results that every machine is promised are the same by
// every set of kernels, narrow codes give what those give that they stand for, and nothing is touched outside of the buffers.
#include <algorithm>

#include "group_numbers.hpp"
#include "input.hpp"
#include "multiply.hpp"
#include "narrow.hpp"
#include "weights.hpp"

using namespace spqfmt;

namespace {

// Each of 0..n-1 once.
std::vector<int64_t> order(fuzz::Input& in, size_t n) {
  std::vector<int64_t> found(n);
  for (size_t i = 0; i < n; i++) found[i] = static_cast<int64_t>(i);
  const size_t step = 1 + in.byte() % 7;
  for (size_t i = 0; i + step < n; i += step) std::swap(found[i], found[i + step]);
  return found;
}

struct OwnOutliers {
  OwnOutliers(fuzz::Input& in, size_t rows, size_t columns, bool any) : begin(rows + 1) {
    for (size_t row = 0; row < rows; row++) {
      const unsigned every = in.byte();
      for (size_t i = every % 16; every >= 16 && i < columns; i += every / 16) column.push_back(static_cast<uint32_t>(i));
      begin[row + 1] = static_cast<int64_t>(column.size());
    }
    column.shrink_to_fit();
    value = fuzz::floats(in, column.size(), any);
  }
  Outliers outliers() const { return {begin.data(), column.data(), value.data()}; }

  std::vector<int64_t> begin;
  std::vector<uint32_t> column;
  std::vector<float> value;
};

struct OwnNumbers {
  OwnNumbers(fuzz::Input& in, size_t lines, size_t groups, bool any) : numbers{} {
    const auto array = [&](NumberType& type, size_t n) {
      type = static_cast<NumberType>(in.byte() % 5);
      if (type == NumberType::u8 || type == NumberType::i8) return in.filled(n, 128);
      const std::vector<float> made = fuzz::floats(in, n, any);
      std::vector<uint8_t> raw(type == NumberType::f32 ? 4 * n : 2 * n);
      if (type == NumberType::f32) std::memcpy(raw.data(), made.data(), raw.size());
      for (size_t i = 0; i < n && type != NumberType::f32; i++) {
        uint32_t wide;
        std::memcpy(&wide, &made[i], 4);
        const uint16_t narrow = static_cast<uint16_t>(type == NumberType::bf16 ? wide >> 16 : wide >> 16 & 0xbfff);
        std::memcpy(&raw[2 * i], &narrow, 2);
      }
      return raw;
    };
    values = array(numbers.type, lines * groups);
    numbers.values = values.data();
    if (numbers.type == NumberType::u8 && in.coin()) {
      table = fuzz::floats(in, 256, any);
      numbers.table = table.data();
    }
    if (!in.coin()) return;
    numbers.tile_rows = 1 + in.byte() % 9;
    numbers.tile_groups = 1 + in.byte() % 9;
    const size_t n = ceil_div(lines, numbers.tile_rows) * ceil_div(groups, numbers.tile_groups);
    steps = array(numbers.steps_type, n);
    numbers.steps = steps.data();
    const unsigned more = in.byte() % 3;
    if (more == 0) return;
    others = array(more == 1 ? numbers.zeros_type : numbers.minimums_type, n);
    (more == 1 ? numbers.zeros : numbers.minimums) = others.data();
  }
  OwnNumbers(const OwnNumbers&) = delete;

  std::vector<uint8_t> values, steps, others;
  std::vector<float> table;
  GroupNumbers numbers;
};

// The narrow form of 8-bit codes, in two parts of whole rows or in one.
class OwnNarrow {
 public:
  OwnNarrow(const fuzz::Shape& shape, const std::vector<uint8_t>& codes, size_t cut) {
    if (shape.bits != 8) return;
    for (const auto& [first, stop] : {std::pair{size_t{0}, cut}, {cut, shape.rows}}) {
      const size_t n = (stop - first) * shape.columns;
      if (n == 0) continue;
      bytes_[first != 0].resize(narrow_bytes(n, n));
      std::vector<uint8_t>& to = bytes_[first != 0];
      fuzz::check(narrow_codes(codes.data() + first * shape.columns, n, to.data(), to.size()), "there is room for narrow codes");
      parts_.push_back({narrow_at(to.data(), to.size(), n), first, stop});
    }
    rows = {parts_.data(), shape.rows};
  }
  OwnNarrow(const OwnNarrow&) = delete;

  NarrowRows rows{};

 private:
  std::vector<uint8_t> bytes_[2];
  std::vector<NarrowRows::Part> parts_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte(), more = in.byte();
  const bool grouped = kind & 1, any = kind & 2, has_outliers = kind & 4, is_permuted = kind & 8, has_place = kind & 16, has_bias = kind & 32;
  const bool has_column = more & 1, has_offset = more & 2;
  const fuzz::Shape shape(in);
  const size_t tokens = 1 + in.byte() % 5 + (more & 4 ? kMostRounded : 0), n_threads = 1 + (more & 8 ? 1 : 0);
  const size_t before = in.byte() % 4, after = in.byte() % 3;  // rows of the whole matrix beside the run's
  const size_t all_rows = before + shape.rows + after;
  const fuzz::OwnCodes codes(in, shape, 0, grouped && !shape.is_signed && (more & 16), any);
  const FloatType x_type = static_cast<FloatType>(in.byte() % 3), bias_type = static_cast<FloatType>(in.byte() % 3);
  const Rounding rounding = in.coin() ? Rounding::few : Rounding::none;
  const OwnOutliers outliers(in, shape.rows, shape.columns, any);
  const std::vector<int64_t> permutation = order(in, shape.columns), place = order(in, all_rows);
  std::vector<uint8_t> x = in.filled(tokens * shape.columns * float_bytes(x_type), 512), bias = in.filled(all_rows * float_bytes(bias_type), 64);
  if (!any) {  // finite ones of like sizes
    for (size_t i = float_bytes(x_type) - 1; i < x.size(); i += float_bytes(x_type)) x[i] = static_cast<uint8_t>((x[i] & 0x80) | 0x3c | (x[i] & 3));
    for (size_t i = float_bytes(bias_type) - 1; i < bias.size(); i += float_bytes(bias_type)) bias[i] = static_cast<uint8_t>((bias[i] & 0x80) | 0x3c | (bias[i] & 3));
  }
  const Inputs inputs{{x.data(), x_type}, tokens, is_permuted ? permutation.data() : nullptr};
  const Outliers known = has_outliers ? outliers.outliers() : Outliers{nullptr, nullptr, nullptr};
  const std::vector<float> rows = fuzz::floats(in, shape.rows, any), columns = fuzz::floats(in, shape.columns, any);

  const size_t stacked = more & 32 ? all_rows : 1, group_rows = 1 + in.byte() % 4;
  const size_t lines = all_rows / stacked * ceil_div(stacked, group_rows), n_groups = ceil_div(shape.columns, shape.group_size);
  const OwnNumbers scale(in, lines, n_groups, any), offset(in, lines, n_groups, any);
  const GroupOffset offset_kind = has_offset ? (more & 64 ? GroupOffset::minimum : GroupOffset::zero_point) : GroupOffset::none;
  const Groups groups{scale.numbers, has_offset ? offset.numbers : GroupNumbers{}, offset_kind, shape.group_size, group_rows, stacked};

  const OwnNarrow narrow(shape, codes.bytes, more & 128 ? shape.rows / 2 : 0);
  fuzz::Same<std::vector<float>> results;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> y(tokens * all_rows * float_bytes(x_type));
    const Outputs outputs{y.data(), x_type, all_rows, before, has_place ? place.data() + before : nullptr, {has_bias ? bias.data() : nullptr, bias_type}};
    const auto product = [&](const HeldCodes& held) {
      const UniformScales scales{rows.data(), has_column ? columns.data() : nullptr};
      const RowsProduct given{held, before, shape.rows, grouped ? &groups : nullptr, scales, known, inputs.permutation, outputs};
      multiply_rows_of(&given, 1, shape.columns, inputs.x, inputs.count, rounding, n_threads);
    };
    product({codes.codes});
    const std::vector<float> found = fuzz::comparable(y, x_type);
    // Products of BF16 pairs are summed as the processor does it.
    if (x_type != FloatType::bf16 && !any) results.see(found, "kernels differ in a product");
    if (shape.bits == 8) {
      const Codes none{nullptr, 0, codes.codes.bits, codes.codes.is_signed, codes.codes.values};
      product({none, &narrow.rows});
      fuzz::check(any || fuzz::comparable(y, x_type) == found, "narrow codes give another product");
    }

    if (grouped) return;
    std::vector<int8_t> rounded(tokens * shape.columns);
    std::vector<float> scales(tokens);
    round_tokens(inputs, shape.columns, has_column ? columns.data() : nullptr, rounded.data(), scales.data(), n_threads);
    std::vector<int32_t> sums(tokens * shape.rows);
    for (size_t i = 0; i < sums.size(); i++) sums[i] = static_cast<int32_t>(i * 2654435761u);
    scale_sums(sums.data(), tokens, shape.rows, rows.data(), scales.data(), outputs, n_threads);
  });
  return 0;
}
