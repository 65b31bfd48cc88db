// prefix_attention on the CPU: keys and values are read in place, and softmax is computed in float32. Rows that are not
// whole vectors of float32 are widened, once per key head, into a scratch buffer that stays in cache.
#include <algorithm>
#include <cmath>
#include <memory>
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

// Queries whose scores are held at once. A query's scores, softmax and mean wait for one another. Other queries fill that
// time.
constexpr int64_t kTogether = 16;

constexpr float kUnseen = -1e38f;  // the score of a key that a query may not see: finite, so that only NaN gives NaN

// One row of the sequence table (ops/prefix_attention.py, Column).
struct Sequence {
  int64_t q_begin, q_len, first_begin, first_len, second_begin, second_len, k_begin, k_len;
};

struct Shape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;       // tokens a query sees, itself included; 0: all
  float softcap;        // scores are softcap * tanh(score / softcap); 0: uncapped
  const float* slopes;  // (heads,): a score falls by its head's slope per token of distance; null: none
  const float* sinks;   // (heads,): one more score of each head's softmax, without a value; null: none
};

struct Scratch {
  int64_t most = 0;                        // keys for which there is room
  std::vector<const float*> keys, values;  // one pointer per key, in token order
  std::unique_ptr<float[], Free> widened, queries, scores;

  // The lanes past head_dim are zeroed here and never written, so they stay zero.
  void hold(int64_t count, int64_t padded) {
    if (!queries) queries = zeros(kTogether * padded);
    if (count <= most) return;
    most = count;
    keys.resize(size_t(most));
    values.resize(size_t(most));
    scores = zeros(kTogether * most);
    widened = zeros(2 * most * padded);
  }

  static std::unique_ptr<float[], Free> zeros(int64_t count) {
    auto made = aligned<float>(count);
    std::fill_n(made.get(), count, 0.0f);
    return made;
  }
};

// The kernel with vectors of V lanes. width: head_dim if it is a compile-time constant of whole vectors, else 0.
template <class T, int64_t V, int64_t width>
struct Attention {
  using Lanes = Simd<V>;
  using Floats = typename Lanes::Floats;
  using Integers = typename Lanes::Integers;
  static constexpr int64_t kSums = std::min<int64_t>(8, 64 / V);  // vectors of a mean in flight

  template <int64_t step, size_t... lane>
  static FT_INLINE Floats fold(Floats a, Floats b, std::index_sequence<lane...>) {
    return __builtin_shufflevector(a, b, int32_t(lane + (lane & step ? V : 0))...) +
           __builtin_shufflevector(a, b, int32_t((lane ^ step) + (lane & step ? V : 0))...);
  }

  // V vectors → the sum of each, in V - 1 folds instead of lane by lane. Lane i of a fold is a[i] + a[i ^ step] if i
  // lacks the bit `step`, else b[i] + b[i ^ step].
  template <int64_t step = 1>
  static FT_INLINE Floats sums(Floats* v) {
    if constexpr (step == V) {
      return v[0];
    } else {
      for (int64_t i = 0; i < V / step / 2; ++i)
        v[i] = fold<step>(v[2 * i], v[2 * i + 1], std::make_index_sequence<V>());
      return sums<2 * step>(v);
    }
  }

  template <int64_t step = V / 2>
  static FT_INLINE float sum(Floats v) {
    v = fold<step>(v, v, std::make_index_sequence<V>());
    if constexpr (step == 1) return v[0];
    else return sum<step / 2>(v);
  }

  template <int64_t step, size_t... lane>
  static FT_INLINE Floats greater(Floats v, std::index_sequence<lane...>) {
    const Floats other = __builtin_shufflevector(v, v, int32_t(lane ^ step)...);
    return v > other ? v : other;
  }

  template <int64_t step = V / 2>
  static FT_INLINE float largest(Floats v) {
    v = greater<step>(v, std::make_index_sequence<V>());
    if constexpr (step == 1) return v[0];
    else return largest<step / 2>(v);
  }

  template <size_t... lane>
  static FT_INLINE Integers numbers(std::index_sequence<lane...>) {
    return Integers{int32_t(lane)...};
  }

  const T *q, *k, *v;
  T* out;
  const Shape& s;
  Scratch& scratch;
  int64_t padded = width ? width : (s.head_dim + V - 1) / V * V;  // head_dim rounded up to whole vectors

