// CRC-32 by carry-less multiplication: constants for folding.
//
// A checksum is the message, a polynomial over GF(2), modulo P. 128 bits A = A1 * x^64 + A0 that stand d bits before others
// may be replaced by (A1 * (x^(d+64) mod P) + A0 * (x^d mod P)) added to those others: the remainder stays. In the
// reflected bit order of this CRC a 64 x 64 bit product comes out one bit low, and 32-bit remainders sit in the high half of
// their 64 bits; both shifts go into the constants: the multipliers for a distance of d bits are fold_constant(d + 32) for the
// first eight bytes and fold_constant(d - 32) for the second eight.
#pragma once

#include <cstdint>

namespace spqfmt {

// reflect(x^n mod P) << 1.
static constexpr uint64_t fold_constant(unsigned n) {
  uint32_t r = 0x80000000u;  // x^0, reflected
  for (unsigned i = 0; i < n; i++) r = r >> 1 ^ (r & 1 ? 0xEDB88320u : 0u);
  return static_cast<uint64_t>(r) << 1;
}
// As printed in Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009.
static_assert(fold_constant(4 * 128 + 32) == 0x154442bd4 && fold_constant(4 * 128 - 32) == 0x1c6e41596);
static_assert(fold_constant(128 + 32) == 0x1751997d0 && fold_constant(128 - 32) == 0x0ccaa009e);

}  // namespace spqfmt
