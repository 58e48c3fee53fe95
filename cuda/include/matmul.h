// Small dense products for the fused MLP: C (rows, columns) = A (rows, K) * B (K, columns), columns in lanes.
//
// One register block does it all: M rows by NV vectors of C stay in registers while k runs, an element of A is
// broadcast, a row of B is loaded. A is addressed by two strides, so that A * B and A^T * B are the same loop, and the
// forward pass, the gradient to the input and the gradient to the weights need neither transposes nor horizontal sums.
// What happens to a finished block (ReLU, its mask, accumulation) is the epilogue E. The arithmetic is a policy P:
// Plain<T> multiplies T; Bfloat16 (AVX512_BF16) multiplies pairs of bfloat16 that share a 32-bit unit, along k.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "lane.h"

#if !PF_CUDA
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of gcc 12.2 in its own AVX-512 header
#pragma GCC diagnostic ignored "-Wuninitialized"

// Functions of this header may be compiled for more than the module's instruction set (mlp_bf16.cu does): they have
// internal linkage, so that the linker cannot mix the versions.
#ifndef PF_MATMUL_TARGET
#define PF_MATMUL_TARGET
#endif
#define PF_MATMUL_INLINE inline __attribute__((always_inline)) PF_MATMUL_TARGET
// for_block<M, NV>([&](auto m, auto v) PF_EACH { ... }): a loop over a register block that is unrolled before anything
// else happens. Blocks of plain loops are unrolled too late, and then live in memory around the loop over k.
#define PF_EACH __attribute__((always_inline)) PF_MATMUL_TARGET

namespace polyfield {
namespace {

template <class F, int... I>
PF_MATMUL_INLINE void unrolled(std::integer_sequence<int, I...>, const F& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
PF_MATMUL_INLINE void for_each(const F& f) {
  unrolled(std::make_integer_sequence<int, N>{}, f);
}
template <int M, int NV, class F>
PF_MATMUL_INLINE void for_block(const F& f) {
  for_each<M * NV>([&](auto i)
                       PF_EACH { f(std::integral_constant<int, i / NV>{}, std::integral_constant<int, i % NV>{}); });
}

constexpr int TILE_ROWS = 24;  // every block height below divides it

// Registers: 32 of AVX-512 hold 24 accumulators, 16 of the others 12; float64 is for tests.
template <class T>
constexpr int MAX_VECTORS = sizeof(T) == 8 ? 1
                            : LANES == 16  ? 4
                                           : 2;
template <class T, int NV>
constexpr int BLOCK_ROWS = sizeof(T) == 8 ? 6
                           : LANES == 16  ? (NV == 4   ? 6
                                             : NV == 3 ? 8
                                                       : 12)
                                          : (NV == 2 ? 6 : 12);

constexpr int padded(int columns) { return (columns + LANES - 1) / LANES * LANES; }

template <class T>
PF_INLINE Lane<T> relu(Lane<T> x) {
  return select(Lane<T>(T(0)) > x, Lane<T>(T(0)), x);
}  // NaN stays NaN
template <class T>
PF_INLINE void store_columns(T* p, Lane<T> x, int n) {
  store_first(p, x, n);
}
template <class T>
PF_INLINE Lane<T> load_columns(const T* p, int n) {
  return load_first(p, n);
}
#if defined(__AVX512F__) && POLYFIELD_LANES == 16
template <>
PF_INLINE Lane<float> relu(Lane<float> x) {
  return Lane<float>((Lane<float>::V)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x.v));
}
PF_INLINE __mmask16 first_mask(int n) { return n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }
template <>
PF_INLINE void store_columns(float* p, Lane<float> x, int n) {
  _mm512_mask_storeu_ps(p, first_mask(n), (__m512)x.v);
}
template <>
PF_INLINE Lane<float> load_columns(const float* p, int n) {
  return Lane<float>((Lane<float>::V)_mm512_maskz_loadu_ps(first_mask(n), p));
}
#endif

PF_INLINE uint32_t bfloat16_bits(float x) {  // to nearest, ties to even
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return (b + 0x7fff + ((b >> 16) & 1)) >> 16;
}

// ---- arithmetic -------------------------------------------------------------------------------------------------

// Numbers as they are. "Rows" and "pairs" of Bfloat16 below are one and the same layout here.
template <class T>
struct Plain {
  using Real = T;
  using Unit = T;
  static constexpr int PAIR = 1;

