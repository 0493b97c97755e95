/* Best closed paths through a bitshift trellis (QTIP, arXiv 2406.11235): what tools/paper/trellis_rows.py chooses codes with.

   A state is the last `state_bits` bits of a stream that gives each value `bits` more; a state stands for codebook[state].
   A path is closed when the bits before its first value are those of its last ones: no bit is stored beside the values'. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
  int state_bits, bits;
  const float *codebook;
  float *costs, *next, *least;
  uint8_t *from;
} trellis;

/* Most states by most bits: (1 << 16 >> 2 >> 2). */
#define LONGEST 4096
/* Values before and behind the border that say what a path is to close with; twice as many found nothing better. */
#define AROUND 32

/* States of two values in turn overlap in all but `bits`: state (overlap, low) comes from (high, overlap). Costs lie by
   [low][overlap] and what is cheapest to come from by [last bits of the overlap][its other bits], so that all loops but
   the one that puts these in order run along neighbours. */
#define STEP(NAME, BITS)                                                                              \
  static void NAME(const trellis *t, uint8_t *restrict from, float value) {                           \
    const int overlaps = 1 << (t->state_bits - BITS), others = overlaps >> BITS;                      \
    const float *restrict costs = t->costs, *restrict codebook = t->codebook;                         \
    float *restrict next = t->next, *restrict least = t->least;                                       \
    float mine[LONGEST];                                                                              \
    int32_t which[LONGEST];                                                                           \
    for (int last = 0; last < 1 << BITS; last++) {                                                    \
      const float *restrict here = costs + (size_t)last * overlaps;                                   \
      for (int o = 0; o < others; o++) mine[o] = here[o], which[o] = 0;                               \
      for (int high = 1; high < 1 << BITS; high++)                                                    \
        for (int o = 0; o < others; o++) {                                                            \
          const float cost = here[high * others + o], best = mine[o];                                 \
          which[o] = cost < best ? high : which[o];                                                   \
          mine[o] = cost < best ? cost : best;                                                        \
        }                                                                                             \
      for (int o = 0; o < others; o++) from[last * others + o] = (uint8_t)which[o];                   \
      for (int o = 0; o < others; o++) least[(o << BITS) + last] = mine[o];                           \
    }                                                                                                 \
    for (int low = 0; low < 1 << BITS; low++)                                                         \
      for (int o = 0; o < overlaps; o++) {                                                            \
        const float d = value - codebook[low * overlaps + o];                                         \
        next[low * overlaps + o] = least[o] + d * d;                                                  \
      }                                                                                               \
  }
STEP(step_2, 2)
STEP(step_3, 3)
STEP(step_4, 4)

/* Where (overlap, low) lies among costs. */
static int place(const trellis *t, int state) {
  const int low = state & ((1 << t->bits) - 1);
  return (low << (t->state_bits - t->bits)) + (state >> t->bits);
}

/* The cheapest path whose first state begins with the bits `overlap` and whose last one ends with them; any if negative.
   It takes `count` values from number `first` on, round the circle of `length`. */
static void walk(trellis *t, const float *values, int length, int first, int count, int overlap, uint16_t *states) {
  const int n_states = 1 << t->state_bits, overlaps = n_states >> t->bits, others = overlaps >> t->bits;
  void (*const step)(const trellis *, uint8_t *, float) = t->bits == 2 ? step_2 : t->bits == 3 ? step_3 : step_4;
  for (int s = 0; s < n_states; s++) {
    const float d = values[first] - t->codebook[place(t, s)];
    t->costs[place(t, s)] = overlap < 0 || s >> t->bits == overlap ? d * d : INFINITY;
  }
  for (int i = 1; i < count; i++) {
    step(t, t->from + (size_t)i * overlaps, values[(first + i) % length]);
    float *const next = t->next;
    t->next = t->costs;
    t->costs = next;
  }
  int best = overlap < 0 ? 0 : overlap;
  for (int s = best; s < n_states; s += overlap < 0 ? 1 : overlaps)
    if (t->costs[place(t, s)] < t->costs[place(t, best)]) best = s;
  for (int i = count - 1; i >= 0; i--) {
    states[(first + i) % length] = (uint16_t)best;
    const int o = best >> t->bits, last = o & ((1 << t->bits) - 1);
    if (i) best = t->from[(size_t)i * overlaps + last * others + (o >> t->bits)] * overlaps + o;
  }
}

/* `values` [n][length] -> `states` [n][length]; bits 2 to 4, state_bits from twice as many to 16, `codebook` by
   state. Returns 0, or 1 without memory. As in the paper the closing bits are those that a path across the border has
   there. */
int closed_paths(const float *values, int n, int length, int state_bits, int bits, const float *codebook,
                 uint16_t *states) {
  const size_t n_states = (size_t)1 << state_bits, overlaps = n_states >> bits;
  float *const room = malloc(sizeof(float) * (3 * n_states + overlaps));
  uint8_t *const from = malloc(overlaps * length);
  const int around = length / 2 < AROUND ? length / 2 : AROUND;
  if (room && from) {
    trellis t = {state_bits, bits, room, room + n_states, room + 2 * n_states, room + 3 * n_states, from};
    for (size_t s = 0; s < n_states; s++) room[place(&t, (int)s)] = codebook[s];
    for (int i = 0; i < n; i++) {
      uint16_t *mine = states + (size_t)i * length;
      walk(&t, values + (size_t)i * length, length, length - around, 2 * around, -1, mine);
      walk(&t, values + (size_t)i * length, length, 0, length, mine[0] >> bits, mine);
    }
  }
  const int failed = !room || !from;
  free(room);
  free(from);
  return failed;
}
