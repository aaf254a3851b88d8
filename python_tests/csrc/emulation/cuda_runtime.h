// CUDA on a CPU, as much of it as csrc uses: every thread of a block is a fiber, every block of a cluster a thread of
// the system with shared memory of its own. Barriers and shuffles that not all threads reach end the program.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline
// of a block, which is a thread of the system
#define __shared__ constinit thread_local

struct float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline constinit thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

constexpr int LANES = 32;
constexpr size_t STACK = 1 << 16;

// what the tests choose: the GPU, none with negative memory, whose PTX runs on it, and whether the last thread goes
// first
inline int shared_memory = 232448, major = 9, ptx = 90;
inline bool backwards = false;
// told at the start of each block, to fill its dynamic shared memory with NaN
inline std::function<void()> poison = [] {};

enum class Waits { nowhere, warp, block, cluster, done };

struct Fiber {
  jmp_buf at;
  ucontext_t start;
  Waits waits = Waits::nowhere;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool started = false;
};

// what the members of a warp or block laid down before a barrier, and the turn before that for those still reading
struct Meeting {
  uint32_t values[2][1024] = {};
  int turn = 0;
};

struct Cluster {
  explicit Cluster(int size) : barrier(size), anchors(size) {}

  std::barrier<> barrier;
  std::vector<char*> anchors;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all{};
  Cluster* cluster = nullptr;
  int rank = 0, running = 0;
  jmp_buf scheduler{};
  std::function<void()> kernel{};
};

inline constinit thread_local Block* block = nullptr;
// thread-local variables of one library lie at the same distance from this one in every thread
inline constinit thread_local char anchor = 0;

inline void wait(Waits where) {
  Fiber& fiber = block->fibers[block->running];
  fiber.waits = where;
  if (!_setjmp(fiber.at)) _longjmp(block->scheduler, 1);
}

inline void enter() {
  block->kernel();
  wait(Waits::done);
}

inline void resume(int index) {
  Fiber& fiber = block->fibers[index];
  block->running = index;
  threadIdx.x = index;
  if (_setjmp(block->scheduler)) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

// lets the fibers first .. first + count go on that all wait at `where`
inline bool release(int first, int count, Waits where) {
  auto waiting = [&](int i) { return block->fibers[i].waits == where; };
  for (int i = first; i < first + count; ++i)
    if (!waiting(i)) return false;
  for (int i = first; i < first + count; ++i) block->fibers[i].waits = Waits::nowhere;
  return true;
}

inline void run_block() {
  const int threads = static_cast<int>(block->fibers.size()), warps = threads / LANES;
  while (true) {
    bool moved = false;
    for (int w = 0; w < warps; ++w) {
      const int warp = backwards ? warps - 1 - w : w;
      do {
        for (int l = 0; l < LANES; ++l) {
          const int index = warp * LANES + (backwards ? LANES - 1 - l : l);
          if (block->fibers[index].waits != Waits::nowhere) continue;
          resume(index);
          moved = true;
        }
        if (!release(warp * LANES, LANES, Waits::warp)) break;
        ++block->warps[warp].turn;
      } while (true);
    }
    if (release(0, threads, Waits::block)) {
      ++block->all.turn;
    } else if (release(0, threads, Waits::cluster)) {
      block->cluster->barrier.arrive_and_wait();
    } else if (std::all_of(block->fibers.begin(), block->fibers.end(),
                           [](auto& f) { return f.waits == Waits::done; })) {
      block->cluster->barrier.arrive_and_drop();
      return;
    } else if (!moved) {
      std::fprintf(stderr, "threads of a block wait at different barriers\n");
      std::abort();
    }
  }
}

// lays a value down, waits for the warp or block, and sees all of theirs
inline const uint32_t* meet(Meeting& meeting, int place, uint32_t value, Waits where) {
  uint32_t* values = meeting.values[meeting.turn % 2];
  values[place] = value;
  wait(where);
  return values;
}

inline const uint32_t* meet_warp(uint32_t value) {
  return meet(block->warps[threadIdx.x / LANES], threadIdx.x % LANES, value, Waits::warp);
}

inline const uint32_t* meet_block(uint32_t value) { return meet(block->all, threadIdx.x, value, Waits::block); }

inline uint32_t block_sum(uint32_t value) {
  const uint32_t* values = meet_block(value);
  return std::accumulate(values, values + blockDim.x, uint32_t{0});
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::Waits::block); }
inline int __syncthreads_count(int predicate) { return emulation::block_sum(predicate != 0); }
inline int __syncthreads_or(int predicate) { return emulation::block_sum(predicate != 0) != 0; }

inline float __shfl_sync(unsigned, float value, int lane) {
  return std::bit_cast<float>(emulation::meet_warp(std::bit_cast<uint32_t>(value))[lane]);
}
inline float __shfl_xor_sync(unsigned mask, float value, int bits) {
  return __shfl_sync(mask, value, threadIdx.x % emulation::LANES ^ bits);
}

inline unsigned atomicMax(unsigned* at, unsigned value) { return std::exchange(*at, std::max(*at, value)); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
using std::max;
using std::min;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoDevice = 100 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrClusterLaunch };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = void*;

struct cudaFuncAttributes {
  int ptxVersion;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulation::shared_memory : emulation::major >= 9;
  return emulation::shared_memory < 0 ? cudaErrorNoDevice : cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = emulation::ptx;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::shared_memory ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  using namespace emulation;
  const unsigned size = config->numAttrs ? config->attrs->val.clusterDim.x : 1, threads = config->blockDim.x;
  if (config->gridDim.x % size || threads % LANES || threads > 1024) return cudaErrorInvalidValue;
  for (unsigned first = 0; first < config->gridDim.x; first += size) {
    Cluster cluster(static_cast<int>(size));
    std::vector<std::thread> blocks;
    for (unsigned rank = 0; rank < size; ++rank)
      blocks.emplace_back([&, rank] {
        Block here{std::vector<Fiber>(threads), std::vector<Meeting>(threads / LANES)};
        here.cluster = &cluster;
        here.rank = static_cast<int>(rank);
        here.kernel = [&] { kernel(arguments...); };
        cluster.anchors[rank] = &anchor;
        block = &here;
        gridDim = config->gridDim, blockDim = config->blockDim, blockIdx.x = first + rank;
        poison();
        cluster.barrier.arrive_and_wait();
        run_block();
      });
    for (auto& thread : blocks) thread.join();
  }
  return cudaSuccess;
}
