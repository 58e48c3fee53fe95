// The passes of a fused MLP over tiles of samples, for either arithmetic of matmul.h.
//
//   forward   h_0 = x, h_{l+1} = max(0, h_l W_l^T + b_l), the last layer without max
//   backward  dW_l = g_l^T h_l,  db_l = sum g_l,  g_{l-1} = (g_l W_l) where h_l > 0
//
// All layers of a tile run before the next tile starts, so that activations and their gradients never leave the
// second-level cache; the next tile's memory is fetched meanwhile. Tiles are grouped into chunks whose number depends
// on n alone; each chunk sums its gradients to the weights on its own and the sums are added in order: the result does
// not depend on threads or timing.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "matmul.h"
#include "parallel.h"

#if !PF_CUDA

namespace polyfield {
namespace {

constexpr int MAX_LAYERS = 5;
constexpr int64_t TILE = 4 * TILE_ROWS;          // samples whose activations share the cache
constexpr int64_t CHUNKS = 64, MIN_CHUNK = 504;  // pieces of work: at most so many, and not smaller than that

// Memory of one thread, kept between calls: fresh pages would cost more than the arithmetic.
class Arena {
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::vector<std::unique_ptr<char, Free>> blocks;
  std::size_t size = 0, used = 0, total = 0;
  void grow(std::size_t bytes) {
    bytes = (bytes + 4095) / 4096 * 4096;
    blocks.emplace_back(static_cast<char*>(std::aligned_alloc(4096, bytes)));
    if (!blocks.back()) std::abort();
    size = bytes, used = 0, total += bytes;
  }

 public:
  void rewind() {
    used = 0;
    if (blocks.size() < 2) return;
    const std::size_t bytes = total;
    blocks.clear(), total = 0;
    grow(bytes);
  }
  template <class T>
  T* take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;  // the gap: vector loads may look past the end
    if (blocks.empty() || used + bytes > size) grow(bytes > 65536 ? bytes : 65536);
    char* p = blocks.back().get() + used;
    used += bytes;
    return reinterpret_cast<T*>(p);
  }
};

enum class Use { CALL, TILE };
template <Use>
Arena& fresh_arena() {
  static thread_local Arena arena;
  arena.rewind();
  return arena;
}

// What the caller gives: parameters in torch's layout, W_l (dims[l + 1], dims[l])
template <class T>
struct Parameters {
  int layers;
  int dims[MAX_LAYERS + 1];
  const T* weights[MAX_LAYERS];
  const T* biases[MAX_LAYERS];
  bool rounded;  // Plain only: operands are rounded to bfloat16
};

template <class P>
struct Net {
  using T = typename P::Real;
  using U = typename P::Unit;
  int layers;
  int dims[MAX_LAYERS + 1];
  bool rounded;
  Operand<U> forward[MAX_LAYERS];   // (in, out): the right operand of h W^T
  Operand<U> backward[MAX_LAYERS];  // (out, in): the right operand of g W
  const T* biases[MAX_LAYERS];
  const U* narrow = nullptr;  // the last layer's weights for narrow_product, where that serves

