// A stand-in for cuBLAS on the processor: products of matrices and of a matrix and a vector, in f32, f64, f16 and bfloat16.
//
// As in the real library: matrices are column-major; arguments are checked, and combinations of types are refused, as NVIDIA's page on
// cublasGemmEx says; work is queued on the handle's stream; C is not read where beta is 0, nor A and B where alpha is 0; results are
// rounded to nearest even; TF32 rounds both factors to 10 bits of mantissa; long products with few results of 16 bits are added up in parts
// that are rounded to 16 bits each, unless CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION is set (the real one may do that).
// Unlike it: sums have another order; CUBLAS_COMPUTE_16F adds up in f32; integers, complex numbers, scalars in device memory, batches of
// pointers, 64-bit sizes and sums of absolute values are missing.
// Stricter than it: every matrix must lie in one live allocation, aligned to its elements; the results of a batch may not begin within each
// other's first column; and where beta is 0, C holds NaN before it is written, so that a C that is also a factor shows.
// The first part, the product itself, is taken by dnn.cpp too, which defines PRODUCT_ONLY.

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
    static thread_local std::vector<T> memory[3];
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

#ifndef PRODUCT_ONLY

#if __has_include(<cublas_v2.h>) && !defined(NO_NVIDIA_HEADERS)
#include <cublas_v2.h>
#else
typedef struct CUstream_st *cudaStream_t;
typedef struct cublasContext *cublasHandle_t;
typedef enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_INVALID_VALUE = 7,
               CUBLAS_STATUS_NOT_SUPPORTED = 15 } cublasStatus_t;
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C } cublasOperation_t;
typedef enum { CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE } cublasPointerMode_t;
typedef enum { CUBLAS_GEMM_DEFAULT = -1, CUBLAS_GEMM_ALGO23 = 23, CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99,
               CUBLAS_GEMM_ALGO15_TENSOR_OP = 115 } cublasGemmAlgo_t;
typedef enum { CUBLAS_DEFAULT_MATH = 0, CUBLAS_TENSOR_OP_MATH = 1, CUBLAS_TF32_TENSOR_OP_MATH = 3,
               CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 } cublasMath_t;
typedef enum { CUBLAS_COMPUTE_16F = 64, CUBLAS_COMPUTE_16F_PEDANTIC = 65, CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_PEDANTIC = 69,
               CUBLAS_COMPUTE_64F = 70, CUBLAS_COMPUTE_64F_PEDANTIC = 71, CUBLAS_COMPUTE_32F_FAST_16F = 74,
               CUBLAS_COMPUTE_32F_FAST_16BF = 75, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 } cublasComputeType_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 } cudaDataType;
#endif

struct cublasContext { cudaStream_t stream = nullptr; cublasMath_t math = CUBLAS_DEFAULT_MATH; };

namespace {

using Status = cublasStatus_t;
using Handle = cublasHandle_t;
using Op = cublasOperation_t;

// Matrices `batch` elements apart; their rows and columns are `row` and `column` apart.
struct Side {
    const void *data;
    Index row, column, batch = 0;
    Kind kind = Kind::f32;

    Matrix at(Index place, Factor factor) const {
        return {static_cast<const char *>(data) + place * size_of(kind), kind, row, column, factor};
    }
};

struct Product {
    std::string who;
    Index m, n, k, batch, parts;
    Side a, b, c;
    double alpha, beta;
    Factor factor;

