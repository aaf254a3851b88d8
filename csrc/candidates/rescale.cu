// equation (7) for all matrices of a model in one launch: one matrix a thread block, its entries in registers
#include "rescale.h"

#include "rotation.cuh"

namespace gsr {
namespace {

constexpr int THREADS = 1024, WARPS = THREADS / WARP;
constexpr float INFINITE = __builtin_inff();

struct Most {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

// N values combined over the block, the same bits in every thread; `scratch` [N, WARPS] is used once
template <class Combine, int N>
__device__ void reduce(float (&values)[N], float* scratch, Combine combine) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int bit = WARP / 2; bit; bit /= 2) values[n] = combine(values[n], __shfl_xor_sync(FULL, values[n], bit));
    if (lane == 0) scratch[n * WARPS + warp] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = scratch[n * WARPS + lane];
#pragma unroll
    for (int bit = WARP / 2; bit; bit /= 2) values[n] = combine(values[n], __shfl_xor_sync(FULL, values[n], bit));
  }
}

// the power of two that takes x >= 0 to at most 1; it and its inverse are normal
__device__ inline float power_of_two(float x) {
  const int exponent = static_cast<int>(__float_as_uint(x) >> 23) - 126;
  return __uint_as_float((127 - min(max(exponent, -126), 126)) << 23);
}

__device__ inline float inverse(float power) { return __uint_as_float((254u << 23) - __float_as_uint(power)); }

// up to EACH entries a thread: the entries threadIdx.x, threadIdx.x + THREADS, ...
template <int EACH>
__global__ void __launch_bounds__(THREADS)
    rescale_all(const Segment* segments, const float* partials, const float* S, const float* p_rho, float floor,
                float* p_g, float* delta, bool* finite) {
  static_assert(WARPS == WARP);
  __shared__ float extremes[3 * WARPS], sums[4 * WARPS];
  const auto [first, place, parts, k] = segments[blockIdx.x];
  const int thread = threadIdx.x;
  const float rho = *p_rho;
  float g[EACH] = {};

  // 16 loads of a thread are under way together
  const float* p = partials + first + thread;
#pragma unroll(16 / EACH)
  for (int64_t part = 0; part < parts; ++part, p += k)
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (thread + i * THREADS < k) g[i] += p[i * THREADS];

  // largest |g|, largest sigma, and 1 for what is not finite or longer than the threads reach
  float most[3] = {0, 0, k > EACH * THREADS ? 1.0f : 0.0f};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int at = thread + i * THREADS;
    if (at >= k) continue;
    p_g[place + at] = g[i];
    most[0] = fmaxf(most[0], fabsf(g[i]));
    most[1] = fmaxf(most[1], S[place + at]);
    // false for NaN as well
    most[2] = fabsf(g[i]) < INFINITE ? most[2] : 1;
  }
  reduce(most, extremes, Most{});
  const bool moving = most[2] == 0 && rho > 0;
  // squares of 1e25 overflow and those of 1e-25 vanish
  const float scale = power_of_two(most[0]), back = inverse(scale), largest = most[1] > 0 ? most[1] : 1;

  // over the largest, 0 where it is below the floor; read anew, for it does not fit the registers beside g
  const auto sigma = [&](int at) {
    const float s = at < k ? S[place + at] : 0;
    return s > floor * most[1] ? s / largest : 0;
  };

  // of both sign groups the weights and the energies
  float totals[4] = {};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const float s = sigma(thread + i * THREADS), scaled = g[i] * scale, energy = scaled * scaled;
    // the sign is g's own: scaled may have become 0
    if (s > 0 && g[i] > 0) totals[0] += s, totals[1] += energy;
    if (s > 0 && g[i] < 0) totals[2] += 1 / s, totals[3] += energy;
  }
  reduce(totals, sums, Sum{});
  const float up = totals[1] / (totals[0] > 0 ? totals[0] : 1), down = totals[3] / (totals[2] > 0 ? totals[2] : 1);

#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int at = thread + i * THREADS;
    const float s = sigma(at), scaled = g[i] * scale, share = g[i] > 0 ? up * s : down / s;
    const float size = sqrtf((1 - rho) * (scaled * scaled) + rho * share);
    const bool moved = moving && s > 0 && g[i] != 0;
    if (at < k) delta[place + at] = moved ? (copysignf(size, scaled) - scaled) * back : 0;
  }
  if (thread == 0) finite[blockIdx.x] = most[2] == 0;
}

}  // namespace

cudaError_t rescale(const Segment* segments, int count, int longest, const float* partials, const float* S,
                    const float* rho, float floor, float* g, float* delta, bool* finite, cudaStream_t stream) {
  if (count < 0 || longest < 1 || longest > LONGEST) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  const auto kernel = longest <= 2 * THREADS   ? rescale_all<2>
                      : longest <= 4 * THREADS ? rescale_all<4>
                      : longest <= 8 * THREADS ? rescale_all<8>
                                               : rescale_all<16>;
  static_assert(LONGEST == 16 * THREADS);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(count);
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, segments, partials, S, rho, floor, g, delta, finite);
}

}  // namespace gsr