  static PF_MATMUL_INLINE Lane<T> fma(Lane<T> a, Lane<T> b, Lane<T> c) { return c + a * b; }
  static PF_MATMUL_INLINE Lane<T> round(Lane<T> x) {
    if constexpr (sizeof(T) == 4) {
      const Lane<int32_t> b = as_int(x);
      return as_float((b + Lane<int32_t>(0x7fff) + ((b >> 16) & Lane<int32_t>(1))) &
                      Lane<int32_t>(int32_t(0xffff0000)));
    }
    return x;
  }
  static PF_INLINE T unit(T low, T, bool rounded) {
    if constexpr (sizeof(T) == 4) {
      if (!rounded) return low;
      const uint32_t b = bfloat16_bits(low) << 16;
      std::memcpy(&low, &b, 4);
    }
    return low;
  }
  // Write block (i, j) as an operand of later products.
  template <int M, int NV>
  static PF_MATMUL_INLINE void write(const Lane<T> (&x)[M][NV], T* rows, int64_t ld, T*, int64_t, int64_t i, int64_t j,
                                     bool rounded) {
    if (rounded)
      for_block<M, NV>([&](auto m, auto v) PF_EACH { store(rows + (i + m) * ld + j + v * LANES, round(x[m][v])); });
    else for_block<M, NV>([&](auto m, auto v) PF_EACH { store(rows + (i + m) * ld + j + v * LANES, x[m][v]); });
  }
  // x = 0 where the activation at (i, j) is not positive
  template <int M, int NV>
  static PF_MATMUL_INLINE void gate(Lane<T> (&x)[M][NV], const T* h, int64_t ld, int64_t i, int64_t j) {
    for_block<M, NV>([&](auto m, auto v) PF_EACH {
      x[m][v] = select(load(h + (i + m) * ld + j + v * LANES) > Lane<T>(T(0)), x[m][v], Lane<T>(T(0)));
    });
  }
};

#if defined(__AVX512BF16__) || defined(PF_MATMUL_BFLOAT16)
// Pairs of bfloat16 in 32 bits, of neighbouring k. A matrix that is a left operand by its rows holds pairs along the
// columns ("rows": (n, C / 2)); as an operand of A^T * B it holds pairs of rows ("pairs": (n / 2, C)).
struct Bfloat16 {
  using Real = float;
  using Unit = int32_t;
  using V = Lane<float>::V;
  static constexpr int PAIR = 2;

  static PF_MATMUL_INLINE Lane<float> fma(Lane<int32_t> a, Lane<int32_t> b, Lane<float> c) {
    return Lane<float>((V)_mm512_dpbf16_ps((__m512)c.v, (__m512bh)a.v, (__m512bh)b.v));
  }
  static PF_INLINE int32_t unit(float low, float high, bool) {
    return int32_t(bfloat16_bits(low) | bfloat16_bits(high) << 16);
  }
  // The 32 numbers (low, high) in bfloat16; interleaved: low[0], high[0], low[1], ...
  static PF_MATMUL_INLINE __m512i concatenated(Lane<float> low, Lane<float> high) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high.v, (__m512)low.v);
  }
  static PF_MATMUL_INLINE __m512i interleaved(Lane<float> low, Lane<float> high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, concatenated(low, high));
  }
  template <int M, int NV>
  static PF_MATMUL_INLINE void write(const Lane<float> (&x)[M][NV], int32_t* rows, int64_t ld, int32_t* pairs,
                                     int64_t ld_pairs, int64_t i, int64_t j, bool) {
    static_assert(M % 2 == 0, "rows come in pairs");
    if (rows)
      for_each<M>([&](auto m) PF_EACH {
        int32_t* to = rows + (i + m) * ld + j / 2;
        for_each<NV / 2>([&](auto w)
                             PF_EACH { _mm512_storeu_si512(to + w * 16, concatenated(x[m][2 * w], x[m][2 * w + 1])); });
        if constexpr (NV % 2)
          _mm256_storeu_si256((__m256i*)(to + (NV - 1) * 8), (__m256i)_mm512_cvtneps_pbh((__m512)x[m][NV - 1].v));
      });
    if (pairs)
      for_block<M / 2, NV>([&](auto m, auto v) PF_EACH {
        _mm512_storeu_si512(pairs + (i / 2 + m) * ld_pairs + j + v * LANES, interleaved(x[2 * m][v], x[2 * m + 1][v]));
      });
  }
  template <int M, int NV>
  static PF_MATMUL_INLINE void gate(Lane<float> (&x)[M][NV], const int32_t* h, int64_t ld, int64_t i, int64_t j) {
    static_assert(M % 2 == 0, "rows come in pairs");
    for_block<M / 2, NV>([&](auto m, auto v) PF_EACH {
      const Lane<int32_t> two = load(h + (i / 2 + m) * ld + j + v * LANES), zero(0);
      Lane<float>&low = x[2 * m][v], &high = x[2 * m + 1][v];
      low = select(Mask<float>((two << 16) > zero), low, Lane<float>(0.0f));
      high = select(Mask<float>(two > Lane<int32_t>(0xffff)), high, Lane<float>(0.0f));
    });
  }
};
#endif

