// the sign-grouped rescale of a whole model
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace gsr {

// The largest k that a matrix may have.
constexpr int LONGEST = 16384;

// of one matrix: where its partial sums [parts, k] begin in `partials`, and its row [k] in S, g and delta. It lies on
// the device and is trusted to stay within them.
struct Segment {
  int64_t partials, place, parts, k;
};

// Equation (7) for `count` matrices, all float32: g is the sum of the partial sums in their order, delta = g' - g, and
// `finite` says of each matrix whether g was; where it was not, delta is 0. `longest` is the largest k, from 1 to
// LONGEST, else cudaErrorInvalidValue: a matrix too long for what it promises counts as not finite. `rho` lies on the
// device.
cudaError_t rescale(const Segment* segments, int count, int longest, const float* partials, const float* S,
                    const float* rho, float floor, float* g, float* delta, bool* finite, cudaStream_t stream);

}  // namespace gsr
