// Loops over work on the CPU's threads. Work is cut into chunks of a fixed size and dealt out statically, so that
// results do not depend on timing. (CUDA drivers index by thread instead.)
#pragma once
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace polyfield {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

}  // namespace polyfield
