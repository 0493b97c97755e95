#include "multiply.hpp"

#include <functional>
#include <optional>
#include <vector>

#include "dispatch.hpp"
#include "multiply_inputs.hpp"
#include "narrow.hpp"
#include "team.hpp"

namespace spqfmt {
namespace {

// What belongs to rows from `first` on.
Outliers from_row(const Outliers& outliers, size_t first) {
  return {outliers.row_begin == nullptr ? nullptr : outliers.row_begin + first, outliers.column, outliers.value};
}

Outputs from_row(Outputs outputs, size_t first) {
  if (outputs.place != nullptr) outputs.place += first;
  outputs.first += first;
  return outputs;
}

// What computes rows begin..end - 1 of a product whose inputs are ready, and who lets threads do that for all rows.
using Rows = std::function<void(size_t begin, size_t end)>;
using Then = std::function<void(const Rows&)>;

// over_held for all rows.
template <typename Run>
void over_held_rows(const HeldCodes& held, size_t n_columns, const Then& then, const Run& run) {
  then([&](size_t begin, size_t end) { over_held(held, n_columns, begin, end, run); });
}

#if defined(SPQFMT_X86)
void multiply_pairs(const RowsProduct& product, size_t n_columns, const Inputs& inputs, size_t n_threads, const Then& then) {
  const HeldCodes& held = product.held;
  const Pairs pairs(inputs, n_columns, product.scales.column, n_threads);
  const auto multiply_run = [&](const PairCodes& codes, size_t first, size_t begin, size_t end) {
    pair_multiply_avx512_bf16(codes, n_columns, product.scales.row + first, from_row(product.outliers, first), inputs, begin, end,
                              pairs.tokens(), from_row(product.outputs, first));
  };
  if (held.rows == nullptr || n_columns % 2 != 0) {
    over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
      multiply_run({reinterpret_cast<const int8_t*>(codes.bytes + codes.first), nullptr}, first, begin, end);
    });
    return;
  }
  // Halves become BF16 numbers faster than bytes do.
  then([&](size_t begin, size_t end) {
    for (const NarrowRows::Part* part = held.rows->parts; begin < end; part++) {
      if (part->stop <= begin) continue;
      const size_t stop = part->stop < end ? part->stop : end;
      multiply_run({nullptr, &part->narrow}, part->first, begin - part->first, stop - part->first);
      begin = stop;
    }
  });
}

#endif

void multiply_uniform(const RowsProduct& product, size_t n_columns, const Inputs& inputs, size_t n_threads, const Then& then);

// A matrix whose columns lie apart: a product for each piece, whose results are added in binary32, in their order.
class PieceByPiece {
 public:
  PieceByPiece(const RowsProduct& product, const Inputs& inputs, size_t n_threads, const Then& then)
      : product_(product), inputs_(inputs), n_threads_(n_threads), then_(then), sums_(2 * inputs.count * product.n_rows) {
    const size_t n = product.held.pieces->n;
    products_.reserve(n);
    rows_.reserve(n);
  }

  void multiply() {
    if (products_.size() == product_.held.pieces->n) {
      then_([this](size_t begin, size_t end) { add_rows(begin, end); });
      return;
    }
    const ColumnPiece& piece = product_.held.pieces->of[products_.size()];
    RowsProduct& own = products_.emplace_back(product_);
    own.held = piece.held;
    if (own.scales.column != nullptr) own.scales.column += piece.first;
    own.outputs = {sums_.data(), FloatType::f32, product_.n_rows, 0, nullptr, {nullptr, FloatType::f32}};
    const Inputs inputs{inputs_.x, inputs_.count, inputs_.permutation + piece.first, inputs_.stride};
    multiply_uniform(own, piece.n_columns, inputs, n_threads_, [this](const Rows& rows) {
      rows_.push_back(&rows);
      multiply();
    });
  }

 private:
  void add_rows(size_t begin, size_t end) {
    const size_t n_rows = product_.n_rows;
    for (size_t piece = 0; piece < rows_.size(); piece++) {
      (*rows_[piece])(begin, end);
      for (size_t token = 0; token < inputs_.count; token++) {
        const float* one = sums_.data() + token * n_rows;
        float* sum = sums_.data() + (inputs_.count + token) * n_rows;
        for (size_t row = begin; row < end; row++) sum[row] = (piece == 0 ? 0.0f : sum[row]) + one[row];
      }
    }
    const Outputs outputs = from_row(product_.outputs, begin);
    for (size_t token = 0; token < inputs_.count; token++) {
      active_kernels().multiply->write_sums(sums_.data() + (inputs_.count + token) * n_rows + begin, end - begin, token, outputs);
    }
  }