// ---- epilogues --------------------------------------------------------------------------------------------------

template <int M, int NV, class T>
PF_MATMUL_INLINE void start(Lane<T> (&x)[M][NV], const T* bias, int64_t j) {
  if (bias) for_block<M, NV>([&](auto m, auto v) PF_EACH { x[m][v] = load(bias + j + v * LANES); });
  else for_block<M, NV>([&](auto m, auto v) PF_EACH { x[m][v] = Lane<T>(T(0)); });
}

// C = A B + bias, the first `count` rows and `columns` columns of it
template <class P>
struct Dense {
  using T = typename P::Real;
  static constexpr bool TRANSPOSED = false;
  const T* bias;  // padded, or null
  T* out;
  int64_t ld, count;
  int columns;
  template <int M, int NV>
  PF_MATMUL_INLINE void begin(Lane<T> (&x)[M][NV], int64_t j) const {
    start(x, bias, j);
  }
  template <int M, int NV>
  PF_MATMUL_INLINE void end(Lane<T> (&x)[M][NV], int64_t i, int64_t j) const {
    const bool whole = i + M <= count && j + NV * LANES <= columns;
    if (whole) for_block<M, NV>([&](auto m, auto v) PF_EACH { store(out + (i + m) * ld + j + v * LANES, x[m][v]); });
    else
      for_block<M, NV>([&](auto m, auto v) PF_EACH {
        const int left = columns - int(j) - v * LANES;
        if (i + m < count && left > 0) store_columns(out + (i + m) * ld + j + v * LANES, x[m][v], left);
      });
  }
};

// C = max(0, A B + bias), as an operand of further products
template <class P>
struct Hidden {
  using T = typename P::Real;
  using U = typename P::Unit;
  static constexpr bool TRANSPOSED = false;
  const T* bias;
  U *rows, *pairs;
  int64_t ld, ld_pairs;
  bool rounded;
  template <int M, int NV>
  PF_MATMUL_INLINE void begin(Lane<T> (&x)[M][NV], int64_t j) const {
    start(x, bias, j);
  }
  template <int M, int NV>
  PF_MATMUL_INLINE void end(Lane<T> (&x)[M][NV], int64_t i, int64_t j) const {
    for_block<M, NV>([&](auto m, auto v) PF_EACH { x[m][v] = relu(x[m][v]); });
    P::write(x, rows, ld, pairs, ld_pairs, i, j, rounded);
  }
};

// C = A B where the activation was positive: the gradient through a hidden layer
template <class P>
struct Gated {
  using T = typename P::Real;
  using U = typename P::Unit;
  static constexpr bool TRANSPOSED = false;
  const U* activations;  // as pairs
  int64_t ld_activations;
  U *rows, *pairs;
  int64_t ld, ld_pairs;
  bool rounded;
  template <int M, int NV>
  PF_MATMUL_INLINE void begin(Lane<T> (&x)[M][NV], int64_t j) const {
    start(x, (const T*)nullptr, j);
  }
  template <int M, int NV>
  PF_MATMUL_INLINE void end(Lane<T> (&x)[M][NV], int64_t i, int64_t j) const {
    P::gate(x, activations, ld_activations, i, j);
    P::write(x, rows, ld, pairs, ld_pairs, i, j, rounded);
  }
};

// C += A^T B
template <class P>
struct Add {
  using T = typename P::Real;
  static constexpr bool TRANSPOSED = true;
  T* out;
  int64_t ld;
  template <int M, int NV>
  PF_MATMUL_INLINE void begin(Lane<T> (&x)[M][NV], int64_t j) const {
    start(x, (const T*)nullptr, j);
  }
  template <int M, int NV>
  PF_MATMUL_INLINE void end(Lane<T> (&x)[M][NV], int64_t i, int64_t j) const {
    for_block<M, NV>([&](auto m, auto v) PF_EACH {
      T* to = out + (i + m) * ld + j + v * LANES;
      store(to, load(to) + x[m][v]);
    });
  }
};

