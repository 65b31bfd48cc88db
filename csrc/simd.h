// One wheel serves every x86 CPU: each kernel body is compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#define FT_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <cpuid.h>
#if !defined(__clang__)  // Clang refuses instructions on vectors that the body's own target lacks.
#define FT_ROUNDS_BFLOAT16
#endif
#define FT_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define FT_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace fasttrace {

enum class Isa { baseline, avx2, avx512 };

// The widest instruction set this CPU has. The tests reach the others by compiling with FASTTRACE_ISA.
inline Isa isa() {
#if defined(FASTTRACE_ISA)
  return Isa(FASTTRACE_ISA);
#elif defined(__x86_64__)
  static const Isa found = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::baseline;
  }();
  return found;
#else
  return Isa::baseline;
#endif
}

struct Bfloat16;

// Whether this CPU multiplies and rounds bfloat16 by itself. The tests leave that out with FASTTRACE_PRODUCTS=0.
inline bool has_avx512_bf16() {
#if defined(__x86_64__)
#if defined(FASTTRACE_PRODUCTS)
  if (FASTTRACE_PRODUCTS == 0) return false;
#endif
  static const bool found = [] {
    unsigned a, b, c, d;
    return isa() == Isa::avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
  }();
  return found;
#else
  return false;
#endif
}

// A body is compiled once per instruction set, each time in a separate function into which all of it is inlined.
template <class Body, class... Arguments>
void in_baseline(const Body& body, Arguments... arguments) {
  body(arguments...);
}

#if defined(__x86_64__)
template <class Body, class... Arguments>
FT_AVX2 void in_avx2(const Body& body, Arguments... arguments) {
  body(arguments...);
}

template <class Body, class... Arguments>
FT_AVX512 void in_avx512(const Body& body, Arguments... arguments) {
  body(arguments...);
}
#endif

// The function that runs a body with the instruction set of this CPU.
template <class Body, class... Arguments>
auto compiled_here() -> void (*)(const Body&, Arguments...) {
#if defined(__x86_64__)
  if constexpr ((std::is_same_v<std::remove_cv_t<std::remove_pointer_t<Arguments>>, Bfloat16> || ...)) {
    return in_avx512<Body, Arguments...>;
  } else {
    if (isa() == Isa::avx512) return in_avx512<Body, Arguments...>;
    if (isa() == Isa::avx2) return in_avx2<Body, Arguments...>;
    return in_baseline<Body, Arguments...>;
  }
#else
  return in_baseline<Body, Arguments...>;
#endif
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Memory for `count` elements that begins at a cache line.
template <class T>
std::unique_ptr<T[], Free> aligned(int64_t count) {
  const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes ? bytes : 64);
  if (p == nullptr) throw std::bad_alloc();
  return std::unique_ptr<T[], Free>(static_cast<T*>(p));
}

// bfloat16 is the upper half of a float32.
FT_INLINE float widen(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

FT_INLINE float widen(float value) { return value; }

// Rounds to nearest, ties to even; a NaN stays NaN.
FT_INLINE uint16_t narrow_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

FT_INLINE void store(float* where, float value) { *where = value; }
FT_INLINE void store(uint16_t* where, float value) { *where = narrow_bfloat16(value); }

// V lanes at once. A vector wider than the instruction set's own is compiled to several.
template <int64_t V>
struct Simd;

// By a macro, because GCC 12 converts no vector whose type depends on a template's argument.
// The store of bfloat16 rounds as narrow_bfloat16 does.
#define FT_SIMD(V)                                                                                    \
  template <>                                                                                         \
  struct Simd<V> {                                                                                    \
    typedef float Floats __attribute__((vector_size(V * 4), aligned(4), may_alias));                  \
    typedef int32_t Integers __attribute__((vector_size(V * 4)));                                     \
    typedef uint32_t Words __attribute__((vector_size(V * 4)));                                       \
    typedef uint16_t Halves __attribute__((vector_size(V * 2), aligned(2), may_alias));               \
    static FT_INLINE Floats of(Integers v) { return __builtin_convertvector(v, Floats); }             \
    static FT_INLINE Floats load(const float* from) { return *(const Floats*)from; }                  \
    static FT_INLINE Floats load(const uint16_t* from) {                                              \
      return (Floats)(__builtin_convertvector(*(const Halves*)from, Words) << 16);                    \
    }                                                                                                 \
    static FT_INLINE void store(float* to, Floats value) { *(Floats*)to = value; }                    \
    static FT_INLINE void store(uint16_t* to, Floats value) {                                         \
      const Words bits = (Words)value;                                                                \
      const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;                             \
      const Words kept = (bits & 0x7fffffffu) > 0x7f800000u ? Words{} + 0x7fc0u : rounded;            \
      *(Halves*)to = __builtin_convertvector(kept, Halves);                                           \
    }                                                                                                 \
  };
FT_SIMD(4)
FT_SIMD(8)
FT_SIMD(16)
#undef FT_SIMD

// The vectors of element-wise kernels.
constexpr int64_t kLanes = 16;
using Floats = Simd<kLanes>::Floats;

template <class T>
FT_INLINE Floats load(const T* from) {
  return Simd<kLanes>::load(from);
}

template <class T>
FT_INLINE void store(T* to, Floats value) {
  Simd<kLanes>::store(to, value);
}

#if defined(FT_ROUNDS_BFLOAT16)
// bfloat16 in kernels that have AVX512_BF16, which rounds in one instruction instead of ten and takes subnormal numbers
// for 0. The instructions are written here because intrinsics cannot be inlined into a body that has no target yet.
struct Bfloat16 {
  uint16_t bits;
};

FT_INLINE float widen(Bfloat16 value) { return widen(value.bits); }

FT_INLINE void store(Bfloat16* where, float value) {
  const uint16_t bits = narrow_bfloat16(value);
  where->bits = bits & 0x7f80u ? bits : uint16_t(bits & 0x8000u);
}

FT_INLINE Floats load(const Bfloat16* from) {
  Simd<kLanes>::Words wide;
  asm("vpmovzxwd %1, %0" : "=v"(wide) : "vm"(*reinterpret_cast<const Simd<kLanes>::Halves*>(from)));
  return (Floats)(wide << 16);
}

FT_INLINE void store(Bfloat16* to, Floats value) {
  Simd<kLanes>::Halves rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(value));
  *reinterpret_cast<Simd<kLanes>::Halves*>(to) = rounded;
}
#endif

}  // namespace fasttrace
