// Two packs of samples into one: each ray's samples of the first, then, where it has any, those of the second.
#include <algorithm>

#include "lane.h"
#include "op.h"
#include "parallel.h"

namespace polyfield {

#if !PF_CUDA

// rows (R,): a ray's place in the second pack, -1 = none. offsets (R + 1,) are those of the result.
void append_packed(const float* a, const int32_t* a_offsets, const float* b, const int32_t* b_offsets, const int32_t* rows, const int32_t* offsets,
                   float* out, int64_t rays) {
  parallel_chunks(rays, 64, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* to = std::copy(a + a_offsets[r], a + a_offsets[r + 1], out + offsets[r]);
      if (rows[r] >= 0) std::copy(b + b_offsets[rows[r]], b + b_offsets[rows[r] + 1], to);
    }
  });
}

// offsets (R + 1,) and, once those are known, the ray of each sample.
void append_offsets(const int32_t* a_offsets, const int32_t* b_offsets, const int32_t* rows, int32_t* offsets, int64_t rays) {
  offsets[0] = 0;
  for (int64_t r = 0; r < rays; ++r)
    offsets[r + 1] = offsets[r] + a_offsets[r + 1] - a_offsets[r] + (rows[r] >= 0 ? b_offsets[rows[r] + 1] - b_offsets[rows[r]] : 0);
}
void packed_indices(const int32_t* offsets, int32_t* ray_indices, int64_t rays) {
  parallel_chunks(rays, 64, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::fill(ray_indices + offsets[r], ray_indices + offsets[r + 1], int32_t(r));
  });
}

POLYFIELD_OP("append_packed", append_packed)
POLYFIELD_OP("append_offsets", append_offsets)
POLYFIELD_OP("packed_indices", packed_indices)

#endif

}  // namespace polyfield