// ---- the block, and the loops around it ---------------------------------------------------------------------------

// Memory of the next tile, asked for a few lines at a time between blocks: cores wait for it otherwise, since the rows
// of six samples are too short a stream for the hardware to see.
class Ahead {
  static constexpr int LINES = 16, MOST = 8;
  struct Range {
    const char *p, *end;
  } ranges[MOST];
  int count = 0, at = 0;

 public:
  void add(const void* p, int64_t bytes) {
    if (count < MOST && bytes > 0) ranges[count++] = {static_cast<const char*>(p), static_cast<const char*>(p) + bytes};
  }
  PF_INLINE void step() {
    if (at == count) return;
    Range& r = ranges[at];
    for (int i = 0; i < LINES; ++i) __builtin_prefetch(r.p + i * 64, 0, 2);
    r.p += LINES * 64;
    if (r.p >= r.end) ++at;
  }
};

template <class U>
struct Operand {
  const U* p;
  int64_t ld;
};

// Rows [i, i + M), columns [j, j + NV * LANES) of C; K in units. A is (rows, K), or (K, rows) if E is TRANSPOSED.
template <class P, int M, int NV, class E, class U = typename P::Unit>
PF_MATMUL_TARGET __attribute__((noinline)) void block(Operand<U> A, Operand<U> B, int64_t K, const E& e, int64_t i,
                                                      int64_t j) {
  const U* a = E::TRANSPOSED ? A.p + i : A.p + i * A.ld;
  const U* b = B.p + j;
  Lane<typename P::Real> c[M][NV];
  e.begin(c, j);
  do {
    Lane<U> row[NV];
    for_each<NV>([&](auto v) PF_EACH { row[v] = load(b + v * LANES); });
    for_each<M>([&](auto m) PF_EACH {
      const Lane<U> x(a[E::TRANSPOSED ? int64_t(m) : m * A.ld]);
      for_each<NV>([&](auto v) PF_EACH { c[m][v] = P::fma(x, row[v], c[m][v]); });
    });
    a += E::TRANSPOSED ? A.ld : 1;
    b += B.ld;
  } while (--K);
  e.end(c, i, j);
}

// Blocks of M rows, then smaller ones. Samples end in single rows or pairs; features (TRANSPOSED) in anything.
template <class P, int M, int NV, class E, class U = typename P::Unit>
PF_MATMUL_TARGET void row_blocks(int64_t rows, Operand<U> A, Operand<U> B, int64_t K, const E& e, int64_t i, int64_t j,
                                 Ahead& ahead) {
  for (; i + M <= rows; i += M) {
    ahead.step();
    block<P, M, NV, E>(A, B, K, e, i, j);
  }
  if constexpr (E::TRANSPOSED && M > 4) row_blocks<P, 4, NV, E>(rows, A, B, K, e, i, j, ahead);
  else if constexpr (E::TRANSPOSED && M > 1) row_blocks<P, M - 1, NV, E>(rows, A, B, K, e, i, j, ahead);
  else if constexpr (!E::TRANSPOSED && M > P::PAIR) row_blocks<P, P::PAIR, NV, E>(rows, A, B, K, e, i, j, ahead);
}

template <class P, int NV, class E, class U = typename P::Unit>
PF_MATMUL_TARGET void column_blocks(int vectors, int64_t rows, Operand<U> A, Operand<U> B, int64_t K, const E& e,
                                    int64_t j, Ahead& ahead) {
  if constexpr (NV > 0) {
    if (vectors < NV) return column_blocks<P, NV - 1, E>(vectors, rows, A, B, K, e, j, ahead);
    row_blocks<P, BLOCK_ROWS<typename P::Real, NV>, NV, E>(rows, A, B, K, e, 0, j, ahead);
  }
}

// C = A B into e: `vectors` vectors of columns, split evenly into blocks of at most MAX_VECTORS.
template <class P, class E, class U = typename P::Unit>
PF_MATMUL_TARGET void product(int64_t rows, int columns, Operand<U> A, Operand<U> B, int64_t K, const E& e,
                              Ahead& ahead) {
  constexpr int MOST = MAX_VECTORS<typename P::Real>;
  const int vectors = padded(columns) / LANES, groups = (vectors + MOST - 1) / MOST;
  for (int g = 0; g < groups; ++g) {
    const int first = vectors * g / groups, last = vectors * (g + 1) / groups;
    column_blocks<P, MOST, E>(last - first, rows, A, B, K, e, int64_t(first) * LANES, ahead);
  }
}

