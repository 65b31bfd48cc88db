// Sums of words, each times the factor of its place, modulo 2^64.
#include <algorithm>
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"

namespace fasttrace {
namespace {

// Sums computed together read each factor once. Computed one by one, they take nearly twice as long, because the words
// drive the factors out of the first-level cache.
constexpr int64_t kTogether = 8;

// Weights mapped from a file may begin at any byte.
template <class T>
FT_INLINE uint64_t extended(const T* at) {
  T word;
  std::memcpy(&word, at, sizeof word);
  return uint64_t(int64_t(word));
}

struct BitSums {
  const uint64_t* factors;
  int64_t count;  // of the words

  template <class T>
  FT_INLINE void operator()(const T* words, int64_t* sums, int64_t begin, int64_t end) const {
    int64_t i = begin;
    for (; i + kTogether <= end && (i + kTogether) * kBitSumWords <= count; i += kTogether)
      sum<kTogether>(words + i * kBitSumWords, kBitSumWords, sums + i);
    for (; i < end; ++i) {
      const int64_t left = count - i * kBitSumWords;
      sum<1>(words + i * kBitSumWords, left < kBitSumWords ? left : kBitSumWords, sums + i);
    }
  }

  // The sums of `rows` rows of kBitSumWords, over their first `width` words.
  template <int64_t rows, class T>
  FT_INLINE void sum(const T* words, int64_t width, int64_t* to) const {
    uint64_t sums[rows] = {};
    for (int64_t j = 0; j < width; ++j)
      for (int64_t row = 0; row < rows; ++row) sums[row] += extended(words + row * kBitSumWords + j) * factors[j];
    for (int64_t row = 0; row < rows; ++row) to[row] = int64_t(sums[row]);
  }
};

template <class T>
void over(const BitSums& body, const Tensor& words, int64_t* sums, int64_t end) {
  auto* kernel = compiled_here<BitSums, const T*, int64_t*, int64_t, int64_t>();
  const T* from = static_cast<const T*>(words.const_data_ptr());
  // Threads take whole groups. Four of them, some 30 microseconds, are worth a thread.
  torch::stable::parallel_for(0, (end + kTogether - 1) / kTogether, 4, [&](int64_t first, int64_t last) {
    kernel(body, from, sums, first * kTogether, std::min(end, last * kTogether));
  });
}

}  // namespace

void bit_sums_cpu(const Tensor words, const Tensor factors, Tensor sums) {
  check_bit_sums(words, factors, sums);
  const BitSums body{static_cast<const uint64_t*>(factors.const_data_ptr()), words.size(0)};
  auto* to = static_cast<int64_t*>(sums.mutable_data_ptr());
  if (words.scalar_type() == ScalarType::Int)
    over<int32_t>(body, words, to, sums.size(0));
  else if (words.scalar_type() == ScalarType::Short)
    over<int16_t>(body, words, to, sums.size(0));
  else
    over<int8_t>(body, words, to, sums.size(0));
}

}  // namespace fasttrace
