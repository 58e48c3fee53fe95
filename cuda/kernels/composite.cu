// Front-to-back compositing of packed samples: w_i = alpha_i T_i, T_i = prod_{j<i} (1 - alpha_j) within a ray,
// opacity = sum w_i, output = sum w_i v_i (Max, "Optical Models for Direct Volume Rendering", 1995).
//
// Backward, with g_i = d loss / d w_i (of the outputs and opacity as well): d loss / d alpha_i = T_i (g_i - R_i), where
// R_i = alpha_{i+1} g_{i+1} + (1 - alpha_{i+1}) R_{i+1} is what the samples behind i would composite to. No division, so
// alpha = 1 is like any other. The trick: lanes over the samples of a ray; T is a prefix product and R a suffix scan of the affine
// maps x -> alpha g + (1 - alpha) x, both by doubling; three channels are multiplied as they lie, interleaved.
#include <limits>
#include <vector>

#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {

// x -> b + a x; (front after back) is what a ray sees that crosses the front first.
template <class R> struct Affine {
  R a, b;
  PF_INLINE Affine after(Affine back) const { return {a * back.a, b + a * back.b}; }
};

#if !PF_CUDA

constexpr int MAX_VALUES = 8;
constexpr int RAY_CHUNK = 64;  // rays per piece of work

// One values tensor (S, channels): what is read and written of it.
template <class T> struct Values {
  const T* values;
  const T* grad_outputs;
  T* outputs;
  T* grad_values;
  int64_t channels;
};
// rows of (values, outputs or grad_outputs, grad_values, channels) as Python hands them over; 0 = not there
template <class T> int unpack_values(const int64_t* table, int64_t count, bool backward, Values<T>* out) {
  for (int64_t i = 0; i < count; ++i, table += 4)
    out[i] = {reinterpret_cast<const T*>(table[0]), backward ? reinterpret_cast<const T*>(table[1]) : nullptr,
              backward ? nullptr : reinterpret_cast<T*>(table[1]), reinterpret_cast<T*>(table[2]), table[3]};
  return int(count);
}

// ---- three interleaved channels: lanes of the numbers 3 i + c as they lie in memory, LANES samples = 3 lanes ---------
// Sample i's weight at the places of its three channels, in the m-th of the three lanes.
template <int M, class T> PF_INLINE Lane<T> spread(Lane<T> w) {
  return shuffle(w, w, indices<T>([](int i) { return (M * LANES + i) / 3; }));
}
// A ray's three numbers, repeated, as the m-th lane sees them.
template <int M, class T> PF_INLINE Lane<T> repeat(const T* c) {
  Lane<T> r;
  for (int i = 0; i < LANES; ++i) r.v[i] = c[(M * LANES + i) % 3];
  return r;
}
// Channel C of each sample, from the three lanes.
template <int C, class T> PF_INLINE Lane<T> channel(Lane<T> x, Lane<T> y, Lane<T> z) {
  const Lane<T> xy = shuffle(x, y, indices<T>([](int i) { return 3 * i + C < 2 * LANES ? 3 * i + C : 0; }));
  return shuffle(xy, z, indices<T>([](int i) { return 3 * i + C < 2 * LANES ? i : 3 * i + C - LANES; }));
}

// sum_i w_i v_i of one ray
template <class T> PF_INLINE void accumulate(const T* w, const T* v, int64_t n, int64_t channels, T* out) {
  using R = Lane<T>;
  if (channels == 1) {
    R sum(T(0));
    for (int64_t i = 0; i < n; i += LANES) sum += load_n(w + i, int(n - i)) * load_n(v + i, int(n - i));
    out[0] = tree_sum(sum);
  } else if (channels == 3) {
    R x(T(0)), y(T(0)), z(T(0));
    for (int64_t i = 0; i < n; i += LANES) {
      const int m = int(n - i < LANES ? n - i : LANES) * 3;
      const R weight = load_n(w + i, m / 3);
      const T* p = v + 3 * i;
      x += spread<0>(weight) * load_n(p, m);
      y += spread<1>(weight) * load_n(p + LANES, m - LANES);
      z += spread<2>(weight) * load_n(p + 2 * LANES, m - 2 * LANES);
    }
    out[0] = tree_sum(channel<0>(x, y, z));
    out[1] = tree_sum(channel<1>(x, y, z));
    out[2] = tree_sum(channel<2>(x, y, z));
  } else {
    for (int64_t c = 0; c < channels; ++c) out[c] = T(0);
    for (int64_t i = 0; i < n; ++i)
      if (w[i] != T(0))
        for (int64_t c = 0; c < channels; ++c) out[c] += w[i] * v[i * channels + c];
  }
}

