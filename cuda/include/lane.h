// Lanes: the one number type that kernels are written on.
//
// Lane<T> holds one T per item of work: a plain T per thread in CUDA, POLYFIELD_LANES of them in one vector
// register on the CPU (compiler vector extensions; intrinsics only where the compiler has no word for it).
// Mask<T> is what comparing two Lane<T> gives; select(mask, a, b) is the branch that lanes share.
// A kernel body templated on Lane works in float32, in float64 (gradient checks) and in CUDA alike.
#pragma once
#include "standard.h"

#if !defined(PF_CUDA)  // tests define it, to compile what is meant for a GPU with the host's compiler
#if defined(__CUDACC__)
#define PF_CUDA 1
#else
#define PF_CUDA 0
#endif
#endif
#if defined(__CUDACC__)
#define PF_INLINE __device__ __forceinline__
#else
#define PF_INLINE inline __attribute__((always_inline))
#endif

namespace polyfield {

#if PF_CUDA

constexpr int LANES = 1;
template <class T> using Lane = T;
template <class T> using Mask = bool;

#else

#ifndef POLYFIELD_LANES
#define POLYFIELD_LANES 4
#endif
constexpr int LANES = POLYFIELD_LANES;

template <class T> struct VectorOf;
#define PF_VECTOR(T) \
  template <> struct VectorOf<T> { typedef T type __attribute__((vector_size(LANES * sizeof(T)), may_alias)); };
PF_VECTOR(float) PF_VECTOR(double) PF_VECTOR(int32_t) PF_VECTOR(uint32_t) PF_VECTOR(int64_t)
#undef PF_VECTOR

template <int BYTES> struct IntOf;
template <> struct IntOf<4> { using type = int32_t; };
template <> struct IntOf<8> { using type = int64_t; };

// All bits of an item set = true. Kept as an integer vector: the compiler turns it into mask registers.
template <class T> struct Mask {
  using Int = typename IntOf<sizeof(T)>::type;
  using V = typename VectorOf<Int>::type;
  V v;
  Mask() = default;
  PF_INLINE explicit Mask(V x) : v(x) {}
  PF_INLINE Mask(bool b) : v(V{} - Int(b)) {}
  template <class U> PF_INLINE explicit Mask(Mask<U> other) : v(__builtin_convertvector(other.v, V)) {}
  PF_INLINE Mask operator&(Mask o) const { return Mask(v & o.v); }
  PF_INLINE Mask operator|(Mask o) const { return Mask(v | o.v); }
  PF_INLINE Mask operator^(Mask o) const { return Mask(v ^ o.v); }
  PF_INLINE Mask operator!() const { return Mask(~v); }
  PF_INLINE Mask operator&&(Mask o) const { return Mask(v & o.v); }
  PF_INLINE Mask operator||(Mask o) const { return Mask(v | o.v); }
  PF_INLINE bool operator[](int lane) const { return v[lane] != 0; }
};

template <class T> struct Lane {
  using V = typename VectorOf<T>::type;
  V v;
  Lane() = default;
  PF_INLINE explicit Lane(V x) : v(x) {}
  PF_INLINE Lane(T s) : v(s - V{}) {}
  template <class U> PF_INLINE explicit Lane(Lane<U> other) : v(__builtin_convertvector(other.v, V)) {}
  PF_INLINE T operator[](int lane) const { return v[lane]; }
  PF_INLINE Lane operator-() const { return Lane(-v); }
  PF_INLINE Lane operator~() const { return Lane(~v); }
#define PF_ARITHMETIC(op)                                                        \
  friend PF_INLINE Lane operator op(Lane a, Lane b) { return Lane(a.v op b.v); } \
  PF_INLINE Lane& operator op##=(Lane o) { v = v op o.v; return *this; }
  PF_ARITHMETIC(+) PF_ARITHMETIC(-) PF_ARITHMETIC(*) PF_ARITHMETIC(/)
  PF_ARITHMETIC(&) PF_ARITHMETIC(|) PF_ARITHMETIC(^) PF_ARITHMETIC(%)
#undef PF_ARITHMETIC
  friend PF_INLINE Lane operator<<(Lane a, int n) { return Lane(a.v << n); }
  friend PF_INLINE Lane operator>>(Lane a, int n) { return Lane(a.v >> n); }
  friend PF_INLINE Lane operator<<(Lane a, Lane b) { return Lane(a.v << b.v); }
  friend PF_INLINE Lane operator>>(Lane a, Lane b) { return Lane(a.v >> b.v); }
#define PF_COMPARE(op) \
  friend PF_INLINE Mask<T> operator op(Lane a, Lane b) { return Mask<T>((typename Mask<T>::V)(a.v op b.v)); }
  PF_COMPARE(<) PF_COMPARE(<=) PF_COMPARE(>) PF_COMPARE(>=) PF_COMPARE(==) PF_COMPARE(!=)
#undef PF_COMPARE
};

#endif

template <class T> struct Scalar { using type = T; };
#if !PF_CUDA
template <class T> struct Scalar<Lane<T>> { using type = T; };
#endif
template <class R> using scalar_t = typename Scalar<R>::type;  // float of Lane<float>

// ---- choice and votes -------------------------------------------------------------------------------------------
#if PF_CUDA
template <class R> PF_INLINE R select(bool mask, R a, R b) { return mask ? a : b; }
PF_INLINE bool any(bool m) { return m; }    // per thread: a body that loops "while any" loops for itself
PF_INLINE bool all(bool m) { return m; }
#else
template <class T> PF_INLINE Lane<T> select(Mask<T> m, Lane<T> a, Lane<T> b) { return Lane<T>(m.v ? a.v : b.v); }
template <class T, class S> PF_INLINE Lane<T> select(Mask<T> m, Lane<T> a, S b) { return select(m, a, Lane<T>(T(b))); }
template <class T, class S> PF_INLINE Lane<T> select(Mask<T> m, S a, Lane<T> b) { return select(m, Lane<T>(T(a)), b); }

// One bit per lane, lane 0 lowest.
template <class T> PF_INLINE uint32_t bits(Mask<T> m) {
  uint32_t r = 0;
  for (int i = 0; i < LANES; ++i) r |= uint32_t(m.v[i] & 1) << i;
  return r;
}
}  // namespace polyfield
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
namespace polyfield {
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
template <> PF_INLINE uint32_t bits(Mask<float> m) { return _mm512_movepi32_mask((__m512i)m.v); }
template <> PF_INLINE uint32_t bits(Mask<int32_t> m) { return _mm512_movepi32_mask((__m512i)m.v); }
#elif defined(__AVX2__) && POLYFIELD_LANES == 8
template <> PF_INLINE uint32_t bits(Mask<float> m) { return _mm256_movemask_ps((__m256)m.v); }
template <> PF_INLINE uint32_t bits(Mask<int32_t> m) { return _mm256_movemask_ps((__m256)m.v); }
#endif
constexpr uint32_t ALL_BITS = LANES == 32 ? ~0u : (1u << LANES) - 1;
template <class T> PF_INLINE bool any(Mask<T> m) { return bits(m) != 0; }
template <class T> PF_INLINE bool all(Mask<T> m) { return bits(m) == ALL_BITS; }

// 0, 1, 2, ... : the lane's own number
template <class T> PF_INLINE Lane<T> iota() {
  Lane<T> r;
  for (int i = 0; i < LANES; ++i) r.v[i] = T(i);
  return r;
}
// The first n lanes true
template <class T> PF_INLINE Mask<T> first(int n) { return Mask<T>(iota<typename Mask<T>::Int>() < Lane<typename Mask<T>::Int>(n)); }

// ---- memory -----------------------------------------------------------------------------------------------------
template <class T> PF_INLINE Lane<T> load(const T* p) {
  Lane<T> r;
  std::memcpy(&r.v, p, sizeof r.v);
  return r;
}
template <class T> PF_INLINE void store(T* p, Lane<T> x) { std::memcpy(p, &x.v, sizeof x.v); }
// The first n lanes only; the others read as zero, and are not written.
template <class T> PF_INLINE Lane<T> load_first(const T* p, int n) {
  if (n >= LANES) return load(p);
  Lane<T> r(T(0));
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
template <class T> PF_INLINE void store_first(T* p, Lane<T> x, int n) {
  if (n >= LANES) return store(p, x);
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}
// p[i * stride] of the first n lanes: from rows to lanes
template <class T> PF_INLINE Lane<T> load_strided(const T* p, int64_t stride, int n) {
  Lane<T> r(T(0));
  for (int i = 0; i < (n < LANES ? n : LANES); ++i) r.v[i] = p[i * stride];
  return r;
}
template <class T> PF_INLINE void store_strided(T* p, int64_t stride, Lane<T> x, int n) {
  for (int i = 0; i < (n < LANES ? n : LANES); ++i) p[i * stride] = x.v[i];
}
// p[index] per lane; every index must be valid, also of lanes that are switched off.
template <class T> PF_INLINE Lane<T> gather(const T* p, Lane<int32_t> index) {
  Lane<T> r;
  for (int i = 0; i < LANES; ++i) r.v[i] = p[index.v[i]];
  return r;
}
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
template <> PF_INLINE Lane<float> gather(const float* p, Lane<int32_t> i) {
  return Lane<float>((Lane<float>::V)_mm512_i32gather_ps((__m512i)i.v, p, 4));
}
template <> PF_INLINE Lane<int32_t> gather(const int32_t* p, Lane<int32_t> i) {
  return Lane<int32_t>((Lane<int32_t>::V)_mm512_i32gather_epi32((__m512i)i.v, p, 4));
}
#elif defined(__AVX2__) && POLYFIELD_LANES == 8
template <> PF_INLINE Lane<float> gather(const float* p, Lane<int32_t> i) {
  return Lane<float>((Lane<float>::V)_mm256_i32gather_ps(p, (__m256i)i.v, 4));
}
template <> PF_INLINE Lane<int32_t> gather(const int32_t* p, Lane<int32_t> i) {
  return Lane<int32_t>((Lane<int32_t>::V)_mm256_i32gather_epi32((const int*)p, (__m256i)i.v, 4));
}
#endif

// ---- horizontal -------------------------------------------------------------------------------------------------
template <class T> PF_INLINE T sum(Lane<T> x) {
  T s = 0;
  for (int i = 0; i < LANES; ++i) s += x.v[i];
  return s;
}
#endif

#if PF_CUDA  // the same words for the one item of a thread: n, the number of items that are there, is 0 or 1
PF_INLINE uint32_t bits(bool m) { return m; }
template <class T> PF_INLINE bool first(int n) { return n > 0; }
template <class T> PF_INLINE T iota() { return T(0); }
template <class T> PF_INLINE T load(const T* p) { return *p; }
template <class T> PF_INLINE void store(T* p, T x) { *p = x; }
template <class T> PF_INLINE T load_first(const T* p, int n) { return n > 0 ? *p : T(0); }
template <class T> PF_INLINE void store_first(T* p, T x, int n) { if (n > 0) *p = x; }
template <class T> PF_INLINE T load_strided(const T* p, int64_t, int n) { return n > 0 ? *p : T(0); }
template <class T> PF_INLINE void store_strided(T* p, int64_t, T x, int n) { if (n > 0) *p = x; }
template <class T> PF_INLINE T gather(const T* p, int32_t index) { return p[index]; }
#endif

// The item in a lane.
#if PF_CUDA
template <class T> PF_INLINE T item(T x, int) { return x; }
#else
template <class T> PF_INLINE T item(Lane<T> x, int lane) { return x.v[lane]; }
#endif

// Items as rows of `width` (at most WIDTH) numbers: x[k] to p[width lane + k], for the first n lanes. And the way back.
template <int WIDTH, class T> PF_INLINE void store_rows(T* p, const Lane<T>* x, int width, int n) {
#if PF_CUDA
#pragma unroll
  for (int k = 0; k < WIDTH; ++k)  // unrolled to the end, so that x stays in registers
    if (k < width && n > 0) p[k] = x[k];
#else
  for (int lane = 0; lane < n; ++lane)
    for (int k = 0; k < width; ++k) p[lane * width + k] = x[k][lane];
#endif
}
template <int WIDTH, class T> PF_INLINE void load_rows(const T* p, Lane<T>* x, int width, int n) {
#if PF_CUDA
#pragma unroll
  for (int k = 0; k < WIDTH; ++k) x[k] = k < width && n > 0 ? p[k] : T(0);
#else
  for (int k = 0; k < width; ++k) x[k] = load_strided(p + k, width, n);
#endif
}

// ---- bits -------------------------------------------------------------------------------------------------------
#if PF_CUDA
PF_INLINE int32_t as_int(float x) { return __float_as_int(x); }
PF_INLINE float as_float(int32_t x) { return __int_as_float(x); }
PF_INLINE uint32_t as_uint(float x) { return __float_as_uint(x); }
PF_INLINE int ones(uint32_t x) { return __popc(x); }
PF_INLINE int ones(uint64_t x) { return __popcll(x); }
PF_INLINE int lowest(uint32_t x) { return __ffs(int(x)) - 1; }  // x != 0
PF_INLINE int lowest(uint64_t x) { return __ffsll((long long)(x)) - 1; }
#else
PF_INLINE Lane<int32_t> as_int(Lane<float> x) { return Lane<int32_t>((Lane<int32_t>::V)x.v); }
PF_INLINE Lane<float> as_float(Lane<int32_t> x) { return Lane<float>((Lane<float>::V)x.v); }
PF_INLINE Lane<uint32_t> as_uint(Lane<float> x) { return Lane<uint32_t>((Lane<uint32_t>::V)x.v); }
PF_INLINE int ones(uint32_t x) { return __builtin_popcount(x); }
PF_INLINE int ones(uint64_t x) { return __builtin_popcountll(x); }
PF_INLINE int lowest(uint32_t x) { return __builtin_ctz(x); }  // x != 0
PF_INLINE int lowest(uint64_t x) { return __builtin_ctzll(x); }
#endif

}  // namespace polyfield
