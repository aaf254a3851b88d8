// the operators, registered through libtorch's stable interface: one build serves torch 2.10 and later
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "second_product.h"
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

#ifdef WITH_CUTLASS
void aligned(const char* what, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, what, ": ", name,
                  " must begin at a multiple of 16 bytes");
}

// fp16 [count, rows, columns] of a shape, each matrix without gaps; returns what lies from one to the next
int64_t apart(const char* what, const Tensor& tensor, const char* name, const Tensor& first, int64_t count,
              int64_t rows, int64_t columns) {
  int32_t dtype = -1;
  const bool known = aoti_torch_get_dtype(tensor.get(), &dtype) == AOTI_TORCH_SUCCESS;
  STD_TORCH_CHECK(known && dtype == aoti_torch_dtype_float16() && tensor.dim() == 3 && tensor.size(0) == count &&
                      tensor.size(1) == rows && tensor.size(2) == columns && tensor.stride(2) == 1 &&
                      tensor.stride(1) == columns && tensor.stride(0) % 8 == 0 && tensor.is_cuda() &&
                      tensor.get_device_index() == first.get_device_index(),
                  what, ": ", name, " must be fp16 [", count, ", ", rows, ", ", columns,
                  "] on the first one's device, its matrices without gaps and a multiple of 8 elements apart");
  aligned(what, tensor, name);
  return tensor.stride(0);
}

// left [count, rows, depth] and right, fp16: [count, columns, depth] if lying, else [count, depth, columns]. W, m, v
// and G [count, rows, columns], scales [count], coefficients [count, 9], all float32, finite [count]; G is added if
// kept
void second_product_adamw(Tensor left, Tensor right, bool lying, Tensor G, bool kept, Tensor scales,
                          Tensor coefficients, Tensor finite, Tensor W, Tensor m, Tensor v) {
  const char* what = "second_product_adamw";
  STD_TORCH_CHECK(left.dim() == 3 && right.dim() == 3 && left.is_cuda(), what,
                  ": left and right must be [count, rows, columns] on a CUDA device");
  const int64_t count = left.size(0), rows = left.size(1), depth = left.size(2), columns = right.size(lying ? 1 : 2);
  STD_TORCH_CHECK(count > 0 && rows > 0 && columns > 0 && depth > 0 && columns % 8 == 0 && depth % 8 == 0, what,
                  ": columns and depth must be multiples of 8, got ", columns, " and ", depth);
  const gsr::Product product{left.data_ptr(),
                             right.data_ptr(),
                             apart(what, left, "left", left, count, rows, depth),
                             apart(what, right, "right", left, count, lying ? columns : depth, lying ? depth : columns),
                             narrow(count, "count"),
                             narrow(rows, "rows"),
                             narrow(columns, "columns"),
                             narrow(depth, "depth"),
                             lying};
  const auto fp32 = aoti_torch_dtype_float32();
  for (const auto& [tensor, name] : {std::pair{W, "W"}, {m, "m"}, {v, "v"}, {kept ? G : W, "G"}}) {
    check(what, tensor, name, fp32, left, {count, rows, columns});
    aligned(what, tensor, name);
  }
  check(what, scales, "scales", fp32, left, {count});
  check(what, coefficients, "coefficients", fp32, left, {count, 9});
  check(what, finite, "finite", aoti_torch_dtype_bool(), left, {count});
  const gsr::Weight weight{static_cast<float*>(W.data_ptr()),
                           static_cast<float*>(m.data_ptr()),
                           static_cast<float*>(v.data_ptr()),
                           kept ? static_cast<const float*>(G.data_ptr()) : nullptr,
                           static_cast<const float*>(scales.data_ptr()),
                           static_cast<const float*>(coefficients.data_ptr()),
                           static_cast<const bool*>(finite.data_ptr())};
  const int32_t device = left.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(gsr::second_product_adamw(product, weight, device, stream_of(device)), what);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY(gsr_kernels_cuda, m) {
  m.def("small_svd_limit(int device) -> int");
  m.def("small_svd(Tensor A, Tensor(a!) U, Tensor(b!) S, Tensor(c!) Vh, Tensor(d!) sweeps, int most) -> ()");
#ifdef WITH_CUTLASS
  m.def(
      "second_product_adamw(Tensor left, Tensor right, bool lying, Tensor G, bool kept, Tensor scales, "
      "Tensor coefficients, Tensor finite, Tensor(a!) W, Tensor(b!) m, Tensor(c!) v) -> ()");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(gsr_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("small_svd_limit", TORCH_BOX(&small_svd_limit));
}

STABLE_TORCH_LIBRARY_IMPL(gsr_kernels_cuda, CUDA, m) {
  m.impl("small_svd", TORCH_BOX(&small_svd));
#ifdef WITH_CUTLASS
  m.impl("second_product_adamw", TORCH_BOX(&second_product_adamw));
#endif
}
