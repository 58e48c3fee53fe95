// Loops over work. An entry point takes its number of items as Threads, Warps or Blocks: in CUDA that says what works on
// an item, and the grid is cut accordingly (see op.h); on the CPU it is a number. for_each and for_lanes are the loops that
// read the same on both machines. The other loops are the CPU's alone: work is cut into chunks of a fixed
// size and dealt out statically to threads, so that results do not depend on timing.
#pragma once
#include "lane.h"
#if !PF_CUDA && defined(_OPENMP)
#include <omp.h>
#endif

namespace polyfield {

// A number of items, and who works on each: one thread, one warp or one block. BLOCK: threads of a block. RESIDENT: blocks
// that a multiprocessor must have registers for at a time.
template <int BLOCK_ = 256> struct Threads {
  static constexpr char kind = 'T';
  static constexpr int BLOCK = BLOCK_;
  int64_t count;
  PF_INLINE operator int64_t() const { return count; }
};
template <int BLOCK_ = 128, int RESIDENT_ = 1> struct Warps {
  static constexpr char kind = 'W';
  static constexpr int BLOCK = BLOCK_, RESIDENT = RESIDENT_;
  int64_t count;
  PF_INLINE operator int64_t() const { return count; }
};
template <int BLOCK_ = 128, int RESIDENT_ = 1> struct Blocks {
  static constexpr char kind = 'B';
  static constexpr int BLOCK = BLOCK_, RESIDENT = RESIDENT_;
  int64_t count;
  PF_INLINE operator int64_t() const { return count; }
};

constexpr PF_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <int N> struct Number {
  static constexpr int value = N;
};
// f(Number<i>()) for i in [BEGIN, END): a loop whose passes differ in type.
template <int BEGIN, int END, class F> constexpr PF_INLINE void for_numbers(F f) {
  if constexpr (BEGIN < END) {
    f(Number<BEGIN>());
    for_numbers<BEGIN + 1, END>(f);
  }
}

#if PF_CUDA

// An array that the threads of a block share: PF_SHARED(float, tile, [32][33]).
#if !defined(PF_SHARED)  // tests define their own
#define PF_SHARED(type, name, extent) __shared__ type name extent
#endif

// The place of a thread in its warp.
PF_INLINE int lane_number() { return int(threadIdx.x) & 31; }

// f(i) by one thread per item.
template <int BLOCK, class F> PF_INLINE void for_each(Threads<BLOCK> n, F f) {
  const int64_t i = int64_t(blockIdx.x) * BLOCK + int(threadIdx.x);
  if (i < n.count) f(i);
}
// f(i) by all threads of a warp, or of a block, together.
template <int BLOCK, int RESIDENT, class F> PF_INLINE void for_each(Warps<BLOCK, RESIDENT> n, F f) {
  const int64_t i = (int64_t(blockIdx.x) * BLOCK + int(threadIdx.x)) / 32;
  if (i < n.count) f(i);
}
template <int BLOCK, int RESIDENT, class F> PF_INLINE void for_each(Blocks<BLOCK, RESIDENT> n, F f) {
  if (int64_t(blockIdx.x) < n.count) f(int64_t(blockIdx.x));
}
// f(begin, end) by a warp, for consecutive chunks of its 32 items.
template <int BLOCK, class F> PF_INLINE void parallel_chunks(Threads<BLOCK> n, int64_t, F f) {
  const int64_t begin = (int64_t(blockIdx.x) * BLOCK + int(threadIdx.x)) / 32 * 32;
  if (begin < n.count) f(begin, begin + 32 < n.count ? begin + 32 : n.count);
}
// f(i, m): the m items from i on, which one lane holds.
template <int BLOCK, class F> PF_INLINE void for_lanes(Threads<BLOCK> n, F f) {
  for_each(n, [&](int64_t i) { f(i, 1); });
}

#else

// A vector of lanes is a warp of one thread.
inline int lane_number() { return 0; }

inline int thread_count() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// f(begin, end) for consecutive chunks of `chunk` items; one contiguous share of the chunks per thread.
template <class F> void parallel_chunks(int64_t n, int64_t chunk, F f) {
  const int64_t chunks = ceil_div(n, chunk);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t c = 0; c < chunks; ++c) f(c * chunk, (c + 1) * chunk < n ? (c + 1) * chunk : n);
}

// f(i) for i in [0, n), dealt out one by one to whoever is free: for few, uneven pieces without shared results.
template <class F> void parallel_pieces(int64_t n, F f) {
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
  for (int64_t i = 0; i < n; ++i) f(i);
}

// f(i) for each item: many small ones for Threads, fewer that take longer for Warps, and uneven ones for Blocks.
template <class F> void for_each(int64_t n, int64_t chunk, F f) {
  parallel_chunks(n, chunk, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}
template <int BLOCK, class F> void for_each(Threads<BLOCK> n, F f) { for_each(n.count, 4096, f); }
template <int BLOCK, int RESIDENT, class F> void for_each(Warps<BLOCK, RESIDENT> n, F f) { for_each(n.count, 64, f); }
template <int BLOCK, int RESIDENT, class F> void for_each(Blocks<BLOCK, RESIDENT> n, F f) { parallel_pieces(n.count, f); }

// f(i, m): the m <= LANES items from i on, which one lane holds.
template <int BLOCK, class F> void for_lanes(Threads<BLOCK> n, F f) {
  constexpr int64_t CHUNK = 16384;
  parallel_chunks(n.count, CHUNK, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += LANES) f(i, int(end - i < LANES ? end - i : LANES));
  });
}

#endif

}  // namespace polyfield
