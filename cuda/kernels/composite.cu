// Front-to-back compositing of packed samples: w_i = alpha_i T_i, T_i = prod_{j<i} (1 - alpha_j) within a ray,
// opacity = sum w_i, output = sum w_i v_i (Max, "Optical Models for Direct Volume Rendering", 1995).
//
// Backward, with g_i = d loss / d w_i (of the outputs and opacity as well): d loss / d alpha_i = T_i (g_i - R_i), where
// R_i = alpha_{i+1} g_{i+1} + (1 - alpha_{i+1}) R_{i+1} is what the samples behind i would composite to. No division, so
// alpha = 1 is like any other. The trick: lanes over the samples of a ray; T is a prefix product and R a suffix scan of the affine
// maps x -> alpha g + (1 - alpha) x, both by doubling; three channels are multiplied as they lie, interleaved.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#if !PF_CUDA
#include <algorithm>
#include <vector>
#endif

namespace polyfield {

// x -> b + a x; (front after back) is what a ray sees that crosses the front first.
template <class R> struct Affine {
  R a, b;
  PF_INLINE Affine after(Affine back) const { return {a * back.a, b + a * back.b}; }
};

constexpr int MAX_VALUES = 8;

// One values tensor (S, channels): what is read and written of it.
template <class T> struct Values {
  const T* values;
  T* outputs;
  const T* grad_outputs;
  T* grad_values;
  int64_t channels;
};
// All of them, as Python hands them over: (values, outputs, grad_outputs, grad_values, channels); 0 = not there.
template <class T> struct ValueTable { Values<T> of[MAX_VALUES]; };

// The transmittance before each of n <= GROUP samples, given that before the first, which moves on.
template <class R> PF_INLINE R transmittances(R alpha, scalar_t<R>& before) {
  using T = scalar_t<R>;
  const R after = prefix_product(R(T(1)) - alpha);
  const R t = shift_up<1>(after, R(T(1))) * R(before);
  before *= back(after);
  return t;
}

// R of each sample and, carried on to the samples before, of the one before the first.
template <int N = 1, class R> PF_INLINE Affine<R> suffix(Affine<R> m) {
  using T = scalar_t<R>;
  if constexpr (N < GROUP)
    return suffix<2 * N>(m.after({shift_down<N>(m.a, R(T(1))), shift_down<N>(m.b, R(T(0)))}));
  else
    return m;
}

// Samples with less than this before them do not count; 0 turns the test off, also for an alpha above 1.
template <class T> PF_INLINE Lane<T> cut(double min_transmittance) {
  return Lane<T>(min_transmittance > 0 ? T(min_transmittance) : T(-1e30));
}

#if PF_CUDA

// ---- one warp per ray, samples in lanes -------------------------------------------------------------------------
constexpr int FEW = 4;  // up to so many channels are summed over lanes; more are lanes themselves

// outputs = sum_i w_i v_i over n samples; their weights were stored by the lanes themselves.
template <class T> PF_INLINE void accumulate(const Values<T>& v, const T* w, int64_t first, int64_t n, int64_t ray) {
  const int64_t C = v.channels;
  T* out = v.outputs + ray * C;
  if (C <= FEW) {
    for (int64_t c = 0; c < C; ++c) {
      T sum(0);
      for (int64_t i = lane_number(); i < n; i += GROUP) sum += w[first + i] * v.values[(first + i) * C + c];
      store_sum(out + c, sum);
    }
  } else {
    __syncwarp();  // before lanes read each other's weights
    for (int64_t c = lane_number(); c < C; c += GROUP) {
      T sum(0);
      for (int64_t i = first; i < first + n; ++i) sum += w[i] * v.values[i * C + c];
      out[c] = sum;
    }
  }
}

template <class T>
void composite(const T* alphas, const int32_t* ray_offsets, const Inline<ValueTable<T>>& table, int tensors, Warps<> rays, double min_transmittance,
               T* weights, T* opacities) {
  const T least = cut<T>(min_transmittance);
  for_each(rays, [&](int64_t r) {
    const int64_t first = ray_offsets[r], n = ray_offsets[r + 1] - first;
    T opacity(0), before(1);
    for (int64_t i = 0; i < n; i += GROUP) {
      const T alpha = load_n(alphas + first + i, int(n - i)), t = transmittances(alpha, before);
      const T w = select(t < least, T(0), alpha * t);
      opacity += w;
      store_n(weights + first + i, w, int(n - i));
    }
    store_sum(opacities + r, opacity);
    for (int k = 0; k < tensors; ++k) accumulate(table.value.of[k], weights, first, n, r);
  });
}

// d loss / d w_i by way of one tensor, of the sample that is this lane's, and the gradient of its values.
template <class T> PF_INLINE T accumulate_backward(const Values<T>& v, T w, int64_t i, int64_t ray) {
  T g(0);
  for (int64_t c = 0; c < v.channels; ++c) {
    const T go = v.grad_outputs[ray * v.channels + c];
    g += go * v.values[i * v.channels + c];
    if (v.grad_values) v.grad_values[i * v.channels + c] = w * go;
  }
  return g;
}

template <class T>
void composite_backward(const T* alphas, const int32_t* ray_offsets, const Inline<ValueTable<T>>& table, int tensors, Warps<> rays,
                        double min_transmittance, const T* weights, const T* grad_weights, const T* grad_opacities, T* grad_alphas) {
  const T least = cut<T>(min_transmittance);
  for_each(rays, [&](int64_t r) {
    const int64_t first = ray_offsets[r], n = ray_offsets[r + 1] - first;
    const T grad_opacity = grad_opacities ? grad_opacities[r] : T(0);
    T before(1), behind(0);
    for (int64_t i = 0; i < n; i += GROUP)  // transmittances, kept where the gradients will be
      store_n(grad_alphas + first + i, transmittances(load_n(alphas + first + i, int(n - i)), before), int(n - i));
    for (int64_t i = (n - 1) / GROUP * GROUP; i >= 0 && n > 0; i -= GROUP) {
      const int left = int(n - i);
      const int64_t at = first + i + lane_number();
      const T t = load_n(grad_alphas + first + i, left), w = load_n(weights + first + i, left);
      T g = grad_opacity + (grad_weights ? load_n(grad_weights + first + i, left) : T(0));
      if (lane_number() < left)
        for (int k = 0; k < tensors; ++k)
          if (table.value.of[k].grad_outputs) g += accumulate_backward(table.value.of[k], w, at, r);
      const bool dead = t < least;
      const T alpha = select(dead, T(0), load_n(alphas + first + i, left));
      const Affine<T> map = suffix(Affine<T>{T(1) - alpha, select(dead, T(0), alpha * g)});
      const T seen = map.b + map.a * behind;  // by a ray that enters before sample i
      const T rest = shift_down<1>(seen, behind);
      store_n(grad_alphas + first + i, select(dead, T(0), t * (g - rest)), left);
      behind = front(seen);
    }
  });
}

// ---- pruning: counts, and, once their sums are known, the samples that are kept ---------------------------------
// f(i, left, bits): the group of samples from i on, and which of them are kept.
template <class F>
PF_INLINE void for_kept(const float* alphas, int64_t first, int64_t n, float min_transmittance, float min_alpha, F f) {
  float before = 1;
  for (int64_t i = 0; i < n; i += GROUP) {
    const int left = int(n - i);
    const float alpha = load_n(alphas + first + i, left), t = transmittances(alpha, before);
    f(i, left, group_bits(lane_number() < left && t >= min_transmittance && alpha >= min_alpha));
  }
}

void prune_counts(const float* alphas, const int32_t* ray_offsets, Warps<> rays, float min_transmittance, float min_alpha, int32_t* counts) {
  for_each(rays, [=](int64_t r) {
    int32_t count = 0;
    for_kept(alphas, ray_offsets[r], ray_offsets[r + 1] - ray_offsets[r], cut<float>(min_transmittance), min_alpha,
             [&](int64_t, int, uint32_t bits) { count += ones(bits); });
    if (lane_number() == 0) counts[r] = count;
  });
}

void prune_kept(const float* alphas, const float* t_starts, const float* t_ends, const int32_t* ray_offsets, const int32_t* new_offsets,
                Warps<> rays, float min_transmittance, float min_alpha, float* new_starts, float* new_ends, int32_t* new_rays, int32_t* kept) {
  for_each(rays, [=](int64_t r) {
    const int64_t first = ray_offsets[r];
    int64_t to = new_offsets[r];
    for_kept(alphas, first, ray_offsets[r + 1] - first, cut<float>(min_transmittance), min_alpha, [&](int64_t i, int, uint32_t bits) {
      const int lane = lane_number();
      const int64_t at = first + i + lane, place = to + ones(bits & ((1u << lane) - 1));
      if (bits >> lane & 1) new_starts[place] = t_starts[at], new_ends[place] = t_ends[at], new_rays[place] = int32_t(r), kept[place] = int32_t(at);
      to += ones(bits);
    });
  });
}

POLYFIELD_OP(composite_f32, composite<float>)
POLYFIELD_OP(composite_f64, composite<double>)
POLYFIELD_OP(composite_backward_f32, composite_backward<float>)
POLYFIELD_OP(composite_backward_f64, composite_backward<double>)
POLYFIELD_OP(prune_counts, prune_counts)
POLYFIELD_OP(prune_kept, prune_kept)

#else

constexpr int RAY_CHUNK = 64;  // rays per piece of work

// ---- three interleaved channels: lanes of the numbers 3 i + c as they lie in memory, LANES samples = 3 lanes ---------
// Sample i's weight at the places of its three channels, in the m-th of the three lanes.
template <int M, class T> PF_INLINE Lane<T> spread(Lane<T> w) {
  return shuffle(w, w, indices<T>([](int i) { return (M * LANES + i) / 3; }));
}
// The three numbers in the first lanes, repeated, as the m-th of the three lanes sees them.
template <int M, class T> PF_INLINE Lane<T> repeat(Lane<T> c) {
  return shuffle(c, c, indices<T>([](int i) { return (M * LANES + i) % 3; }));
}
// Channel C of each sample, from the three lanes.
template <int C, class T> PF_INLINE Lane<T> channel(Lane<T> x, Lane<T> y, Lane<T> z) {
  const Lane<T> xy = shuffle(x, y, indices<T>([](int i) { return 3 * i + C < 2 * LANES ? 3 * i + C : 0; }));
  return shuffle(xy, z, indices<T>([](int i) { return 3 * i + C < 2 * LANES ? i : 3 * i + C - LANES; }));
}

// Scratch for a number per sample of the rays [begin, end), each ray in whole lanes of its own: what is stored there can be
// loaded again at once, which masked or overlapping lanes cannot.
template <class T> struct Groups {
  Lane<T>* lanes;
  int64_t origin, begin;
  PF_INLINE Lane<T>* of(int64_t ray, int64_t first) const { return lanes + (first - origin) / LANES + (ray - begin); }
  static int64_t needed(int64_t samples, int64_t rays) { return samples / LANES + rays + 1; }
};
template <class T> Lane<T>* scratch(int64_t lanes) {
  static thread_local std::vector<Lane<T>> buffer;
  if (int64_t(buffer.size()) < lanes) buffer.resize(lanes + lanes / 2);
  return buffer.data();
}

// outputs = sum_i w_i v_i of the rays [begin, end)
template <class T> void accumulate(const Values<T>& v, const T* w, Groups<T> groups, const int32_t* ray_offsets, int64_t begin, int64_t end) {
  using R = Lane<T>;
  Sums<T> sums{};
  for (int64_t r = begin; r < end; ++r) {
    const int64_t first = ray_offsets[r], last = ray_offsets[r + 1];
    T* __restrict out = v.outputs + r * v.channels;
    const R* group = groups.of(r, first);
    if (v.channels == 1) {
      R sum(T(0));
      for (int64_t at = first; at < last; at += LANES) sum += *group++ * load_n(v.values + at, int(last - at));
      sums.add(sum, out);
    } else if (v.channels == 3) {
      R x(T(0)), y(T(0)), z(T(0));
      for (int64_t at = first; at < last; at += LANES) {
        const int n = int(last - at < LANES ? last - at : LANES);
        const R wi = *group++;
        const T* p = v.values + 3 * at;
        x += spread<0>(wi) * load_n(p, 3 * n);
        y += spread<1>(wi) * load_n(p + LANES, 3 * n - LANES);
        z += spread<2>(wi) * load_n(p + 2 * LANES, 3 * n - 2 * LANES);
      }
      sums.add(channel<0>(x, y, z), out);
      sums.add(channel<1>(x, y, z), out + 1);
      sums.add(channel<2>(x, y, z), out + 2);
    } else {
      std::fill_n(out, v.channels, T(0));
      for (int64_t i = first; i < last; ++i) {
        const T wi = w[i], *vi = v.values + i * v.channels;
        if (wi == T(0)) continue;
        for (int64_t c = 0; c < v.channels; ++c) out[c] += wi * vi[c];
      }
    }
  }
  sums.flush();
}

// g_i += sum_c grad_out_c v_ic and grad_v_ic = w_i grad_out_c of the rays [begin, end)
template <class T>
void accumulate_backward(const Values<T>& v, const T* w, Groups<T> groups, const int32_t* ray_offsets, int64_t begin, int64_t end) {
  using R = Lane<T>;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t first = ray_offsets[r], last = ray_offsets[r + 1];
    const T* go = v.grad_outputs + r * v.channels;
    R* g = groups.of(r, first);
    if (v.channels == 1) {
      const R gx(go[0]);
      for (int64_t at = first; at < last; at += LANES) {
        const int n = int(last - at);
        *g++ += gx * load_n(v.values + at, n);
        if (v.grad_values) store_n(v.grad_values + at, gx * load_n(w + at, n), n);
      }
    } else if (v.channels == 3) {
      const R triple = load_n(go, 3), gx = repeat<0>(triple), gy = repeat<1>(triple), gz = repeat<2>(triple);
      for (int64_t at = first; at < last; at += LANES) {
        const int n = int(last - at < LANES ? last - at : LANES);
        const T* p = v.values + 3 * at;
        const R x = gx * load_n(p, 3 * n), y = gy * load_n(p + LANES, 3 * n - LANES), z = gz * load_n(p + 2 * LANES, 3 * n - 2 * LANES);
        *g++ += channel<0>(x, y, z) + channel<1>(x, y, z) + channel<2>(x, y, z);
        if (v.grad_values) {
          const R wi = load_n(w + at, n);
          T* q = v.grad_values + 3 * at;
          store_n(q, gx * spread<0>(wi), 3 * n);
          store_n(q + LANES, gy * spread<1>(wi), 3 * n - LANES);
          store_n(q + 2 * LANES, gz * spread<2>(wi), 3 * n - 2 * LANES);
        }
      }
    } else {
      for (int64_t i = first; i < last; ++i) {
        const T wi = w[i], *vi = v.values + i * v.channels;
        T sum(0);
        for (int64_t c = 0; c < v.channels; ++c) sum += go[c] * vi[c];
        reinterpret_cast<T*>(g)[i - first] += sum;
        if (v.grad_values) {
          T* __restrict gi = v.grad_values + i * v.channels;
          for (int64_t c = 0; c < v.channels; ++c) gi[c] = wi * go[c];
        }
      }
    }
  }
}