  // to[d] = scale · from[d]. The lanes past head_dim are not written.
  FT_INLINE void widen_row(const T* from, float scale, float* to) const {
    int64_t d = 0;
    for (; d + V <= s.head_dim; d += V) Lanes::store(to + d, scale * Lanes::load(from + d));
    for (; d < s.head_dim; ++d) to[d] = scale * widen(from[d]);
  }

  // Writes a pointer to each row of a sequence to `to`; rows that cannot be read in place are widened into `copy`.
  FT_INLINE void locate(const T* from, const Sequence& sequence, int64_t column, float* copy, const float** to) const {
    const int64_t row = s.kv_heads * s.head_dim;
    const std::pair<int64_t, int64_t> runs[] = {{sequence.first_begin, sequence.first_len},
                                                {sequence.second_begin, sequence.second_len},
                                                {sequence.k_begin, sequence.k_len}};
    for (const auto& [begin, count] : runs) {
      for (int64_t i = begin; i < begin + count; ++i, ++to) {
        const T* source = from + i * row + column;
        if constexpr (std::is_same_v<T, float>) {
          if (padded == s.head_dim) {
            *to = source;
            continue;
          }
        }
        widen_row(source, 1.0f, copy);
        *to = copy;
        copy += padded;
      }
    }
  }

  // Scores of a query with every key of the blocks of V that have keys `from` to `last`, which are those it sees; the
  // others are masked. Returns the largest.
  FT_INLINE float score(const float* query, int64_t from, int64_t last, int64_t head, float* scores) const {
    const Integers lane = numbers(std::make_index_sequence<V>());
    Floats most = Floats{} + kUnseen;
    for (int64_t block = from / V * V; block <= last; block += V) {
      Floats products[V];
      for (int64_t j = 0; j < V; ++j) {
        const float* key = scratch.keys[size_t(block + j)];
        Floats product = Lanes::load(query) * Lanes::load(key);
        for (int64_t d = V; d < padded; d += V) product += Lanes::load(query + d) * Lanes::load(key + d);
        products[j] = product;
      }
      Floats found = sums(products);
      if (s.softcap > 0)
        for (int64_t j = 0; j < V; ++j) found[j] = s.softcap * std::tanh(found[j] / s.softcap);
      const Integers after = lane + int32_t(block - last);  // tokens from the query to the key
      if (s.slopes) found += s.slopes[head] * Lanes::of(after);
      found = after > 0 || after < int32_t(from - last) ? Floats{} + kUnseen : found;
      Lanes::store(scores + block, found);
      most = found > most ? found : most;
    }
    return largest(most);
  }

  // Scores → weights, not yet divided by their sum. Returns that sum.
  static FT_INLINE float exponentials(int64_t from, int64_t last, float top, float* scores) {
    Floats total = {};
    for (int64_t block = from / V * V; block <= last; block += V) {
      float* weight = scores + block;
      for (int64_t j = 0; j < V; ++j) {
        const float x = weight[j] - top;
        weight[j] = vector_exp(x) + (x - x);  // a NaN stays NaN
      }
      total += Lanes::load(weight);
    }
    return sum(total);
  }

  // The values' mean by weights whose sum is 1 / inverse.
  FT_INLINE void mean(const float* weights, int64_t from, int64_t last, float inverse, T* result) const {
    for (int64_t d = 0; d < padded; d += kSums * V) {
      const int64_t vectors = std::min(kSums, (padded - d) / V);
      Floats mixed[kSums] = {};
      if (vectors == kSums) {
        for (int64_t j = from; j <= last; ++j) {
          const float* value = scratch.values[size_t(j)] + d;
          for (int64_t i = 0; i < kSums; ++i) mixed[i] += weights[j] * Lanes::load(value + i * V);
        }
      } else {
        for (int64_t i = 0; i < vectors; ++i)
          for (int64_t j = from; j <= last; ++j)
            mixed[i] += weights[j] * Lanes::load(scratch.values[size_t(j)] + d + i * V);
      }
      for (int64_t i = 0; i < vectors; ++i) {
        const int64_t at = d + i * V;
        mixed[i] *= inverse;
        if (at + V <= s.head_dim)
          Lanes::store(result + at, mixed[i]);
        else
          for (int64_t lane = 0; at + lane < s.head_dim; ++lane) store(result + at + lane, mixed[i][lane]);
      }
    }
  }

