// Runs CUDA C++ on a CPU, lane by lane: what spqfmt/kernels/cuda/lanes.cuh declares for a GPU, as plain C++.
//
// Every lane is a context of its own, which runs until it waits for others: lanes are as far apart as a GPU may let them
// be, in an order that a seed chooses. Lanes of a warp meet where they tell each other something, lanes of a program at
// a barrier. What a GPU would hang at, or leave undefined, ends the run with a message: lanes that meet for different
// things, or with one that is gone; a barrier that not all come to; loads and stores outside of the memory that was
// given. Programs run one after the other.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;

#define KERNEL static
#define DEVICE static inline
#define SHARED static
#define UNROLL
#define AT_MOST(threads, blocks)

namespace warp {

constexpr unsigned LANES = 32;

enum class Meeting { NONE, BALLOT, SHUFFLE, BARRIER };
enum class State { READY, WAITING, DONE };

struct Lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  Meeting meeting;
  u32 value, with, result;
};

struct Range {
  const char *begin, *end;
};

class Machine {
 public:
  unsigned thread = 0, program = 0;
  std::vector<Range> memory;
  std::uint64_t meetings = 0;

  void run(unsigned programs, unsigned threads, u32 seed, void (*kernel)(const void *), const void *argument) {
    if (threads == 0 || threads % LANES) throw std::runtime_error("a program has whole warps");
    kernel_ = kernel;
    argument_ = argument;
    random_ = seed ? seed : 1;
    failure_.clear();
    lanes_.resize(threads);
    for (program = 0; program < programs; program++) run_program();
  }

  u32 meet(Meeting meeting, u32 value, u32 with) {
    Lane &lane = lanes_[thread];
    lane.value = value;
    lane.with = with;
    lane.meeting = meeting;
    lane.state = State::WAITING;
    swapcontext(&lane.context, &scheduler_);
    return lane.result;
  }

  void check(const void *address, std::size_t n_bytes, const char *what) {
    const char *begin = static_cast<const char *>(address);
    for (const Range &range : memory)
      if (range.begin <= begin && begin + n_bytes <= range.end) return;
    fail(std::string(what) + " outside of the memory that was given");
  }

 private:
  std::vector<Lane> lanes_;
  ucontext_t scheduler_;
  void (*kernel_)(const void *) = nullptr;
  const void *argument_ = nullptr;
  u32 random_ = 1;
  std::string failure_;

  // A lane cannot throw across contexts: it stays where it is, and the scheduler throws.
  void fail(std::string why) {
    failure_ = std::move(why);
    swapcontext(&lanes_[thread].context, &scheduler_);
  }

  static void enter();

  void run_program() {
    constexpr std::size_t stack_bytes = 64 << 10;
    for (Lane &lane : lanes_) {
      if (!lane.stack) lane.stack.reset(new char[stack_bytes]);
      getcontext(&lane.context);
      lane.context.uc_stack.ss_sp = lane.stack.get();
      lane.context.uc_stack.ss_size = stack_bytes;
      lane.context.uc_link = &scheduler_;
      makecontext(&lane.context, &Machine::enter, 0);
      lane.state = State::READY;
      lane.meeting = Meeting::NONE;
    }
    for (;;) {
      const bool ran = run_ready();
      bool met = false;
      for (unsigned first = 0; first < lanes_.size(); first += LANES) met |= meet_in_warp(first);
      met |= meet_at_barrier();
      if (count(State::DONE, 0, lanes_.size()) == lanes_.size()) return;
      if (!ran && !met) throw std::runtime_error("lanes wait for others that do not come");
    }
  }

