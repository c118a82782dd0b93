// Pooling of channels-last images.

struct Window {
    int h, w, c, kernel, stride, padding, oh, ow;
};

// The maximum of every window; not a number wins, and of equal values the first in row-major order. `winners` (null for none) takes the
// winning pixel's index in its image.
template <class T> __device__ inline void max_pool(const T *x, T *y, u32 *winners, i64 count, Window s) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        int c = (int)(i % s.c);
        i64 at = i / s.c;
        int ox = (int)(at % s.ow);
        at /= s.ow;
        int oy = (int)(at % s.oh);
        const T *image = x + at / s.oh * s.h * s.w * s.c + c;
        int top = oy * s.stride - s.padding, left = ox * s.stride - s.padding;
        float best = NEGATIVE_INFINITY;
        int winner = -1;
        for (int iy = max(top, 0); iy < min(top + s.kernel, s.h); iy++) {
            for (int ix = max(left, 0); ix < min(left + s.kernel, s.w); ix++) {
                float value = widened(image[((i64)iy * s.w + ix) * s.c]);
                if (winner < 0 || value > best || value != value) {
                    best = value;
                    winner = iy * s.w + ix;
                }
            }
        }
        narrow(best, y[i]);
        if (winners) winners[i] = (u32)winner;
    }
}

extern "C" __global__ void max_pool_f32(const float *x, float *y, u32 *winners, i64 count, int h, int w, int c, int kernel, int stride, int padding, int oh, int ow) { max_pool(x, y, winners, count, Window{h, w, c, kernel, stride, padding, oh, ow}); }
extern "C" __global__ void max_pool_bf16(const bf16 *x, bf16 *y, u32 *winners, i64 count, int h, int w, int c, int kernel, int stride, int padding, int oh, int ow) { max_pool(x, y, winners, count, Window{h, w, c, kernel, stride, padding, oh, ow}); }

// Every pixel gathers the gradients of the windows that it won, in their order. `count` counts pixels times channels.
template <class T> __device__ inline void max_pool_backward(const T *g, const u32 *winners, T *dx, i64 count, Window s) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        int c = (int)(i % s.c);
        i64 at = i / s.c;
        int x = (int)(at % s.w);
        at /= s.w;
        int y = (int)(at % s.h);
        i64 image = at / s.h * s.oh * s.ow * s.c + c;
        u32 me = (u32)(y * s.w + x);
        // The first window that reaches the pixel, rounded up, and the last.
        int top = y + s.padding - s.kernel + 1, left = x + s.padding - s.kernel + 1;
        int first_y = top <= 0 ? 0 : (top + s.stride - 1) / s.stride, last_y = min((y + s.padding) / s.stride, s.oh - 1);
        int first_x = left <= 0 ? 0 : (left + s.stride - 1) / s.stride, last_x = min((x + s.padding) / s.stride, s.ow - 1);
        float sum = 0.0f;
        for (int oy = first_y; oy <= last_y; oy++) {
            for (int ox = first_x; ox <= last_x; ox++) {
                i64 from = image + ((i64)oy * s.ow + ox) * s.c;
                if (winners[from] == me) sum += widened(g[from]);
            }
        }
        narrow(sum, dx[i]);
    }
}

extern "C" __global__ void max_pool_backward_f32(const float *g, const u32 *winners, float *dx, i64 count, int h, int w, int c, int kernel, int stride, int padding, int oh, int ow) { max_pool_backward(g, winners, dx, count, Window{h, w, c, kernel, stride, padding, oh, ow}); }
extern "C" __global__ void max_pool_backward_bf16(const bf16 *g, const u32 *winners, bf16 *dx, i64 count, int h, int w, int c, int kernel, int stride, int padding, int oh, int ow) { max_pool_backward(g, winners, dx, count, Window{h, w, c, kernel, stride, padding, oh, ow}); }

// The mean over an image's pixels, in f32. `count` counts images times channels.
template <class T> __device__ inline void average(const T *x, float *y, i64 count, i64 pixels, int c) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const T *from = x + i / c * pixels * c + i % c;
        float sum = 0.0f;
        for (i64 pixel = 0; pixel < pixels; pixel++) sum += widened(from[pixel * c]);
        y[i] = sum / (float)pixels;
    }
}

extern "C" __global__ void average_f32(const float *x, float *y, i64 count, i64 pixels, int c) { average(x, y, count, pixels, c); }
extern "C" __global__ void average_bf16(const bf16 *x, float *y, i64 count, i64 pixels, int c) { average(x, y, count, pixels, c); }

// `count` counts images times pixels times channels.
template <class T> __device__ inline void average_backward(const float *g, T *dx, i64 count, i64 pixels, int c) {
    i64 step = (i64)gridDim.x * blockDim.x;
    float scale = 1.0f / (float)pixels;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        narrow(g[i / (pixels * c) * c + i % c] * scale, dx[i]);
    }
}

extern "C" __global__ void average_backward_f32(const float *g, float *dx, i64 count, i64 pixels, int c) { average_backward(g, dx, count, pixels, c); }
extern "C" __global__ void average_backward_bf16(const float *g, bf16 *dx, i64 count, i64 pixels, int c) { average_backward(g, dx, count, pixels, c); }
