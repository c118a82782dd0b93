// A stand-in for cuDNN 9 on the processor: convolutions of two dimensions, forward, to the input and to the filter, in f32, f64, f16 and
// bfloat16, by gathered patches and the product of product.h.
//
// As in the real library: sizes that do not fit together are a bad parameter; an algorithm takes some layouts, types, strides and filters
// only (the tables of NVIDIA's API reference, simplified), and wants a workspace; work is queued on the stream with its descriptors
// as they were; f32 factors are rounded to TF32 unless the convolution's math is CUDNN_FMA_MATH; sums are f32, of f64 data f64.
// Unlike it: all algorithms compute the same and the same way; sizes of workspaces are made up; other dimensions than two, integers, fused
// convolutions, pooling, reductions, activations and softmax are not supported.
// Stricter than it: filters in groups with channels last run by fewer algorithms (of 16-bit numbers by none), 5 x 5 filters fail in
// WINOGRAD_NONFUSED when they run, as was seen of other programs; with channels last or 16-bit numbers addresses must be multiples of 16
// bytes; the workspace must be live memory of the device, and is filled with 0xFF before and after; where beta is 0 the result holds NaN
// before it is written.

#include "product.h"

#include <cstring>

#if __has_include(<cudnn.h>) && !defined(NO_NVIDIA_HEADERS)
#include <cudnn.h>
#else
typedef struct CUstream_st *cudaStream_t;
typedef struct cudnnContext *cudnnHandle_t;
typedef struct cudnnTensorStruct *cudnnTensorDescriptor_t;
typedef struct cudnnFilterStruct *cudnnFilterDescriptor_t;
typedef struct cudnnConvolutionStruct *cudnnConvolutionDescriptor_t;
typedef enum { CUDNN_STATUS_SUCCESS = 0, CUDNN_STATUS_BAD_PARAM = 2000, CUDNN_STATUS_BAD_PARAM_NULL_POINTER = 2002,
               CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER = 2003, CUDNN_STATUS_NOT_SUPPORTED = 3000,
               CUDNN_STATUS_EXECUTION_FAILED = 5000 } cudnnStatus_t;
typedef enum { CUDNN_DATA_FLOAT = 0, CUDNN_DATA_DOUBLE = 1, CUDNN_DATA_HALF = 2, CUDNN_DATA_BFLOAT16 = 9 } cudnnDataType_t;
typedef enum { CUDNN_TENSOR_NCHW, CUDNN_TENSOR_NHWC } cudnnTensorFormat_t;
typedef enum { CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION, CUDNN_FMA_MATH } cudnnMathType_t;
typedef enum { CUDNN_CONVOLUTION, CUDNN_CROSS_CORRELATION } cudnnConvolutionMode_t;
typedef enum { CUDNN_NON_DETERMINISTIC, CUDNN_DETERMINISTIC } cudnnDeterminism_t;
typedef int cudnnConvolutionFwdAlgo_t, cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t;
struct cudnnConvolutionFwdAlgoPerf_t { int algo; cudnnStatus_t status; float time; std::size_t memory; cudnnDeterminism_t determinism;
                                       cudnnMathType_t mathType; int reserved[3]; };
typedef cudnnConvolutionFwdAlgoPerf_t cudnnConvolutionBwdDataAlgoPerf_t, cudnnConvolutionBwdFilterAlgoPerf_t;
#endif

using Status = cudnnStatus_t;
constexpr Status DONE = CUDNN_STATUS_SUCCESS, BAD = CUDNN_STATUS_BAD_PARAM, NONE = CUDNN_STATUS_NOT_SUPPORTED;

// An array's type, sizes and strides, in the order N, C, H, W, of filters O, C, H, W.
struct cudnnTensorStruct {
    int rank = 0;
    cudnnDataType_t type;
    cudnnTensorFormat_t format;
    Index sizes[8], strides[8];

