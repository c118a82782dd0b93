// Products of matrices of f32, f64, f16 and bfloat16 numbers with any strides, and looks at what memory they touch: for blas.cpp and dnn.cpp.
#pragma once
#include "stand_in.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using Index = std::ptrdiff_t;

// ---- Numbers ----

enum class Kind { f32, f64, f16, bf16 };

struct Half { std::uint16_t bits; };
struct Brain { std::uint16_t bits; };

// What elements are added up in.
template <class E> using Sum = std::conditional_t<std::is_same_v<E, double>, double, float>;

inline std::uint32_t bits_of(float v) { return __builtin_bit_cast(std::uint32_t, v); }
inline float of_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline double read(double v) { return v; }
inline float read(float v) { return v; }
inline float read(Brain v) { return of_bits(std::uint32_t(v.bits) << 16); }
inline float read(Half v) {
    std::uint32_t size = std::uint32_t(v.bits & 0x7fff) << 13;
    // 2^112 moves the exponent, and makes subnormal numbers normal.
    std::uint32_t bits = size >= 0x0f800000 ? size | 0x7f800000 : bits_of(of_bits(size) * 0x1p112f);
    return of_bits(bits | std::uint32_t(v.bits & 0x8000) << 16);
}

inline void write(double &to, double v) { to = v; }
inline void write(float &to, float v) { to = v; }
inline void write(Brain &to, float v) {
    std::uint32_t bits = bits_of(v);
    to.bits = std::uint16_t((v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void write(Half &to, float v) {
    std::uint32_t bits = bits_of(v), size = bits & 0x7fffffff, half;
    if (size >= 0x477ff000) // infinite or not a number
        half = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    else if (size < 0x38800000) // subnormal
        half = bits_of(of_bits(size) + 0.5f) - 0x3f000000;
    else
        half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    to.bits = std::uint16_t(half | (bits >> 16 & 0x8000));
}

// What is written to where `beta` is 0 holds NaN first; see above.
template <class E> void poison(E &to, double beta) {
    if (beta == 0)
        write(to, std::numeric_limits<Sum<E>>::quiet_NaN());
}

template <class E> void scale_into(E &to, Sum<E> sum, Sum<E> alpha, Sum<E> beta) {
    write(to, beta == 0 ? alpha * sum : alpha * sum + beta * read(to));
}

// Calls f with a null pointer to the kind's element.
template <class F> void with_kind(Kind kind, F f) {
    switch (kind) {
    case Kind::f32: return f(static_cast<float *>(nullptr));
    case Kind::f64: return f(static_cast<double *>(nullptr));
    case Kind::f16: return f(static_cast<Half *>(nullptr));
    case Kind::bf16: return f(static_cast<Brain *>(nullptr));
    }
}

constexpr Index size_of(Kind kind) { return kind == Kind::f64 ? 8 : kind == Kind::f32 ? 4 : 2; }

// What f32 factors are rounded to before they are multiplied.
enum class Factor { whole, tf32, bf16 };

inline double rounded(double v, Factor) { return v; }
inline float rounded(float v, Factor factor) {
    std::uint32_t bits = bits_of(v), drop = factor == Factor::tf32 ? 13 : 16, half = 1u << (drop - 1);
    bool keep = factor == Factor::whole || (bits & 0x7f800000) == 0x7f800000;
    return of_bits(keep ? bits : (bits + half) >> drop << drop);
}

// ---- The product ----

#if defined(__AVX512F__)
constexpr int VECTOR = 64, COLUMNS = 12;
#else
constexpr int VECTOR = 32, COLUMNS = 6;
#endif

// A matrix: element (i, j) is i * row + j * column elements behind data.
struct Matrix {
    const void *data;
    Kind kind;
    Index row, column;
    Factor factor;
};

// Memory for `count` numbers, aligned for vectors, which the vector keeps.
template <class T> T *room(std::vector<T> &memory, Index count) {
    memory.resize(std::max(memory.size(), std::size_t(count) + 64 / sizeof(T)));
    return reinterpret_cast<T *>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// Panels of `width` rows of a part of a matrix, the panels' rows next to each other; rows that are missing in the last panel are zeros.
template <class T> void pack(const Matrix &m, Index first, Index rows, Index start, Index depth, Index width, T *out) {
    with_kind(m.kind, [&](auto *element) {
        using E = std::remove_pointer_t<decltype(element)>;
        using One = std::integral_constant<Index, 1>;
        if constexpr (std::is_same_v<Sum<E>, T>) {
            const E *from = static_cast<const E *>(m.data) + first * m.row + start * m.column;
            for (Index r0 = 0; r0 < rows; r0 += width, out += width * depth, from += width * m.row) {
                Index count = std::min(width, rows - r0);
                if (count < width)
                    std::fill(out, out + width * depth, T(0));
                auto copy = [&](auto row, auto column, Index r, Index p) {
                    out[p * width + r] = rounded(T(read(from[r * row + p * column])), m.factor);
                };
                if (m.row == 1)
                    for (Index p = 0; p < depth; ++p)
                        for (Index r = 0; r < count; ++r)
                            copy(One(), m.column, r, p);
                // Some steps at a time, so that what is written stays in the cache.
                for (Index p0 = 0; m.row != 1 && p0 < depth; p0 += 16)
                    for (Index r = 0; r < count; ++r)
                        for (Index p = p0; p < std::min(depth, p0 + 16); ++p)
                            m.column == 1 ? copy(m.row, One(), r, p) : copy(m.row, m.column, r, p);
            }
        } else {
            std::abort(); // no product has such factors
        }
    });
}

// Adds the product of two panels to `sums`, whose columns are `stride` apart.
template <class T> void tile(Index depth, const T *a, const T *b, T *sums, Index stride) {
    typedef T Vector __attribute__((vector_size(VECTOR), may_alias));
    constexpr int lanes = VECTOR / sizeof(T);
    Vector s[COLUMNS][2] = {};
    for (Index p = 0; p < depth; ++p, a += 2 * lanes, b += COLUMNS) {
        Vector a0 = *reinterpret_cast<const Vector *>(a), a1 = *reinterpret_cast<const Vector *>(a + lanes);
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; ++c) {
            s[c][0] += a0 * b[c];
            s[c][1] += a1 * b[c];
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) {
        *reinterpret_cast<Vector *>(sums + c * stride) += s[c][0];
        *reinterpret_cast<Vector *>(sums + c * stride + lanes) += s[c][1];
    }
}

// a (m, k) times b (k, n). Calls store(row, column, sum) for every element of the result.
template <class T, class Store> void product(Index m, Index n, Index k, const Matrix &a, const Matrix &b, Store store) {
    constexpr Index width = 2 * VECTOR / sizeof(T), high = 1024 / sizeof(T), wide = COLUMNS * 20, deep = 256;
    // Never freed: work may run while its thread ends.
    static thread_local std::vector<T> *memory = new std::vector<T>[3];
    T *pa = room(memory[0], high * deep), *pb = room(memory[1], wide * deep), *sums = room(memory[2], high * wide);
    Matrix across{b.data, b.kind, b.column, b.row, b.factor};
    auto whole = [](Index count, Index each) { return (count + each - 1) / each * each; };
    for (Index j = 0; j < n; j += wide) {
        Index columns = std::min(wide, n - j);
        for (Index i = 0; i < m; i += high) {
            Index rows = std::min(high, m - i), stride = whole(rows, width);
            std::fill(sums, sums + stride * whole(columns, COLUMNS), T(0));
            for (Index p = 0; p < k; p += deep) {
                Index depth = std::min(deep, k - p);
                pack(a, i, rows, p, depth, width, pa);
                if (i == 0 || k > deep)
                    pack(across, j, columns, p, depth, COLUMNS, pb);
                for (Index c = 0; c < columns; c += COLUMNS)
                    for (Index r = 0; r < rows; r += width)
                        tile(depth, pa + r * depth, pb + c * depth, sums + c * stride + r, stride);
            }
            for (Index c = 0; c < columns; ++c)
                for (Index r = 0; r < rows; ++r)
                    store(i + r, j + c, sums[c * stride + r]);
        }
    }
}

// ---- Work ----

template <class F> void enqueue(void *stream, F f) {
    cuda_on_cpu_enqueue(stream, [](void *work) { (*std::unique_ptr<F>(static_cast<F *>(work)))(); }, new F(std::move(f)));
}

[[noreturn]] inline void fail(const std::string &who, const char *what) {
    std::fprintf(stderr, "%s: %s\n", who.c_str(), what);
    std::abort();
}

// Ends the program unless an array's elements are in one live allocation and aligned. Its axes have sizes and strides in elements.
inline void check(const void *data, Kind kind, std::initializer_list<std::pair<Index, Index>> axes, const std::string &who) {
    Index first = 0, last = 0, size = size_of(kind);
    for (auto [count, stride] : axes) {
        if (count == 0)
            return;
        (stride < 0 ? first : last) += (count - 1) * stride;
    }
    cuda_on_cpu_check(static_cast<const char *>(data) + first * size, std::size_t((last - first + 1) * size), who.c_str());
    if (reinterpret_cast<std::uintptr_t>(data) % std::size_t(size) != 0)
        fail(who, "an address is not a multiple of the size of an element");
}

} // namespace
