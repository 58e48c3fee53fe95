// Two packs of samples into one: each ray's samples of the first, then, where it has any, those of the second.
#include "lane_pack.h"
#include "op.h"

namespace polyfield {

// rows (R,): a ray's place in the second pack, -1 = none. offsets (R + 1,) are those of the result.
void append_packed(const float* a, const int32_t* a_offsets, const float* b, const int32_t* b_offsets, const int32_t* rows, const int32_t* offsets,
                   float* out, Warps<> rays) {
  for_each(rays, [=](int64_t r) {
    const int64_t n = a_offsets[r + 1] - a_offsets[r], row = rows[r];
    copy_n(a + a_offsets[r], n, out + offsets[r]);
    if (row >= 0) copy_n(b + b_offsets[row], b_offsets[row + 1] - b_offsets[row], out + offsets[r] + n);
  });
}

// The number of samples of each ray, and once offsets (R + 1,) are their sums, the ray of each sample.
void append_counts(const int32_t* a_offsets, const int32_t* b_offsets, const int32_t* rows, int32_t* counts, Threads<> rays) {
  for_each(rays, [=](int64_t r) {
    const int64_t row = rows[r];
    counts[r] = a_offsets[r + 1] - a_offsets[r] + (row >= 0 ? b_offsets[row + 1] - b_offsets[row] : 0);
  });
}
void packed_indices(const int32_t* offsets, int32_t* ray_indices, Warps<> rays) {
  for_each(rays, [=](int64_t r) { fill_n(ray_indices + offsets[r], offsets[r + 1] - offsets[r], int32_t(r)); });
}

POLYFIELD_OP(append_packed, append_packed)
POLYFIELD_OP(append_counts, append_counts)
POLYFIELD_OP(packed_indices, packed_indices)

}  // namespace polyfield
