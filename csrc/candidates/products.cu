// products fed by TMA to wgmma; the second with AdamW behind it, under the products of another tile
#include "products.h"

#include "update.cuh"

#include <cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_cooperative.hpp>
#include <cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp>

namespace gsr {
namespace {

using cutlass::bfloat16_t;
using Row = cutlass::layout::RowMajor;
using Column = cutlass::layout::ColumnMajor;
using Cluster = Shape<Int<2>, Int<1>, Int<1>>;

template <class Right, class Tile, class Schedule, class Epilogue>
using Kernel = cutlass::gemm::kernel::GemmUniversal<
    Shape<int, int, int, int>,
    typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, bfloat16_t, Row, 8, bfloat16_t, Right, 8, float, Tile,
        Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
        Schedule>::CollectiveOp,
    Epilogue, void>;

// both groups of consumers share the largest tile, which is stored as it is
using Large = Shape<Int<128>, Int<256>, Int<64>>;
using Narrow = cute::GMMA::Layout_K_SW64_Atom<bfloat16_t>;
using Stored = cutlass::epilogue::collective::CollectiveEpilogue<
    cutlass::epilogue::Sm90TmaWarpSpecialized<4, 2, 16, false, true>, Large, Shape<Int<128>, Int<32>>, void, Stride,
    bfloat16_t, Stride, fusion::Sm90AccFetch, cute::SM90_TMA_LOAD, Narrow, cute::SM75_U32x4_LDSM_N,
    cute::SM90_TMA_STORE, Narrow, cute::SM90_U32x4_STSM_N, cute::Copy_Atom<cute::SM90_U32x4_STSM_N, cutlass::half_t>,
    void>;
using First = Kernel<Column, Large, cutlass::gemm::KernelTmaWarpSpecializedCooperative, Stored>;

// they take turns, each with a tile of its own: one multiplies while the other updates
using Tile = Shape<Int<128>, Int<128>, Int<64>>;
using Updated = cutlass::epilogue::collective::CollectiveEpilogue<
    cutlass::epilogue::Sm90TmaWarpSpecialized<IN, OUT, 16, false, false>, Tile, Strip, float, Stride, float, Stride,
    Update, cute::SM90_TMA_LOAD, Lies, Copy, cute::SM90_TMA_STORE, Lies, Copy,
    cute::Copy_Atom<cute::SM90_U32x4_STSM_N, cutlass::half_t>, void>;
template <class Right>
using Second = Kernel<Right, Tile, cutlass::gemm::KernelTmaWarpSpecializedPingpong, Updated>;

template <class Kernel>
cudaError_t multiply(const Product& p, const typename Kernel::EpilogueArguments& epilogue, int device,
                     cudaStream_t stream) {
  // from one row of an operand to the next, and from one matrix; the third stride is known
  typename Kernel::StrideA left{};
  typename Kernel::StrideB right{};
  cute::get<0>(left) = p.depth;
  if constexpr (cute::is_same_v<typename Kernel::StrideB, Stride>)
    cute::get<0>(right) = p.depth;
  else
    cute::get<1>(right) = p.columns;
  cute::get<2>(left) = int64_t{p.rows} * p.depth;
  cute::get<2>(right) = int64_t{p.columns} * p.depth;
  const auto bf16 = [](const void* operand) { return static_cast<const bfloat16_t*>(operand); };
  typename Kernel::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                       {p.rows, p.columns, p.depth, p.count},
                                       {bf16(p.left), left, bf16(p.right), right},
                                       epilogue,
                                       {},
                                       {}};
  arguments.hw_info = {device, cutlass::KernelHardwareInfo::query_device_multiprocessor_count(device)};
  return launch<Kernel>(arguments, stream);
}

Stride rows_of(const Product& p) {
  Stride stride{};
  cute::get<0>(stride) = p.columns;
  cute::get<2>(stride) = int64_t{p.rows} * p.columns;
  return stride;
}

}  // namespace

cudaError_t first_product(const Product& product, void* out, int device, cudaStream_t stream) {
  if (!product.lying) return cudaErrorInvalidValue;
  const auto row = rows_of(product);
  return multiply<First>(product, {{}, nullptr, row, static_cast<bfloat16_t*>(out), row}, device, stream);
}

cudaError_t second_product_adamw(const Product& product, const Weight& weight, int device, cudaStream_t stream) {
  const auto [W, m, v, G, coefficients, finite] = weight;
  const auto row = rows_of(product);
  const Second<Row>::EpilogueArguments update{
      {{coefficients, finite}, {G, W, row}, {m, 0, row}, {v, 0, row}, {}, {m, row}, {v, row}}, W, row, W, row};
  return product.lying ? multiply<Second<Column>>(product, update, device, stream)
                       : multiply<Second<Row>>(product, update, device, stream);
}

}  // namespace gsr
