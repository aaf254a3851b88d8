// AdamW (Loshchilov and Hutter 2019) on one entry, from G' as it arises
#pragma once

namespace gsr {

// a row of the coefficients that gsr_kernels/backends/triton/adamw_kernels.py prepares
struct Coefficients {
  float go, unscale, fresh1, beta, fresh2, rate, root, floor, decay;

  __host__ __device__ __forceinline__ void update(float g, float& m, float& v, float& w) const {
    g *= unscale;
    m += fresh1 * (g - m);
    v = beta * v + fresh2 * g * g;
    w = w * decay - rate * m / (sqrtf(v) * root + floor);
  }
};

}  // namespace gsr