// ---- few columns ------------------------------------------------------------------------------------------------

// Products with 1 to 4 columns would leave most lanes idle. Instead four units of k for each of four columns share a
// vector: a quarter of the multiplications, then sums of four neighbours.
template <class P>
constexpr bool HAS_NARROW = LANES == 16 && sizeof(typename P::Real) == 4 && sizeof(typename P::Unit) == 4;
constexpr int NARROW_COLUMNS = 4, NARROW_ROWS = 8;

#if defined(__AVX512F__) && POLYFIELD_LANES == 16
// (o, r) in each of four vectors -> (o, which vector), summed over r
PF_INLINE __m512 sums_of_four(const Lane<float>* x) {
  const __m512 a = (__m512)x[0].v, b = (__m512)x[1].v, c = (__m512)x[2].v, d = (__m512)x[3].v;
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  return _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
}

// out (count, columns) dense = A B + bias; B packed as (K / 4, column, unit), K a multiple of 4.
template <class P, class U = typename P::Unit>
PF_MATMUL_TARGET void narrow_product(int64_t count, int columns, Operand<U> A, const U* B, int64_t K, const float* bias,
                                     float* out) {
  alignas(64) int32_t order[LANES];
  alignas(64) float offsets[LANES];
  for (int i = 0; i < LANES; ++i) {
    const int row = i / columns, column = i % columns;
    order[i] = row < 4 ? column * 4 + row : 0;
    offsets[i] = bias ? bias[column] : 0.0f;
  }
  const __m512i order_lanes = _mm512_load_si512(order);
  const __m512 bias_lanes = _mm512_load_ps(offsets);
  for (int64_t i = 0; i < count; i += NARROW_ROWS) {
    const U* a[NARROW_ROWS];
    for (int m = 0; m < NARROW_ROWS; ++m) a[m] = A.p + (i + m < count ? i + m : count - 1) * A.ld;
    Lane<float> c[NARROW_ROWS];
    for_each<NARROW_ROWS>([&](auto m) PF_EACH { c[m] = Lane<float>(0.0f); });
    for (int64_t k = 0; k < K; k += 4) {
      const Lane<U> w = load(B + k * 4);
      for_each<NARROW_ROWS>([&](auto m) PF_EACH {
        const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(reinterpret_cast<const float*>(a[m] + k)));
        c[m] = P::fma(Lane<U>((typename Lane<U>::V)four), w, c[m]);
      });
    }
    for_each<NARROW_ROWS / 4>([&](auto q) PF_EACH {
      const int64_t row = i + 4 * q, left = (count - row) * columns;
      if (left <= 0) return;
      const __m512 y = _mm512_permutexvar_ps(order_lanes, sums_of_four(c + 4 * q)) + bias_lanes;
      const int most = 4 * columns;
      _mm512_mask_storeu_ps(out + row * columns, first_mask(left < most ? int(left) : most), y);
    });
  }
}
#else
template <class P, class U = typename P::Unit>
void narrow_product(int64_t, int, Operand<U>, const U*, int64_t, const float*, float*);
#endif

// x (n, C) floats, dense, as an operand of products: rows and / or pairs, the padding zero. In the layout of Plain both
// are the same, and only `rows` is written.
template <class P>
PF_MATMUL_TARGET void convert(const typename P::Real* x, int64_t n, int C, typename P::Unit* rows, int64_t ld,
                              typename P::Unit* pairs, int64_t ld_pairs, bool rounded) {
  using T = typename P::Real;
  for (int64_t i = 0; i < n; i += P::PAIR) {
    int j = 0;
    for (; i + P::PAIR <= n && j + 2 * LANES <= C; j += 2 * LANES) {
      Lane<T> v[P::PAIR][2];
      for_block<P::PAIR, 2>([&](auto m, auto w) PF_EACH { v[m][w] = load(x + (i + m) * C + j + w * LANES); });
      P::write(v, rows, ld, pairs, ld_pairs, i, j, rounded);
    }
    for (; j < C; j += LANES) {
      Lane<T> v[P::PAIR][1];
      for (int m = 0; m < P::PAIR; ++m) v[m][0] = i + m < n ? load_columns(x + (i + m) * C + j, C - j) : Lane<T>(T(0));
      P::write(v, rows, ld, pairs, ld_pairs, i, j, rounded);
    }
  }
}

}  // namespace
}  // namespace polyfield

#endif