  const RowsProduct& product_;
  const Inputs& inputs_;
  const size_t n_threads_;
  const Then& then_;
  std::vector<float> sums_;  // of a piece, and of all so far: [2, n_tokens, n_rows]
  std::vector<RowsProduct> products_;
  std::vector<const Rows*> rows_;
};

void multiply_uniform(const RowsProduct& product, size_t n_columns, const Inputs& inputs, size_t n_threads, const Then& then) {
  const HeldCodes& held = product.held;
  if (held.pieces != nullptr) {
    PieceByPiece(product, inputs, n_threads, then).multiply();
    return;
  }
#if defined(SPQFMT_X86)
  if (held.codes.bits == 8 && held.codes.is_signed && inputs.x.type == FloatType::bf16 && multiplies_pairs()) {
    multiply_pairs(product, n_columns, inputs, n_threads, then);
    return;
  }
#endif
  // Without outliers, which replace whole weights, a column's factor can go to the tokens once instead of to every row.
  const UniformScales& scales = product.scales;
  const bool moves = product.outliers.row_begin == nullptr;
  const Converted converted(inputs, n_columns, moves ? scales.column : nullptr, n_threads);
  over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
    const UniformScales left{scales.row + first, moves ? nullptr : scales.column};
    active_kernels().multiply->uniform(codes, n_columns, left, from_row(product.outliers, first), begin, end, converted.tokens(),
                                       from_row(product.outputs, first));
  });
}

// The tokens that the last product has rounded, in one of two forms, and what for.
struct LastRounded {
  const Rounded* rounded = nullptr;
  const RoundedLanes* lanes = nullptr;
  const int64_t* permutation;
  unsigned bits;
  size_t group_size;
  bool has_sums, has_columns;
  int shift;

  bool operator==(const LastRounded& other) const {
    return permutation == other.permutation && bits == other.bits && group_size == other.group_size && has_sums == other.has_sums &&
           has_columns == other.has_columns && shift == other.shift;
  }
};

void multiply_lanes(const RowsProduct& product, const IntegerCodes& integers, size_t n_columns, const Inputs& inputs, LastRounded& last,
                    size_t n_threads, const Then& then) {
  const LaneKernels& kernels = *active_kernels().lanes;
  const HeldCodes& held = product.held;
  const Groups& groups = *product.groups;
  const LastRounded wanted{nullptr, nullptr, product.permutation, held.codes.bits, groups.group_size, true, false, integers.shift};
  std::optional<RoundedLanes> own;
  if (last.lanes == nullptr || !(last == wanted)) {
    own.emplace(inputs, n_columns, held.codes.bits, groups.group_size, integers.shift, n_threads);
    last = wanted;
    last.lanes = &*own;
  }
  const LaneTokens tokens = last.lanes->tokens();
  over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
    kernels.multiply(codes, integers, n_columns, groups, product.first_row + first, begin, end, tokens, from_row(product.outputs, first));
  });
}

void multiply_grouped(const RowsProduct& product, size_t n_columns, const Inputs& inputs, Rounding rounding, LastRounded& last,
                      size_t n_threads, const Then& then) {
  const IntegerKernels& kernels = *active_kernels().integers;
  const HeldCodes& held = product.held;
  const Groups& groups = *product.groups;
  const bool has_outliers = product.outliers.row_begin != nullptr;
  IntegerCodes integers;
  if (rounding == Rounding::few && groups_are_lanes(held.codes, n_columns, groups, product.outliers, inputs) &&
      integers_of(held.codes, shift_to_zero, integers)) {
    multiply_lanes(product, integers, n_columns, inputs, last, n_threads, then);
    return;
  }
  if (rounding == Rounding::few && groups_are_rounded(held.codes, n_columns, groups, inputs) && integers_of(held.codes, kernels.shift, integers)) {
    const bool has_sums = groups.kind != GroupOffset::none;
    const LastRounded wanted{nullptr, nullptr, product.permutation, held.codes.bits, groups.group_size, has_sums, has_outliers, integers.shift};
    std::optional<Rounded> own;
    if (last.rounded == nullptr || !(last == wanted)) {
      own.emplace(inputs, n_columns, 8 / held.codes.bits, groups, integers.shift, has_outliers, n_threads);
      last = wanted;
      last.rounded = &*own;
    }
    const IntegerTokens tokens = last.rounded->tokens();
    over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
      kernels.multiply(codes, integers, n_columns, groups, product.first_row + first, from_row(product.outliers, first), begin, end, tokens,
                       from_row(product.outputs, first));
    });
    return;
  }
