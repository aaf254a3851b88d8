// csrc/candidates, and of the second product AdamW: what runs on a CPU
#include "cuda_runtime.h"

#include "adamw.cuh"
#include "candidates/rescale.cu"

extern "C" {

void emulate(bool backwards) { emulation::backwards = backwards; }

int rescale(const gsr::Segment* segments, int count, int longest, const float* partials, const float* S,
            const float* rho, float floor, float* g, float* delta, bool* finite) {
  return gsr::rescale(segments, count, longest, partials, S, rho, floor, g, delta, finite, nullptr);
}

void update(const gsr::Coefficients* coefficients, int count, const float* g, float* m, float* v, float* w) {
  for (int i = 0; i < count; ++i) coefficients->update(g[i], m[i], v[i], w[i]);
}
}
