// the second product of a step by CUTLASS on Hopper, and AdamW where G' arises
#pragma once

#include <cuda_runtime_api.h>

namespace gsr {

// `count` matrices [rows, depth] times [columns, depth] if `lying`, else [depth, columns], in one launch. Both are fp16
// at multiples of 16 bytes, each matrix without gaps and `left_apart` or `right_apart` elements from the next. columns,
// depth and what lies apart are multiples of 8. Else, and on a GPU other than Hopper's, an error is returned.
struct Product {
  const void *left, *right;
  int64_t left_apart, right_apart;
  int count, rows, columns, depth;
  bool lying;
};

// what AdamW moves, float32 [count, rows, columns] at multiples of 16 bytes
struct Weight {
  float *W, *m, *v;
  // where it stays under the product, else null
  const float* G;
  // of each matrix the power of two that its product was multiplied by
  const float* scales;
  // of each matrix a row of adamw.cuh, and whether g was finite: where it was not, or `go` is 0, nothing moves
  const float* coefficients;
  const bool* finite;
};

// W, m and v after AdamW with G' = left right / scale + G. `device` is the current one.
cudaError_t second_product_adamw(const Product& product, const Weight& weight, int device, cudaStream_t stream);

}  // namespace gsr
