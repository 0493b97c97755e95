// Codes of odd shapes: every set of kernels gives the same weights, for any number of threads, inside of the buffers.
#include "dequantize.hpp"

#include "bitstream.hpp"
#include "input.hpp"
#include "path_sweep.hpp"
#include "weights.hpp"

using namespace spqfmt;

namespace {

void sweep(fuzz::Input& in) {
  const size_t rows = 1 + in.byte() % 5, columns = 1 + in.byte() % 20, gap = in.byte() % 3;
  std::vector<float> weights = fuzz::floats(in, rows * (columns + gap), in.coin());
  std::vector<float> upper = fuzz::floats(in, columns * columns, false), steps = fuzz::floats(in, columns, in.coin());
  std::vector<float> row_steps = fuzz::floats(in, rows, in.coin()), slopes = fuzz::floats(in, rows, in.coin());
  const std::vector<float> bits = fuzz::floats(in, 256, false);
  for (size_t i = 0; i < columns; i++) upper[i * columns + i] += upper[i * columns + i] == 0;
  std::vector<int8_t> codes(rows * columns);
  std::vector<float> errors(rows * columns);
  const RateBlock block{weights.data(), columns + gap, columns, upper.data(), steps.data()};
  const RateCosts costs{row_steps.data(), slopes.data(), bits.data()};
  choose_codes(block, costs, 0, rows, codes.data(), errors.data());
  improve_codes(block, costs, 0, rows, codes.data(), errors.data());
  choose_paths(block, costs, 0, rows, codes.data(), errors.data());
  improve_paths(block, costs, 0, rows, codes.data(), errors.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const unsigned kind = in.byte();
  if (kind % 16 == 15) {
    sweep(in);
    return 0;
  }
  const bool grouped = kind & 1, any = kind & 2;
  const fuzz::Shape shape(in);
  fuzz::OwnCodes codes(in, shape, shape.first, grouped && !shape.is_signed && in.coin(), any);
  const FloatType type = static_cast<FloatType>(in.byte() % 3);
  const size_t n_threads = 1 + in.byte() % 2, n_groups = ceil_div(shape.columns, shape.group_size);
  const GroupOffset offset = static_cast<GroupOffset>(in.byte() % 3);
  const bool has_column = in.coin();
  const std::vector<float> rows = fuzz::floats(in, grouped ? shape.rows * n_groups : shape.rows, any);
  const std::vector<float> others = fuzz::floats(in, grouped ? rows.size() : shape.columns, any);
  fuzz::Same<std::vector<float>> weights;
  fuzz::with_each_variant([&] {
    std::vector<uint8_t> found(shape.rows * shape.columns * float_bytes(type));
    if (grouped) {
      const GroupScales scales{rows.data(), offset == GroupOffset::none ? nullptr : others.data(), offset, shape.group_size};
      dequantize_grouped(codes.codes, shape.rows, shape.columns, scales, type, found.data(), n_threads);
    } else {
      dequantize_uniform(codes.codes, shape.rows, shape.columns, {rows.data(), has_column ? others.data() : nullptr}, type, found.data(), n_threads);
    }
    weights.see(fuzz::comparable(found, type), "kernels differ in the weights");
  });
  return 0;
}
