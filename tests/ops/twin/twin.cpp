// Runs CUDA kernels on the CPU at awkward shapes and prints the largest errors, in the units of test_twin.py's bounds.
// Each tensor has its own memory of exactly its size. The gaps of strided tensors hold NaN.
#include <algorithm>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <type_traits>

#include "moments.cuh"
#include "rank_one.cuh"
#include "rank_one_linear.cuh"

namespace fasttrace {
namespace {

std::mt19937_64 source{1};
std::map<std::string, double> worst;

void note(const std::string& name, double error) {
  double& so_far = worst[name];
  so_far = std::isnan(error) ? INFINITY : std::max(so_far, error);
}

template <class T>
T draw() {
  T x;
  store(&x, std::normal_distribution<float>{0.3f, 1.0f}(source));
  return x;
}

// A matrix (rows, columns) with these strides and `before` elements ahead of its first one.
template <class T>
struct Matrix {
  int64_t rows, columns, row_stride, column_stride, before;
  std::unique_ptr<T[]> memory;
  Matrix(int64_t rows, int64_t columns, int64_t row_stride = 0, int64_t column_stride = 1, int64_t before = 0)
      : rows(rows), columns(columns), row_stride(row_stride ? row_stride : columns), column_stride(column_stride),
        before(before), memory(new T[size()]) {
    if constexpr (!std::is_same_v<T, double>) {
      for (int64_t i = 0; i < size(); ++i) store(&memory[i], NAN);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) *at(i, j) = draw<T>();
    }
  }
  int64_t size() const { return before + (rows - 1) * row_stride + (columns - 1) * column_stride + 1; }
  T* data() const { return memory.get() + before; }
  T* at(int64_t i, int64_t j = 0) const { return data() + i * row_stride + j * column_stride; }
};

template <class TC, class TK>
void second_moment_case(const Matrix<TK>& K) {
  const int64_t n = K.rows, m = K.columns;
  Matrix<TC> C(m, m);
  std::fill(C.data(), C.data() + m * m, TC(0));
  twin::run(second_moment::plan<TK>(m), [&] {
    second_moment::kernel(C.data(), const_cast<const TK*>(K.data()), n, m, K.row_stride, K.column_stride,
                          second_moment::reads_packs(K.data(), K.row_stride, K.column_stride));
  });
  std::vector<double> wanted(size_t(m * m));
  for (int64_t k = 0; k < n; ++k)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < m; ++j) wanted[size_t(i * m + j)] += double(widen(*K.at(k, i))) * double(widen(*K.at(k, j)));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) {
      const double scale = std::sqrt(wanted[size_t(i * m + i)] * wanted[size_t(j * m + j)]);
      note(sizeof(TK) == 4 ? "second_moment_ float32" : "second_moment_ bfloat16",
           std::fabs(double(*C.at(i, j)) - wanted[size_t(i * m + j)]) / scale);
      note("second_moment_ asymmetry", *C.at(i, j) == *C.at(j, i) ? 0 : 1);
    }
}

template <class TK>
void second_moment_cases() {
  second_moment_case<double>(Matrix<TK>(1, 1));
  second_moment_case<float>(Matrix<TK>(33, 13));             // rows that are no whole number of packs
  second_moment_case<double>(Matrix<TK>(131, 144));          // two tiles a side, whole packs
  second_moment_case<double>(Matrix<TK>(70, 43, 48));        // whole packs, the last of them cut
  second_moment_case<float>(Matrix<TK>(50, 40, 56, 1, 1));   // an address that is not aligned to a pack
  second_moment_case<double>(Matrix<TK>(40, 20, 1, 47));     // transposed
  Matrix<TK> equal(400, 3);                                  // equal products, whose sums could all round one way
  for (int64_t i = 0; i < equal.size(); ++i) store(equal.data() + i, 1.0f / 3);
  second_moment_case<double>(equal);
}

template <class TW, class TV>
void rank_one_case(const Matrix<TW>& W, bool transposed) {
  const int64_t height = W.rows, columns = W.columns;
  const Matrix<float> u(transposed ? columns : height, 1, 3);
  const Matrix<TV> v(transposed ? height : columns, 1, 2);
  std::vector<double> wanted;
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < columns; ++j)
      wanted.push_back(double(widen(*W.at(i, j))) +
                       double(0.7f * *u.at(transposed ? j : i)) * double(widen(*v.at(transposed ? i : j))));
  constexpr int width = 16 / sizeof(TW);
  const bool packs = rank_one::takes_packs(W.data(), W.row_stride, height, columns);
  const auto kernel = packs ? rank_one::kernel<width, TW, float, TV> : rank_one::kernel<1, TW, float, TV>;
  twin::run(rank_one::plan(height, columns, packs ? width : 1), [&] {
    kernel(W.data(), W.row_stride, u.data(), u.row_stride, v.data(), v.row_stride, 0.7f, height, columns, transposed);
  });
  const double unit = sizeof(TW) == 4 ? std::ldexp(1, -24) : std::ldexp(1, -8);
  size_t at = 0;
  for (int64_t i = 0; i < height; ++i)
    for (int64_t j = 0; j < columns; ++j, ++at)
      note("rank_one_", std::fabs(double(widen(*W.at(i, j))) - wanted[at]) / (unit * std::fabs(wanted[at]) + 2e-8));
  for (int64_t i = 0; i + 1 < height; ++i)
    for (int64_t gap = columns; gap < W.row_stride; ++gap)
      note("written in a gap", std::isnan(widen(W.data()[i * W.row_stride + gap])) ? 0 : 1);
}