  Net(const Parameters<T>& from, bool with_backward, Arena& arena) : layers(from.layers), rounded(from.rounded) {
    for (int l = 0; l <= layers; ++l) dims[l] = from.dims[l];
    for (int l = 0; l < layers; ++l) {
      const int in = dims[l], out = dims[l + 1];
      const T* w = from.weights[l];
      forward[l] = pack(in, out, 1, in, w, arena);
      if (with_backward) backward[l] = pack(out, in, in, 1, w, arena);
      biases[l] = nullptr;
      if (from.biases[l]) {
        T* b = arena.take<T>(padded(out));
        for (int o = 0; o < padded(out); ++o) b[o] = o < out ? from.biases[l][o] : T(0);
        biases[l] = b;
      }
    }
    pack_narrow(from.weights[layers - 1], arena);
  }
  void pack_narrow(const T* w, Arena& arena) {
    const int in = dims[layers - 1], out = dims[layers], K = units(layers - 1);
    if (!HAS_NARROW<P> || layers == 1 || out > NARROW_COLUMNS) return;
    U* to = arena.take<U>(std::size_t(K) * 4);
    for (int u = 0; u < K; ++u)
      for (int o = 0; o < 4; ++o) {
        const T* row = w + o * in + u * P::PAIR;
        to[u / 4 * 16 + o * 4 + u % 4] = o < out ? P::unit(row[0], row[P::PAIR - 1], rounded) : U(0);
      }
    narrow = to;
  }
  // Element (k, j) = w[k * k_step + j * j_step], in units along k, the columns padded with zeros
  Operand<U> pack(int K, int columns, int k_step, int j_step, const T* w, Arena& arena) const {
    const int ld = padded(columns), units = int(ceil_div(K, P::PAIR));
    U* to = arena.take<U>(std::size_t(units) * ld);
    for (int u = 0; u < units; ++u)
      for (int j = 0; j < ld; ++j) {
        const int k = u * P::PAIR;
        const T low = j < columns ? w[k * k_step + j * j_step] : T(0);
        const T high = j < columns && k + 1 < K ? w[(k + 1) * k_step + j * j_step] : T(0);
        to[u * ld + j] = P::unit(low, high, rounded);
      }
    return {to, ld};
  }
  int units(int l) const { return int(ceil_div(dims[l], P::PAIR)); }                    // of a row of h_l
  int64_t stride(int l) const { return padded(dims[l]) / P::PAIR; }                     // between rows of h_l
  bool dense(int l) const { return P::PAIR == 1 && !rounded && dims[l] % LANES == 0; }  // usable as it lies in memory
  int widest(int from, int to) const {
    int most = 0;
    for (int l = from; l < to; ++l) most = padded(dims[l]) > most ? padded(dims[l]) : most;
    return most;
  }
};

inline int64_t chunk_size(int64_t n) {
  const int64_t size = ceil_div(ceil_div(n, CHUNKS), TILE_ROWS) * TILE_ROWS;
  return size > MIN_CHUNK ? size : MIN_CHUNK;
}

// The hidden layers h_1 to h_last of one tile. keep[l]: where h_l stays as pairs, or null. Returns h_last as rows.
template <class P, class U = typename P::Unit>
Operand<U> hidden_layers(const Net<P>& net, int last, Operand<U> h, int64_t rows, U* const* keep, U* const* swap,
                         bool rows_of_last, Ahead& ahead) {
  for (int l = 0; l < last; ++l) {
    const int out = net.dims[l + 1];
    U* to = P::PAIR == 1 && keep[l + 1] ? keep[l + 1] : swap[l % 2];
    if (P::PAIR > 1 && l + 1 == last && !rows_of_last) to = nullptr;
    const Hidden<P> e{net.biases[l], to, keep[l + 1], net.stride(l + 1), padded(out), net.rounded};
    product<P>(rows, out, h, net.forward[l], net.units(l), e, ahead);
    h = {to, net.stride(l + 1)};
  }
  return h;
}

// The hidden layers that forward leaves for backward, as pairs: h_from and deeper, one after the other.
template <class P>
struct Saved {
  using U = typename P::Unit;
  U* p;
  int from;  // net.layers: none
  int64_t n;
  U* at(const Net<P>& net, int l, int64_t begin) const {
    U* layer = p;
    for (int i = from; i < l; ++i) layer += ceil_div(n, P::PAIR) * net.dims[i];
    return layer + begin / P::PAIR * net.dims[l];
  }
  void fetch(const Net<P>& net, int64_t begin, Ahead& ahead) const {
    for (int l = from; l < net.layers; ++l)
      ahead.add(at(net, l, begin), TILE / P::PAIR * net.dims[l] * int64_t(sizeof(U)));
  }
};

template <class P>
struct Forward {
  using T = typename P::Real;
  using U = typename P::Unit;
  const Net<P>& net;
  const T* inputs;
  T* outputs;
  Saved<P> saved;
  int64_t n;  // rows there are: those behind a tile are fetched ahead
  // scratch of one thread
  U *x = nullptr, *swap[2] = {};

  void take_scratch(Arena& arena) {
    x = arena.take<U>(TILE * net.stride(0));
    for (U*& s : swap) s = arena.take<U>(TILE * net.widest(1, net.layers) / P::PAIR);
  }