    Status set(cudnnDataType_t numbers, int axes, const int *counts, const int *steps, cudnnTensorFormat_t order) {
        Index all = 1;
        rank = 0;
        if (axes < 3 || axes > 8 || (order != CUDNN_TENSOR_NCHW && order != CUDNN_TENSOR_NHWC))
            return NONE;
        for (int i = 0; i < axes; all *= counts[i++]) {
            if (counts[i] <= 0 || (steps && steps[i] <= 0))
                return BAD;
            sizes[i] = counts[i], strides[i] = steps ? steps[i] : 0;
        }
        if (all > std::numeric_limits<std::int32_t>::max())
            return NONE;
        rank = axes, type = numbers, format = order;
        if (!steps)
            pack(order);
        return DONE;
    }
    void pack(cudnnTensorFormat_t order) {
        Index step = 1;
        auto next = [&](int axis) { strides[axis] = step, step *= sizes[axis]; };
        if (order == CUDNN_TENSOR_NHWC)
            next(1);
        for (int i = rank - 1; i > (order == CUDNN_TENSOR_NHWC ? 1 : 0); --i)
            next(i);
        next(0);
    }
    // Elements from the first to the last.
    Index extent() const {
        Index last = 0;
        for (int i = 0; i < rank; ++i)
            last += (sizes[i] - 1) * strides[i];
        return last + 1;
    }
    bool packed(cudnnTensorFormat_t order) const {
        cudnnTensorStruct other = *this;
        other.pack(order);
        for (int i = 0; i < rank; ++i)
            if (sizes[i] > 1 && strides[i] != other.strides[i])
                return false;
        return true;
    }
};

struct cudnnFilterStruct : cudnnTensorStruct {};
struct cudnnContext { cudaStream_t stream = nullptr; };
struct cudnnConvolutionStruct {
    int rank = 0, groups = 1;
    Index pads[8], strides[8], dilations[8];
    cudnnConvolutionMode_t mode;
    cudnnDataType_t compute;
    cudnnMathType_t math = CUDNN_DEFAULT_MATH;
};

namespace {

using Array = cudnnTensorStruct;
using Handle = cudnnHandle_t;
using Tensor = cudnnTensorDescriptor_t;
using Filter = cudnnFilterDescriptor_t;
using Conv = cudnnConvolutionDescriptor_t;
using Type = cudnnDataType_t;

enum class Pass { forward, data, filter };

// Ways to compute, and which the algorithms of each pass are. `exact` repeats its bits where `simple` and `patches` of gradients need not.
enum class Way : char { simple = 's', exact = 'e', patches = 'p', fft = 'f', tiled = 't', winograd = 'w', nonfused = 'n', missing = '-' };
const std::string WAYS[] = {"sep-ftwn", "seftwn", "sefp-nt"};

Way way_of(Pass pass, int algorithm) {
    const std::string &ways = WAYS[int(pass)];
    return algorithm >= 0 && std::size_t(algorithm) < ways.size() ? Way(ways[std::size_t(algorithm)]) : Way::missing;
}

// A convolution of x (n, c, h, w) with the filter (o, each, kh, kw) to y (n, o, oh, ow), in groups of `each` and `made` channels.
struct Problem {
    Array x, filter, y;
    cudnnConvolutionStruct conv;
    Kind kind;
    Index n, c, h, w, o, kh, kw, oh, ow, each, made, patch;

    Status of(const Array *x, const Array *filter, Conv conv, const Array *y) {
        if (!x || !filter || !conv || !y)
            return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
        if (x->rank == 0 || filter->rank == 0 || conv->rank == 0 || y->rank == 0 || x->rank != y->rank || x->rank != filter->rank)
            return BAD;
        if (x->rank != 4 || conv->rank != 2)
            return NONE;
        this->x = *x, this->filter = *filter, this->y = *y, this->conv = *conv;
        n = x->sizes[0], c = x->sizes[1], h = x->sizes[2], w = x->sizes[3];
        o = filter->sizes[0], each = filter->sizes[1], kh = filter->sizes[2], kw = filter->sizes[3];
        made = o / conv->groups, patch = kh * kw * each;
        if (x->type != filter->type || x->type != y->type || each * conv->groups != c || made * conv->groups != o)
            return BAD;
        auto result = [&](int i, Index size, Index taps) {
            Index room = size + 2 * conv->pads[i] - (conv->dilations[i] * (taps - 1) + 1);
            return room < 0 ? 0 : room / conv->strides[i] + 1;
        };
        oh = result(0, h, kh), ow = result(1, w, kw);
        if (oh == 0 || ow == 0 || y->sizes[0] != n || y->sizes[1] != o || y->sizes[2] != oh || y->sizes[3] != ow)
            return BAD;
        auto is = [&](cudnnDataType_t type) { return x->type == type; };
        kind = is(CUDNN_DATA_DOUBLE) ? Kind::f64 : is(CUDNN_DATA_HALF) ? Kind::f16 : is(CUDNN_DATA_FLOAT) ? Kind::f32 : Kind::bf16;
        if (kind == Kind::bf16 && !is(CUDNN_DATA_BFLOAT16))
            return NONE;
        bool half = kind == Kind::f16 && conv->compute == CUDNN_DATA_HALF;
        return half || conv->compute == (kind == Kind::f64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT) ? DONE : NONE;
    }

