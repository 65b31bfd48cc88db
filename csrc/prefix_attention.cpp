// prefix_attention on the CPU: keys and values are read in place, and softmax is computed in float32. Rows that are not
// whole vectors of float32 are widened, once per key head, into a scratch buffer that stays in cache.
#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "ops.h"
#include "simd.h"
#include "vector_exp.h"

namespace fasttrace {
namespace {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

constexpr float kUnseen = -1e38f;  // the score of a key that a query may not see: finite, so that only NaN gives NaN

// One row of the sequence table (ops/prefix_attention.py, Column).
struct Sequence {
  int64_t q_begin, q_len, first_begin, first_len, second_begin, second_len, k_begin, k_len;
};

struct Shape {
  int64_t heads, kv_heads, head_dim, padded;  // padded: head_dim rounded up to whole vectors
  float scale;
  int64_t window;       // tokens a query sees, itself included; 0: all
  float softcap;        // scores are softcap * tanh(score / softcap); 0: uncapped
  const float* slopes;  // (heads,): a score falls by its head's slope per token of distance; null: none
};

struct Scratch {
  std::vector<const float*> keys, values;  // one pointer per key, in token order
  std::vector<float> widened, query, scores;
};

FT_INLINE Lanes load_lanes(const float* from) { return *reinterpret_cast<const Lanes*>(from); }

template <int32_t step, size_t... lane>
FT_INLINE Lanes fold(Lanes a, Lanes b, std::index_sequence<lane...>) {
  return __builtin_shufflevector(a, b, int32_t(lane + (lane & step ? kLanes : 0))...) +
         __builtin_shufflevector(a, b, int32_t((lane ^ step) + (lane & step ? kLanes : 0))...);
}

// Lane i of the result is a[i] + a[i ^ step] if i lacks the bit `step`, else b[i] + b[i ^ step].
template <int32_t step>
FT_INLINE Lanes fold(Lanes a, Lanes b) {
  return fold<step>(a, b, std::make_index_sequence<kLanes>());
}

// Sixteen vectors → the sum of each, in 15 folds instead of lane by lane.
FT_INLINE Lanes sums(const Lanes* v) {
  Lanes pairs[8], fours[4], eights[2];
  for (int64_t i = 0; i < 8; ++i) pairs[i] = fold<1>(v[2 * i], v[2 * i + 1]);
  for (int64_t i = 0; i < 4; ++i) fours[i] = fold<2>(pairs[2 * i], pairs[2 * i + 1]);
  for (int64_t i = 0; i < 2; ++i) eights[i] = fold<4>(fours[2 * i], fours[2 * i + 1]);
  return fold<8>(eights[0], eights[1]);
}

FT_INLINE float sum(Lanes v) {
  v = fold<8>(v, v);
  v = fold<4>(v, v);
  v = fold<2>(v, v);
  return fold<1>(v, v)[0];
}

FT_INLINE float largest(Lanes v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof lanes);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] = std::max(lanes[lane], lanes[lane + half]);
  return lanes[0];
}

// Writes a pointer to each row of a sequence to `to`; rows that cannot be read in place are widened into `copy`.
template <class T>
FT_INLINE void locate(const T* from, const Sequence& sequence, int64_t column, const Shape& s, float* copy,
                      const float** to) {
  const int64_t row = s.kv_heads * s.head_dim;
  const std::pair<int64_t, int64_t> runs[] = {{sequence.first_begin, sequence.first_len},
                                              {sequence.second_begin, sequence.second_len},
                                              {sequence.k_begin, sequence.k_len}};
  for (const auto& [begin, count] : runs) {
    for (int64_t i = begin; i < begin + count; ++i, ++to) {
      const T* source = from + i * row + column;
      if constexpr (std::is_same_v<T, float>) {
        if (s.padded == s.head_dim) {
          *to = source;
          continue;
        }
      }
      for (int64_t d = 0; d < s.head_dim; ++d) copy[d] = widen(source[d]);
      *to = copy;
      copy += s.padded;
    }
  }
}