#if defined(SPQFMT_X86)
  if (groups_are_pairs(held.codes, n_columns, groups, inputs)) {
    const GroupPairs pairs(inputs, n_columns, groups.group_size, has_outliers, n_threads);
    over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
      group_multiply_avx512_bf16(codes, n_columns, groups, product.first_row + first, from_row(product.outliers, first), begin, end,
                                 pairs.tokens(), from_row(product.outputs, first));
    });
    return;
  }
#endif
  const Converted converted(inputs, n_columns, nullptr, n_threads);
  over_held_rows(held, n_columns, then, [&](const Codes& codes, size_t first, size_t begin, size_t end) {
    active_kernels().multiply->grouped(codes, n_columns, groups, product.first_row + first, from_row(product.outliers, first), begin, end,
                                       converted.tokens(), from_row(product.outputs, first));
  });
}

// Products that share tokens: the inputs of each are made ready inside the one before, then threads take all rows.
class Together {
 public:
  Together(const RowsProduct* products, size_t n, size_t n_columns, const Floats& x, size_t n_tokens, Rounding rounding, size_t n_threads)
      : products_(products), n_(n), n_columns_(n_columns), x_(x), n_tokens_(n_tokens), rounding_(rounding), n_threads_(n_threads) {
    rows_.reserve(n);
  }

  void multiply() {
    const size_t i = rows_.size();
    if (i == n_) {
      share_rows();
      return;
    }
    const RowsProduct& product = products_[i];
    const Inputs inputs{x_, n_tokens_, product.permutation, n_columns_};
    const Then then = [this](const Rows& rows) {
      rows_.push_back(&rows);
      multiply();
    };
    if (product.groups != nullptr) {
      multiply_grouped(product, n_columns_, inputs, rounding_, last_, n_threads_, then);
    } else {
      multiply_uniform(product, n_columns_, inputs, n_threads_, then);
    }
  }

 private:
  // Rows are numbered on from product to product.
  void share_rows() {
    size_t n_rows = 0;
    for (size_t i = 0; i < n_; i++) n_rows += products_[i].n_rows;
    over_rows(n_rows, n_columns_ * n_tokens_, n_threads_, [&](size_t begin, size_t end) {
      for (size_t i = 0, first = 0; i < n_ && first < end; first += products_[i++].n_rows) {
        const size_t stop = first + products_[i].n_rows;
        if (begin < stop) (*rows_[i])((begin > first ? begin : first) - first, (end < stop ? end : stop) - first);
      }
    });
  }

  const RowsProduct* products_;
  size_t n_, n_columns_;
  Floats x_;
  size_t n_tokens_;
  Rounding rounding_;
  size_t n_threads_;
  std::vector<const Rows*> rows_;
  LastRounded last_{};
};

}  // namespace

void multiply_rows_of(const RowsProduct* products, size_t n, size_t n_columns, const Floats& x, size_t n_tokens, Rounding rounding,
                      size_t n_threads) {
  Together(products, n, n_columns, x, n_tokens, rounding, n_threads).multiply();
}

void round_tokens(const Inputs& inputs, size_t n_columns, const float* column, int8_t* codes, float* scales, size_t n_threads) {
  const Converted converted(inputs, n_columns, column, n_threads);
  const Tokens tokens = converted.tokens();
  over_rows(tokens.count, n_columns, n_threads, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
      scales[i] = active_kernels().multiply->round_token(tokens.x + i * tokens.stride, n_columns, codes + i * n_columns);
    }
  });
}

void scale_sums(const int32_t* sums, size_t n_tokens, size_t n_rows, const float* row, const float* scales, const Outputs& outputs,
                size_t n_threads) {
  over_rows(n_tokens, n_rows, n_threads, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; token++) {
      active_kernels().multiply->scale_sums(sums + token * n_rows, row, scales[token], n_rows, token, outputs);
    }
  });
}

}  // namespace spqfmt
