// exp in float32 without a branch, so that the compiler vectorises a loop over it for every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace fasttrace {

// 2 to the integer power n, -126 to 127.
FT_INLINE float power_of_two(int32_t n) {
  const uint32_t bits = uint32_t(n + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// e to the x, within 2 units in the last place, subnormal results included; infinite from 88.73, 0 below -103.98.
// A NaN gives some number, because handling it here would need a branch; the caller still has the NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, where the Taylor polynomial of degree 7 is wrong by less than 2^-27.
FT_INLINE float vector_exp(float x) {
  constexpr float to_whole = 12582912.0f;  // 1.5 * 2^23: adding x to it rounds x to a whole number
  // Clamped to [-104, 89] as integers: the same clamp on floats compiles to branches and is not vectorised.
  uint32_t pattern;
  std::memcpy(&pattern, &x, sizeof pattern);
  pattern = pattern < 0xc2d00000u ? pattern : 0xc2d00000u;
  const int32_t below = int32_t(pattern) < 0x42b20000 ? int32_t(pattern) : 0x42b20000;
  std::memcpy(&x, &below, sizeof x);
  const float shifted = x * 1.44269504088896341f + to_whole, n = shifted - to_whole;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const int32_t whole = int32_t(uint32_t(bits) - 0x4b400000u);
  // ln 2 in two parts. The first has nine bits, so n times it is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * (r * r) + r;
  sum += 1.0f;
  // In two steps: 2^n alone overflows for the largest x and is subnormal for the smallest.
  const int32_t half = whole >> 1;
  return sum * power_of_two(half) * power_of_two(whole - half);
}

FT_INLINE Floats vector_exp(Floats x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = vector_exp(lanes[i]);
  return load(lanes);
}

}  // namespace fasttrace
