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

#include "product.h"

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
