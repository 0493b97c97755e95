// What the kernels ask of a GPU: who a lane is, what lanes tell each other, loads and stores. Compiled by clang without
// CUDA's own headers, or with EMULATED as plain C++ against tools/gpu/warp/emulator.hpp.
#pragma once

#ifdef EMULATED
#include "emulator.hpp"
#else

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;

#define KERNEL extern "C" __attribute__((global))
#define DEVICE static inline __attribute__((device, always_inline))
#define SHARED static __attribute__((shared))
#define UNROLL _Pragma("unroll")
#define AT_MOST(threads, blocks) __attribute__((launch_bounds(threads, blocks)))

constexpr u32 ALL = 0xffffffffu;

DEVICE u32 thread() { return __nvvm_read_ptx_sreg_tid_x(); }
DEVICE u32 program() { return __nvvm_read_ptx_sreg_ctaid_x(); }
DEVICE void barrier() { __nvvm_barrier_sync(0); }
DEVICE u32 ballot(bool bit) { return __nvvm_vote_ballot_sync(ALL, bit); }
DEVICE float shuffle_xor(float value, int lanes) { return __nvvm_shfl_sync_bfly_f32(ALL, value, lanes, 31); }
DEVICE u32 popcount(u32 value) { return __builtin_popcount(value); }
DEVICE float fma(float a, float b, float c) { return __nvvm_fma_rn_f(a, b, c); }
DEVICE float as_float(u32 bits) { return __builtin_bit_cast(float, bits); }
DEVICE u32 as_bits(float value) { return __builtin_bit_cast(u32, value); }
DEVICE void atomic_or(u32 *word, u32 bits) { __nvvm_atom_or_gen_i(reinterpret_cast<int *>(word), static_cast<int>(bits)); }

// Opaque, so that compilers leave the multiplication of a place to the load.
DEVICE u32 low_bits(u32 value, u32 mask) {
  u32 found;
  asm("and.b32 %0, %1, %2;" : "=r"(found) : "r"(value), "r"(mask));
  return found;
}

// Bits of `b` where the mask has ones, of `a` where it has none. Compilers make two operations of it.
DEVICE u32 merged(u32 a, u32 b, u32 mask) {
  u32 found;
  asm("lop3.b32 %0, %1, %2, %3, 0xd8;" : "=r"(found) : "r"(a), "r"(b), "n"(mask));
  return found;
}

// Four of the bytes of `a` (0 to 3) and `b` (4 to 7), the lowest one by the lowest four bits of `which`.
DEVICE u32 bytes_of(u32 a, u32 b, u32 which) { return __nvvm_prmt(a, b, which); }

DEVICE float half_to_float(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE u16 float_to_half(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

struct alignas(8) Pair { u32 a, b; };
struct alignas(16) Four { u32 a, b, c, d; };

// Through the path of what nobody writes meanwhile.
DEVICE u8 load(const u8 *from) { return __nvvm_ldg_uc(from); }
DEVICE u16 load(const u16 *from) { return __nvvm_ldg_us(from); }
DEVICE u32 load(const u32 *from) { return __nvvm_ldg_ui(from); }
DEVICE float load(const float *from) { return __nvvm_ldg_f(from); }

DEVICE Pair load(const Pair *from) {
  using Vector = u32 __attribute__((ext_vector_type(2)));
  const Vector found = __nvvm_ldg_ui2(reinterpret_cast<const Vector *>(from));
  return {found.x, found.y};
}

DEVICE Four load(const Four *from) {
  using Vector = u32 __attribute__((ext_vector_type(4)));
  const Vector found = __nvvm_ldg_ui4(reinterpret_cast<const Vector *>(from));
  return {found.x, found.y, found.z, found.w};
}

template <typename T> DEVICE void store(T *to, T value) { *to = value; }

#endif