  bool run_ready() {
    bool ran = false;
    std::vector<unsigned> order(lanes_.size());
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[next() % i]);
    for (unsigned number : order) {
      if (lanes_[number].state != State::READY) continue;
      thread = number;
      swapcontext(&scheduler_, &lanes_[number].context);
      if (!failure_.empty()) throw std::runtime_error(failure_);
      ran = true;
    }
    return ran;
  }

  bool meet_in_warp(unsigned first) {
    const Meeting meeting = lanes_[first].meeting;
    unsigned waiting = 0;
    for (unsigned i = first; i < first + LANES; i++) waiting += waits_in_warp(lanes_[i]);
    if (waiting == 0) return false;
    if (count(State::DONE, first, LANES)) throw std::runtime_error("lanes meet when one of their warp is gone");
    if (waiting < LANES) return false;
    u32 bits = 0, values[LANES];
    for (unsigned i = 0; i < LANES; i++) {
      if (lanes_[first + i].meeting != meeting) throw std::runtime_error("lanes meet for different things");
      bits |= (lanes_[first + i].value ? 1u : 0u) << i;
      values[i] = lanes_[first + i].value;
    }
    for (unsigned i = 0; i < LANES; i++) {
      Lane &lane = lanes_[first + i];
      lane.result = meeting == Meeting::BALLOT ? bits : values[i ^ lane.with];
      wake(lane);
    }
    meetings++;
    return true;
  }

  bool meet_at_barrier() {
    std::size_t waiting = 0;
    for (const Lane &lane : lanes_) waiting += lane.meeting == Meeting::BARRIER;
    if (waiting == 0) return false;
    if (count(State::DONE, 0, lanes_.size())) throw std::runtime_error("a barrier that a lane has not come to");
    if (waiting < lanes_.size()) return false;
    for (Lane &lane : lanes_) wake(lane);
    return true;
  }

  static bool waits_in_warp(const Lane &lane) {
    return lane.meeting == Meeting::BALLOT || lane.meeting == Meeting::SHUFFLE;
  }

  static void wake(Lane &lane) {
    lane.state = State::READY;
    lane.meeting = Meeting::NONE;
  }

  std::size_t count(State state, std::size_t first, std::size_t n) const {
    std::size_t found = 0;
    for (std::size_t i = first; i < first + n; i++) found += lanes_[i].state == state;
    return found;
  }

  u32 next() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 17;
    return random_ ^= random_ << 5;
  }
};

inline Machine machine;

inline void Machine::enter() {
  machine.kernel_(machine.argument_);
  Lane &lane = machine.lanes_[machine.thread];
  lane.state = State::DONE;
  lane.meeting = Meeting::NONE;
}

}  // namespace warp

DEVICE u32 thread() { return warp::machine.thread; }
DEVICE u32 program() { return warp::machine.program; }
DEVICE void barrier() { warp::machine.meet(warp::Meeting::BARRIER, 0, 0); }
DEVICE u32 ballot(bool bit) { return warp::machine.meet(warp::Meeting::BALLOT, bit, 0); }
DEVICE u32 popcount(u32 value) { return static_cast<u32>(__builtin_popcount(value)); }
DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE u32 low_bits(u32 value, u32 mask) { return value & mask; }
DEVICE u32 merged(u32 a, u32 b, u32 mask) { return (a & ~mask) | (b & mask); }

DEVICE u32 bytes_of(u32 a, u32 b, u32 which) {
  const std::uint64_t both = static_cast<std::uint64_t>(b) << 32 | a;
  u32 found = 0;
  for (u32 i = 0; i < 4; i++) found |= static_cast<u32>(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return found;
}

DEVICE float as_float(u32 bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

DEVICE u32 as_bits(float value) {
  u32 bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

DEVICE float shuffle_xor(float value, int lanes) {
  return as_float(warp::machine.meet(warp::Meeting::SHUFFLE, as_bits(value), static_cast<u32>(lanes)));
}

DEVICE float half_to_float(u16 bits) {
  const u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                     : exponent == 31 ? as_float(0x7f800000u | mantissa << 13)
                                      : as_float((exponent + 112) << 23 | mantissa << 13);
  return as_float(as_bits(size) | sign);
}

DEVICE u16 float_to_half(float value) {
  const u32 bits = as_bits(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<u16>(0x7fff);
  if (size >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);
  if (size < 0x38800000u)  // what is left is a multiple of 2^-24: the addition rounds
    return static_cast<u16>(sign | (as_bits(as_float(size) + 0.5f) - as_bits(0.5f)));
  return static_cast<u16>(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

struct alignas(8) Pair { u32 a, b; };
struct alignas(16) Four { u32 a, b, c, d; };

template <typename T> T load(const T *from) {
  warp::machine.check(from, sizeof(T), "a load");
  if (reinterpret_cast<std::uintptr_t>(from) % alignof(T)) warp::machine.check(nullptr, 1, "a load that is not aligned");
  return *from;
}

template <typename T> void store(T *to, T value) {
  warp::machine.check(to, sizeof(T), "a store");
  *to = value;
}

DEVICE void atomic_or(u32 *word, u32 bits) { store(word, load(word) | bits); }
