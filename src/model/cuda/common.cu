// The device code of a forward in bfloat16. Compiled at start for one model, whose sizes are macros:
//   HIDDEN d, MLP m, HEADS H, KV_HEADS G, HEAD_SIZE D, ROTARY R of them rotated, EPS of the norm; LOGITS rows of the head, VOCAB
//   and MASK_TOKEN: only ids below VOCAB that are not MASK_TOKEN are chosen.
// Includes nothing, so that compiling needs no CUDA toolkit. `row_ops.h`, `attention.h` and
// `sampler.h` have the same steps in ATen, which these are tested against.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef long long i64;

#define QKV ((HEADS + 2 * KV_HEADS) * HEAD_SIZE)
#define LOG2E 1.4426950408889634f

__device__ __forceinline__ float low(u32 two) { return __uint_as_float(two << 16); }
__device__ __forceinline__ float high(u32 two) { return __uint_as_float(two & 0xffff0000u); }
/// Rounds two to nearest even.
__device__ __forceinline__ u32 pack(float first, float second) {
  u32 two;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(second), "f"(first));
  return two;
}
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// c [16, 8] += a [16, 16] b [16, 8].
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                         u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// 16 bytes on their way to their place in shared memory, past the first-level cache.
__device__ __forceinline__ void fetch(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;"
               :
               : "r"((u32)__cvta_generic_to_shared(to)), "l"(from)
               : "memory");
}
__device__ __forceinline__ void end_of_step() { asm volatile("cp.async.commit_group;" : : : "memory"); }
/// All steps but the last `kLeft` have arrived.
template <int kLeft>
__device__ __forceinline__ void wait_for_steps() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kLeft) : "memory");
}