  void tile(int64_t i, int64_t count) const {
    const int in = net.dims[0], last = net.layers - 1, out = net.dims[net.layers];
    const int64_t rows = ceil_div(count, P::PAIR) * P::PAIR;
    Operand<U> h{reinterpret_cast<const U*>(inputs + i * in), in};
    if (P::PAIR > 1 || net.rounded) {
      convert<P>(inputs + i * in, count, in, x, net.stride(0), nullptr, 0, net.rounded);
      h = {x, net.stride(0)};
    }
    U* keep[MAX_LAYERS + 1] = {};
    for (int l = saved.from; l < net.layers; ++l) keep[l] = saved.at(net, l, i);
    Ahead ahead;
    ahead.add(outputs + i * out, count * out * int64_t(sizeof(T)));
    if (i + TILE < n) {
      ahead.add(inputs + (i + TILE) * in, TILE * in * int64_t(sizeof(T)));
      saved.fetch(net, i + TILE, ahead);
    }
    h = hidden_layers(net, last, h, rows, keep, swap, true, ahead);
    if constexpr (HAS_NARROW<P>)
      if (net.narrow) return narrow_product<P>(count, out, h, net.narrow, net.units(last), net.biases[last], outputs + i * out);
    product<P>(rows, out, h, net.forward[last], net.units(last), Dense<P>{net.biases[last], outputs + i * out, out, count, out},
               ahead);
  }
};

template <class P>
void forward_pass(const Parameters<typename P::Real>& parameters, const typename P::Real* inputs,
                  typename P::Real* outputs, Saved<P> saved, int64_t n) {
  const Net<P> net(parameters, false, fresh_arena<Use::CALL>());
  const int64_t size = chunk_size(n);
  parallel_pieces(ceil_div(n, size), [&](int64_t chunk) {
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    Forward<P> pass{net, inputs, outputs, saved, end};
    pass.take_scratch(fresh_arena<Use::TILE>());
    for (int64_t i = chunk * size; i < end; i += TILE) pass.tile(i, end - i < TILE ? end - i : TILE);
  });
}

template <class T>
struct Gradients {
  T* inputs;  // each may be null: not wanted
  T* weights[MAX_LAYERS];
  T* biases[MAX_LAYERS];
  bool any() const {
    for (int l = 0; l < MAX_LAYERS; ++l)
      if (weights[l] || biases[l]) return true;
    return false;
  }
};

// The sums of one chunk: dW_l (out, padded in), then db_l (padded out)
template <class P>
struct Sums {
  using T = typename P::Real;
  std::size_t weights[MAX_LAYERS], biases[MAX_LAYERS], size = 0;
  explicit Sums(const Net<P>& net) {
    for (int l = 0; l < net.layers; ++l) {
      weights[l] = size, size += std::size_t(net.dims[l + 1]) * padded(net.dims[l]);
      biases[l] = size, size += padded(net.dims[l + 1]);
    }
  }
};

// sums of all chunks, in order -> to
template <class T>
void reduce_row(const T* sums, std::size_t size, int64_t chunks, T* to, int n) {
  for (int j = 0; j < n; ++j) to[j] = 0;
  for (int64_t c = 0; c < chunks; ++c, sums += size)
    for (int j = 0; j < n; ++j) to[j] += sums[j];
}

// The gradients to weights and biases, from the sums of all chunks
template <class P, class T = typename P::Real>
void add_up(const Net<P>& net, const Sums<P>& layout, const T* sums, int64_t chunks, const Gradients<T>& grads) {
  for (int l = 0; l < net.layers; ++l) {
    const int in = net.dims[l], out = net.dims[l + 1];
    if (grads.weights[l])
      parallel_chunks(out, 16, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; ++o)
          reduce_row(sums + layout.weights[l] + o * padded(in), layout.size, chunks, grads.weights[l] + o * in, in);
      });
    if (grads.biases[l]) reduce_row(sums + layout.biases[l], layout.size, chunks, grads.biases[l], out);
  }
}

template <class P>
struct Backward {
  using T = typename P::Real;
  using U = typename P::Unit;
  const Net<P>& net;
  const T *inputs, *grad_outputs;
  Saved<P> saved;  // the other hidden layers are computed again
  int64_t n;
  const Gradients<T>& grads;
  Sums<P> layout;
  const T* grad_slopes = nullptr;  // of the first output's derivatives by the inputs, for mlp_slopes.h
  // scratch of one thread
  U *x_rows = nullptr, *x_pairs = nullptr, *hidden[MAX_LAYERS] = {}, *swap[2] = {}, *g_rows[2] = {}, *g_pairs[2] = {};
  U *tangents[MAX_LAYERS] = {}, *slope_rows[2] = {};

  void take_scratch(Arena& arena) {
    if (grad_slopes) {
      for (int l = 0; l < net.layers; ++l) tangents[l] = arena.take<U>(TILE * padded(net.dims[l]));
      for (U*& s : slope_rows) s = arena.take<U>(TILE * net.widest(1, net.layers));
    }
    const int64_t rows = TILE * net.widest(1, net.layers + 1) / P::PAIR;
    x_rows = arena.take<U>(TILE * net.stride(0));
    x_pairs = P::PAIR == 1 ? x_rows : arena.take<U>(TILE / P::PAIR * padded(net.dims[0]));
    for (int s = 0; s < 2; ++s) {
      g_rows[s] = arena.take<U>(rows);
      g_pairs[s] = P::PAIR == 1 ? g_rows[s] : arena.take<U>(rows);
      swap[s] = P::PAIR == 1 ? nullptr : arena.take<U>(rows);
    }
    for (int l = 1; l < net.layers; ++l)
      hidden[l] = l >= saved.from ? nullptr : arena.take<U>(TILE / P::PAIR * net.dims[l]);
  }

