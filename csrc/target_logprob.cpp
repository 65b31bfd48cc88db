// The score of bfloat16 rows: log p of one token a row from products of bfloat16, and its gradient. No logit is stored,
// and none is rounded to bfloat16.
//
// The product is U xᵀ: tokens by rows. U is read in place and x is packed once. A vector then holds one token's logits
// of 16 rows, so maxima and sums of exponentials need no sum across a vector. The vocabulary is cut into shares, which
// are merged in their order. Neither a share nor a row's sums depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <optional>

#include <torch/csrc/stable/ops.h>

#include "bfloat16_products.h"
#include "checks.h"
#include "ops.h"
#include "simd.h"
#include "vector_exp.h"

namespace fasttrace {
namespace {

constexpr int64_t kPanel = 2 * kTile;          // tokens, and at most as many rows, in one product
constexpr int64_t kShare = 2048;               // tokens whose sums are merged in float64
constexpr int64_t kDeep = 256;                 // tokens that one product of the gradient sums: their U is packed once
constexpr int64_t kPackedBytes = 512 * 1024;   // of x that stay in the second-level cache beside a panel of U
constexpr int64_t kGradientRows = 128;         // rows whose gradients of all shares are kept at once,
constexpr int64_t kGradientBytes = 32 << 20;   // as far as they stay below this

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The greater of two, NaN if one is.
FT_INLINE float greater(float a, float b) { return b <= a || a != a ? a : b; }

struct Unembedding {
  const uint16_t* U;  // element (v, j): U[v · row + j · column]
  int64_t vocab, d, row, column;
  const uint16_t* bias;  // null: none
  float softcap;         // 0: none

  int64_t depth() const { return round_up(d, kDepth); }

  // 32 tokens from `first`, in place if all can be read there, else copied into `scratch`, filled up with zeros.
  const uint16_t* panel(int64_t first, uint16_t* scratch, int64_t* stride) const {
    if (column == 1 && d % kDepth == 0 && first + kPanel <= vocab) {
      *stride = row;
      return U + first * row;
    }
    *stride = depth();
    for (int64_t i = 0; i < kPanel; ++i)
      for (int64_t j = 0; j < depth(); ++j)
        scratch[i * depth() + j] = first + i < vocab && j < d ? U[(first + i) * row + j * column] : uint16_t(0);
    return scratch;
  }
};

// Scores' arguments, with x packed.
struct Scores {
  Unembedding unembedding;
  const uint32_t* x;  // (rows, d), as pack_pairs packs its transpose
  int64_t rows;
  const int64_t* target;
  Multiply multiply;

  // logits (32, 32) of `count` tokens and 16 G rows from `row`, biased and capped.
  FT_INLINE void logits(const uint16_t* panel, int64_t stride, int64_t token, int64_t count, int64_t row, int G,
                        float* out) const {
    const int64_t pairs = unembedding.depth() / 2;
    multiply(panel, stride, x + row * pairs, pairs, count > kTile ? 2 : 1, G, out, kPanel, false);
    const float cap = unembedding.softcap;
    for (int64_t v = 0; v < count; ++v) {
      float* of = out + v * kPanel;
      if (unembedding.bias) {
        const float bias = widen(unembedding.bias[token + v]);
        for (int64_t lane = 0; lane < kPanel; ++lane) of[lane] += bias;
      }
      if (cap > 0)
        for (int64_t lane = 0; lane < kPanel; ++lane) {
          const float capped = cap - 2 * cap / (vector_exp(2 * of[lane] / cap) + 1);
          of[lane] = of[lane] == of[lane] ? capped : of[lane];
        }
    }
  }
};

// The sums of one share of the vocabulary for rows from `begin` to `end`: most[i] = max_v a[i, v],
// sum[i] = Σ_v exp(a[i, v] − most[i]), and hit[i] = a[i, target[i]] if the share has the target.
struct SumShare {
  Scores scores;
  float* hit;