    // Whether the way is one for this, and the bytes that it works in.
    Status takes(Pass pass, Way way, std::size_t &bytes) const {
        bool narrow = size_of(kind) == 2, last = filter.format == CUDNN_TENSOR_NHWC;
        bool one = conv.dilations[0] == 1 && conv.dilations[1] == 1, dense = one && conv.strides[0] == 1 && conv.strides[1] == 1;
        bool planes = !last && x.packed(CUDNN_TENSOR_NCHW) && y.packed(CUDNN_TENSOR_NCHW) && (kind == Kind::f32 || kind == Kind::f16);
        Index high = h + 2 * conv.pads[0], wide = w + 2 * conv.pads[1];
        bool small = kh > conv.pads[0] && kw > conv.pads[1] && kh <= 32 && kw <= 32;
        bool packed = x.packed(CUDNN_TENSOR_NHWC) && y.packed(CUDNN_TENSOR_NHWC), known = way == Way::simple || way == Way::exact;
        Way scarce = pass == Pass::data ? Way::simple : pass == Pass::filter ? Way::exact : Way::missing;
        if (last && (!packed || !known || kind == Kind::f64 || (conv.groups > 1 && (narrow || way == scarce))))
            return NONE;
        Index size = size_of(kind), taps = o * each, maps = n * c + n * o;
        Index exact = pass == Pass::forward ? 4 * (patch + oh * ow) : pass == Pass::data ? size * o * patch + 16 : 8 * o * patch;
        auto is = [&](bool can, Index needed) { return bytes = std::size_t(can ? needed : 0), can ? DONE : NONE; };
        switch (way) {
        case Way::simple: return is(true, 0);
        case Way::exact: return is(true, exact);
        case Way::patches: return is(one && kind != Kind::bf16, size * patch * oh * ow + 256);
        case Way::fft: return is(planes && dense && small && high <= 256 && wide <= 256, 8 * high * wide * (maps + taps));
        case Way::tiled: return is(planes && dense && small, 8 * 32 * 17 * (maps + taps));
        case Way::winograd: return is(planes && dense && kh == 3 && kw == 3, 4 * 16 * taps + 32);
        case Way::nonfused: return is(planes && dense && kh == kw && (kh == 3 || kh == 5), 4 * 36 * (maps + taps));
        default: return is(false, 0);
        }
    }

    // Calls f(place in the image, its step, place in the patches, count) for what patches have of the image. The patches are those of some
    // rows of pixels of the result, row by row: of every pixel (kh, kw, each), or with `across` (each, kh, kw) of all pixels.
    template <class F> void patches(Index group, Index first, Index rows, bool across, F f) const {
        Index sn = x.strides[0], sc = x.strides[1], sh = x.strides[2], sw = x.strides[3];
        for (Index r = 0; r < kh; ++r)
            for (Index s = 0; s < kw; ++s) {
                Index begin = s * conv.dilations[1] - conv.pads[1], step = conv.strides[1];
                Index low = begin < 0 ? (-begin + step - 1) / step : 0, high = begin < w ? std::min(ow, (w - 1 - begin) / step + 1) : 0;
                for (Index row = first; row < first + rows && low < high; ++row) {
                    Index y = row % oh * conv.strides[0] - conv.pads[0] + r * conv.dilations[0], to = (row - first) * ow + low;
                    if (y < 0 || y >= h)
                        continue;
                    Index from = row / oh * sn + group * each * sc + y * sh + (begin + low * step) * sw, tap = (r * kw + s) * each;
                    if (across)
                        for (Index c = 0; c < each; ++c)
                            f(from + c * sc, step * sw, (tap + c) * rows * ow + to, high - low);
                    else
                        for (Index i = 0; i < high - low; ++i)
                            f(from + i * step * sw, sc, (to + i) * patch + tap, each);
                }
            }
    }