// width: head_dim if it is a compile-time constant of whole vectors, else 0.
template <class T, int64_t width>
FT_INLINE void one_sequence(const T* q, const T* k, const T* v, T* out, const Sequence& sequence, const Shape& s,
                            Scratch& scratch) {
  const int64_t keys = sequence.first_len + sequence.second_len + sequence.k_len, padded = width ? width : s.padded;
  const int64_t whole = (keys + kLanes - 1) / kLanes * kLanes;
  const int64_t share = s.heads / s.kv_heads, q_row = s.heads * s.head_dim;
  // Zeroed once when it grows. The lanes past head_dim are never written, so they stay zero.
  if (int64_t(scratch.keys.size()) < whole) {
    scratch.keys.resize(size_t(whole));
    scratch.values.resize(size_t(whole));
    scratch.scores.resize(size_t(whole));
    scratch.widened.assign(size_t(2 * whole * s.padded), 0.0f);
  }
  for (int64_t group = 0; group < s.kv_heads; ++group) {
    locate(k, sequence, group * s.head_dim, s, scratch.widened.data(), scratch.keys.data());
    std::fill(scratch.keys.begin() + keys, scratch.keys.begin() + whole, scratch.keys[0]);
    locate(v, sequence, group * s.head_dim, s, scratch.widened.data() + keys * s.padded, scratch.values.data());
    for (int64_t i = 0; i < sequence.q_len; ++i) {
      const int64_t last = keys - sequence.q_len + i;  // the key at the query's own token
      const int64_t from = s.window > 0 ? std::max<int64_t>(0, last - s.window + 1) : 0;
      for (int64_t head = group * share; head < (group + 1) * share; ++head) {
        const T* query = q + (sequence.q_begin + i) * q_row + head * s.head_dim;
        for (int64_t d = 0; d < s.head_dim; ++d) scratch.query[size_t(d)] = s.scale * widen(query[d]);
        float* scores = scratch.scores.data();
        const int64_t first = from / kLanes * kLanes, end = (last / kLanes + 1) * kLanes;
        for (int64_t block = first; block < end; block += kLanes) {
          // All sixteen keys are scored; those that the query may not see are masked below.
          Lanes products[kLanes];
          const float* a = scratch.query.data();
          for (int64_t j = 0; j < kLanes; ++j) {
            const float* key = scratch.keys[size_t(block + j)];
            Lanes product = load_lanes(a) * load_lanes(key);
            for (int64_t d = kLanes; d < padded; d += kLanes) product += load_lanes(a + d) * load_lanes(key + d);
            products[j] = product;
          }
          *reinterpret_cast<Lanes*>(scores + block) = sums(products);
        }
        if (s.softcap > 0)
          for (int64_t j = from; j <= last; ++j) scores[j] = s.softcap * std::tanh(scores[j] / s.softcap);
        if (s.slopes)
          for (int64_t j = from; j <= last; ++j) scores[j] -= s.slopes[head] * float(last - j);
        for (int64_t j = first; j < from; ++j) scores[j] = kUnseen;
        for (int64_t j = last + 1; j < end; ++j) scores[j] = kUnseen;
        Lanes most = load_lanes(scores + first), total = {};
        for (int64_t block = first + kLanes; block < end; block += kLanes) {
          const Lanes here = load_lanes(scores + block);
          most = here > most ? here : most;
        }
        const float top = largest(most);
        for (int64_t block = first; block < end; block += kLanes) {
          float* weight = scores + block;
          for (int64_t j = 0; j < kLanes; ++j) {
            const float x = weight[j] - top;
            weight[j] = vector_exp(x) + (x - x);  // a NaN stays NaN
          }
          total += load_lanes(weight);
        }
        const float inverse = 1.0f / sum(total);
        T* result = out + (sequence.q_begin + i) * q_row + head * s.head_dim;
        // Four vectors of the head at a time, so that four independent sums are in flight.
        for (int64_t d = 0; d < padded; d += 4 * kLanes) {
          const int64_t vectors = std::min<int64_t>(4, (padded - d) / kLanes);
          Lanes mixed[4] = {};
          if (vectors == 4) {
            for (int64_t j = from; j <= last; ++j) {
              const float* value = scratch.values[size_t(j)] + d;
              for (int64_t n = 0; n < 4; ++n) mixed[n] += scores[j] * load_lanes(value + n * kLanes);
            }
          } else {
            for (int64_t n = 0; n < vectors; ++n)
              for (int64_t j = from; j <= last; ++j)
                mixed[n] += scores[j] * load_lanes(scratch.values[size_t(j)] + d + n * kLanes);
          }
          for (int64_t n = 0; n < vectors; ++n) {
            mixed[n] *= inverse;
            const int64_t at = d + n * kLanes;
            float lanes[kLanes];
            std::memcpy(lanes, &mixed[n], sizeof lanes);
            if (at + kLanes <= s.head_dim)
              for (int64_t lane = 0; lane < kLanes; ++lane) store(result + at + lane, lanes[lane]);
            else
              for (int64_t lane = 0; at + lane < s.head_dim; ++lane) store(result + at + lane, lanes[lane]);
          }
        }
      }
    }
  }
}

