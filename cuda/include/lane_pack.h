// Lanes that work together on consecutive items, GROUP of them: those of one vector on the CPU, those of one warp in CUDA.
// Loads and stores of a group's first n items at the speed of a whole one, compression of chosen lanes to the front and the
// way back, shifts across lanes, prefix sums and products by doubling, fast horizontal sums. In CUDA all
// threads of a warp must call these together.
#pragma once
#include "lane.h"
#include "parallel.h"

#if PF_CUDA
namespace polyfield {

constexpr int GROUP = 32;
constexpr uint32_t WARP = 0xffffffffu;

template <class T> PF_INLINE T load_n(const T* p, int n) { return lane_number() < n ? p[lane_number()] : T(0); }
template <class T> PF_INLINE void store_n(T* p, T x, int n) {
  if (lane_number() < n) p[lane_number()] = x;
}
template <class T> PF_INLINE bool group_first(int n) { return lane_number() < n; }
template <class T> PF_INLINE void copy_n(const T* p, int64_t n, T* to) {
  for (int64_t i = lane_number(); i < n; i += GROUP) to[i] = p[i];
}
template <class T> PF_INLINE void fill_n(T* to, int64_t n, T x) {
  for (int64_t i = lane_number(); i < n; i += GROUP) to[i] = x;
}
// One bit per lane, lane 0 lowest.
PF_INLINE uint32_t group_bits(bool m) { return __ballot_sync(WARP, m); }

// As below, where `fill` is the same in all lanes.
template <int N, class T> PF_INLINE T shift_up(T x, T fill) {
  const T y = __shfl_up_sync(WARP, x, N);
  return lane_number() < N ? fill : y;
}
template <int N, class T> PF_INLINE T shift_down(T x, T fill) {
  const T y = __shfl_down_sync(WARP, x, N);
  return lane_number() >= GROUP - N ? fill : y;
}
template <class T> PF_INLINE T front(T x) { return __shfl_sync(WARP, x, 0); }
template <class T> PF_INLINE T back(T x) { return __shfl_sync(WARP, x, GROUP - 1); }
template <class T> PF_INLINE T tree_sum(T x) {
#pragma unroll
  for (int step = GROUP / 2; step > 0; step /= 2) x += __shfl_xor_sync(WARP, x, step);
  return x;
}
template <class T> PF_INLINE T sum(T x) { return tree_sum(x); }
// Of one number per thread of a group.
template <class T> PF_INLINE T group_sum(T x) { return tree_sum(x); }
// The sum over lanes, to one place.
template <class T> PF_INLINE void store_sum(T* p, T x) {
  x = tree_sum(x);
  if (lane_number() == 0) *p = x;
}

}  // namespace polyfield
#else
namespace polyfield {

constexpr int GROUP = LANES;

// The first n lanes (n may be <= 0 or more than there are) of p; the others read as zero, and are not touched.
template <class T> PF_INLINE Lane<T> load_n(const T* p, int n) { return load_first(p, n); }
template <class T> PF_INLINE void store_n(T* p, Lane<T> x, int n) { store_first(p, x, n); }

template <class T> PF_INLINE Mask<T> group_first(int n) { return first<T>(n < LANES ? n : LANES); }
template <class T> PF_INLINE void copy_n(const T* p, int64_t n, T* to) { std::memmove(to, p, n * sizeof(T)); }
template <class T> PF_INLINE void fill_n(T* to, int64_t n, T x) {
  for (int64_t i = 0; i < n; ++i) to[i] = x;
}
template <class T> PF_INLINE uint32_t group_bits(Mask<T> m) { return bits(m); }
template <class T> PF_INLINE T front(Lane<T> x) { return x.v[0]; }
template <class T> PF_INLINE T back(Lane<T> x) { return x.v[LANES - 1]; }

// Chosen lanes, in order, to p[0], p[1], ...; may overwrite a whole lane's width of p.
template <class T> PF_INLINE void compress(T* p, Lane<T> x, uint32_t chosen) {
  for (; chosen; chosen &= chosen - 1) *p++ = x.v[__builtin_ctz(chosen)];
}
// p[0], p[1], ... into the chosen lanes, in order; the others keep x. May read a whole lane's width of p.
template <class T> PF_INLINE Lane<T> expand(Lane<T> x, uint32_t chosen, const T* p) {
  for (; chosen; chosen &= chosen - 1) x.v[__builtin_ctz(chosen)] = *p++;
  return x;
}

#if defined(__AVX512F__) && POLYFIELD_LANES == 16
PF_INLINE __mmask16 first_bits(int n) { return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1); }
template <> PF_INLINE Lane<float> load_n(const float* p, int n) {
  return n >= 16 ? load(p) : Lane<float>((Lane<float>::V)_mm512_maskz_loadu_ps(first_bits(n), p));
}
template <> PF_INLINE void store_n(float* p, Lane<float> x, int n) {
  if (n >= 16) store(p, x);  // a masked store does not forward to a later load
  else _mm512_mask_storeu_ps(p, first_bits(n), (__m512)x.v);
}
template <> PF_INLINE Lane<int32_t> load_n(const int32_t* p, int n) {
  return n >= 16 ? load(p) : Lane<int32_t>((Lane<int32_t>::V)_mm512_maskz_loadu_epi32(first_bits(n), p));
}
template <> PF_INLINE void store_n(int32_t* p, Lane<int32_t> x, int n) {
  if (n >= 16) store(p, x);
  else _mm512_mask_storeu_epi32(p, first_bits(n), (__m512i)x.v);
}
template <> PF_INLINE void compress(float* p, Lane<float> x, uint32_t chosen) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(__mmask16(chosen), (__m512)x.v));
}
template <> PF_INLINE void compress(int32_t* p, Lane<int32_t> x, uint32_t chosen) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(__mmask16(chosen), (__m512i)x.v));
}
template <> PF_INLINE Lane<float> expand(Lane<float> x, uint32_t chosen, const float* p) {
  return Lane<float>((Lane<float>::V)_mm512_mask_expand_ps((__m512)x.v, __mmask16(chosen), _mm512_loadu_ps(p)));
}
template <> PF_INLINE Lane<int32_t> expand(Lane<int32_t> x, uint32_t chosen, const int32_t* p) {
  return Lane<int32_t>((Lane<int32_t>::V)_mm512_mask_expand_epi32((__m512i)x.v, __mmask16(chosen), _mm512_loadu_si512(p)));
}
#elif defined(__AVX2__) && POLYFIELD_LANES == 8
PF_INLINE __m256i first_bits(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
template <> PF_INLINE Lane<float> load_n(const float* p, int n) {
  return n >= 8 ? load(p) : Lane<float>((Lane<float>::V)_mm256_maskload_ps(p, first_bits(n)));
}
template <> PF_INLINE void store_n(float* p, Lane<float> x, int n) {
  if (n >= 8) store(p, x);
  else _mm256_maskstore_ps(p, first_bits(n), (__m256)x.v);
}
template <> PF_INLINE Lane<int32_t> load_n(const int32_t* p, int n) {
  return n >= 8 ? load(p) : Lane<int32_t>((Lane<int32_t>::V)_mm256_maskload_epi32(p, first_bits(n)));
}
template <> PF_INLINE void store_n(int32_t* p, Lane<int32_t> x, int n) {
  if (n >= 8) store(p, x);
  else _mm256_maskstore_epi32(p, first_bits(n), (__m256i)x.v);
}
#endif

// ---- across lanes -----------------------------------------------------------------------------------------------
template <class T> using Index = typename Mask<T>::V;

// out[i] = concat(a, b)[index[i]]; index is a constant, so that the compiler picks the instruction.
template <class T> PF_INLINE Lane<T> shuffle(Lane<T> a, Lane<T> b, Index<T> index) {
#if defined(__clang__)
  Lane<T> r;
  for (int i = 0; i < LANES; ++i) r.v[i] = index[i] < LANES ? a.v[index[i]] : b.v[index[i] - LANES];
  return r;
#else
  return Lane<T>(__builtin_shuffle(a.v, b.v, index));
#endif
}
// index[i] = f(i), for constants
template <class T, class F> PF_INLINE Index<T> indices(F f) {
  Index<T> r{};
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) r[i] = f(i);
  return r;
}
// Towards higher lanes by n: out[i] = x[i - n], fill[i - n + LANES] where there is none.
template <int N, class T> PF_INLINE Lane<T> shift_up(Lane<T> x, Lane<T> fill) {
  return shuffle(fill, x, indices<T>([](int i) { return i + LANES - N; }));
}
// Towards lower lanes by n: out[i] = x[i + n], fill[i + n - LANES] where there is none.
template <int N, class T> PF_INLINE Lane<T> shift_down(Lane<T> x, Lane<T> fill) {
  return shuffle(x, fill, indices<T>([](int i) { return i + N; }));
}