  // dW_l += g^T h_l, db_l += sum g
  void parameters(int l, Operand<U> g, Operand<U> h, int64_t units, T* sums, Ahead& ahead) const {
    if (grads.weights[l])
      product<P>(net.dims[l + 1], net.dims[l], g, h, units, Add<P>{sums + layout.weights[l], padded(net.dims[l])},
                 ahead);
    const U one = P::unit(T(1), T(1), net.rounded);
    if (grads.biases[l])
      product<P>(1, net.dims[l + 1], Operand<U>{&one, 0}, g, units, Add<P>{sums + layout.biases[l], 0}, ahead);
  }

  // What the derivatives s of the first output add: <s, q> is how fast that output changes along q = grad_slopes, which is a
  // product of weights between the gates of the hidden layers: with t_0 = q, t_{l+1} = (t_l W_l^T) where h_{l+1} > 0, and
  // u_l = (u_{l+1} W_l) where h_l > 0 from u_L = (1, 0, ...),  dW_l += u_{l+1}^T t_l.
  void slopes(int64_t begin, int64_t count, const Operand<U>* h, T* sums, Ahead& ahead) const {
    static_assert(P::PAIR == 1, "numbers as they are");
    const int in = net.dims[0];
    Operand<U> t[MAX_LAYERS];
    convert<P>(grad_slopes + begin * in, count, in, tangents[0], padded(in), tangents[0], padded(in), net.rounded);
    for (int l = 0; l < net.layers; ++l) {
      t[l] = {tangents[l], padded(net.dims[l])};
      if (l + 1 == net.layers) break;
      const int width = net.dims[l + 1];
      product<P>(count, width, t[l], net.forward[l], net.units(l),
                 Gated<P>{h[l + 1].p, h[l + 1].ld, tangents[l + 1], tangents[l + 1], padded(width), padded(width), net.rounded}, ahead);
    }
    const U one = P::unit(T(1), T(1), net.rounded);
    Operand<U> u{&one, 0};
    for (int l = net.layers - 1, s = 0; l >= 0; --l, s ^= 1) {
      const int64_t rows = l + 1 == net.layers ? 1 : net.dims[l + 1];
      if (grads.weights[l])
        product<P>(rows, net.dims[l], u, t[l], count, Add<P>{sums + layout.weights[l], padded(net.dims[l])}, ahead);
      if (l == 0) break;
      const int width = net.dims[l];
      product<P>(count, width, u, net.backward[l], rows,
                 Gated<P>{h[l].p, h[l].ld, slope_rows[s], slope_rows[s], width, width, net.rounded}, ahead);
      u = {slope_rows[s], width};
    }
  }

  void ahead_of(int64_t begin, Ahead& ahead) const {
    const int64_t in = net.dims[0] * int64_t(sizeof(T)), out = net.dims[net.layers] * int64_t(sizeof(T));
    if (grads.inputs) ahead.add(grads.inputs + begin * net.dims[0], (n - begin < TILE ? n - begin : TILE) * in);
    const int64_t next = begin + TILE, count = n - next < TILE ? n - next : TILE;
    if (count <= 0) return;
    ahead.add(inputs + next * net.dims[0], count * in);
    ahead.add(grad_outputs + next * net.dims[net.layers], count * out);
    saved.fetch(net, next, ahead);
  }