  FT_INLINE void operator()(int64_t from, int64_t to, int64_t begin, int64_t end, uint16_t* scratch, float* most,
                            float* sum) const {
    // All -inf would leave -inf - -inf in the exponent, so a maximum starts at the least finite number.
    for (int64_t i = begin; i < end; ++i) most[i] = -FLT_MAX, sum[i] = 0;
    alignas(64) float a[kPanel * kPanel] = {};
    for (int64_t token = from; token < to; token += kPanel) {
      const int64_t count = to - token < kPanel ? to - token : kPanel;
      int64_t stride;
      const uint16_t* panel = scores.unembedding.panel(token, scratch, &stride);
      for (int64_t row = begin; row < end; row += kPanel) {
        const int G = end - row > kTile ? 2 : 1;
        scores.logits(panel, stride, token, count, row, G, a);
        for (int64_t g = 0; g < G; ++g) add(a + g * kTile, count, most + row + g * kTile, sum + row + g * kTile);
        for (int64_t i = row; i < row + G * kTile && i < scores.rows; ++i) {
          const int64_t at = scores.target[i] - token;
          if (at >= 0 && at < count) hit[i] = a[at * kPanel + i - row];
        }
      }
    }
  }

  // Adds `count` tokens' logits of 16 rows.
  static FT_INLINE void add(const float* a, int64_t count, float* most, float* sum) {
    alignas(64) float top[kTile], part[kTile] = {};
    for (int64_t lane = 0; lane < kTile; ++lane) top[lane] = most[lane];
    for (int64_t v = 0; v < count; ++v)
      for (int64_t lane = 0; lane < kTile; ++lane) top[lane] = greater(top[lane], a[v * kPanel + lane]);
    for (int64_t v = 0; v < count; ++v)
      for (int64_t lane = 0; lane < kTile; ++lane) part[lane] += vector_exp(a[v * kPanel + lane] - top[lane]);
    for (int64_t lane = 0; lane < kTile; ++lane) {
      sum[lane] = sum[lane] * vector_exp(most[lane] - top[lane]) + part[lane];
      most[lane] = top[lane];
    }
  }
};

// ∂/∂x of Σ_i grad[i] log p_i from one share of the vocabulary, for rows from `begin` to `end`.
struct GradientShare {
  Scores scores;
  const float *grad, *total;  // grad: 0 for rows that only fill up a tile

  struct Scratch {
    uint16_t *panel, *slopes, *rest;  // slopes and rest: (32, kDeep)
    uint32_t* packed;                 // U of kDeep tokens
  };

  // gradient: (end − begin, d), both filled up to whole tiles.
  FT_INLINE void operator()(int64_t from, int64_t to, int64_t begin, int64_t end, Scratch scratch,
                            float* gradient) const {
    const Unembedding& u = scores.unembedding;
    const int64_t width = round_up(u.d, kTile);
    std::memset(gradient, 0, size_t((end - begin) * width) * sizeof(float));
    alignas(64) float a[kPanel * kPanel] = {};
    for (int64_t token = from; token < to; token += kDeep) {
      const int64_t count = to - token < kDeep ? to - token : kDeep, pairs = round_up(count, kDepth) / 2;
      pack_pairs(u.U + token * u.row, u.row, u.column, count, u.d, pairs, scratch.packed);
      for (int64_t row = begin; row < end; row += kPanel) {
        const int R = end - row > kTile ? 2 : 1;
        for (int64_t at = 0; at < count; at += kPanel) {
          const int64_t here = count - at < kPanel ? count - at : kPanel;
          int64_t stride;
          const uint16_t* panel = u.panel(token + at, scratch.panel, &stride);
          scores.logits(panel, stride, token + at, here, row, R, a);
          slopes(a, token + at, here, row, R, scratch.slopes + at, scratch.rest + at);
        }
        for (int64_t j = 0; j < width; j += kPanel) {
          const int G = width - j > kTile ? 2 : 1;
          const uint32_t* columns = scratch.packed + j * pairs;
          float* sums = gradient + (row - begin) * width + j;
          scores.multiply(scratch.slopes, kDeep, columns, pairs, R, G, sums, width, true);
          scores.multiply(scratch.rest, kDeep, columns, pairs, R, G, sums, width, true);
        }
      }
    }
  }

