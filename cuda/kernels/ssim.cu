// Structural similarity (Wang et al., 2004; 11 x 11 Gaussian window, sigma 1.5, zero beyond the border) and absolute
// difference of two images (H, W, C), summed over all numbers, with the gradient of a weighted sum of both.
//
// With the window's means mx, my, xx, yy, xy of x, y and their products,
//   S = (2 mx my + C1) (2 (xy - mx my) + C2) / ((mx^2 + my^2 + C1) (xx - mx^2 + yy - my^2 + C2)),
// and d sum S / d x = w * S_mx + 2 x (w * S_xx) + y (w * S_xy), * the same window again. On the CPU, numbers of a row in
// lanes, neighbours C numbers apart; a piece of some rows keeps its three derivative maps in cache, so that images are read
// once. In CUDA a block has a square of one channel, and its neighbourhood in shared memory; the maps go through memory.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#if !PF_CUDA
#include <algorithm>
#include <vector>
#endif

namespace polyfield {

constexpr int REACH = 5, MAPS = 3;  // of the window to each side; derivatives
constexpr double WINDOW[2 * REACH + 1] = {0.00102838008447911, 0.007598758135239185, 0.03600077212843083, 0.10936068950970002,
                                          0.2130055377112537,  0.26601172486179436,  0.2130055377112537,  0.10936068950970002,
                                          0.03600077212843083, 0.007598758135239185, 0.00102838008447911};

// S, and its derivatives by mx, xx and xy.
template <class R> PF_INLINE R similarity(R mx, R my, R xx, R yy, R xy, R* derivatives) {
  using T = scalar_t<R>;
  const R c1(T(0.0001)), c2(T(0.0009)), two(T(2)), one(T(1));
  const R a1 = two * mx * my + c1, a2 = two * (xy - mx * my) + c2, b1 = mx * mx + my * my + c1;
  const R b2 = xx - mx * mx + yy - my * my + c2;
  const R i1 = one / b1, i2 = one / b2, s = a1 * a2 * i1 * i2;
  derivatives[0] = two * my * (a2 - a1) * i1 * i2 - two * mx * s * (i1 - i2);
  derivatives[1] = -s * i2;
  derivatives[2] = two * a1 * i1 * i2;
  return s;
}

// Of l1 |x - y| and structure sum S by x, given the derivatives' sums under the window.
template <class R> PF_INLINE R gradient(R x, R y, const R* sums, scalar_t<R> l1, scalar_t<R> structure) {
  using T = scalar_t<R>;
  const R by_s = sums[0] + R(T(2)) * x * sums[1] + y * sums[2];
  const R sign = select(x > y, R(T(1)), select(x < y, R(T(-1)), R(T(0))));
  return R(l1) * sign + R(structure) * by_s;
}

#if PF_CUDA

constexpr int SIDE = 16, WIDE = SIDE + 2 * REACH, THREADS = SIDE * SIDE;

// A square of a channel of an image: block by block, channels of a square one after the other, so that they share a cache.
struct Square {
  int64_t height, width;
  int channels, channel, y, x;  // of its corner
  PF_INLINE Square(int64_t block, int64_t height_, int64_t width_, int channels_) : height(height_), width(width_), channels(channels_) {
    const int64_t square = block / channels, across = ceil_div(width, SIDE);
    channel = int(block % channels), y = int(square / across) * SIDE, x = int(square % across) * SIDE;
  }
  PF_INLINE bool inside(int64_t dy, int64_t dx) const { return y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width; }
  PF_INLINE int64_t at(int64_t dy, int64_t dx) const { return ((y + dy) * width + x + dx) * channels + channel; }
};

// sums[k] = what add(weight, numbers of a pixel, sums) adds up under the window around this thread's pixel.
template <int IN, int SUMS, class T, class F> PF_INLINE void filter(const Square& square, const T* const (&images)[IN], T (&sums)[SUMS], F add) {
  PF_SHARED(T, in, [IN][WIDE][WIDE]);
  PF_SHARED(T, across, [SUMS][WIDE][SIDE]);
  const int thread = int(threadIdx.x);
  for (int i = thread; i < WIDE * WIDE; i += THREADS) {
    const int dy = i / WIDE - REACH, dx = i % WIDE - REACH;
    const bool inside = square.inside(dy, dx);
    for (int k = 0; k < IN; ++k) in[k][i / WIDE][i % WIDE] = inside ? images[k][square.at(dy, dx)] : T(0);
  }
  __syncthreads();
  for (int i = thread; i < WIDE * SIDE; i += THREADS) {
    T row[SUMS] = {};
#pragma unroll
    for (int k = 0; k <= 2 * REACH; ++k) {
      T numbers[IN];
      for (int j = 0; j < IN; ++j) numbers[j] = in[j][i / SIDE][i % SIDE + k];
      add(T(WINDOW[k]), numbers, row);
    }
    for (int j = 0; j < SUMS; ++j) across[j][i / SIDE][i % SIDE] = row[j];
  }
  __syncthreads();
  for (int j = 0; j < SUMS; ++j) {
    sums[j] = T(0);
#pragma unroll
    for (int k = 0; k <= 2 * REACH; ++k) sums[j] += T(WINDOW[k]) * across[j][thread / SIDE + k][thread % SIDE];
  }
}

// The sum over a block's threads, in its first one.
PF_INLINE double block_sum(double x) {
  PF_SHARED(double, warps, [THREADS / GROUP]);
  x = tree_sum(x);
  __syncthreads();  // the last sum was read
  if (lane_number() == 0) warps[threadIdx.x / GROUP] = x;
  __syncthreads();
  double sum = 0;
  for (double warp : warps) sum += warp;
  return sum;
}

// sums: per block sum |x - y| and sum S. maps (3, H, W, C; 0 = not wanted): derivatives of S.
template <class T>
void ssim_maps(const T* x, const T* y, int64_t height, int64_t width, int channels, Blocks<THREADS> squares, T* maps, double* sums) {
  for_each(squares, [=](int64_t block) {
    const Square square(block, height, width, channels);
    T means[5], derivatives[MAPS];
    filter<2>(square, {x, y}, means, [](T w, const T* v, T* to) {
      const T wx = w * v[0], wy = w * v[1];
      to[0] += wx, to[1] += wy, to[2] += wx * v[0], to[3] += wy * v[1], to[4] += wx * v[1];
    });
    const T s = similarity(means[0], means[1], means[2], means[3], means[4], derivatives);
    const int dy = int(threadIdx.x) / SIDE, dx = int(threadIdx.x) % SIDE;
    const bool inside = square.inside(dy, dx);
    const int64_t at = inside ? square.at(dy, dx) : 0;
    if (maps && inside)
      for (int k = 0; k < MAPS; ++k) maps[k * height * width * channels + at] = derivatives[k];
    const double absolute = block_sum(inside ? double(abs(x[at] - y[at])) : 0), similar = block_sum(inside ? double(s) : 0);
    if (threadIdx.x == 0) sums[2 * block] = absolute, sums[2 * block + 1] = similar;
  });
}

// grad: of l1 sum |x - y| + structure sum S, by x.
template <class T>
void ssim_gradient(const T* maps, const T* x, const T* y, int64_t height, int64_t width, int channels, Blocks<THREADS> squares, double l1,
                   double structure, T* grad) {
  for_each(squares, [=](int64_t block) {
    const Square square(block, height, width, channels);
    const int64_t image = height * width * channels;
    T sums[MAPS];
    filter<MAPS>(square, {maps, maps + image, maps + 2 * image}, sums, [](T w, const T* v, T* to) {
      for (int k = 0; k < MAPS; ++k) to[k] += w * v[k];
    });
    const int dy = int(threadIdx.x) / SIDE, dx = int(threadIdx.x) % SIDE;
    if (!square.inside(dy, dx)) return;
    const int64_t at = square.at(dy, dx);
    grad[at] = gradient(x[at], y[at], sums, T(l1), T(structure));
  });
}

POLYFIELD_OP(ssim_maps_f32, ssim_maps<float>)
POLYFIELD_OP(ssim_maps_f64, ssim_maps<double>)
POLYFIELD_OP(ssim_gradient_f32, ssim_gradient<float>)
POLYFIELD_OP(ssim_gradient_f64, ssim_gradient<double>)

#else

constexpr int PIECE = 32;  // rows worked on together

// Rows of n numbers with room for the window, and for whole lanes, on both sides.
template <class T> struct Lines {
  int64_t margin, stride;
  std::vector<T>& data;
  Lines(std::vector<T>& data_, int64_t lines, int64_t n, int channels) : margin(REACH * channels), stride(n + 2 * margin + LANES), data(data_) {
    data.assign(lines * stride, T(0));
  }
  T* operator[](int64_t line) { return data.data() + line * stride + margin; }
};

template <class T> PF_INLINE Lane<T> across(const T* line, const Lane<T>* w, int channels) {
  Lane<T> sum(T(0));
  for (int k = -REACH; k <= REACH; ++k) sum += w[k + REACH] * load(line + k * channels);
  return sum;
}

// sums: per piece of rows sum |x - y| and sum S. grad (0 = not wanted): of l1 sum |x - y| + structure sum S, by x.
template <class T>
void ssim_l1(const T* x, const T* y, int64_t rows, int64_t n, int channels, double l1, double structure, T* grad, double* sums) {
  using R = Lane<T>;
  parallel_chunks(rows, PIECE, [=](int64_t begin, int64_t end) {
    static thread_local std::vector<T> of_means, of_maps, of_filtered;
    R w[2 * REACH + 1];
    for (int k = 0; k <= 2 * REACH; ++k) w[k] = R(T(WINDOW[k]));
    const int64_t first = grad ? std::max<int64_t>(begin - REACH, 0) : begin, last = grad ? std::min(end + REACH, rows) : end;
    Lines<T> means(of_means, 5, n, channels), maps(of_maps, MAPS * (last - first), n, channels), filtered(of_filtered, MAPS, n, channels);
    double absolute = 0, similar = 0;
    for (int64_t r = first; r < last; ++r) {
      const int64_t low = std::max<int64_t>(r - REACH, 0), high = std::min(r + REACH + 1, rows);
      for (int64_t i = 0; i < n; i += LANES) {
        R sum[5];
        for (R& s : sum) s = R(T(0));
        for (int64_t q = low; q < high; ++q) {
          const R a = load_n(x + q * n + i, int(n - i)), b = load_n(y + q * n + i, int(n - i)), wa = w[q - r + REACH] * a, wb = w[q - r + REACH] * b;
          sum[0] += wa, sum[1] += wb, sum[2] += wa * a, sum[3] += wb * b, sum[4] += wa * b;
        }
        for (int k = 0; k < 5; ++k) store_n(means[k] + i, sum[k], int(n - i));
      }
      const bool counts = r >= begin && r < end;
      R total(T(0)), difference(T(0));
      for (int64_t i = 0; i < n; i += LANES) {
        const int left = int(n - i);
        R d[MAPS];
        const R s = similarity(across(means[0] + i, w, channels), across(means[1] + i, w, channels), across(means[2] + i, w, channels),
                               across(means[3] + i, w, channels), across(means[4] + i, w, channels), d);
        if (grad)
          for (int k = 0; k < MAPS; ++k) store_n(maps[MAPS * (r - first) + k] + i, d[k], left);
        if (!counts) continue;
        total += select(group_first<T>(left), s, R(T(0)));
        difference += abs(load_n(x + r * n + i, left) - load_n(y + r * n + i, left));
      }
      absolute += double(tree_sum(difference)), similar += double(tree_sum(total));
    }
    sums[2 * (begin / PIECE)] = absolute, sums[2 * (begin / PIECE) + 1] = similar;
    if (!grad) return;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t low = std::max<int64_t>(r - REACH, 0), high = std::min(r + REACH + 1, rows);
      for (int k = 0; k < MAPS; ++k)
        for (int64_t i = 0; i < n; i += LANES) {
          R sum(T(0));
          for (int64_t q = low; q < high; ++q) sum += w[q - r + REACH] * load(maps[MAPS * (q - first) + k] + i);
          store_n(filtered[k] + i, sum, int(n - i));
        }
      for (int64_t i = 0; i < n; i += LANES) {
        const int left = int(n - i);
        const R a = load_n(x + r * n + i, left), b = load_n(y + r * n + i, left);
        const R sums[MAPS] = {across(filtered[0] + i, w, channels), across(filtered[1] + i, w, channels), across(filtered[2] + i, w, channels)};
        store_n(grad + r * n + i, gradient(a, b, sums, T(l1), T(structure)), left);
      }
    }
  });
}

POLYFIELD_OP(ssim_l1_f32, ssim_l1<float>)
POLYFIELD_OP(ssim_l1_f64, ssim_l1<double>)

#endif

}  // namespace polyfield
