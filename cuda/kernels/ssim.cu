// Structural similarity (Wang et al., 2004; 11 x 11 Gaussian window, sigma 1.5, zero beyond the border) and absolute
// difference of two images (H, W, C), summed over all numbers, with the gradient of a weighted sum of both in the same pass.
//
// With the window's means mx, my, xx, yy, xy of x, y and their products,
//   S = (2 mx my + C1) (2 (xy - mx my) + C2) / ((mx^2 + my^2 + C1) (xx - mx^2 + yy - my^2 + C2)),
// and d sum S / d x = w * S_mx + 2 x (w * S_xx) + y (w * S_xy), * the same window again. The trick: numbers of a row in lanes,
// neighbours C numbers apart; a piece of some rows keeps its three derivative maps in cache, so that images are read once.
#include "lane_math.h"
#include "lane_pack.h"
#include "op.h"
#include <algorithm>
#include <vector>

namespace polyfield {

constexpr int REACH = 5, PIECE = 32, MAPS = 3;  // of the window to each side; rows worked on together

struct Window {
  double w[2 * REACH + 1];
  Window() {
    double total = 0;
    for (int i = 0; i <= 2 * REACH; ++i) total += w[i] = std::exp(-(i - REACH) * (i - REACH) / (2 * 1.5 * 1.5));
    for (double& x : w) x /= total;
  }
};

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

// sums: per piece of rows sum |x - y| and sum S. grad (0 = not wanted): of l1 sum |x - y| + structure sum S, by x.
template <class T>
void ssim_l1(const T* x, const T* y, int64_t rows, int64_t n, int channels, double l1, double structure, T* grad, double* sums) {
  using R = Lane<T>;
  parallel_chunks(rows, PIECE, [=](int64_t begin, int64_t end) {
    static const Window window;
    static thread_local std::vector<T> of_means, of_maps, of_filtered;
    R w[2 * REACH + 1];
    for (int k = 0; k <= 2 * REACH; ++k) w[k] = R(T(window.w[k]));
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
        const R a = load_n(x + r * n + i, left), b = load_n(y + r * n + i, left), zero(T(0));
        const R by_s = across(filtered[0] + i, w, channels) + R(T(2)) * a * across(filtered[1] + i, w, channels) + b * across(filtered[2] + i, w, channels);
        const R sign = select(a > b, R(T(1)), select(a < b, R(T(-1)), zero));
        store_n(grad + r * n + i, R(T(l1)) * sign + R(T(structure)) * by_s, left);
      }
    }
  });
}

POLYFIELD_OP(ssim_l1_f32, ssim_l1<float>)
POLYFIELD_OP(ssim_l1_f64, ssim_l1<double>)

}  // namespace polyfield
