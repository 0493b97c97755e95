// Decoder for AArch64: four vectors of eight low words and four of eight high words a block, table entries loaded one by one.
// The arithmetic is that of decode_sse41.cpp; NEON has the unsigned comparison that SSE lacks, and a
// vector's halves of 32-bit entries are taken apart by one instruction each.
#include <arm_neon.h>

#include "decoder.hpp"
#include "expand_table.hpp"

namespace spqfmt {
namespace {

// The entries of four slots, given as the words of `slots`.
inline uint32x4_t entries(const uint32_t* table, uint64_t slots) {
  uint32x4_t e = vdupq_n_u32(table[slots & 0xffff]);
  e = vld1q_lane_u32(table + (slots >> 16 & 0xffff), e, 1);
  e = vld1q_lane_u32(table + (slots >> 32 & 0xffff), e, 2);
  return vld1q_lane_u32(table + (slots >> 48), e, 3);
}

// The high halves of the 32-bit products.
inline uint16x8_t multiply_high(uint16x8_t a, uint16x8_t b) {
  const uint32x4_t low = vmull_u16(vget_low_u16(a), vget_low_u16(b)), high = vmull_high_u16(a, b);
  return vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
}

template <unsigned kBlocks>
void decode(DecodeCursor* cursors, size_t n_groups, const uint32_t* table) {
  constexpr unsigned kVectors = 4 * kBlocks;
  const uint16x8_t slot_word = vdupq_n_u16(0x0fff), freq4 = vdupq_n_u16(0xfff0), top4 = vdupq_n_u16(0xf000);
  const uint16x8_t low_byte = vdupq_n_u16(0x00ff), one = vdupq_n_u16(1);
  alignas(16) static constexpr uint16_t kBits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t bits = vld1q_u16(kBits);

  uint16x8_t lo[kVectors], hi[kVectors];
  const uint8_t* next[kBlocks];
  for (unsigned v = 0; v < kVectors; v++) {
    uint16_t low[8], high[8];
    for (unsigned i = 0; i < 8; i++) {
      const uint32_t state = cursors[v / 4].state[8 * (v % 4) + i];
      low[i] = static_cast<uint16_t>(state);
      high[i] = static_cast<uint16_t>(state >> 16);
    }
    lo[v] = vld1q_u16(low);
    hi[v] = vld1q_u16(high);
  }
  for (unsigned b = 0; b < kBlocks; b++) next[b] = cursors[b].next;

  for (size_t group = 0; group < n_groups; group++) {
    uint16x8_t pair01[kVectors], pair23[kVectors];
    for (unsigned b = 0; b < kBlocks; b++) next[b] = next[b] < cursors[b].clamp ? next[b] : cursors[b].clamp;
#pragma GCC unroll 4
    for (unsigned step = 0; step < 4; step++) {
#pragma GCC unroll 8
      for (unsigned v = 0; v < kVectors; v++) {
        const uint64x2_t slots = vreinterpretq_u64_u16(vandq_u16(lo[v], slot_word));
        const uint16x8_t first = vreinterpretq_u16_u32(entries(table, vgetq_lane_u64(slots, 0)));
        const uint16x8_t second = vreinterpretq_u16_u32(entries(table, vgetq_lane_u64(slots, 1)));
        const uint16x8_t low_half = vuzp1q_u16(first, second), high_half = vuzp2q_u16(first, second);

        const uint16x8_t f4 = vandq_u16(high_half, freq4);
        const uint16x8_t r = vaddq_u16(multiply_high(f4, vandq_u16(lo[v], top4)), vandq_u16(low_half, slot_word));
        const uint16x8_t new_lo = vaddq_u16(vmulq_u16(f4, hi[v]), r);
        // All-ones of "no carry" is -1: 1 + (-1) = 0 adds nothing.
        const uint16x8_t new_hi = vaddq_u16(vaddq_u16(multiply_high(f4, hi[v]), one), vcgeq_u16(new_lo, r));
        const uint16x8_t symbol = vorrq_u16(vshrq_n_u16(low_half, 12), vshlq_n_u16(high_half, 4));
        uint16x8_t& pair = step < 2 ? pair01[v] : pair23[v];
        pair = step % 2 == 0 ? symbol : vorrq_u16(vandq_u16(pair, low_byte), vshlq_n_u16(symbol, 8));

        const uint16x8_t refill = vceqzq_u16(new_hi);
        const unsigned mask = vaddvq_u16(vandq_u16(refill, bits));
        const uint8x16_t words = vqtbl1q_u8(vld1q_u8(next[v / 4]), vld1q_u8(kExpand.row[mask]));
        hi[v] = vorrq_u16(new_hi, vandq_u16(new_lo, refill));
        lo[v] = vorrq_u16(vbicq_u16(new_lo, refill), vreinterpretq_u16_u8(words));
        // Each lane of `refill` is 0 or -1.
        next[v / 4] -= 2 * vaddvq_s16(vreinterpretq_s16_u16(refill));
      }
    }
    for (unsigned v = 0; v < kVectors; v++) {
      uint8_t* out = cursors[v / 4].out + group * kGroupSymbols + 32 * (v % 4);
      vst1q_u8(out, vreinterpretq_u8_u16(vzip1q_u16(pair01[v], pair23[v])));
      vst1q_u8(out + 16, vreinterpretq_u8_u16(vzip2q_u16(pair01[v], pair23[v])));
    }
  }
  for (unsigned v = 0; v < kVectors; v++) {
    uint16_t low[8], high[8];
    vst1q_u16(low, lo[v]);
    vst1q_u16(high, hi[v]);
    for (unsigned i = 0; i < 8; i++) cursors[v / 4].state[8 * (v % 4) + i] = static_cast<uint32_t>(high[i]) << 16 | low[i];
  }
  for (unsigned b = 0; b < kBlocks; b++) {
    cursors[b].next = next[b];
    cursors[b].out += n_groups * kGroupSymbols;
  }
}

}  // namespace

void decode_groups_neon(DecodeCursor* cursors, size_t n_cursors, size_t n_groups, const DecodeTable& table) {
  for (; n_cursors >= 2; n_cursors -= 2, cursors += 2) decode<2>(cursors, n_groups, table.slot);
  if (n_cursors == 1) decode<1>(cursors, n_groups, table.slot);
}

}  // namespace spqfmt
