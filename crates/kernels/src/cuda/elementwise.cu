// Activation functions and casts, element by element.

__device__ inline float gauss(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752440f)); }
__device__ inline float gauss_density(float x) { return 0.39894228040143267794f * expf(-0.5f * x * x); }

struct Relu {
    // NaN stays NaN.
    __device__ static float forward(float x) { return x < 0.0f ? 0.0f : x; }
    // By the result; gradient 0 at 0.
    __device__ static float backward(float y, float g) { return y <= 0.0f ? 0.0f : g; }
};

struct Gelu {
    __device__ static float forward(float x) { return x * gauss(x); }
    // By the input.
    __device__ static float backward(float x, float g) { return g * (gauss(x) + x * gauss_density(x)); }
};

template <class F, class T> __device__ inline void unary(const T *x, T *y, i64 n) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) narrow(F::forward(widened(x[i])), y[i]);
}

// `at` is what the derivative is a function of: the input or the result.
template <class F, class T> __device__ inline void unary_backward(const T *at, const T *g, T *dx, i64 n) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        narrow(F::backward(widened(at[i]), widened(g[i])), dx[i]);
    }
}

// a += b, in place.
template <class T> __device__ inline void add(T *a, const T *b, i64 n) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) narrow(widened(a[i]) + widened(b[i]), a[i]);
}

extern "C" __global__ void add_f32(float *a, const float *b, i64 n) { add(a, b, n); }
extern "C" __global__ void add_bf16(bf16 *a, const bf16 *b, i64 n) { add(a, b, n); }
extern "C" __global__ void relu_f32(const float *x, float *y, i64 n) { unary<Relu>(x, y, n); }
extern "C" __global__ void relu_bf16(const bf16 *x, bf16 *y, i64 n) { unary<Relu>(x, y, n); }
extern "C" __global__ void relu_backward_f32(const float *y, const float *g, float *dx, i64 n) { unary_backward<Relu>(y, g, dx, n); }
extern "C" __global__ void relu_backward_bf16(const bf16 *y, const bf16 *g, bf16 *dx, i64 n) { unary_backward<Relu>(y, g, dx, n); }
extern "C" __global__ void gelu_f32(const float *x, float *y, i64 n) { unary<Gelu>(x, y, n); }
extern "C" __global__ void gelu_bf16(const bf16 *x, bf16 *y, i64 n) { unary<Gelu>(x, y, n); }
extern "C" __global__ void gelu_backward_f32(const float *x, const float *g, float *dx, i64 n) { unary_backward<Gelu>(x, g, dx, n); }
extern "C" __global__ void gelu_backward_bf16(const bf16 *x, const bf16 *g, bf16 *dx, i64 n) { unary_backward<Gelu>(x, g, dx, n); }

// Row i of `g` (rows, d) becomes row places[i] of `out`; n = rows d. Places are distinct.
extern "C" __global__ void put_rows(const float *g, const u32 *places, float *out, i64 n, i64 d) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[(i64)places[i / d] * d + i % d] = g[i];
}
