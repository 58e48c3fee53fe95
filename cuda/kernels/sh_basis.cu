// Real spherical harmonics of a direction, degree 0 to 4: directions (N, 3) -> basis (N, (degree + 1)^2).
#include "lane_math.h"
#include "op.h"
#include "sh_polynomials.h"

namespace polyfield {

template <class T> void sh_basis(const T* directions, T* basis, Threads<> n, int degree) {
  const int bases = (degree + 1) * (degree + 1);
  for_lanes(n, [=](int64_t i, int m) {
    const T* d = directions + 3 * i;
    Lane<T> b[MAX_BASES];
    sh_values(degree, load_strided(d, 3, m), load_strided(d + 1, 3, m), load_strided(d + 2, 3, m), b);
    store_rows<MAX_BASES>(basis + i * bases, b, bases, m);
  });
}

template <class T> void sh_basis_backward(const T* directions, const T* grad_basis, T* grad_directions, Threads<> n, int degree) {
  const int bases = (degree + 1) * (degree + 1);
  for_lanes(n, [=](int64_t i, int m) {
    const T* d = directions + 3 * i;
    Lane<T> g[MAX_BASES], grad[3];
    load_rows<MAX_BASES>(grad_basis + i * bases, g, bases, m);
    sh_gradient(degree, load_strided(d, 3, m), load_strided(d + 1, 3, m), load_strided(d + 2, 3, m), g, grad[0], grad[1], grad[2]);
    store_rows<3>(grad_directions + 3 * i, grad, 3, m);
  });
}

POLYFIELD_OP(sh_basis_f32, sh_basis<float>)
POLYFIELD_OP(sh_basis_f64, sh_basis<double>)
POLYFIELD_OP(sh_basis_backward_f32, sh_basis_backward<float>)
POLYFIELD_OP(sh_basis_backward_f64, sh_basis_backward<double>)

}  // namespace polyfield
