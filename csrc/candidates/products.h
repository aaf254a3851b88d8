// products by CUTLASS on Hopper, and AdamW where G' arises
#pragma once

#include <cuda_runtime_api.h>

namespace gsr {

// left [rows, depth] times right, all of both contiguous bf16 at multiples of 16 bytes; columns and depth are multiples
// of 8. Else, and on a GPU other than Hopper's, the functions below return an error.
struct Product {
  const void *left, *right;
  int rows, columns, depth;
};

// what AdamW moves, float32 [rows, columns] at multiples of 16 bytes
struct Weight {
  float *W, *m, *v;
  // where it stays under the product, else null
  const float* G;
  // a row of csrc/candidates/adamw.cuh, and whether g was finite: where it was not, or `go` is 0, nothing moves
  const float* coefficients;
  const bool* finite;
};

// out [rows, columns] in bf16, of a right operand [columns, depth]: G V, of G and Vh. `device` is the current one.
cudaError_t first_product(const Product& product, void* out, int device, cudaStream_t stream);

// W, m and v after AdamW with G' = left right + G, of a right operand [depth, columns]
cudaError_t second_product_adamw(const Product& product, const Weight& weight, int device, cudaStream_t stream);

}  // namespace gsr
