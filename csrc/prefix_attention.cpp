// prefix_attention on the CPU: each sequence's keys and values are read where they lie (or, where they are no
// whole lanes of float32, widened once a key head into a scratch that stays in cache), softmax in float32.
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

namespace fasttrace {
namespace {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// One row of the table of sequences (ops/prefix_attention.py, COLUMNS).
struct Sequence {
  int64_t q_begin, q_len, first_begin, first_len, second_begin, second_len, k_begin, k_len;
};

struct Shape {
  int64_t heads, kv_heads, head_dim, padded;  // padded: head_dim up to whole lanes
  float scale;
  int64_t window;       // tokens a query sees, itself included; 0: all
  float softcap;        // scores are softcap * tanh(score / softcap); 0: as they are
  const float* slopes;  // one a head: a score falls by it with every token of distance; null: none
};

struct Scratch {
  std::vector<const float*> keys, values;  // one a key, in the order of tokens
  std::vector<float> widened, query, scores;
};

FT_INLINE float dot(const float* a, const float* b, int64_t padded) {
  Lanes sum = {};
  for (int64_t i = 0; i < padded; i += kLanes)
    sum += *reinterpret_cast<const Lanes*>(a + i) * *reinterpret_cast<const Lanes*>(b + i);
  float total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

// Where each row of a sequence lies; rows that cannot be read in place are widened to `copy`.
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

template <class T>
FT_INLINE void one_sequence(const T* q, const T* k, const T* v, T* out, const Sequence& sequence, const Shape& s,
                            Scratch& scratch) {
  const int64_t keys = sequence.first_len + sequence.second_len + sequence.k_len;
  const int64_t share = s.heads / s.kv_heads, q_row = s.heads * s.head_dim;
  // Zeroed once when it grows; the lanes past head_dim are never written, so they stay zero.
  if (int64_t(scratch.keys.size()) < keys) {
    scratch.keys.resize(size_t(keys));
    scratch.values.resize(size_t(keys));
    scratch.scores.resize(size_t(keys));
    scratch.widened.assign(size_t(2 * keys * s.padded), 0.0f);
  }
  for (int64_t group = 0; group < s.kv_heads; ++group) {
    locate(k, sequence, group * s.head_dim, s, scratch.widened.data(), scratch.keys.data());
    locate(v, sequence, group * s.head_dim, s, scratch.widened.data() + keys * s.padded, scratch.values.data());
    for (int64_t i = 0; i < sequence.q_len; ++i) {
      const int64_t last = keys - sequence.q_len + i;  // the key at the query's own token
      const int64_t from = s.window > 0 ? std::max<int64_t>(0, last - s.window + 1) : 0;
      for (int64_t head = group * share; head < (group + 1) * share; ++head) {
        const T* query = q + (sequence.q_begin + i) * q_row + head * s.head_dim;
        for (int64_t d = 0; d < s.head_dim; ++d) scratch.query[size_t(d)] = s.scale * widen(query[d]);
        float* scores = scratch.scores.data();
        for (int64_t j = from; j <= last; ++j)
          scores[j] = dot(scratch.query.data(), scratch.keys[size_t(j)], s.padded);
        if (s.softcap > 0)
          for (int64_t j = from; j <= last; ++j) scores[j] = s.softcap * std::tanh(scores[j] / s.softcap);
        if (s.slopes)
          for (int64_t j = from; j <= last; ++j) scores[j] -= s.slopes[head] * float(last - j);
        float top = -INFINITY;
        for (int64_t j = from; j <= last; ++j) top = std::max(top, scores[j]);
        float total = 0;
        for (int64_t j = from; j <= last; ++j) total += scores[j] = std::exp(scores[j] - top);
        const float inverse = 1.0f / total;
        T* result = out + (sequence.q_begin + i) * q_row + head * s.head_dim;
        for (int64_t d = 0; d < s.padded; d += kLanes) {
          Lanes mixed = {};
          for (int64_t j = from; j <= last; ++j)
            mixed += scores[j] * *reinterpret_cast<const Lanes*>(scratch.values[size_t(j)] + d);
          mixed *= inverse;
          for (int64_t lane = 0; lane < std::min(kLanes, s.head_dim - d); ++lane) store(result + d + lane, mixed[lane]);
        }
      }
    }
  }
}

template <class T>
using Kernel = void (*)(const T*, const T*, const T*, T*, const Sequence&, const Shape&, Scratch&);

template <class T>
void baseline(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  one_sequence(q, k, v, out, x, s, scratch);
}

#if defined(__x86_64__)
template <class T>
FT_AVX2 void avx2(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s, Scratch& scratch) {
  one_sequence(q, k, v, out, x, s, scratch);
}

template <class T>
FT_AVX512 void avx512(const T* q, const T* k, const T* v, T* out, const Sequence& x, const Shape& s,
                      Scratch& scratch) {
  one_sequence(q, k, v, out, x, s, scratch);
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
  // Rows are named by number, so a wrong number would read outside k and v.
  for (int64_t i = 0; i < count; ++i) {
    const Sequence& s = sequences[i];
    const bool inside = s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + s.q_len <= q.size(0) && s.first_begin >= 0 &&
                        s.first_len >= 0 && s.first_begin + s.first_len <= rows && s.second_begin >= 0 &&
                        s.second_len >= 0 && s.second_begin + s.second_len <= rows && s.k_begin >= 0 &&
                        s.k_len >= s.q_len && s.k_begin + s.k_len <= rows;
    check(inside, "prefix_attention: sequence ", i, " names rows outside q's ", q.size(0), " or k's ", rows);
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