// g_i += sum_c grad_out_c v_ic and grad_v_ic = w_i grad_out_c of one ray
template <class T> PF_INLINE void accumulate_backward(const T* w, const T* v, const T* grad_out, int64_t n, int64_t channels, T* g, T* grad_v) {
  using R = Lane<T>;
  if (channels == 1) {
    const R go(grad_out[0]);
    for (int64_t i = 0; i < n; i += LANES) {
      const int m = int(n - i);
      store_n(g + i, load_n(g + i, m) + go * load_n(v + i, m), m);
      if (grad_v) store_n(grad_v + i, go * load_n(w + i, m), m);
    }
  } else if (channels == 3) {
    const R gx = repeat<0>(grad_out), gy = repeat<1>(grad_out), gz = repeat<2>(grad_out);
    for (int64_t i = 0; i < n; i += LANES) {
      const int m = int(n - i < LANES ? n - i : LANES) * 3;
      const T* p = v + 3 * i;
      const R x = gx * load_n(p, m), y = gy * load_n(p + LANES, m - LANES), z = gz * load_n(p + 2 * LANES, m - 2 * LANES);
      store_n(g + i, load_n(g + i, m / 3) + channel<0>(x, y, z) + channel<1>(x, y, z) + channel<2>(x, y, z), m / 3);
      if (grad_v) {
        const R weight = load_n(w + i, m / 3);
        T* q = grad_v + 3 * i;
        store_n(q, gx * spread<0>(weight), m);
        store_n(q + LANES, gy * spread<1>(weight), m - LANES);
        store_n(q + 2 * LANES, gz * spread<2>(weight), m - 2 * LANES);
      }
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      T sum(0);
      for (int64_t c = 0; c < channels; ++c) sum += grad_out[c] * v[i * channels + c];
      g[i] += sum;
      if (grad_v)
        for (int64_t c = 0; c < channels; ++c) grad_v[i * channels + c] = w[i] * grad_out[c];
    }
  }
}

// The transmittance before each of n <= LANES samples, given that before the first, which moves on.
template <class T> PF_INLINE Lane<T> transmittances(Lane<T> alpha, T& before) {
  const Lane<T> after = prefix_product(Lane<T>(T(1)) - alpha);
  const Lane<T> t = shift_up<1>(after, Lane<T>(T(1))) * Lane<T>(before);
  before *= after[LANES - 1];
  return t;
}

// R of each sample and, carried on to the samples before, of the one before the first.
template <int N = 1, class T> PF_INLINE Affine<Lane<T>> suffix(Affine<Lane<T>> m) {
  if constexpr (N < LANES)
    return suffix<2 * N>(m.after({shift_down<N>(m.a, Lane<T>(T(1))), shift_down<N>(m.b, Lane<T>(T(0)))}));
  else
    return m;
}

// Samples with less than this before them do not count; 0 turns the test off, also for an alpha above 1.
template <class T> PF_INLINE Lane<T> cut(double min_transmittance) {
  return Lane<T>(min_transmittance > 0 ? T(min_transmittance) : -std::numeric_limits<T>::infinity());
}

template <class T>
void composite(const T* alphas, const int32_t* ray_offsets, const int64_t* table, int64_t count, int64_t rays, double min_transmittance,
               T* weights, T* opacities) {
  Values<T> values[MAX_VALUES];
  const int tensors = unpack_values(table, count, false, values);
  parallel_chunks(rays, RAY_CHUNK, [=, &values](int64_t begin, int64_t end) {
    using R = Lane<T>;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = ray_offsets[r], n = ray_offsets[r + 1] - at;
      R opacity(T(0));
      T before(1);
      for (int64_t i = 0; i < n; i += LANES) {
        const R alpha = load_n(alphas + at + i, int(n - i));
        const R t = transmittances(alpha, before);
        const R w = select(t < cut<T>(min_transmittance), R(T(0)), alpha * t);
        opacity += w;
        store_n(weights + at + i, w, int(n - i));
      }
      opacities[r] = tree_sum(opacity);
      for (int k = 0; k < tensors; ++k) {
        const int64_t c = values[k].channels;
        accumulate(weights + at, values[k].values + at * c, n, c, values[k].outputs + r * c);
      }
    }
  });
}