    void operator()() const {
        Index depth = alpha == 0 ? 0 : k;
        check(a.data, a.kind, {{batch, a.batch}, {m, a.row}, {depth, a.column}}, who + ", A");
        check(b.data, b.kind, {{batch, b.batch}, {depth, b.row}, {n, b.column}}, who + ", B");
        check(c.data, c.kind, {{batch, c.batch}, {m, c.row}, {n, c.column}}, who + ", C");
        if (batch > 1 && std::abs(c.batch) < m)
            fail(who, "the results of a batch lie over each other");
        with_kind(c.kind, [&](auto *element) {
            using E = std::remove_pointer_t<decltype(element)>;
            auto at = [&](Index i, Index row, Index column) -> E & {
                return static_cast<E *>(const_cast<void *>(c.data))[i * c.batch + row * c.row + column * c.column];
            };
            for (Index i = 0; i < batch; ++i)
                for (Index column = 0; column < n; ++column)
                    for (Index row = 0; row < m; ++row)
                        poison(at(i, row, column), beta);
            for (Index i = 0; i < batch * parts; ++i) {
                Index one = i / parts, part = i % parts, first = depth * part / parts, last = depth * (part + 1) / parts;
                Matrix pa = a.at(one * a.batch + first * a.column, factor), pb = b.at(one * b.batch + first * b.row, factor);
                product<Sum<E>>(m, n, last - first, pa, pb, [&](Index row, Index column, Sum<E> sum) {
                    scale_into(at(one, row, column), sum, Sum<E>(alpha), Sum<E>(part == 0 ? beta : 1));
                });
            }
        });
    }
};

// Matrices come as they lie in memory, not transposed.
Status gemm(const char *who, Handle handle, Op ta, Op tb, Index m, Index n, Index k, Index batch, const void *alpha, Side a, Side b,
            const void *beta, Side c, Kind factors, Kind results, Kind scalars, Factor factor) {
    auto valid = [](Op op) { return op == CUBLAS_OP_N || op == CUBLAS_OP_T || op == CUBLAS_OP_C; };
    bool na = ta == CUBLAS_OP_N, nb = tb == CUBLAS_OP_N, sizes = m >= 0 && n >= 0 && k >= 0 && batch >= 0;
    auto fits = [](const Side &side, Index rows) { return side.column >= std::max<Index>(1, rows); };
    if (!valid(ta) || !valid(tb) || !sizes || !fits(a, na ? m : k) || !fits(b, nb ? k : n) || !fits(c, m) || !alpha || !beta)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (m == 0 || n == 0 || batch == 0)
        return CUBLAS_STATUS_SUCCESS;
    if (!c.data || (k > 0 && (!a.data || !b.data)))
        return CUBLAS_STATUS_INVALID_VALUE;
    double by = 0, kept = 0;
    with_kind(scalars, [&](auto *element) {
        using E = std::remove_pointer_t<decltype(element)>;
        by = double(read(*static_cast<const E *>(alpha))), kept = double(read(*static_cast<const E *>(beta)));
    });
    a = na ? a : Side{a.data, a.column, a.row, a.batch};
    b = nb ? b : Side{b.data, b.column, b.row, b.batch};
    a.kind = b.kind = factors;
    c.kind = results;
    bool narrow = size_of(results) == 2 && (handle->math & CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION) == 0;
    Index parts = narrow && k >= 2048 && k >= 8 * std::max(m, n) ? 4 : 1;
    enqueue(handle->stream, Product{who, m, n, k, batch, parts, a, b, c, by, kept, factor});
    return CUBLAS_STATUS_SUCCESS;
}

bool kind_of(cudaDataType type, Kind &kind) {
    kind = type == CUDA_R_64F ? Kind::f64 : type == CUDA_R_16F ? Kind::f16 : type == CUDA_R_16BF ? Kind::bf16 : Kind::f32;
    return kind != Kind::f32 || type == CUDA_R_32F;
}

// Of f32 products that do not name a precision.
Factor factor_of(const cublasContext &handle) {
    int mode = handle.math & ~CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    return mode == CUBLAS_TF32_TENSOR_OP_MATH || mode == CUBLAS_TENSOR_OP_MATH ? Factor::tf32 : Factor::whole;
}

Status gemm_ex(const char *who, Handle handle, Op ta, Op tb, int m, int n, int k, int batch, const void *alpha, Side a,
               cudaDataType a_type, Side b, cudaDataType b_type, const void *beta, Side c, cudaDataType c_type,
               cublasComputeType_t compute, int algorithm) {
    if (!handle)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (algorithm < CUBLAS_GEMM_DEFAULT || algorithm > CUBLAS_GEMM_ALGO15_TENSOR_OP ||
        (algorithm > CUBLAS_GEMM_ALGO23 && algorithm < CUBLAS_GEMM_DEFAULT_TENSOR_OP))
        return CUBLAS_STATUS_INVALID_VALUE;
    Kind kind, results, scalars = Kind::f32;
    bool known = a_type == b_type && kind_of(a_type, kind) && kind_of(c_type, results);
    Factor factor = Factor::whole;
    switch (known ? compute : -1) {
    case CUBLAS_COMPUTE_16F:
    case CUBLAS_COMPUTE_16F_PEDANTIC: known = kind == Kind::f16 && results == (scalars = Kind::f16); break;
    case CUBLAS_COMPUTE_64F:
    case CUBLAS_COMPUTE_64F_PEDANTIC: known = kind == Kind::f64 && results == (scalars = Kind::f64); break;
    case CUBLAS_COMPUTE_32F: factor = kind == Kind::f32 ? factor_of(*handle) : factor; [[fallthrough]];
    case CUBLAS_COMPUTE_32F_PEDANTIC: known = kind != Kind::f64 && (results == kind || results == Kind::f32); break;
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
        known = kind == Kind::f32 && results == Kind::f32;
        factor = compute == CUBLAS_COMPUTE_32F_FAST_16BF ? Factor::bf16 : Factor::tf32;
        break;
    default: known = false;
    }
    if (!known)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return gemm(who, handle, ta, tb, m, n, k, batch, alpha, a, b, beta, c, kind, results, scalars, factor);
}

// y = alpha op(A) x + beta y. With a step below zero a vector begins at its end.
template <class T>
Status gemv(const char *who, Handle handle, Op op, Index m, Index n, const T *alpha, Side a, const T *x, Index incx, const T *beta, T *y,
            Index incy, Kind kind) {
    if (m < 0 || n < 0 || incx == 0 || incy == 0)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (m == 0 || n == 0)
        return CUBLAS_STATUS_SUCCESS;
    Index inner = op == CUBLAS_OP_N ? n : m, outer = m + n - inner;
    auto vector = [](const T *at, Index count, Index step) { return Side{at && step < 0 ? at - (count - 1) * step : at, step, count}; };
    return gemm(who, handle, op, CUBLAS_OP_N, outer, 1, inner, 1, alpha, a, vector(x, inner, incx), beta, vector(y, outer, incy),
                kind, kind, kind, Factor::whole);
}

template <class F> Status with(Handle handle, F f) {
    return !handle ? CUBLAS_STATUS_NOT_INITIALIZED : f() ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

} // namespace

extern "C" {

Status cublasCreate_v2(Handle *to) { return to ? *to = new cublasContext(), CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE; }
Status cublasDestroy_v2(Handle h) { return with(h, [&] { return delete h, true; }); }
Status cublasGetVersion_v2(Handle h, int *to) { return with(h, [&] { return to && (*to = 130000); }); }
Status cublasSetStream_v2(Handle h, cudaStream_t stream) { return with(h, [&] { return h->stream = stream, true; }); }
Status cublasGetStream_v2(Handle h, cudaStream_t *to) { return with(h, [&] { return to && (*to = h->stream, true); }); }
Status cublasGetMathMode(Handle h, cublasMath_t *to) { return with(h, [&] { return to && (*to = h->math, true); }); }
Status cublasSetMathMode(Handle h, cublasMath_t mode) {
    int base = mode & ~CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    return with(h, [&] { return base >= CUBLAS_DEFAULT_MATH && base <= CUBLAS_TF32_TENSOR_OP_MATH && (h->math = mode, true); });
}
Status cublasGetPointerMode_v2(Handle h, cublasPointerMode_t *to) {
    return with(h, [&] { return to && (*to = CUBLAS_POINTER_MODE_HOST, true); });
}
Status cublasSetPointerMode_v2(Handle h, cublasPointerMode_t mode) {
    return !h ? CUBLAS_STATUS_NOT_INITIALIZED : mode == CUBLAS_POINTER_MODE_HOST ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
Status cublasSetWorkspace_v2(Handle h, void *room, std::size_t) {
    return with(h, [&] { return reinterpret_cast<std::uintptr_t>(room) % 256 == 0; }); // it needs none
}

Status cublasGemmEx(Handle h, Op ta, Op tb, int m, int n, int k, const void *alpha, const void *a, cudaDataType at, int lda, const void *b,
                    cudaDataType bt, int ldb, const void *beta, void *c, cudaDataType ct, int ldc, cublasComputeType_t compute,
                    cublasGemmAlgo_t algo) {
    return gemm_ex("cublasGemmEx", h, ta, tb, m, n, k, 1, alpha, {a, 1, lda}, at, {b, 1, ldb}, bt, beta, {c, 1, ldc}, ct, compute, algo);
}

Status cublasGemmStridedBatchedEx(Handle h, Op ta, Op tb, int m, int n, int k, const void *alpha, const void *a, cudaDataType at, int lda,
                                  long long sa, const void *b, cudaDataType bt, int ldb, long long sb, const void *beta, void *c,
                                  cudaDataType ct, int ldc, long long sc, int batch, cublasComputeType_t compute,
                                  cublasGemmAlgo_t algo) {
    return gemm_ex("cublasGemmStridedBatchedEx", h, ta, tb, m, n, k, batch, alpha, {a, 1, lda, sa}, at, {b, 1, ldb, sb}, bt, beta,
                   {c, 1, ldc, sc}, ct, compute, algo);
}

#define OF_TYPE(NAME, T, KIND, FACTOR) \
    Status cublas##NAME##gemmStridedBatched(Handle h, Op ta, Op tb, int m, int n, int k, const T *alpha, const T *a, int lda, \
                                            long long sa, const T *b, int ldb, long long sb, const T *beta, T *c, int ldc, long long sc, \
                                            int batch) { \
        return !h ? CUBLAS_STATUS_NOT_INITIALIZED \
                  : gemm("cublas" #NAME "gemm", h, ta, tb, m, n, k, batch, alpha, {a, 1, lda, sa}, {b, 1, ldb, sb}, beta, {c, 1, ldc, sc}, \
                         KIND, KIND, KIND, FACTOR); \
    } \
    Status cublas##NAME##gemm_v2(Handle h, Op ta, Op tb, int m, int n, int k, const T *alpha, const T *a, int lda, const T *b, int ldb, \
                                 const T *beta, T *c, int ldc) { \
        return cublas##NAME##gemmStridedBatched(h, ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1); \
    } \
    Status cublas##NAME##gemv_v2(Handle h, Op op, int m, int n, const T *alpha, const T *a, int lda, const T *x, int incx, const T *beta, \
                                 T *y, int incy) { \
        return !h ? CUBLAS_STATUS_NOT_INITIALIZED \
                  : gemv("cublas" #NAME "gemv", h, op, m, n, alpha, {a, 1, lda}, x, incx, beta, y, incy, KIND); \
    } \
    Status cublas##NAME##asum_v2(Handle, int, const T *, int, T *) { return CUBLAS_STATUS_NOT_SUPPORTED; }

OF_TYPE(S, float, Kind::f32, factor_of(*h))
OF_TYPE(D, double, Kind::f64, Factor::whole)
}

#endif
