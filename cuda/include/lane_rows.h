// Rows of numbers in memory <-> lanes, by transposing in registers; and sixteen sums over lanes at the price of a few.
#pragma once
#include "lane_pack.h"

namespace polyfield {

#if PF_CUDA

// A thread's row, 16 bytes at a time: it and `width` numbers begin and end at a multiple of them.
template <class T> struct alignas(16) Sixteen { T x[16 / sizeof(T)]; };
template <class T> PF_INLINE void rows_to_lanes(const T* p, int64_t, int width, int, T* x) {
  constexpr int N = 16 / sizeof(T);
#pragma unroll
  for (int k = 0; k < width; k += N) {
    const Sixteen<T> part = *reinterpret_cast<const Sixteen<T>*>(p + k);
#pragma unroll
    for (int j = 0; j < N; ++j) x[k + j] = part.x[j];
  }
}
template <class T> PF_INLINE void lanes_to_rows(T* p, int64_t, int width, int, const T* x) {
  constexpr int N = 16 / sizeof(T);
#pragma unroll
  for (int k = 0; k < width; k += N) {
    Sixteen<T> part;
#pragma unroll
    for (int j = 0; j < N; ++j) part.x[j] = x[k + j];
    *reinterpret_cast<Sixteen<T>*>(p + k) = part;
  }
}

// Of 16 numbers in each lane, COUNT of which may not be 0: lane k and lane k + 16 get the sum over lanes of x[k]. x is used up.
template <int COUNT = 16, int N = 1, class T> PF_INLINE T lane_sums(T* x) {
  if constexpr (N < 16) {
    const bool odd = lane_number() & N;
#pragma unroll
    for (int k = 0; k < COUNT; k += 2) {
      const T other = k + 1 < COUNT ? x[k + 1] : T(0);
      x[k / 2] = (odd ? other : x[k]) + __shfl_xor_sync(WARP, odd ? x[k] : other, N);
    }
    return lane_sums<(COUNT + 1) / 2, 2 * N>(x);
  } else {
    return x[0] + __shfl_xor_sync(WARP, x[0], N);
  }
}

#else

// x[i][j] -> x[j][i], by exchanging ever larger blocks
template <int N = 1, class T> PF_INLINE void transpose(Lane<T>* x) {
  if constexpr (N < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
      if (i & N) continue;
      const Lane<T> a = x[i], b = x[i + N];
      x[i] = shuffle(a, b, indices<T>([](int j) { return j & N ? LANES + (j ^ N) : j; }));
      x[i + N] = shuffle(a, b, indices<T>([](int j) { return j & N ? LANES + j : j ^ N; }));
    }
    transpose<2 * N>(x);
  }
}

// Rows of `width` numbers, `stride` apart, one row per lane: x[k] = number k of each of the first n rows. And the way back.
// float64, which only gradient checks use, goes number by number: its shuffles would take the compiler minutes.
template <class T> PF_INLINE void rows_to_lanes(const T* p, int64_t stride, int width, int n, Lane<T>* x) {
  if constexpr (sizeof(T) != 4) {
    for (int k = 0; k < width; ++k) x[k] = load_strided(p + k, stride, n);
  } else for (int k = 0; k < width; k += LANES) {
    Lane<T> block[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) block[i] = i < n ? load_n(p + i * stride + k, width - k) : Lane<T>(T(0));
    transpose(block);
    for (int i = 0; i < LANES && k + i < width; ++i) x[k + i] = block[i];
  }
}
template <class T> PF_INLINE void lanes_to_rows(T* p, int64_t stride, int width, int n, const Lane<T>* x) {
  if constexpr (sizeof(T) != 4) {
    for (int k = 0; k < width; ++k) store_strided(p + k, stride, x[k], n);
  } else for (int k = 0; k < width; k += LANES) {
    Lane<T> block[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) block[i] = k + i < width ? x[k + i] : Lane<T>(T(0));
    transpose(block);
    for (int i = 0; i < LANES && i < n; ++i) store_n(p + i * stride + k, block[i], width - k);
  }
}

// p[k] += the sum over lanes of x[k], k < 16; x is used up.
template <int N = 1, class T> PF_INLINE void add_sums(T* p, Lane<T>* x) {
  if constexpr (sizeof(T) != 4) {
    for (int k = 0; k < 16; ++k) p[k] += sum(x[k]);
  } else if constexpr (N < LANES) {
#pragma GCC unroll 8
    for (int k = 0; k < 16 / (2 * N); ++k) x[k] = fold<N>(x[2 * k], x[2 * k + 1]);
    add_sums<2 * N>(p, x);
  } else {
    for (int k = 0; k < 16 / LANES; ++k) store(p + LANES * k, load(p + LANES * k) + x[k]);
  }
}

#endif

}  // namespace polyfield
