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

namespace spqfmt {

inline constexpr unsigned kFreqBits = 12;
inline constexpr uint32_t kFreqTotal = 1u << kFreqBits;
inline constexpr uint32_t kFreqMax = kFreqTotal - 1;  // 4096 would be a chunk of one symbol: its own kind
inline constexpr uint32_t kStateFloor = 1u << 16;     // states live in [2^16, 2^32)
inline constexpr unsigned kLanes = 32;
inline constexpr size_t kStateBytes = 4 * kLanes;
inline constexpr size_t kGroupSymbols = 4 * kLanes;  // four steps of all lanes
inline constexpr size_t kGroupWordBytes = 2 * kGroupSymbols;  // a step takes at most one word a lane

inline constexpr unsigned kMinBlockLog2 = 7;
inline constexpr unsigned kMaxBlockLog2 = 16;

inline constexpr uint8_t kCoderRans = 1;
inline constexpr uint8_t kKindBlocks = 0;
inline constexpr uint8_t kKindConstant = 1;
inline constexpr size_t kConstantChunkBytes = 4;
inline constexpr size_t kHeaderBytes = 8;  // of a chunk of kind blocks, before the table

inline constexpr size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
inline constexpr size_t ceil_div(size_t value, size_t step) { return value / step + (value % step != 0); }

}  // namespace spqfmt