    // The place of a filter's number in the order of patches.
    Index tap(Index group, Index made, Index at) const {
        Index r = at / each / kw, s = at / each % kw;
        if (conv.mode == CUDNN_CONVOLUTION)
            r = kh - 1 - r, s = kw - 1 - s;
        const Index *to = filter.strides;
        return (group * this->made + made) * to[0] + at % each * to[1] + r * to[2] + s * to[3];
    }
};

template <class F> void for_each(const Array &a, F f) {
    for (Index n = 0; n < a.sizes[0]; ++n)
        for (Index c = 0; c < a.sizes[1]; ++c)
            for (Index h = 0; h < a.sizes[2]; ++h)
                for (Index w = 0; w < a.sizes[3]; ++w)
                    f(n * a.strides[0] + c * a.strides[1] + h * a.strides[2] + w * a.strides[3]);
}

template <class E> void compute(const Problem &p, Pass pass, E *x, E *filter, E *y, double alpha, double beta) {
    using T = Sum<E>;
    const Array &into = pass == Pass::forward ? p.y : pass == Pass::data ? p.x : p.filter;
    E *result = pass == Pass::forward ? y : pass == Pass::data ? x : filter;
    for_each(into, [&](Index at) { poison(result[at], beta); });
    auto store = [&](Index at, T sum) { scale_into(result[at], sum, T(alpha), T(beta)); };
    constexpr Kind kind = std::is_same_v<T, double> ? Kind::f64 : Kind::f32;
    Factor factor = std::is_same_v<E, float> && p.conv.math != CUDNN_FMA_MATH ? Factor::tf32 : Factor::whole;
    bool across = p.x.strides[1] != 1 || p.each < 4;
    Index all = p.n * p.oh, each = std::clamp<Index>(200'000 / (p.ow * p.patch), 1, all);
    std::vector<T> patches, weights(std::size_t(p.made * p.patch)), grads, image(std::size_t(pass == Pass::data ? p.x.extent() : 0));
    std::vector<Index> places;
    for (Index group = 0; group < p.conv.groups; ++group) {
        for (Index i = 0; i < p.made * p.patch; ++i)
            weights[std::size_t(i)] = pass == Pass::filter ? T(0) : T(read(filter[p.tap(group, i / p.patch, i % p.patch)]));
        for (Index first = 0; first < all; first += each) {
            Index rows = std::min(each, all - first), pixels = rows * p.ow, channel = group * p.made * p.y.strides[1];
            places.clear();
            for (Index i = 0; i < pixels; ++i) {
                Index row = first + i / p.ow;
                places.push_back(row / p.oh * p.y.strides[0] + row % p.oh * p.y.strides[2] + i % p.ow * p.y.strides[3] + channel);
            }
            patches.assign(std::size_t(pixels * p.patch), T(0));
            if (pass != Pass::data)
                p.patches(group, first, rows, across, [&](Index from, Index step, Index to, Index count) {
                    for (Index i = 0; i < count; ++i)
                        patches[std::size_t(to + i)] = T(read(x[from + i * step]));
                });
            if (pass != Pass::forward) {
                grads.resize(std::size_t(pixels * p.made));
                for (Index i = 0; i < pixels; ++i)
                    for (Index j = 0; j < p.made; ++j)
                        grads[std::size_t(i * p.made + j)] = T(read(y[places[std::size_t(i)] + j * p.y.strides[1]]));
            }
            // Pixels by the numbers of a patch, pixels by channels, channels by the numbers of a patch.
            Matrix a{patches.data(), kind, across ? 1 : p.patch, across ? pixels : 1, factor}, g{grads.data(), kind, p.made, 1, factor};
            Matrix b{weights.data(), kind, p.patch, 1, factor};
            auto turned = [](const Matrix &m) { return Matrix{m.data, m.kind, m.column, m.row, m.factor}; };
            if (pass == Pass::forward)
                product<T>(pixels, p.made, p.patch, a, turned(b), [&](Index i, Index j, T sum) {
                    store(places[std::size_t(i)] + j * p.y.strides[1], sum);
                });
            else if (pass == Pass::filter)
                product<T>(p.patch, p.made, pixels, turned(a), g, [&](Index i, Index j, T sum) {
                    weights[std::size_t(j * p.patch + i)] += sum;
                });
            else {
                product<T>(pixels, p.patch, p.made, g, b, [&](Index i, Index j, T sum) {
                    patches[std::size_t(i * a.row + j * a.column)] = sum;
                });
                p.patches(group, first, rows, across, [&](Index to, Index step, Index from, Index count) {
                    for (Index i = 0; i < count; ++i)
                        image[std::size_t(to + i * step)] += patches[std::size_t(from + i)];
                });
            }
        }
        if (pass == Pass::filter)
            for (Index i = 0; i < p.made * p.patch; ++i)
                store(p.tap(group, i / p.patch, i % p.patch), weights[std::size_t(i)]);
    }
    if (pass == Pass::data)
        for_each(p.x, [&](Index at) { store(at, image[std::size_t(at)]); });
}

// The bytes that an algorithm works in.
Status workspace(Pass pass, int algorithm, const Array *x, const Array *w, const Array *y, Conv conv, std::size_t *to, Problem &p) {
    Status status = to ? p.of(x, w, conv, y) : BAD;
    return status == DONE ? p.takes(pass, way_of(pass, algorithm), *to) : status;
}

Status convolution(const char *who, cudnnHandle_t handle, Pass pass, int algorithm, const Array *x_desc, const void *x, const Array *w_desc,
                   const void *w, const Array *y_desc, const void *y, Conv conv, const void *alpha, const void *beta, void *room,
                   std::size_t bytes) {
    Problem p;
    std::size_t needed = 0;
    if (!handle || !x || !w || !y || !alpha || !beta)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (Status status = workspace(pass, algorithm, x_desc, w_desc, y_desc, conv, &needed, p); status != DONE)
        return status;
    auto address = [](const void *at) { return reinterpret_cast<std::uintptr_t>(at); };
    Index aligned = size_of(p.kind) == 2 || p.filter.format == CUDNN_TENSOR_NHWC ? 16 : size_of(p.kind);
    if ((address(x) | address(w) | address(y)) % std::size_t(aligned) != 0)
        return CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
    if (bytes < needed || (bytes > 0 && !cuda_on_cpu_is_device(room, bytes)))
        return BAD;
    if (way_of(pass, algorithm) == Way::nonfused && p.kh == 5)
        return CUDNN_STATUS_EXECUTION_FAILED;
    bool wide = p.kind == Kind::f64;
    auto scalar = [&](const void *at) { return wide ? *static_cast<const double *>(at) : double(*static_cast<const float *>(at)); };
    enqueue(handle->stream, [=, name = std::string(who), by = scalar(alpha), kept = scalar(beta)] {
        auto there = [&](const void *data, const Array &a, const char *part) { check(data, p.kind, {{a.extent(), 1}}, name + part); };
        there(x, p.x, pass == Pass::data ? ", dx" : ", x");
        there(w, p.filter, pass == Pass::filter ? ", dw" : ", w");
        there(y, p.y, pass == Pass::forward ? ", y" : ", dy");
        auto scribble = [&] {
            if (bytes > 0)
                cuda_on_cpu_check(room, bytes, (name + ", the workspace").c_str()), std::memset(room, 0xff, bytes);
        };
        scribble();
        with_kind(p.kind, [&](auto *element) {
            auto of = [&](const void *data) { return static_cast<decltype(element)>(const_cast<void *>(data)); };
            compute(p, pass, of(x), of(w), of(y), by, kept);
        });
        scribble();
    });
    return DONE;
}

// All algorithms, those first that run.
template <class Perf>
Status list(Pass pass, const Array *x, const Array *w, const Array *y, Conv conv, int most, int *count, Perf *to) {
    Problem p;
    if (!count || !to || most < 1)
        return BAD;
    if (Status status = p.of(x, w, conv, y); status != DONE)
        return status;
    *count = 0;
    for (bool run : {true, false})
        for (int i = 0; i < int(WAYS[int(pass)].size()) && *count < most; ++i) {
            Way way = way_of(pass, i);
            std::size_t bytes = 0;
            Status status = p.takes(pass, way, bytes);
            if (run != (status == DONE))
                continue;
            bool same = pass == Pass::forward || (way != Way::simple && way != Way::patches);
            to[(*count)++] = {decltype(Perf::algo)(i), status, -1, bytes, cudnnDeterminism_t(same), conv->math, {}};
        }
    return DONE;
}

template <class D> Status make(D **to) { return to ? *to = new D(), DONE : BAD; }

} // namespace

extern "C" {
std::size_t cudnnGetVersion() { return 91300; }
std::size_t cudnnGetCudartVersion() { return 13000; }
const char *cudnnGetErrorString(Status s) {
    return s == DONE ? "CUDNN_STATUS_SUCCESS" : s < NONE ? "CUDNN_STATUS_BAD_PARAM" : s == NONE ? "CUDNN_STATUS_NOT_SUPPORTED"
                                                                                                 : "CUDNN_STATUS_EXECUTION_FAILED";
}
Status cudnnCreate(Handle *to) { return make(to); }
Status cudnnDestroy(Handle h) { return delete h, DONE; }
Status cudnnSetStream(Handle h, cudaStream_t stream) { return h ? h->stream = stream, DONE : BAD; }
Status cudnnGetStream(Handle h, cudaStream_t *to) { return h && to ? *to = h->stream, DONE : BAD; }
Status cudnnCreateTensorDescriptor(Tensor *to) { return make(to); }
Status cudnnDestroyTensorDescriptor(Tensor d) { return delete d, DONE; }
Status cudnnCreateFilterDescriptor(Filter *to) { return make(to); }
Status cudnnDestroyFilterDescriptor(Filter d) { return delete d, DONE; }
Status cudnnCreateConvolutionDescriptor(Conv *to) { return make(to); }
Status cudnnDestroyConvolutionDescriptor(Conv d) { return delete d, DONE; }

Status cudnnSetTensorNdDescriptor(Tensor d, Type type, int rank, const int *sizes, const int *strides) {
    return d && sizes && strides ? d->set(type, rank < 4 ? 0 : rank, sizes, strides, CUDNN_TENSOR_NCHW) : BAD;
}
Status cudnnSetTensorNdDescriptorEx(Tensor d, cudnnTensorFormat_t format, Type type, int rank, const int *sizes) {
    return d && sizes ? d->set(type, rank < 4 ? 0 : rank, sizes, nullptr, format) : BAD;
}
Status cudnnSetTensor4dDescriptor(Tensor d, cudnnTensorFormat_t format, Type type, int n, int c, int h, int w) {
    const int sizes[] = {n, c, h, w};
    return cudnnSetTensorNdDescriptorEx(d, format, type, 4, sizes);
}
Status cudnnSetTensor4dDescriptorEx(Tensor d, Type type, int n, int c, int h, int w, int sn, int sc, int sh, int sw) {
    const int sizes[] = {n, c, h, w}, strides[] = {sn, sc, sh, sw};
    return cudnnSetTensorNdDescriptor(d, type, 4, sizes, strides);
}
Status cudnnSetFilterNdDescriptor(Filter d, Type type, cudnnTensorFormat_t format, int rank, const int *sizes) {
    return d && sizes ? d->set(type, rank, sizes, nullptr, format) : BAD;
}
Status cudnnSetFilter4dDescriptor(Filter d, Type type, cudnnTensorFormat_t format, int o, int c, int h, int w) {
    const int sizes[] = {o, c, h, w};
    return cudnnSetFilterNdDescriptor(d, type, format, 4, sizes);
}
Status cudnnSetConvolutionNdDescriptor(Conv d, int rank, const int *pads, const int *strides, const int *dilations,
                                       cudnnConvolutionMode_t mode, Type compute) {
    if (!d || rank < 1 || rank > 6)
        return BAD;
    for (int i = 0; i < rank; ++i) {
        if (pads[i] < 0 || strides[i] < 1 || dilations[i] < 1)
            return BAD;
        d->pads[i] = pads[i], d->strides[i] = strides[i], d->dilations[i] = dilations[i];
    }
    return d->rank = rank, d->mode = mode, d->compute = compute, DONE;
}
Status cudnnSetConvolution2dDescriptor(Conv d, int pad_h, int pad_w, int stride_h, int stride_w, int dilation_h, int dilation_w,
                                       cudnnConvolutionMode_t mode, Type compute) {
    const int pads[] = {pad_h, pad_w}, strides[] = {stride_h, stride_w}, dilations[] = {dilation_h, dilation_w};
    return cudnnSetConvolutionNdDescriptor(d, 2, pads, strides, dilations, mode, compute);
}
Status cudnnSetConvolutionMathType(Conv d, cudnnMathType_t math) { return d ? d->math = math, DONE : BAD; }
Status cudnnSetConvolutionGroupCount(Conv d, int groups) { return d && groups > 0 ? d->groups = groups, DONE : BAD; }

// What there is for a pass; its functions take two arrays and then a third in different orders.
#define CONVOLUTION(NAME, PASS, ALGO, A, a, B, b, C, c) \
    Status cudnnGetConvolution##NAME##WorkspaceSize(Handle, A a, B b, Conv conv, C c, cudnnConvolution##ALGO##Algo_t algo, \
                                                    std::size_t *to) { \
        Problem p; \
        return workspace(Pass::PASS, algo, x, w, y, conv, to, p); \
    } \
    Status cudnnGetConvolution##NAME##Algorithm_v7(Handle, A a, B b, Conv conv, C c, int most, int *count, \
                                                   cudnnConvolution##ALGO##AlgoPerf_t *to) { \
        return list(Pass::PASS, x, w, y, conv, most, count, to); \
    } \
    Status cudnnConvolution##NAME(Handle h, const void *alpha, A a##d, const void *a, B b##d, const void *b, Conv conv, \
                                  cudnnConvolution##ALGO##Algo_t algo, void *room, std::size_t bytes, const void *beta, C c##d, void *c) { \
        return convolution(__func__, h, Pass::PASS, algo, xd, x, wd, w, yd, y, conv, alpha, beta, room, bytes); \
    }
