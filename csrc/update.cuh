// the epilogue of the second product: AdamW on W, m and v, strip by strip of a tile
#pragma once

#include "adamw.cuh"
#include "hopper.cuh"

namespace gsr {

namespace fusion = cutlass::epilogue::fusion;
using cute::Int, cute::Shape, cutlass::Array;
using Stride = cutlass::detail::TagToStrideC_t<cutlass::layout::RowMajor>;

using Strip = Shape<Int<64>, Int<32>>;
// strips on their way in and out; with one more each the products would have three stages in place of four
constexpr int IN = 2, OUT = 1;
// how a strip lies in shared memory, a row of it 128 bytes, and how it gets to registers and back
using Lies = cute::GMMA::Layout_K_SW128_Atom<float>;
using Copy = cute::AutoVectorizingCopyWithAssumedAlignment<128>;
using Load = fusion::Sm90AuxLoad<IN, Strip, float, Stride, Lies, Copy>;
using Store = fusion::Sm90AuxStore<OUT, Strip, float, cutlass::FloatRoundStyle::round_to_nearest, Stride, Lies, Copy>;

// a node with arguments of its own, which asks for no workspace
template <class Base>
struct Node : Base {
  template <class Problem, class Arguments>
  static bool can_implement(const Problem&, const Arguments&) {
    return true;
  }

  template <class Problem, class Arguments>
  static size_t get_workspace_size(const Problem&, const Arguments&) {
    return 0;
  }

  template <class Problem, class Arguments>
  static cutlass::Status initialize_workspace(const Problem&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  using Base::Base;
};

// zeros where it is not kept; its descriptor is made of some address in any case
struct LoadGradient : Node<Load> {
  struct Arguments {
    const float *G, *other;
    Stride stride;
  };

  template <class Problem>
  static Params to_underlying_arguments(const Problem& problem, const Arguments& arguments, void* workspace) {
    const auto& [G, other, stride] = arguments;
    Params params = Load::to_underlying_arguments(problem, {G ? G : other, 0, stride}, workspace);
    params.use_default = !G;
    return params;
  }

  using Node<Load>::Node;
};

// the scale and the coefficients of a tile's matrix, and whether anything of it moves
struct Scalars : Node<fusion::Sm90VisitorImpl<>> {
  struct Arguments {
    const float *scales, *coefficients;
    const bool* finite;
  };
  using Params = Arguments;
  struct SharedStorage {};

  template <class Problem>
  static Params to_underlying_arguments(const Problem&, const Arguments& arguments, void*) {
    return arguments;
  }

  CUTLASS_HOST_DEVICE Scalars() {}
  CUTLASS_HOST_DEVICE Scalars(const Params& params, const SharedStorage&) : params(&params) {}

  struct ConsumerStoreCallbacks : fusion::EmptyConsumerStoreCallbacks {
    Coefficients coefficients;
    // one over the scale
    float inverse;
    bool moving;
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::ConsumerStoreArgs<Args...>& args) {
    const int matrix = cute::get<3>(args.tile_coord_mnkl);
    const float* c = params->coefficients + 9 * matrix;
    ConsumerStoreCallbacks callbacks{};
    callbacks.coefficients = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]};
    // exactly: a division may be compiled to an approximation
    callbacks.inverse = __int_as_float((254 << 23) - __float_as_int(params->scales[matrix]));
    callbacks.moving = params->finite[matrix] && c[0] != 0;
    return callbacks;
  }

  const Params* params;
};

// W lies where CUTLASS has C and D
using Parts = fusion::Sm90VisitorImpl<Scalars, LoadGradient, Load, Load, fusion::Sm90SrcFetch<float>, Store, Store>;

struct Update : Parts {
  using Parts::Parts;

  template <class Impl>
  struct ConsumerStoreCallbacks : Impl {
    CUTLASS_DEVICE ConsumerStoreCallbacks(Impl&& impl) : Impl(cute::forward<Impl>(impl)) {}

    using Impl::callbacks_tuple;

    template <int N>
    CUTLASS_DEVICE Array<float, N> visit(const Array<float, N>& product, int place, int row, int column) {
      const auto read = [&](auto& part) CUTLASS_LAMBDA_FUNC_INLINE { return part.visit(product, place, row, column); };
      const auto& scalars = cute::get<0>(callbacks_tuple);
      const auto G = read(cute::get<1>(callbacks_tuple));
      auto m = read(cute::get<2>(callbacks_tuple)), v = read(cute::get<3>(callbacks_tuple));
      auto W = read(cute::get<4>(callbacks_tuple));
      // what does not move is written as it was read
      if (scalars.moving) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < N; ++i) scalars.coefficients.update(product[i] * scalars.inverse + G[i], m[i], v[i], W[i]);
      }
      cute::get<5>(callbacks_tuple).visit(product, place, row, column, m);
      cute::get<6>(callbacks_tuple).visit(product, place, row, column, v);
      return W;
    }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(const fusion::ConsumerStoreArgs<Args...>& args) {
    auto impl = Parts::template get_consumer_store_callbacks<ReferenceSrc>(args);
    return ConsumerStoreCallbacks<decltype(impl)>(cute::move(impl));
  }
};

}  // namespace gsr
