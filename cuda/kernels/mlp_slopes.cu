// Fused networks with the derivatives of their first output by the inputs, which a signed distance needs:
// inputs (N, C_in) -> outputs (N, C_out), slopes (N, C_in), and gradients to inputs and parameters from both.
//
// Between the kinks of its activations a network is a product of matrices, so slopes are what a backward pass from
// (1, 0, ...) leaves, and a loss on them has a gradient to the weights alone: Backward::slopes of mlp_layers.h.
#include "mlp_layers.h"
#include "op.h"

#if !PF_CUDA

namespace polyfield {
namespace {

template <class T>
void forward_with_slopes(const Parameters<T>& parameters, const T* inputs, T* outputs, T* slopes, int64_t n) {
  using P = Plain<T>;
  const Net<P> net(parameters, true, fresh_arena<Use::CALL>());
  const int64_t size = chunk_size(n);
  const int in = net.dims[0], last = net.layers - 1, out = net.dims[net.layers];
  parallel_pieces(ceil_div(n, size), [&](int64_t chunk) {
    Arena& arena = fresh_arena<Use::TILE>();
    T *x = arena.take<T>(TILE * net.stride(0)), *hidden[MAX_LAYERS + 1] = {}, *no[2] = {}, *u[2];
    for (int l = 1; l < net.layers; ++l) hidden[l] = arena.take<T>(TILE * net.dims[l]);
    for (T*& rows : u) rows = arena.take<T>(TILE * net.widest(1, net.layers));
    const int64_t end = (chunk + 1) * size < n ? (chunk + 1) * size : n;
    for (int64_t i = chunk * size; i < end; i += TILE) {
      const int64_t count = end - i < TILE ? end - i : TILE;
      Ahead ahead;
      if (i + TILE < end) ahead.add(inputs + (i + TILE) * in, (end - i - TILE < TILE ? end - i - TILE : TILE) * in * int64_t(sizeof(T)));
      Operand<T> h{inputs + i * in, in};
      if (!net.dense(0)) {
        convert<P>(inputs + i * in, count, in, x, net.stride(0), x, net.stride(0), net.rounded);
        h = {x, net.stride(0)};
      }
      h = hidden_layers(net, last, h, count, hidden, no, true, ahead);
      product<P>(count, out, h, net.forward[last], net.units(last), Dense<P>{net.biases[last], outputs + i * out, out, count, out}, ahead);
      const T one = P::unit(T(1), T(1), net.rounded);
      Operand<T> left{&one, 0};
      for (int l = last, s = 0; l > 0; --l, s ^= 1) {
        const int width = net.dims[l];
        const Gated<P> e{hidden[l], width, u[s], u[s], width, width, net.rounded};
        product<P>(count, width, left, net.backward[l], l == last ? 1 : net.dims[l + 1], e, ahead);
        left = {u[s], width};
      }
      product<P>(count, in, left, net.backward[0], last == 0 ? 1 : net.dims[1], Dense<P>{nullptr, slopes + i * in, in, count, in}, ahead);
    }
  });
}

}  // namespace

template <class T>
void mlp_slopes(const T* inputs, T* outputs, T* slopes, int64_t n, int layers, int d0, int d1, int d2, int d3, int d4, int d5,
                const T* w0, const T* w1, const T* w2, const T* w3, const T* w4, const T* b0, const T* b1, const T* b2,
                const T* b3, const T* b4) {
  const Parameters<T> p{layers, {d0, d1, d2, d3, d4, d5}, {w0, w1, w2, w3, w4}, {b0, b1, b2, b3, b4}, false};
  forward_with_slopes(p, inputs, outputs, slopes, n);
}

template <class T>
void mlp_slopes_backward(const T* inputs, const T* grad_outputs, const T* grad_slopes, int64_t n, int layers, int d0, int d1,
                         int d2, int d3, int d4, int d5, const T* w0, const T* w1, const T* w2, const T* w3, const T* w4,
                         const T* b0, const T* b1, const T* b2, const T* b3, const T* b4, T* grad_inputs, T* gw0, T* gw1,
                         T* gw2, T* gw3, T* gw4, T* gb0, T* gb1, T* gb2, T* gb3, T* gb4) {
  const Parameters<T> p{layers, {d0, d1, d2, d3, d4, d5}, {w0, w1, w2, w3, w4}, {b0, b1, b2, b3, b4}, false};
  const Gradients<T> g{grad_inputs, {gw0, gw1, gw2, gw3, gw4}, {gb0, gb1, gb2, gb3, gb4}};
  backward_pass<Plain<T>>(p, inputs, grad_outputs, Saved<Plain<T>>{nullptr, layers, n}, g, n, grad_slopes);
}

POLYFIELD_OP(mlp_slopes_f32, mlp_slopes<float>)
POLYFIELD_OP(mlp_slopes_f64, mlp_slopes<double>)
POLYFIELD_OP(mlp_slopes_backward_f32, mlp_slopes_backward<float>)
POLYFIELD_OP(mlp_slopes_backward_f64, mlp_slopes_backward<double>)

}  // namespace polyfield

#endif
