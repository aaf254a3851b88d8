// products by CUTLASS on Hopper, and AdamW where G' arises
#pragma once

#include <cuda_runtime_api.h>

namespace gsr {

// `count` products of one shape in one launch, matrix after matrix: left [rows, depth] times right, which is
// [columns, depth] if `lying`, else [depth, columns]. All of both is contiguous bf16 at multiples of 16 bytes; columns
// and depth are multiples of 8. Else, and on a GPU other than Hopper's, the functions below return an error.
struct Product {
  const void *left, *right;
  int count, rows, columns, depth;
  bool lying;
};

// what AdamW moves, float32 [count, rows, columns] at multiples of 16 bytes
struct Weight {
  float *W, *m, *v;
  // where it stays under the product, else null
  const float* G;
  // of each matrix a row of adamw.cuh, and whether g was finite: where it was not, or `go` is 0, nothing moves
  const float* coefficients;
  const bool* finite;
};

// out [count, rows, columns] in bf16, of right operands that lie: G V, of G and Vh. `device` is the current one.
cudaError_t first_product(const Product& product, void* out, int device, cudaStream_t stream);

// W, m and v after AdamW with G' = left right + G, of either
cudaError_t second_product_adamw(const Product& product, const Weight& weight, int device, cudaStream_t stream);

}  // namespace gsr
