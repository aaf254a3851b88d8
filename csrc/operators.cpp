// the operators, registered through libtorch's stable interface: one build serves torch 2.10 and later
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "small_svd.h"
#include "tensors.h"

namespace {

using gsr::check, gsr::narrow, gsr::stream_of, gsr::Tensor;

int64_t small_svd_limit(int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(narrow(device, "device"));
  int k = 0;
  check(gsr::small_svd_limit(static_cast<int>(device), k), "small_svd_limit");
  return k;
}

// A [b, k, k], U and Vh alike, S [b, k] in float32; sweeps [b] in int32
void small_svd(Tensor A, Tensor U, Tensor S, Tensor Vh, Tensor sweeps, int64_t most) {
  STD_TORCH_CHECK(A.dim() == 3, "small_svd: A must be [b, k, k], got ", A.dim(), " dimensions");
  const int count = narrow(A.size(0), "the number of matrices"), k = narrow(A.size(2), "k");
  check("small_svd", A, "A", aoti_torch_dtype_float32(), A, {count, k, k});
  check("small_svd", U, "U", aoti_torch_dtype_float32(), A, {count, k, k});
  check("small_svd", S, "S", aoti_torch_dtype_float32(), A, {count, k});
  check("small_svd", Vh, "Vh", aoti_torch_dtype_float32(), A, {count, k, k});
  check("small_svd", sweeps, "sweeps", aoti_torch_dtype_int32(), A, {count});
  const int limit = narrow(most, "most");
  STD_TORCH_CHECK(A.is_cuda(), "small_svd: A must be on a CUDA device");
  const int32_t device = A.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(gsr::small_svd(static_cast<const float*>(A.data_ptr()), static_cast<float*>(U.data_ptr()),
                       static_cast<float*>(S.data_ptr()), static_cast<float*>(Vh.data_ptr()),
                       static_cast<int*>(sweeps.data_ptr()), count, k, limit, device, stream_of(device)),
        "small_svd");
}

}  // namespace

STABLE_TORCH_LIBRARY(gsr_kernels_cuda, m) {
  m.def("small_svd_limit(int device) -> int");
  m.def("small_svd(Tensor A, Tensor(a!) U, Tensor(b!) S, Tensor(c!) Vh, Tensor(d!) sweeps, int most) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gsr_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("small_svd_limit", TORCH_BOX(&small_svd_limit));
}

STABLE_TORCH_LIBRARY_IMPL(gsr_kernels_cuda, CUDA, m) { m.impl("small_svd", TORCH_BOX(&small_svd)); }
