// Numbers of the rans bitstream that every encoder and decoder shares (FORMAT.md, "rans chunk").
//
// Three surprises, read first:
//   * rANS is a stack. The encoder walks the symbols backwards and writes words downwards, so that the
//     decoder reads both forwards.
//   * A block has 32 independent states ("lanes") that share one stream of 16-bit words; in one step every
//     lane decodes one symbol and then the lanes that fell below 2^16 take one word each, lane 0 first.
//   * Symbols are dealt to lanes in quads: symbol i of a group of 128 belongs to lane i/4, step i%4. Four
//     steps give each lane four neighbouring bytes, which SIMD code stores as one 32-bit word.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wire.hpp"

namespace spqfmt {

inline constexpr unsigned kFreqBits = wire::rans_frequency_bits;
inline constexpr uint32_t kFreqTotal = 1u << kFreqBits;
inline constexpr uint32_t kFreqMax = wire::rans_max_frequency;  // a chunk of one symbol is a kind of its own
inline constexpr uint32_t kStateFloor = wire::rans_state_lower_bound;  // states live in [2^16, 2^32)
inline constexpr unsigned kLanes = wire::rans_lanes;
inline constexpr size_t kStateBytes = 4 * kLanes;
inline constexpr size_t kGroupSymbols = wire::rans_symbols_per_lane * kLanes;  // four steps of all lanes
inline constexpr size_t kGroupWordBytes = 2 * kGroupSymbols;                   // a step takes at most one word a lane

inline constexpr unsigned kMinBlockLog2 = wire::rans_min_block_log2;
inline constexpr unsigned kMaxBlockLog2 = wire::rans_max_block_log2;

inline constexpr uint8_t kCoderRans = wire::rans_coder_quad;
inline constexpr uint8_t kKindBlocks = wire::rans_kind_blocks;
inline constexpr uint8_t kKindConstant = wire::rans_kind_constant;
inline constexpr size_t kConstantChunkBytes = 4;
inline constexpr size_t kHeaderBytes = 8;  // of a chunk of kind blocks, before the table

inline constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
inline constexpr size_t ceil_div(size_t value, size_t step) { return value / step + (value % step != 0); }

}  // namespace spqfmt