  void tile(int64_t begin, int64_t count, T* sums) const {
    const int64_t units = ceil_div(count, P::PAIR), rows = units * P::PAIR;
    const int in = net.dims[0], out = net.dims[net.layers];
    const T* x = inputs + begin * in;
    Operand<U> pairs[MAX_LAYERS], x_left{reinterpret_cast<const U*>(x), in};
    if (net.dense(0)) pairs[0] = x_left;
    else {
      convert<P>(x, count, in, x_rows, net.stride(0), x_pairs, padded(in), net.rounded);
      pairs[0] = {x_pairs, padded(in)};
      x_left = {x_rows, net.stride(0)};
    }
    Ahead ahead;
    ahead_of(begin, ahead);
    U* keep[MAX_LAYERS + 1] = {};
    for (int l = 1; l < net.layers; ++l) {
      keep[l] = l >= saved.from ? saved.at(net, l, begin) : hidden[l];
      pairs[l] = {keep[l], net.dims[l]};
    }
    hidden_layers(net, saved.from - 1, x_left, rows, keep, swap, false, ahead);

    Operand<U> left{reinterpret_cast<const U*>(grad_outputs + begin * out), out}, right = left;
    if (!net.dense(net.layers)) {
      convert<P>(grad_outputs + begin * out, count, out, g_rows[0], net.stride(net.layers), g_pairs[0], padded(out),
                 net.rounded);
      left = {g_rows[0], net.stride(net.layers)}, right = {g_pairs[0], padded(out)};
    }
    for (int l = net.layers - 1, s = 1; l >= 0; --l, s ^= 1) {
      parameters(l, right, pairs[l], units, sums, ahead);
      const int width = net.dims[l];
      const int64_t K = net.units(l + 1);
      if (l == 0) {
        if (grads.inputs)
          product<P>(rows, width, left, net.backward[0], K, Dense<P>{nullptr, grads.inputs + begin * in, in, count, in},
                     ahead);
      } else {
        const Gated<P> e{pairs[l].p, pairs[l].ld, g_rows[s], g_pairs[s], net.stride(l), width, net.rounded};
        product<P>(rows, width, left, net.backward[l], K, e, ahead);
        left = {g_rows[s], net.stride(l)}, right = {g_pairs[s], width};
      }
    }
    if constexpr (P::PAIR == 1)
      if (grad_slopes) slopes(begin, count, pairs, sums, ahead);
  }
};

template <class P>
void backward_pass(const Parameters<typename P::Real>& parameters, const typename P::Real* inputs,
                   const typename P::Real* grad_outputs, Saved<P> saved, const Gradients<typename P::Real>& grads,
                   int64_t n, const typename P::Real* grad_slopes = nullptr) {
  using T = typename P::Real;
  Arena& call_arena = fresh_arena<Use::CALL>();
  const Net<P> net(parameters, true, call_arena);
  const Sums<P> layout(net);
  const int64_t size = chunk_size(n), chunks = ceil_div(n, size);
  T* sums = grads.any() ? call_arena.take<T>(layout.size * chunks) : nullptr;
  parallel_pieces(chunks, [&](int64_t chunk) {
    Backward<P> pass{net, inputs, grad_outputs, saved, n, grads, layout, grad_slopes};
    pass.take_scratch(fresh_arena<Use::TILE>());
    T* own = sums ? sums + chunk * layout.size : nullptr;
    if (own) std::memset(own, 0, layout.size * sizeof(T));
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    for (int64_t i = chunk * size; i < end; i += TILE) pass.tile(i, end - i < TILE ? end - i : TILE, own);
  });
  add_up(net, layout, sums, chunks, grads);
}

// ---- entry points: one list of arguments for every arithmetic; what is absent is null -------------------------------

template <class P, class T = typename P::Real>
void mlp_forward(const T* inputs, T* outputs, void* saved, int saved_from, int64_t n, int layers, int rounded, int d0,
                 int d1, int d2, int d3, int d4, int d5, const T* w0, const T* w1, const T* w2, const T* w3,
                 const T* w4, const T* b0, const T* b1, const T* b2, const T* b3, const T* b4) {
  const Parameters<T> p{layers, {d0, d1, d2, d3, d4, d5}, {w0, w1, w2, w3, w4}, {b0, b1, b2, b3, b4}, rounded != 0};
  forward_pass<P>(p, inputs, outputs, Saved<P>{static_cast<typename P::Unit*>(saved), saved_from, n}, n);
}

template <class P, class T = typename P::Real>
void mlp_backward(const T* inputs, const T* grad_outputs, void* saved, int saved_from, int64_t n, int layers,
                  int rounded, int d0, int d1, int d2, int d3, int d4, int d5, const T* w0, const T* w1, const T* w2,
                  const T* w3, const T* w4, const T* b0, const T* b1, const T* b2, const T* b3, const T* b4,
                  T* grad_inputs, T* gw0, T* gw1, T* gw2, T* gw3, T* gw4, T* gb0, T* gb1, T* gb2, T* gb3, T* gb4) {
  const Parameters<T> p{layers, {d0, d1, d2, d3, d4, d5}, {w0, w1, w2, w3, w4}, {b0, b1, b2, b3, b4}, rounded != 0};
  const Gradients<T> g{grad_inputs, {gw0, gw1, gw2, gw3, gw4}, {gb0, gb1, gb2, gb3, gb4}};
  backward_pass<P>(p, inputs, grad_outputs, Saved<P>{static_cast<typename P::Unit*>(saved), saved_from, n}, g, n);
}

}  // namespace
}  // namespace polyfield

#endif
