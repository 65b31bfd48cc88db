// The device functions that the CUDA kernels use. Under a plain C++ compiler the same names come from the CPU twin
// (tests/ops/twin), which runs the unchanged kernels under sanitizers.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "twin.h"
#else

#include <cuda_bf16.h>

namespace fasttrace {

using bfloat16 = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float* where, float x) { *where = x; }
__device__ inline void store(bfloat16* where, float x) { *where = __float2bfloat16_rn(x); }

// The block's dynamic shared memory, of the size given at the launch.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Copies 16 bytes, 16-byte aligned, from global to shared memory: the first `bytes` are read, the others become 0. This
// thread sees them once wait_copies<N> returns with at most N later groups in flight. Others also need a barrier.
__device__ inline void copy_async(void* to, const void* from, int bytes) {
  const auto target = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int later>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
}

// x rounded to the 11 significant bits of TF32, ties away from zero. A NaN may become a number; an infinity stays.
__device__ inline float nearest_tf32(float x) { return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u); }

// d (16, 8) += a (16, 8) b (8, 8) by a warp. The low 13 bits of a and b are ignored (TF32). Lane 4g + t holds
// a[g][t], a[g + 8][t], a[g][t + 4], a[g + 8][t + 4]; b[t][g], b[t + 4][g];
// d[g][2t], d[g][2t + 1], d[g + 8][2t], d[g + 8][2t + 1] (PTX ISA, m16n8k8).
__device__ inline void multiply_add(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Four 8 x 8 matrices of bfloat16 from shared memory, transposed. Lane 8i + r gives the address of row r of matrix i, a
// multiple of 16 bytes. Lane 4g + t gets elements [2t][g] and [2t + 1][g] of matrix i in x[i] (PTX ISA, ldmatrix).
__device__ inline void load_transposed(uint32_t (&x)[4], const bfloat16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// d (16, 8) += a (16, 16) b (16, 8) by a warp, of bfloat16. Lane 4g + t holds a[g][2t], a[g][2t + 1]; a[g + 8][2t], …;
// a[g][2t + 8], …; a[g + 8][2t + 8], …; b[2t][g], b[2t + 1][g]; b[2t + 8][g], …; and d as above (PTX ISA, m16n8k16).
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The sum of x over the warp, in every lane.
__device__ inline float warp_sum(float x) {
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}

}  // namespace fasttrace

#endif

namespace fasttrace {

// A kernel's launch configuration, the same on the device and in the twin.
struct Launch {
  unsigned across, down;  // blocks
  unsigned threads;
  size_t shared;  // bytes
};

// N values that are loaded and stored together.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

}  // namespace fasttrace
