// the candidates as operators of a library of their own
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "candidates/rescale.h"
#include "tensors.h"

namespace {

using gsr::check, gsr::narrow, gsr::stream_of, gsr::Tensor;

// segments [n, 4] int64 as rescale.h has them; float32 but for finite [n]; S, g and delta of one size
void rescale(Tensor segments, int64_t longest, Tensor partials, Tensor S, Tensor rho, double floor, Tensor g,
             Tensor delta, Tensor finite) {
  const auto fp32 = aoti_torch_dtype_float32();
  STD_TORCH_CHECK(segments.dim() == 2 && segments.is_cuda(), "rescale: segments must be [n, 4] on a CUDA device");
  const int count = narrow(segments.size(0), "the number of matrices");
  check("rescale", segments, "segments", aoti_torch_dtype_int64(), segments, {count, 4});
  check("rescale", partials, "partials", fp32, segments, {partials.numel()});
  for (const auto& [tensor, name] : {std::pair{S, "S"}, {g, "g"}, {delta, "delta"}})
    check("rescale", tensor, name, fp32, segments, {S.numel()});
  check("rescale", rho, "rho", fp32, segments, {1});
  check("rescale", finite, "finite", aoti_torch_dtype_bool(), segments, {count});
  STD_TORCH_CHECK(1 <= longest && longest <= gsr::LONGEST, "rescale: k must be from 1 to ", gsr::LONGEST, ", got ",
                  longest);
  const int32_t device = segments.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(gsr::rescale(static_cast<const gsr::Segment*>(segments.data_ptr()), count, static_cast<int>(longest),
                     static_cast<const float*>(partials.data_ptr()), static_cast<const float*>(S.data_ptr()),
                     static_cast<const float*>(rho.data_ptr()), static_cast<float>(floor),
                     static_cast<float*>(g.data_ptr()), static_cast<float*>(delta.data_ptr()),
                     static_cast<bool*>(finite.data_ptr()), stream_of(device)),
        "rescale");
}

}  // namespace

STABLE_TORCH_LIBRARY(gsr_candidates, m) {
  m.def(
      "rescale(Tensor segments, int longest, Tensor partials, Tensor S, Tensor rho, float floor, Tensor(a!) g, "
      "Tensor(b!) delta, Tensor(c!) finite) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gsr_candidates, CUDA, m) { m.impl("rescale", TORCH_BOX(&rescale)); }
