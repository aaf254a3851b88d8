// CUTLASS's kernels for Hopper and how one is launched
#pragma once

// a descriptor that could not be made ends the program on the host; on the GPU asserts would cost registers
#ifdef __CUDA_ARCH__
#define NDEBUG
#endif

#include <cuda_runtime_api.h>

#include <cutlass/gemm/collective/collective_mma_decl.hpp>

// Hopper's alone: the headers for all GPUs take several times as long to compile. This is what they declare.
namespace cutlass::epilogue::collective {
template <class Policy, class... Arguments>
class CollectiveEpilogue;
}

#include <cutlass/device_kernel.h>
#include <cutlass/epilogue/collective/sm90_epilogue_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/builders/sm90_gmma_builder.inl>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp>

namespace gsr {

// one kernel in clusters, with the shared memory that it asks for
template <class Kernel>
cudaError_t launch(const typename Kernel::Arguments& arguments, cudaStream_t stream) {
  if (!Kernel::can_implement(arguments)) return cudaErrorInvalidValue;
  const auto kernel = cutlass::device_kernel<Kernel>;
  constexpr int shared = Kernel::SharedStorageSize;
  const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const auto params = Kernel::to_underlying_arguments(arguments, nullptr);
  using Cluster = typename Kernel::ClusterShape;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cute::size<0>(Cluster{}), cute::size<1>(Cluster{}), 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace gsr