// The two most common head widths are compiled separately.
template <class T>
FT_INLINE void any_width(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s,
                         Scratch& scratch) {
  if (s.head_dim == 64)
    one_sequence<T, 64>(q, k, v, out, x, s, scratch);
  else if (s.head_dim == 128)
    one_sequence<T, 128>(q, k, v, out, x, s, scratch);
  else
    one_sequence<T, 0>(q, k, v, out, x, s, scratch);
}

template <class T>
using Kernel = void (*)(const T*, const T*, const T*, T*, const Sequence&, const Shape&, Scratch&);

template <class T>
void baseline(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  any_width(q, k, v, out, x, s, scratch);
}

#if defined(__x86_64__)
template <class T>
FT_AVX2 void avx2(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  any_width(q, k, v, out, x, s, scratch);
}

template <class T>
FT_AVX512 void avx512(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s,
                      Scratch& scratch) {
  any_width(q, k, v, out, x, s, scratch);
}
#endif

template <class T>
void run(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out, const Sequence* sequences, int64_t count,
         const Shape& s) {
  Kernel<T> kernel = baseline<T>;
#if defined(__x86_64__)
  if (isa() == Isa::avx2) kernel = avx2<T>;
  if (isa() == Isa::avx512) kernel = avx512<T>;
#endif
  const T* from_q = static_cast<const T*>(q.const_data_ptr());
  const T* from_k = static_cast<const T*>(k.const_data_ptr());
  const T* from_v = static_cast<const T*>(v.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    scratch.query.assign(size_t(s.padded), 0.0f);
    for (int64_t i = begin; i < end; ++i) kernel(from_q, from_k, from_v, to, sequences[i], s, scratch);
  });
}

}  // namespace

void prefix_attention_cpu(const Tensor q, const Tensor k, const Tensor v, const Tensor table, double scale,
                          int64_t window, double softcap, std::optional<Tensor> alibi, Tensor out) {
  check_prefix_attention(q, k, v, table, softcap, alibi, out);
  static_assert(sizeof(Sequence) == 8 * sizeof(int64_t));
  const auto* sequences = static_cast<const Sequence*>(table.const_data_ptr());
  const int64_t count = table.size(0), rows = k.size(0);
  // Rows are given by index, so a wrong index would read outside k and v.
  for (int64_t i = 0; i < count; ++i) {
    const Sequence& s = sequences[i];
    const bool inside = s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= q.size(0) && s.first_begin >= 0 &&
                        s.first_len >= 0 && s.first_begin + s.first_len <= rows && s.second_begin >= 0 &&
                        s.second_len >= 0 && s.second_begin + s.second_len <= rows && s.k_begin >= 0 &&
                        s.k_len >= s.q_len && s.k_begin + s.k_len <= rows;
    check(inside, "prefix_attention: expected rows of sequence ", i, " within the ", q.size(0), " of q and the ", rows,
          " of k, got rows outside");
  }
  const int64_t head_dim = q.size(2);
  const float* slopes = alibi ? static_cast<const float*>(alibi->const_data_ptr()) : nullptr;
  const Shape shape{q.size(1),    k.size(1), head_dim,       (head_dim + kLanes - 1) / kLanes * kLanes,
                    float(scale), window,    float(softcap), slopes};
  if (is_bfloat16(q))
    run<uint16_t>(q, k, v, out, sequences, count, shape);
  else
    run<float>(q, k, v, out, sequences, count, shape);
}

}  // namespace fasttrace
