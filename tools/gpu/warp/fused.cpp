// The kernels of spqfmt/kernels/cuda on a CPU, as a library: tests/cuda calls it in place of CUDA's driver.
#include "../../../spqfmt/kernels/cuda/fused.cu"
#include "faulty.hpp"

namespace {

struct Known {
  const char *name;
  void (*run)(const void *);
};

#define MULTIPLY(name) {#name, [](const void *p) { name(*static_cast<const Multiply *>(p)); }}
#define MULTIPLIES(tokens) \
  MULTIPLY(rows_8_##tokens), MULTIPLY(columns_8_##tokens), MULTIPLY(groups_8_##tokens), MULTIPLY(groups_4_##tokens), \
      MULTIPLY(bfloats_##tokens)
const Known KNOWN[] = {
    MULTIPLIES(1), MULTIPLIES(4), MULTIPLIES(8),
    {"finish", [](const void *p) { finish(*static_cast<const Finish *>(p)); }},
    {"barrier_without_one", [](const void *) { barrier_without_one(); }},
    {"different_things", [](const void *) { different_things(); }},
    {"warp_without_one", [](const void *) { warp_without_one(); }},
    {"waits_for_ever", [](const void *) { waits_for_ever(); }},
    {"reads_outside", [](const void *p) { reads_outside(static_cast<const u32 *const *>(p)); }},
};

char message[256];

}  // namespace

extern "C" {

// Memory that kernels may load from and store to; the first call of a run forgets what was given before.
void give_memory(const void *begin, std::size_t n_bytes, int first) {
  const char *at = static_cast<const char *>(begin);
  if (first) warp::machine.memory.clear();
  warp::machine.memory.push_back({at, at + n_bytes});
}

// An error message, or null.
const char *launch(const char *name, unsigned programs, unsigned threads, unsigned seed, const void *argument) {
  for (const Known &known : KNOWN) {
    if (std::strcmp(known.name, name)) continue;
    try {
      warp::machine.run(programs, threads, seed, known.run, argument);
      return nullptr;
    } catch (const std::runtime_error &error) {
      std::strncpy(message, error.what(), sizeof message - 1);
      return message;
    }
  }
  return "no such kernel";
}
}