// The sum over lanes, by halving
template <int N = LANES / 2, class T> PF_INLINE T tree_sum(Lane<T> x) {
  if constexpr (N > 0) return tree_sum<N / 2>(x + shuffle(x, x, indices<T>([](int i) { return i ^ N; })));
  else return x.v[0];
}

template <class T> PF_INLINE T group_sum(T x) { return x; }
template <class T> PF_INLINE void store_sum(T* p, Lane<T> x) { *p = tree_sum(x); }

// a[i] + a[i ^ N] in lanes without bit N, the same of b in lanes with it
template <int N, class T> PF_INLINE Lane<T> fold(Lane<T> a, Lane<T> b) {
  return shuffle(a, b, indices<T>([](int i) { return i & N ? LANES + i : i; })) +
         shuffle(a, b, indices<T>([](int i) { return i & N ? LANES + (i ^ N) : i ^ N; }));
}
// Many sums over lanes, each to its own place: four at a time cost little more than one.
template <class T> struct Sums {
  Lane<T> waiting[4];
  T* places[4];
  int count = 0;
  PF_INLINE void add(Lane<T> x, T* place) {
    waiting[count] = x;
    places[count++] = place;
    if (count == 4) flush();
  }
  PF_INLINE void flush() {
    Lane<T> x = fold<2>(fold<1>(waiting[0], waiting[1]), fold<1>(waiting[2], waiting[3]));
    if constexpr (LANES > 4) x = x + shuffle(x, x, indices<T>([](int i) { return i ^ 4; }));
    if constexpr (LANES > 8) x = x + shuffle(x, x, indices<T>([](int i) { return i ^ 8; }));
    for (int i = 0; i < count; ++i) *places[i] = x.v[i];
    count = 0;
  }
};

}  // namespace polyfield
#endif

namespace polyfield {

// out[i] = x[0] * ... * x[i], by doubling. R is Lane<T> here and below.
template <int N = 1, class R> PF_INLINE R prefix_product(R x) {
  if constexpr (N < GROUP) return prefix_product<2 * N>(x * shift_up<N>(x, R(scalar_t<R>(1))));
  else return x;
}
template <int N = 1, class R> PF_INLINE R prefix_sum(R x) {
  if constexpr (N < GROUP) return prefix_sum<2 * N>(x + shift_up<N>(x, R(scalar_t<R>(0))));
  else return x;
}

}  // namespace polyfield