  FT_INLINE void operator()(const Sequence& sequence) const {
    const int64_t keys = sequence.first_len + sequence.second_len + sequence.k_len;
    const int64_t whole = (keys + V - 1) / V * V, share = s.heads / s.kv_heads;
    scratch.hold(whole, padded);
    float* const scores = scratch.scores.get();
    for (int64_t group = 0; group < s.kv_heads; ++group) {
      locate(k, sequence, group * s.head_dim, scratch.widened.get(), scratch.keys.data());
      std::fill(scratch.keys.begin() + keys, scratch.keys.begin() + whole, scratch.keys[0]);
      locate(v, sequence, group * s.head_dim, scratch.widened.get() + keys * padded, scratch.values.data());
      // Query n: head n % share of the group, at token n / share of the tail.
      for (int64_t begin = 0; begin < sequence.q_len * share; begin += kTogether) {
        const int64_t count = std::min(kTogether, sequence.q_len * share - begin);
        int64_t from[kTogether], last[kTogether], at[kTogether];
        float top[kTogether], inverse[kTogether];
        for (int64_t n = 0; n < count; ++n) {
          const int64_t i = (begin + n) / share, head = group * share + (begin + n) % share;
          last[n] = keys - sequence.q_len + i;  // the key at the query's own token
          from[n] = s.window > 0 ? std::max<int64_t>(0, last[n] - s.window + 1) : 0;
          at[n] = ((sequence.q_begin + i) * s.heads + head) * s.head_dim;
          float* query = scratch.queries.get() + n * padded;
          widen_row(q + at[n], s.scale, query);
          top[n] = score(query, from[n], last[n], head, scores + n * whole);
          if (s.sinks) top[n] = std::max(top[n], s.sinks[head]);
        }
        for (int64_t n = 0; n < count; ++n) {
          float total = exponentials(from[n], last[n], top[n], scores + n * whole);
          if (s.sinks) total += vector_exp(s.sinks[group * share + (begin + n) % share] - top[n]);
          inverse[n] = 1.0f / total;
        }
        for (int64_t n = 0; n < count; ++n) mean(scores + n * whole, from[n], last[n], inverse[n], out + at[n]);
      }
    }
  }
};

// The two most common head widths are compiled separately.
template <class T, int64_t V>
FT_INLINE void any_width(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s,
                         Scratch& scratch) {
  if (s.head_dim == 64)
    Attention<T, V, 64>{q, k, v, out, s, scratch}(x);
  else if (s.head_dim == 128)
    Attention<T, V, 128>{q, k, v, out, s, scratch}(x);
  else
    Attention<T, V, 0>{q, k, v, out, s, scratch}(x);
}

template <class T>
using Kernel = void (*)(const T*, const T*, const T*, T*, const Sequence&, const Shape&, Scratch&);

template <class T>
void baseline(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  any_width<T, 4>(q, k, v, out, x, s, scratch);
}

#if defined(__x86_64__)
template <class T>
FT_AVX2 void avx2(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  any_width<T, 8>(q, k, v, out, x, s, scratch);
}

template <class T>
FT_AVX512 void avx512(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s,
                      Scratch& scratch) {
  any_width<T, 16>(q, k, v, out, x, s, scratch);
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
    for (int64_t i = begin; i < end; ++i) kernel(from_q, from_k, from_v, to, sequences[i], s, scratch);
  });
}

}  // namespace

void prefix_attention_cpu(const Tensor q, const Tensor k, const Tensor v, const Tensor table, double scale,
                          int64_t window, double softcap, std::optional<Tensor> alibi,
                          std::optional<Tensor> sinks, Tensor out) {
  check_prefix_attention(q, k, v, table, softcap, alibi, sinks, out);
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
  const float* of_sinks = sinks ? static_cast<const float*>(sinks->const_data_ptr()) : nullptr;
  const Shape shape{q.size(1), k.size(1), head_dim, float(scale), window, float(softcap), slopes, of_sinks};
  if (is_bfloat16(q))
    run<uint16_t>(q, k, v, out, sequences, count, shape);
  else
    run<float>(q, k, v, out, sequences, count, shape);
}

}  // namespace fasttrace