// One pass over a few rays after the other: so short a chain of instructions per ray lets the processor overlap rays.
template <class T>
void composite(const T* alphas, const int32_t* ray_offsets, const Inline<ValueTable<T>>& table, int tensors, Warps<> rays, double min_transmittance,
               T* weights, T* opacities) {
  const Values<T>* values = table.value.of;
  parallel_chunks(rays, RAY_CHUNK, [=](int64_t begin, int64_t end) {
    using R = Lane<T>;
    const R least = cut<T>(min_transmittance);
    const int64_t origin = ray_offsets[begin];
    const Groups<T> groups{scratch<T>(Groups<T>::needed(ray_offsets[end] - origin, end - begin)), origin, begin};
    Sums<T> sums{};
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = ray_offsets[r], last = ray_offsets[r + 1];
      R* group = groups.of(r, first);
      R opacity(T(0));
      T before(1);
      for (int64_t at = first; at < last; at += LANES) {
        const R alpha = load_n(alphas + at, int(last - at));
        const R t = transmittances(alpha, before);
        const R w = select(t < least, R(T(0)), alpha * t);
        opacity += w;
        *group++ = w;
        store_n(weights + at, w, int(last - at));
      }
      sums.add(opacity, opacities + r);
    }
    sums.flush();
    for (int k = 0; k < tensors; ++k) accumulate(values[k], weights, groups, ray_offsets, begin, end);
  });
}

