// what the operators ask of tensors, through libtorch's stable interface
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <climits>
#include <vector>

// a torch for CPUs has no such symbol: there the library still loads, and its operators meet no tensor of theirs
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) __attribute__((weak));

namespace gsr {

using torch::stable::Tensor;

// a count of matrices, up to eight blocks each, that the kernels' 32 bits hold
inline int narrow(int64_t value, const char* name) {
  STD_TORCH_CHECK(0 <= value && value <= INT_MAX / 8, name, " must be from 0 to ", INT_MAX / 8, ", got ", value);
  return static_cast<int>(value);
}

inline cudaStream_t stream_of(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, "no current stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t error, const char* what) {
  // torch would report it of whatever it launches next
  if (error != cudaSuccess) cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// that an operator may hand a tensor on as it is
inline void check(const char* what, const Tensor& tensor, const char* name, int32_t dtype, const Tensor& first,
                  std::vector<int64_t> shape) {
  int32_t found = -1;
  bool fits = aoti_torch_get_dtype(tensor.get(), &found) == AOTI_TORCH_SUCCESS && found == dtype &&
              tensor.is_contiguous() && tensor.dim() == static_cast<int64_t>(shape.size()) &&
              tensor.is_cuda() == first.is_cuda() && tensor.get_device_index() == first.get_device_index();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = tensor.size(static_cast<int64_t>(i)) == shape[i];
  STD_TORCH_CHECK(fits, what, ": ", name,
                  " must be contiguous, on the first one's device, of the shape and dtype that the others make");
}

}  // namespace gsr
