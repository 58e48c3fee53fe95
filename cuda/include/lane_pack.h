// Lanes that move: loads and stores of a lane's first n items at the speed of a whole one, compression of chosen lanes to
// the front and the way back, shifts across lanes, prefix products and fast horizontal sums. (CPU only: in CUDA
// these are warp shuffles, and belong to the cooperative drivers.)
#pragma once
#include "lane.h"

#if !PF_CUDA
namespace polyfield {

// The first n lanes (n may be <= 0 or more than there are) of p; the others read as zero, and are not touched.
template <class T> PF_INLINE Lane<T> load_n(const T* p, int n) { return load_first(p, n); }
template <class T> PF_INLINE void store_n(T* p, Lane<T> x, int n) { store_first(p, x, n); }

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

// out[i] = x[0] * ... * x[i], by doubling
template <int N = 1, class T> PF_INLINE Lane<T> prefix_product(Lane<T> x) {
  if constexpr (N < LANES) return prefix_product<2 * N>(x * shift_up<N>(x, Lane<T>(T(1))));
  else return x;
}
template <int N = 1, class T> PF_INLINE Lane<T> prefix_sum(Lane<T> x) {
  if constexpr (N < LANES) return prefix_sum<2 * N>(x + shift_up<N>(x, Lane<T>(T(0))));
  else return x;
}
// The sum over lanes, by halving
template <int N = LANES / 2, class T> PF_INLINE T tree_sum(Lane<T> x) {
  if constexpr (N > 0) return tree_sum<N / 2>(x + shuffle(x, x, indices<T>([](int i) { return i ^ N; })));
  else return x.v[0];
}

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