template <class TW, class TV>
void rank_one_cases() {
  for (const bool transposed : {false, true}) {
    rank_one_case<TW, TV>(Matrix<TW>(1, 1), transposed);
    rank_one_case<TW, TV>(Matrix<TW>(7, 1000), transposed);        // whole packs, two blocks across in float32
    rank_one_case<TW, TV>(Matrix<TW>(9, 67), transposed);          // no whole packs
    rank_one_case<TW, TV>(Matrix<TW>(6, 64, 80), transposed);      // gaps between rows
    rank_one_case<TW, TV>(Matrix<TW>(5, 64, 80, 1, 3), transposed);  // an address that is not aligned to a pack
  }
}

template <class T>
void rank_one_add_case(int64_t rows, int64_t m, int64_t d, int64_t edits, int64_t width) {
  const Matrix<T> y(rows, d, d + 3), x(rows, m, m + 5);
  const Matrix<float> key(edits * width, m), value(edits * width, d);
  const std::unique_ptr<int64_t[]> edit(new int64_t[size_t(rows)]);
  std::vector<double> wanted, slack;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t e = edit[size_t(r)] = r % (edits + 3) - 2;  // -2 and `edits` are out of range, -1 leaves the row
    for (int64_t c = 0; c < d; ++c) {
      double sum = widen(*y.at(r, c)), size = 0;
      for (int64_t j = 0; e >= 0 && e < edits && j < width; ++j) {
        double along = 0, all = 0;
        for (int64_t i = 0; i < m; ++i) {
          const double product = double(widen(*x.at(r, i))) * double(*key.at(e * width + j, i));
          along += product;
          all += std::fabs(product);
        }
        sum += along * double(*value.at(e * width + j, c));
        size += all * std::fabs(double(*value.at(e * width + j, c)));
      }
      wanted.push_back(e < -1 || e >= edits ? NAN : sum);
      slack.push_back(size);
    }
  }
  twin::run(rank_one_add::plan(rows, width), [&] {
    rank_one_add::kernel(y.data(), y.row_stride, const_cast<const T*>(x.data()), x.row_stride,
                         const_cast<const int64_t*>(edit.get()), const_cast<const float*>(key.data()),
                         const_cast<const float*>(value.data()), edits, width, rank_one_add::sharing(width), m, d);
  });
  const double unit = sizeof(T) == 4 ? std::ldexp(1, -24) : std::ldexp(1, -8);
  size_t at = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < d; ++c, ++at) {
      const double got = widen(*y.at(r, c));
      if (std::isnan(wanted[at]))
        note("rank_one_add_ out of range", std::isnan(got) ? 0 : 1);
      else
        note("rank_one_add_", std::fabs(got - wanted[at]) / (unit * std::fabs(wanted[at]) + 1e-6 * (1 + slack[at])));
    }
}

template <class T>
void rank_one_add_cases() {
  for (const int64_t width : {1, 2, 3, 9, 20}) rank_one_add_case<T>(7, 300, 290, 3, width);
  rank_one_add_case<T>(3, 1, 1, 1, 1);
}

}  // namespace
}  // namespace fasttrace

// twin [op…]: run these ops, or all.
int main(int count, char** names) {
  using namespace fasttrace;
  const auto asked = [&](const char* op) {
    return count == 1 || std::any_of(names + 1, names + count, [&](const char* name) { return !std::strcmp(name, op); });
  };
  if (asked("second_moment_")) second_moment_cases<float>(), second_moment_cases<bfloat16>();
  if (asked("rank_one_"))
    rank_one_cases<float, float>(), rank_one_cases<bfloat16, float>(), rank_one_cases<float, bfloat16>();
  if (asked("rank_one_add_")) rank_one_add_cases<float>(), rank_one_add_cases<bfloat16>();
  std::printf("{");
  const char* between = "";
  for (const auto& [name, error] : worst) {
    std::printf("%s\"%s\": %.3g", between, name.c_str(), std::min(error, 1e300));
    between = ", ";
  }
  std::printf("}\n");
}
