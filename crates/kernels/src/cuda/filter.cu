// Weights of convolutions between PyTorch's order and the one of channels-last convolutions, with a change of type on the way.

// y (outer, b, a) of x (outer, a, b); n elements in all.
template <class From, class To> __device__ inline void turned(const From *x, To *y, i64 n, int a, int b) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        i64 row = i / a;
        i64 outer = row / b;
        narrow(widened(x[(outer * a + i % a) * b + row % b]), y[i]);
    }
}

extern "C" __global__ void turned_f32_f32(const float *x, float *y, i64 n, int a, int b) { turned(x, y, n, a, b); }
extern "C" __global__ void turned_f32_bf16(const float *x, bf16 *y, i64 n, int a, int b) { turned(x, y, n, a, b); }
extern "C" __global__ void turned_bf16_f32(const bf16 *x, float *y, i64 n, int a, int b) { turned(x, y, n, a, b); }