// grad_weights, grad_opacities, the grad_outputs and grad_values of any tensor may be null.
template <class T>
void composite_backward(const T* alphas, const int32_t* ray_offsets, const Inline<ValueTable<T>>& table, int tensors, Warps<> rays,
                        double min_transmittance, const T* weights, const T* grad_weights, const T* grad_opacities, T* grad_alphas) {
  const Values<T>* values = table.value.of;
  parallel_chunks(rays, RAY_CHUNK, [=](int64_t begin, int64_t end) {
    using R = Lane<T>;
    const R least = cut<T>(min_transmittance);
    const int64_t origin = ray_offsets[begin], needed = Groups<T>::needed(ray_offsets[end] - origin, end - begin);
    const Groups<T> gs{scratch<T>(2 * needed), origin, begin}, ts{gs.lanes + needed, origin, begin};
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = ray_offsets[r], last = ray_offsets[r + 1];
      const R go(grad_opacities ? grad_opacities[r] : T(0));
      R *g = gs.of(r, first), *t = ts.of(r, first);
      T before(1);
      for (int64_t at = first; at < last; at += LANES) {
        *t++ = transmittances(load_n(alphas + at, int(last - at)), before);
        *g++ = grad_weights ? go + load_n(grad_weights + at, int(last - at)) : go;
      }
    }
    for (int k = 0; k < tensors; ++k)
      if (values[k].grad_outputs) accumulate_backward(values[k], weights, gs, ray_offsets, begin, end);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = ray_offsets[r], last = ray_offsets[r + 1], groups = (last - first + LANES - 1) / LANES;
      T behind(0);
      for (int64_t i = groups - 1; i >= 0; --i) {
        const int64_t at = first + i * LANES;
        const R t = ts.of(r, first)[i], g = gs.of(r, first)[i];
        const auto dead = t < least;
        const R alpha = select(dead, R(T(0)), load_n(alphas + at, int(last - at)));
        const Affine<R> map = suffix(Affine<R>{R(T(1)) - alpha, select(dead, R(T(0)), alpha * g)});
        const R seen = map.b + map.a * R(behind);  // by a ray that enters before sample i
        const R rest = shift_down<1>(seen, R(behind));
        store_n(grad_alphas + at, select(dead, R(T(0)), t * (g - rest)), int(last - at));
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

POLYFIELD_OP(composite_f32, composite<float>)
POLYFIELD_OP(composite_f64, composite<double>)
POLYFIELD_OP(composite_backward_f32, composite_backward<float>)
POLYFIELD_OP(composite_backward_f64, composite_backward<double>)
POLYFIELD_OP(prune, prune)
POLYFIELD_OP(prune_write, prune_write)

#endif

}  // namespace polyfield