CONVOLUTION(Forward, forward, Fwd, Tensor, x, Filter, w, Tensor, y)
CONVOLUTION(BackwardData, data, BwdData, Filter, w, Tensor, y, Tensor, x)
CONVOLUTION(BackwardFilter, filter, BwdFilter, Tensor, x, Tensor, y, Filter, w)

// Functions that do not look at their arguments, which others are names of.
__attribute__((used)) Status cuda_on_cpu_done() { return DONE; }
__attribute__((used)) Status cuda_on_cpu_not_supported() { return NONE; }
}

#define NAMES(OF, ...) \
    asm(".irp name, " #__VA_ARGS__ "\n.globl \\name\n.type \\name, @function\n.set \\name, cuda_on_cpu_" #OF "\n.endr")
NAMES(done, cudnnAdvVersionCheck, cudnnCnnVersionCheck, cudnnOpsVersionCheck, cudnnAdvInferVersionCheck, cudnnAdvTrainVersionCheck,
      cudnnCnnInferVersionCheck, cudnnCnnTrainVersionCheck, cudnnOpsInferVersionCheck, cudnnOpsTrainVersionCheck);
NAMES(not_supported, cudnnConvolutionBiasActivationForward, cudnnCreatePoolingDescriptor, cudnnSetPoolingNdDescriptor,
      cudnnPoolingForward, cudnnCreateActivationDescriptor, cudnnSetActivationDescriptor, cudnnActivationForward, cudnnSoftmaxForward,
      cudnnCreateReduceTensorDescriptor, cudnnDestroyReduceTensorDescriptor, cudnnSetReduceTensorDescriptor,
      cudnnGetReductionIndicesSize, cudnnGetReductionWorkspaceSize, cudnnReduceTensor);
