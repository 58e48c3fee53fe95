// Real spherical harmonics of a direction, degree 0 to 4, as polynomials in x, y, z, and their gradient.
//
// The usual order (l, m = -l..l) and signs of the graphics literature (Sloan, "Efficient Spherical Harmonic
// Evaluation", JCGT 2013); the direction should have unit length, and the gradient is that of the polynomials.
#pragma once
#include "lane.h"

namespace polyfield {

constexpr int MAX_BASES = 25;

template <class R> PF_INLINE void sh_values(int degree, R x, R y, R z, R* b) {
  using S = scalar_t<R>;
  b[0] = R(S(0.28209479177387814));
  if (degree < 1) return;
  b[1] = R(S(-0.48860251190291987)) * y;
  b[2] = R(S(0.48860251190291987)) * z;
  b[3] = R(S(-0.48860251190291987)) * x;
  if (degree < 2) return;
  const R xx = x * x, yy = y * y, zz = z * z;
  b[4] = R(S(1.0925484305920792)) * x * y;
  b[5] = R(S(-1.0925484305920792)) * y * z;
  b[6] = R(S(0.94617469575755997)) * zz - R(S(0.31539156525251999));
  b[7] = R(S(-1.0925484305920792)) * x * z;
  b[8] = R(S(0.54627421529603959)) * (xx - yy);
  if (degree < 3) return;
  b[9] = R(S(0.59004358992664352)) * y * (yy - R(S(3)) * xx);
  b[10] = R(S(2.8906114426405538)) * x * y * z;
  b[11] = R(S(0.45704579946446572)) * y * (R(S(1)) - R(S(5)) * zz);
  b[12] = R(S(0.3731763325901154)) * z * (R(S(5)) * zz - R(S(3)));
  b[13] = R(S(0.45704579946446572)) * x * (R(S(1)) - R(S(5)) * zz);
  b[14] = R(S(1.4453057213202769)) * z * (xx - yy);
  b[15] = R(S(0.59004358992664352)) * x * (R(S(3)) * yy - xx);
  if (degree < 4) return;
  b[16] = R(S(2.5033429417967046)) * x * y * (xx - yy);
  b[17] = R(S(1.7701307697799304)) * y * z * (yy - R(S(3)) * xx);
  b[18] = R(S(0.94617469575756008)) * x * y * (R(S(7)) * zz - R(S(1)));
  b[19] = R(S(0.66904654355728921)) * y * z * (R(S(3)) - R(S(7)) * zz);
  b[20] = R(S(0.10578554691520431)) * (R(S(35)) * zz * zz - R(S(30)) * zz + R(S(3)));
  b[21] = R(S(0.66904654355728921)) * x * z * (R(S(3)) - R(S(7)) * zz);
  b[22] = R(S(0.47308734787878004)) * (xx - yy) * (R(S(7)) * zz - R(S(1)));
  b[23] = R(S(1.7701307697799304)) * x * z * (R(S(3)) * yy - xx);
  b[24] = R(S(0.62583573544917614)) * (xx * (xx - R(S(3)) * yy) - yy * (R(S(3)) * xx - yy));
}

// g[k] = d loss / d b[k]  ->  (gx, gy, gz) = d loss / d (x, y, z)
template <class R> PF_INLINE void sh_gradient(int degree, R x, R y, R z, const R* g, R& gx, R& gy, R& gz) {
  using S = scalar_t<R>;
  gx = gy = gz = R(S(0));
  if (degree < 1) return;
  gy = R(S(-0.48860251190291987)) * g[1];
  gz = R(S(0.48860251190291987)) * g[2];
  gx = R(S(-0.48860251190291987)) * g[3];
  if (degree < 2) return;
  const R xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  gx += R(S(1.0925484305920792)) * (y * g[4] - z * g[7] + x * g[8]);
  gy += R(S(1.0925484305920792)) * (x * g[4] - z * g[5] - y * g[8]);
  gz += R(S(1.8923493915151202)) * z * g[6] - R(S(1.0925484305920792)) * (y * g[5] + x * g[7]);
  if (degree < 3) return;
  const R c9(S(1.7701307697799304)), c11(S(0.45704579946446572)), c14(S(1.4453057213202769)), c10(S(2.8906114426405538));
  const R five = R(S(1)) - R(S(5)) * zz, ten = R(S(10));
  gx += -R(S(2)) * c9 * xy * g[9] + c10 * yz * g[10] + c11 * five * g[13] + R(S(2)) * c14 * xz * g[14] + c9 * (yy - xx) * g[15];
  gy += c9 * (yy - xx) * g[9] + c10 * xz * g[10] + c11 * five * g[11] - R(S(2)) * c14 * yz * g[14] + R(S(2)) * c9 * xy * g[15];
  gz += c10 * xy * g[10] - c11 * ten * yz * g[11] + R(S(0.3731763325901154)) * (R(S(15)) * zz - R(S(3))) * g[12] - c11 * ten * xz * g[13] +
        c14 * (xx - yy) * g[14];
  if (degree < 4) return;
  const R c16(S(2.5033429417967046)), c17(S(1.7701307697799304)), c18(S(0.94617469575756008)), c19(S(0.66904654355728921));
  const R c22(S(0.47308734787878004)), c24(S(0.62583573544917614)), three = R(S(3)), seven = R(S(7)) * zz - R(S(1));
  gx += c16 * y * (three * xx - yy) * g[16] - R(S(6)) * c17 * x * yz * g[17] + c18 * y * seven * g[18] + c19 * z * (three - R(S(7)) * zz) * g[21] +
        R(S(2)) * c22 * x * seven * g[22] + three * c17 * z * (yy - xx) * g[23] + R(S(4)) * c24 * x * (xx - three * yy) * g[24];
  gy += c16 * x * (xx - three * yy) * g[16] + three * c17 * z * (yy - xx) * g[17] + c18 * x * seven * g[18] + c19 * z * (three - R(S(7)) * zz) * g[19] -
        R(S(2)) * c22 * y * seven * g[22] + R(S(6)) * c17 * x * yz * g[23] + R(S(4)) * c24 * y * (yy - three * xx) * g[24];
  gz += c17 * y * (yy - three * xx) * g[17] + R(S(14)) * c18 * xy * z * g[18] + c19 * (three - R(S(21)) * zz) * (y * g[19] + x * g[21]) +
        R(S(0.10578554691520431)) * z * (R(S(140)) * zz - R(S(60))) * g[20] + R(S(14)) * c22 * z * (xx - yy) * g[22] + c17 * x * (three * yy - xx) * g[23];
}

}  // namespace polyfield
