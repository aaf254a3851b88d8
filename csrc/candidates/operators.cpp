// the candidates as operators of a library of their own; the products only where CUTLASS was found
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "candidates/products.h"
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

#ifdef PRODUCTS
void aligned(const char* what, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, what, ": ", name,
                  " must begin at a multiple of 16 bytes");
}

// left [count, rows, depth] and right, both bf16: [count, columns, depth] if lying, else [count, depth, columns]
gsr::Product product_of(const char* what, const Tensor& left, const Tensor& right, bool lying) {
  STD_TORCH_CHECK(left.dim() == 3 && right.dim() == 3 && left.is_cuda(), what,
                  ": left and right must be [count, rows, columns] on a CUDA device");
  const int64_t count = left.size(0), rows = left.size(1), depth = left.size(2), columns = right.size(lying ? 1 : 2);
  STD_TORCH_CHECK(count > 0 && rows > 0 && columns > 0 && depth > 0 && columns % 8 == 0 && depth % 8 == 0, what,
                  ": columns and depth must be multiples of 8, got ", columns, " and ", depth);
  check(what, left, "left", aoti_torch_dtype_bfloat16(), left, {count, rows, depth});
  check(what, right, "right", aoti_torch_dtype_bfloat16(), left,
        lying ? std::vector{count, columns, depth} : std::vector{count, depth, columns});
  aligned(what, left, "left");
  aligned(what, right, "right");
  return {left.data_ptr(),
          right.data_ptr(),
          narrow(count, "count"),
          narrow(rows, "rows"),
          narrow(columns, "columns"),
          narrow(depth, "depth"),
          lying};
}

void first_product(Tensor left, Tensor right, Tensor out) {
  const gsr::Product product = product_of("first_product", left, right, true);
  check("first_product", out, "out", aoti_torch_dtype_bfloat16(), left, {product.count, product.rows, product.columns});
  aligned("first_product", out, "out");
  const int32_t device = left.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(gsr::first_product(product, out.data_ptr(), device, stream_of(device)), "first_product");
}

// W, m, v and G [count, rows, columns], coefficients [count, 9], all float32, finite [count]; G is added if it is kept
void second_product_adamw(Tensor left, Tensor right, bool lying, Tensor G, bool kept, Tensor coefficients,
                          Tensor finite, Tensor W, Tensor m, Tensor v) {
  const char* what = "second_product_adamw";
  const gsr::Product product = product_of(what, left, right, lying);
  const auto fp32 = aoti_torch_dtype_float32();
  for (const auto& [tensor, name] : {std::pair{G, "G"}, {W, "W"}, {m, "m"}, {v, "v"}}) {
    check(what, tensor, name, fp32, left, {product.count, product.rows, product.columns});
    aligned(what, tensor, name);
  }
  check(what, coefficients, "coefficients", fp32, left, {product.count, 9});
  check(what, finite, "finite", aoti_torch_dtype_bool(), left, {product.count});
  const gsr::Weight weight{static_cast<float*>(W.data_ptr()),
                           static_cast<float*>(m.data_ptr()),
                           static_cast<float*>(v.data_ptr()),
                           kept ? static_cast<const float*>(G.data_ptr()) : nullptr,
                           static_cast<const float*>(coefficients.data_ptr()),
                           static_cast<const bool*>(finite.data_ptr())};
  const int32_t device = left.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check(gsr::second_product_adamw(product, weight, device, stream_of(device)), what);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY(gsr_candidates, m) {
  m.def(
      "rescale(Tensor segments, int longest, Tensor partials, Tensor S, Tensor rho, float floor, Tensor(a!) g, "
      "Tensor(b!) delta, Tensor(c!) finite) -> ()");
#ifdef PRODUCTS
  m.def("first_product(Tensor left, Tensor right, Tensor(a!) out) -> ()");
  m.def(
      "second_product_adamw(Tensor left, Tensor right, bool lying, Tensor G, bool kept, Tensor coefficients, "
      "Tensor finite, Tensor(a!) W, Tensor(b!) m, Tensor(c!) v) -> ()");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(gsr_candidates, CUDA, m) {
  m.impl("rescale", TORCH_BOX(&rescale));
#ifdef PRODUCTS
  m.impl("first_product", TORCH_BOX(&first_product));
  m.impl("second_product_adamw", TORCH_BOX(&second_product_adamw));
#endif
}