  // grad (1[v = t] − softmax_v) · d cap(a) / da as the sum of two bfloat16, transposed to rows by tokens.
  FT_INLINE void slopes(const float* a, int64_t token, int64_t count, int64_t row, int R, uint16_t* to,
                        uint16_t* rest) const {
    alignas(64) uint16_t rounded[kPanel][kTile], remainder[kPanel][kTile];
    const float cap = scores.unembedding.softcap;
    for (int64_t half = 0; half < R * kTile; half += kTile) {
      const float *scale = grad + row + half, *sum = total + row + half;
      const int64_t* target = scores.target + row + half;
      std::memset(rounded, 0, sizeof rounded);
      std::memset(remainder, 0, sizeof remainder);
      for (int64_t v = 0; v < count; ++v)
        for (int64_t lane = 0; lane < kTile; ++lane) {
          const float z = a[v * kPanel + half + lane], below = z - sum[lane];
          const float p = below == below ? vector_exp(below) : below;
          float slope = scale[lane] * (float(target[lane] == token + v) - p);
          // d cap(a) / da = 1 − (cap(a) / softcap)².
          if (cap > 0) slope *= 1 - (z / cap) * (z / cap);
          rounded[v][lane] = narrow_bfloat16(slope);
          remainder[v][lane] = narrow_bfloat16(slope - widen(rounded[v][lane]));
        }
      for (int64_t lane = 0; lane < kTile; ++lane)
        for (int64_t v = 0; v < kPanel; ++v) {
          to[(half + lane) * kDeep + v] = rounded[v][lane];
          rest[(half + lane) * kDeep + v] = remainder[v][lane];
        }
    }
  }
};

// Runs thread(next) on torch's threads. next() is an item below `count`, or -1 after the last: all take items from one
// counter, so that a slow core delays only its own.
template <class Thread>
void share_out(int64_t count, const Thread& thread) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    const Multiplying multiplying(products());
    thread([&] {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      return item < count ? item : -1;
    });
  });
}

// The arguments of both ops, with x packed and targets filled up to whole products.
struct Packed {
  Scores scores;
  std::unique_ptr<uint32_t[], Free> x;
  std::unique_ptr<int64_t[], Free> target;
  int64_t rows, shares;  // rows: filled up to whole tiles

  Packed(const Tensor& x_rows, const Tensor& unembed, const std::optional<Tensor>& bias, const Tensor& of,
         double softcap)
      : rows(round_up(x_rows.size(0), kTile)), shares(round_up(unembed.size(0), kShare) / kShare) {
    const int64_t n = x_rows.size(0), d = x_rows.size(1);
    scores.unembedding = {static_cast<const uint16_t*>(unembed.const_data_ptr()), unembed.size(0), d,
                          unembed.stride(0), d == 1 ? 1 : unembed.stride(1),
                          bias ? static_cast<const uint16_t*>(bias->const_data_ptr()) : nullptr, float(softcap)};
    const int64_t pairs = scores.unembedding.depth() / 2;
    x = aligned<uint32_t>(rows * pairs);
    const auto* from = static_cast<const uint16_t*>(x_rows.const_data_ptr());
    torch::stable::parallel_for(0, rows / kTile, 1, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t width = n - g * kTile < kTile ? n - g * kTile : kTile;
        pack_pairs(from + g * kTile * d, 1, d, d, width, pairs, x.get() + g * kTile * pairs);
      }
    });
    target = aligned<int64_t>(rows);
    for (int64_t i = 0; i < rows; ++i) target[i] = i < n ? static_cast<const int64_t*>(of.const_data_ptr())[i] : -1;
    for (int64_t i = 0; i < n; ++i)
      check(target[i] >= 0 && target[i] < unembed.size(0), "target_logprob: expected target[", i, "] in 0 … ",
            unembed.size(0) - 1, ", got ", target[i]);
    scores.x = x.get();
    scores.rows = n;
    scores.target = target.get();
    scores.multiply = multiply_of(products());
  }
};

}  // namespace

int64_t bfloat16_products() { return int64_t(products()); }

