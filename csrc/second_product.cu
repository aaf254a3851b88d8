// a product fed by TMA to wgmma, with AdamW behind it, under the products of another tile
#include "second_product.h"

#include "update.cuh"

#include <cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp>

namespace gsr {
namespace {

using cutlass::half_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
// two blocks share what TMA brings of the right operand
using Cluster = Shape<Int<2>, Int<1>, Int<1>>;
// two groups of consumers take turns, each with a tile of its own: one multiplies while the other updates
using Tile = Shape<Int<128>, Int<128>, Int<64>>;
using Epilogue = cutlass::epilogue::collective::CollectiveEpilogue<
    cutlass::epilogue::Sm90TmaWarpSpecialized<IN, OUT, 16, false, false>, Tile, Strip, float, Stride, float, Stride,
    Update, cute::SM90_TMA_LOAD, Lies, Copy, cute::SM90_TMA_STORE, Lies, Copy,
    cute::Copy_Atom<cute::SM90_U32x4_STSM_N, half_t>, void>;
template <class Right>
using Kernel = cutlass::gemm::kernel::GemmUniversal<
    Shape<int, int, int, int>,
    typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, half_t, Row, 8, half_t, Right, 8, float, Tile, Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
        cutlass::gemm::KernelTmaWarpSpecializedPingpong>::CollectiveOp,
    Epilogue, void>;

template <class Right>
cudaError_t multiply(const Product& p, const Weight& weight, int device, cudaStream_t stream) {
  using Made = Kernel<Right>;
  // from one row of an operand to the next, and from one matrix; the third stride is known
  typename Made::StrideA left{};
  typename Made::StrideB right{};
  Stride row{};
  cute::get<0>(left) = p.depth;
  if constexpr (cute::is_same_v<typename Made::StrideB, Stride>)
    cute::get<0>(right) = p.depth;
  else
    cute::get<1>(right) = p.columns;
  cute::get<2>(left) = p.left_apart;
  cute::get<2>(right) = p.right_apart;
  cute::get<0>(row) = p.columns;
  cute::get<2>(row) = int64_t{p.rows} * p.columns;
  const auto half = [](const void* operand) { return static_cast<const half_t*>(operand); };
  const auto [W, m, v, G, scales, coefficients, finite] = weight;
  typename Made::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGemm,
      {p.rows, p.columns, p.depth, p.count},
      {half(p.left), left, half(p.right), right},
      {{{scales, coefficients, finite}, {G, W, row}, {m, 0, row}, {v, 0, row}, {}, {m, row}, {v, row}}, W, row, W, row},
      {},
      {}};
  arguments.hw_info = {device, cutlass::KernelHardwareInfo::query_device_multiprocessor_count(device)};
  return launch<Made>(arguments, stream);
}

}  // namespace

cudaError_t second_product_adamw(const Product& product, const Weight& weight, int device, cudaStream_t stream) {
  return product.lying ? multiply<Column>(product, weight, device, stream)
                       : multiply<Row>(product, weight, device, stream);
}

}  // namespace gsr