// grad_weights, grad_opacities, the grad_outputs and grad_values of any tensor may be null.
template <class T>
void composite_backward(const T* alphas, const T* weights, const int32_t* ray_offsets, const int64_t* table, int64_t count, int64_t rays,
                        double min_transmittance, const T* grad_weights, const T* grad_opacities, T* grad_alphas) {
  Values<T> values[MAX_VALUES];
  const int tensors = unpack_values(table, count, true, values);
  parallel_chunks(rays, RAY_CHUNK, [=, &values](int64_t begin, int64_t end) {
    using R = Lane<T>;
    static thread_local std::vector<T> buffer;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = ray_offsets[r], n = ray_offsets[r + 1] - at;
      if (int64_t(buffer.size()) < n) buffer.resize(n + n / 2 + 64);
      T* g = buffer.data();
      const R go(grad_opacities ? grad_opacities[r] : T(0));
      T before(1);
      for (int64_t i = 0; i < n; i += LANES) {  // T waits where the gradient goes
        const int m = int(n - i);
        store_n(grad_alphas + at + i, transmittances(load_n(alphas + at + i, m), before), m);
        store_n(g + i, grad_weights ? go + load_n(grad_weights + at + i, m) : go, m);
      }
      for (int k = 0; k < tensors; ++k) {
        const Values<T>& v = values[k];
        if (v.grad_outputs)
          accumulate_backward(weights + at, v.values + at * v.channels, v.grad_outputs + r * v.channels, n, v.channels, g,
                              v.grad_values ? v.grad_values + at * v.channels : nullptr);
      }
      T behind(0);
      for (int64_t i = (n - 1) / LANES * LANES; i >= 0 && n > 0; i -= LANES) {
        const int m = int(n - i);
        const R t = load_n(grad_alphas + at + i, m);
        const auto dead = t < cut<T>(min_transmittance);
        const R alpha = select(dead, R(T(0)), load_n(alphas + at + i, m));
        const R gi = load_n(g + i, m);
        const Affine<R> map = suffix(Affine<R>{R(T(1)) - alpha, select(dead, R(T(0)), alpha * gi)});
        const R seen = map.b + map.a * R(behind);  // by a ray that enters before sample i
        const R rest = shift_down<1>(seen, R(behind));
        store_n(grad_alphas + at + i, select(dead, R(T(0)), t * (gi - rest)), m);
        behind = seen[0];
      }
    }
  });
}

// ---- pruning ----------------------------------------------------------------------------------------------------
static std::vector<uint16_t>& kept_bits() {  // between prune and prune_write, which the same thread calls one after the other
  static thread_local std::vector<uint16_t> kept;
  return kept;
}
static_assert(LANES <= 16, "kept_bits holds 16 lanes");
// A ray's first group of lanes: groups do not overlap, though every ray begins a new one.
PF_INLINE int64_t group_of(int64_t ray, int64_t at) { return at / LANES + ray; }

// First pass: the new ray_offsets, for keeping samples with at least min_alpha and min_transmittance before them.
void prune(const float* alphas, const int32_t* ray_offsets, int64_t rays, int64_t samples, double min_transmittance, double min_alpha,
           int32_t* new_offsets) {
  auto& kept = kept_bits();
  kept.resize(samples / LANES + rays + 1);
  uint16_t* groups = kept.data();
  parallel_chunks(rays, RAY_CHUNK, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = ray_offsets[r], n = ray_offsets[r + 1] - at;
      uint16_t* group = groups + group_of(r, at);
      int32_t count = 0;
      float before = 1;
      for (int64_t i = 0; i < n; i += LANES) {
        const Lane<float> alpha = load_n(alphas + at + i, int(n - i));
        const Lane<float> t = transmittances(alpha, before);
        const auto keep = (t >= cut<float>(min_transmittance)) & (alpha >= Lane<float>(float(min_alpha)));
        const uint32_t chosen = n - i < LANES ? bits(keep) & ((1u << (n - i)) - 1) : bits(keep);
        *group++ = uint16_t(chosen);
        count += __builtin_popcount(chosen);
      }
      new_offsets[r + 1] = count;
    }
  });
  new_offsets[0] = 0;
  for (int64_t r = 0; r < rays; ++r) new_offsets[r + 1] += new_offsets[r];
}

// Second pass: the samples that the last prune kept, and their numbers before.
void prune_write(const float* t_starts, const float* t_ends, const int32_t* ray_offsets, const int32_t* new_offsets, int64_t rays,
                 float* new_starts, float* new_ends, int32_t* new_rays, int32_t* kept) {
  const uint16_t* groups = kept_bits().data();
  parallel_chunks(rays, RAY_CHUNK, [=](int64_t begin, int64_t end) {
    alignas(64) float packed_starts[LANES], packed_ends[LANES];
    alignas(64) int32_t packed[LANES];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = ray_offsets[r], n = ray_offsets[r + 1] - at;
      const uint16_t* group = groups + group_of(r, at);
      int64_t to = new_offsets[r];
      for (int64_t i = 0; i < n; i += LANES) {
        const uint32_t chosen = *group++;
        if (!chosen) continue;
        const int m = __builtin_popcount(chosen);
        compress(packed_starts, load_n(t_starts + at + i, int(n - i)), chosen);
        compress(packed_ends, load_n(t_ends + at + i, int(n - i)), chosen);
        compress(packed, Lane<int32_t>(int32_t(at + i)) + iota<int32_t>(), chosen);
        store_n(new_starts + to, load(packed_starts), m);
        store_n(new_ends + to, load(packed_ends), m);
        store_n(kept + to, load(packed), m);
        store_n(new_rays + to, Lane<int32_t>(int32_t(r)), m);
        to += m;
      }
    }
  });
}

POLYFIELD_OP("composite_f32", composite<float>)
POLYFIELD_OP("composite_f64", composite<double>)
POLYFIELD_OP("composite_backward_f32", composite_backward<float>)
POLYFIELD_OP("composite_backward_f64", composite_backward<double>)
POLYFIELD_OP("prune", prune)
POLYFIELD_OP("prune_write", prune_write)

#endif

}  // namespace polyfield