void token_logprob_cpu(const Tensor x, const Tensor unembed, std::optional<Tensor> bias, const Tensor target,
                       double softcap, Tensor logprob, Tensor total) {
  check_token_logprob(x, unembed, bias, target, softcap, logprob, total);
  if (x.size(0) == 0) return;
  const Packed packed(x, unembed, bias, target, softcap);
  const int64_t n = x.size(0), rows = packed.rows, shares = packed.shares, vocab = unembed.size(0);
  const int64_t depth = packed.scores.unembedding.depth();
  const int64_t block = std::max(kPanel, kPackedBytes / (2 * depth) / kPanel * kPanel);
  const int64_t blocks = round_up(rows, block) / block;
  const auto most = aligned<float>(shares * rows), sum = aligned<float>(shares * rows), hit = aligned<float>(n);
  const SumShare body{packed.scores, hit.get()};
  auto* kernel = compiled_here<SumShare, int64_t, int64_t, int64_t, int64_t, uint16_t*, float*, float*>();
  share_out(shares * blocks, [&](auto next) {
    const auto scratch = aligned<uint16_t>(kPanel * depth);
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t share = item / blocks, begin = item % blocks * block;
      kernel(body, share * kShare, std::min(vocab, (share + 1) * kShare), begin, std::min(rows, begin + block),
             scratch.get(), most.get() + share * rows, sum.get() + share * rows);
    }
  });
  auto* to = static_cast<float*>(logprob.mutable_data_ptr());
  auto* sums = static_cast<float*>(total.mutable_data_ptr());
  torch::stable::parallel_for(0, n, 256, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float top = -FLT_MAX;
      for (int64_t s = 0; s < shares; ++s) top = greater(top, most[s * rows + i]);
      double part = 0;
      for (int64_t s = 0; s < shares; ++s)
        part += double(sum[s * rows + i]) * std::exp(double(most[s * rows + i]) - double(top));
      // An infinite logit leaves ∞ − ∞ in its exponent; the sum is infinite, too.
      const double all = std::isfinite(top) ? double(top) + std::log(part) : double(top);
      sums[i] = float(all);
      to[i] = float(double(hit[i]) - all);
    }
  });
}

void token_logprob_backward_cpu(const Tensor grad, const Tensor total, const Tensor x, const Tensor unembed,
                                std::optional<Tensor> bias, const Tensor target, double softcap, Tensor grad_x) {
  check_token_logprob_backward(grad, total, x, unembed, bias, target, softcap, grad_x);
  if (x.size(0) == 0) return;
  const Packed packed(x, unembed, bias, target, softcap);
  const int64_t n = x.size(0), d = x.size(1), rows = packed.rows, shares = packed.shares, vocab = unembed.size(0);
  const int64_t depth = packed.scores.unembedding.depth(), width = round_up(d, kTile);
  const auto scale = aligned<float>(rows), sums = aligned<float>(rows);
  for (int64_t i = 0; i < rows; ++i) {
    scale[i] = i < n ? static_cast<const float*>(grad.const_data_ptr())[i] : 0.0f;
    sums[i] = i < n ? static_cast<const float*>(total.const_data_ptr())[i] : 0.0f;
  }
  const GradientShare body{packed.scores, scale.get(), sums.get()};
  auto* kernel =
      compiled_here<GradientShare, int64_t, int64_t, int64_t, int64_t, GradientShare::Scratch, float*>();
  const int64_t fitting = kGradientBytes / (shares * width * 4) / kTile * kTile;
  const int64_t block = std::min(rows, std::min(kGradientRows, std::max(kTile, fitting)));
  const auto parts = aligned<float>(shares * block * width);
  auto* to = static_cast<float*>(grad_x.mutable_data_ptr());
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t end = std::min(rows, begin + block), size = (end - begin) * width;
    share_out(shares, [&](auto next) {
      const auto panel = aligned<uint16_t>(kPanel * depth), slopes = aligned<uint16_t>(2 * kPanel * kDeep);
      const auto deep = aligned<uint32_t>(kDeep / 2 * width);
      const GradientShare::Scratch scratch{panel.get(), slopes.get(), slopes.get() + kPanel * kDeep, deep.get()};
      for (int64_t share; (share = next()) >= 0;)
        kernel(body, share * kShare, std::min(vocab, (share + 1) * kShare), begin, end, scratch,
               parts.get() + share * size);
    });
    torch::stable::parallel_for(begin, std::min(end, n), 1 + 32768 / (shares * d), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        for (int64_t j = 0; j < d; ++j) {
          double sum = 0;
          for (int64_t s = 0; s < shares; ++s) sum += double(parts[s * size + (i - begin) * width + j]);
          to[i * d + j] = float(sum);
        }
    });
  }
}

}  // namespace fasttrace
