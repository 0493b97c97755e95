// Kernels that a GPU would hang at or that it leaves undefined: the emulator has to find each.
#pragma once

KERNEL void barrier_without_one() {
  if (thread() == 5) return;
  barrier();
}

KERNEL void different_things() {
  if (thread() < 7) ballot(true);
  else shuffle_xor(1, 1);
}

KERNEL void warp_without_one() {
  if (thread() == 40) return;
  ballot(true);
}

KERNEL void waits_for_ever() {
  if (thread() == 3) barrier();
  else ballot(true);
  barrier();
}

KERNEL void reads_outside(const u32 *const *memory) {
  if (thread() == 31) load(memory[0] + 1);
}
