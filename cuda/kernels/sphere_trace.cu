// Where rays first meet a level of a distance, one evaluation at a time: the bookkeeping between two questions to the field.
//
//   outside:   t += relaxation f / steepness;   back to the last place, with relaxation 1, if the two spheres do not meet:
//              f_low + |f| < steepness (t - t_low)
//   at a change of sign:   the Illinois rule (Dowell & Jarratt 1971): secants, halving the end that stays
//
// (Hart, "Sphere tracing", 1996; over-relaxation: Keinert et al., "Enhanced sphere tracing", 2014.) Steepness is the largest slope
// |f_low - f| / (t - t_low) that the ray has met, so distances need not be exact. The trick: rays under way lie next to each other,
// so that fields are asked for nothing else; a state's rows are contiguous and lanes take neighbouring rays.
#include "lane_math.h"
#include "op.h"

namespace polyfield {

// Rows of a state (ROWS, n), and phases. LOW is the last place outside (LOW_F < 0: none yet), HIGH one inside.
enum Row { DEPTH, LOW, LOW_F, HIGH, HIGH_F, STEEP, PHASE, ROWS };
enum Phase { RELAXED, CAREFUL, BRACKET, BRACKET_LOW, BRACKET_HIGH, HIT, MISSED };

// far: where rays end. openness (R,), if asked for: the least f / (t - near) met outside, how wide a cone is free around a ray.
template <class T>
void sphere_trace_step(const T* values, const int32_t* rays, const T* origins, const T* directions, const T* near, const T* far, T tolerance,
                       T relaxation, T steepest, T* state, T* points, T* depths, T* openness, Threads<> n) {
  using R = Lane<T>;
  using M = Mask<T>;
  const int64_t stride = n;
  const T ulp = sizeof(T) == 4 ? T(2.4e-7) : T(4.4e-16);
  for_lanes(n, [=](int64_t i, int m) {
    const auto row = [=](int k) { return load_first(state + k * stride + i, m); };
    const auto keep = [=](int k, R x) { store_first(state + k * stride + i, x, m); };
    const Lane<int32_t> ray = load_first(rays + i, m);
    const R zero(T(0)), f = load_first(values + i, m), t = row(DEPTH), end = gather(far, ray);
    R low = row(LOW), low_f = row(LOW_F), high = row(HIGH), high_f = row(HIGH_F), steep = row(STEEP), phase = row(PHASE);
    const M active = polyfield::first<T>(m) & (phase < R(T(HIT)));
    const M lost = active & !(f == f), known = active & !lost;
    const M marching = known & (phase < R(T(BRACKET))), searching = known & !marching;
    const M close = abs(f) <= R(tolerance), inside = f < zero, fresh = low_f < zero;

    // Marching: how steep it may be, and whether something was passed
    const R gap = max(t - low, R(T(1e-30)));
    steep = select(marching & !fresh, min(max(steep, abs(low_f - f) / gap), R(steepest)), steep);
    const M met = fresh | (phase == R(T(CAREFUL))) | (low_f + abs(f) >= steep * gap);
    const M back = marching & !close & !met, ahead = marching & !close & !inside & met;
    const R radius = f / steep;
    const M missed = ahead & (t + radius >= end);
    if (openness) {
      const R away = t - gather(near, ray);
      const M counts = ahead & (away > zero);
      for (uint32_t left = bits(counts); left; left &= left - 1) {
        const int lane = lowest(left), r = item(ray, lane);
        const T cone = item(f, lane) / item(away, lane);
        openness[r] = openness[r] < cone ? openness[r] : cone;
      }
    }
    const R stride_ahead = max(radius * select(phase == R(T(CAREFUL)), R(T(1)), R(relaxation)), abs(t) * R(ulp));
    R next = select(ahead, min(t + stride_ahead, end), select(back, low + low_f / steep, t));
    const M crossed = marching & inside & !close & !fresh & met;
    M hit = (known & close) | (marching & inside & fresh);

    // Between a place outside and one inside: the end on this place's side moves here, the other counts half if it stays again
    const M to_high = crossed | (searching & inside), to_low = searching & !inside;
    low_f = select(searching & inside & (phase == R(T(BRACKET_HIGH))), low_f * R(T(0.5)), low_f);
    high_f = select(to_low & (phase == R(T(BRACKET_LOW))), high_f * R(T(0.5)), high_f);
    high = select(to_high, t, high), high_f = select(to_high, f, high_f);
    low = select(ahead | to_low, t, low), low_f = select(ahead | to_low, f, low_f);
    const M between = to_high | to_low;
    next = select(between & !hit, low + (high - low) * (low_f / (low_f - high_f)), next);
    hit = hit | (between & (high - low <= R(tolerance)));

    phase = select(back, R(T(CAREFUL)), phase);
    phase = select(crossed, R(T(BRACKET)), select(to_low, R(T(BRACKET_LOW)), select(searching & inside, R(T(BRACKET_HIGH)), phase)));
    phase = select(lost | missed, R(T(MISSED)), select(hit, R(T(HIT)), phase));
    keep(DEPTH, next), keep(LOW, low), keep(LOW_F, low_f), keep(HIGH, high), keep(HIGH_F, high_f), keep(STEEP, steep), keep(PHASE, phase);
    for (uint32_t left = bits(hit); left; left &= left - 1) {
      const int lane = lowest(left);
      depths[item(ray, lane)] = item(next, lane);
    }
    R at[3];
    for (int d = 0; d < 3; ++d) {
      const Lane<int32_t> place = ray * Lane<int32_t>(3) + Lane<int32_t>(d);
      at[d] = gather(origins, place) + gather(directions, place) * next;
    }
    store_rows<3>(points + 3 * i, at, 3, m);
  });
}

// The rays still under way, in order: places (n,) are 1 + where each goes.
template <class T>
void sphere_trace_keep(const int32_t* places, const int32_t* rays, const T* state, const T* points, int32_t* kept_rays, T* kept_state, T* kept_points,
                       int64_t kept, Threads<> n) {
  const int64_t stride = n;
  for_each(n, [=](int64_t i) {
    if (!(state[PHASE * stride + i] < T(HIT))) return;
    const int64_t to = places[i] - 1;
    kept_rays[to] = rays[i];
    for (int k = 0; k < ROWS; ++k) kept_state[k * kept + to] = state[k * stride + i];
    for (int d = 0; d < 3; ++d) kept_points[3 * to + d] = points[3 * i + d];
  });
}

POLYFIELD_OP(sphere_trace_step_f32, sphere_trace_step<float>)
POLYFIELD_OP(sphere_trace_step_f64, sphere_trace_step<double>)
POLYFIELD_OP(sphere_trace_keep_f32, sphere_trace_keep<float>)
POLYFIELD_OP(sphere_trace_keep_f64, sphere_trace_keep<double>)

}  // namespace polyfield
