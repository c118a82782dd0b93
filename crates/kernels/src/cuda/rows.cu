// Functions of rows of k numbers. Short rows are taken by a warp each, long ones by a block: kernels end in _warp and _block.

// Grid: (rows / 8, rounded up) for warps, (rows) for blocks; 256 threads.
struct WarpRow {
    static const int step = 32;
    __device__ static i64 row() { return (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
    __device__ static int first() { return threadIdx.x % 32; }
    __device__ static float sum(float x, float *) { return warp_sum(x); }
    __device__ static float top(float x, float *) { return warp_max(x); }
};

struct BlockRow {
    static const int step = THREADS;
    __device__ static i64 row() { return blockIdx.x; }
    __device__ static int first() { return threadIdx.x; }
    __device__ static float sum(float x, float *room) { return block_sum(x, room); }
    __device__ static float top(float x, float *room) { return block_max(x, room); }
};

// y = softmax of x times `scale`.
template <class R, class T> __device__ inline void softmax(const T *x, T *y, i64 rows, i64 k, float scale) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    x += row * k;
    y += row * k;
    float top = NEGATIVE_INFINITY, sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) {
        float v = widened(x[i]) * scale;
        top = (v > top || v != v) ? v : top;
    }
    top = R::top(top, room);
    for (i64 i = R::first(); i < k; i += R::step) sum += expf(widened(x[i]) * scale - top);
    float share = 1.0f / R::sum(sum, room);
    for (i64 i = R::first(); i < k; i += R::step) narrow(expf(widened(x[i]) * scale - top) * share, y[i]);
}

// By the result: dx = scale y (g - sum of y g).
template <class R, class T> __device__ inline void softmax_backward(const T *y, const T *g, T *dx, i64 rows, i64 k, float scale) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    y += row * k;
    g += row * k;
    float sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) sum += widened(y[i]) * widened(g[i]);
    sum = R::sum(sum, room);
    for (i64 i = R::first(); i < k; i += R::step) narrow(scale * widened(y[i]) * (widened(g[i]) - sum), dx[row * k + i]);
}

// log of the sum of exp(x), over the columns that the row's two entries of `except` (null for none) do not name; `top` takes the largest.
template <class R> __device__ inline float log_sum(const float *x, const u32 *except, i64 k, float *room, float &top) {
    i64 a = except ? (i64)except[0] : -1, b = except ? (i64)except[1] : -1;
    top = NEGATIVE_INFINITY;
    for (i64 i = R::first(); i < k; i += R::step) {
        float v = x[i];
        if (i != a && i != b && (v > top || v != v)) top = v;
    }
    top = R::top(top, room);
    float sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) {
        if (i != a && i != b) sum += expf(x[i] - top);
    }
    return top + logf(R::sum(sum, room));
}

template <class R> __device__ inline void log_softmax(const float *x, float *y, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float top, log = log_sum<R>(x + row * k, nullptr, k, room, top);
    for (i64 i = R::first(); i < k; i += R::step) y[row * k + i] = x[row * k + i] - log;
}

// By the result: dx = g - exp(y) times the sum of g.
template <class R> __device__ inline void log_softmax_backward(const float *y, const float *g, float *dx, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) sum += g[row * k + i];
    sum = R::sum(sum, room);
    for (i64 i = R::first(); i < k; i += R::step) dx[row * k + i] = g[row * k + i] - expf(y[row * k + i]) * sum;
}

// One number a row. `except` has two columns a row to leave out, or is null.
template <class R> __device__ inline void log_sum_exp(const float *x, const u32 *except, float *y, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float top, log = log_sum<R>(x + row * k, except ? except + 2 * row : nullptr, k, room, top);
    if (R::first() == 0) y[row] = log;
}

// dx = g exp(x - y), 0 where a column was left out.
template <class R>
__device__ inline void log_sum_exp_backward(const float *x, const u32 *except, const float *y, const float *g, float *dx, i64 rows, i64 k) {
    i64 row = R::row();
    if (row >= rows) return;
    i64 a = except ? (i64)except[2 * row] : -1, b = except ? (i64)except[2 * row + 1] : -1;
    for (i64 i = R::first(); i < k; i += R::step) {
        dx[row * k + i] = (i == a || i == b) ? 0.0f : g[row] * expf(x[row * k + i] - y[row]);
    }
}

// The largest value of a row, over the columns that are not left out.
template <class R> __device__ inline void row_max(const float *x, const u32 *except, float *y, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    i64 a = except ? (i64)except[2 * row] : -1, b = except ? (i64)except[2 * row + 1] : -1;
    float top = NEGATIVE_INFINITY;
    for (i64 i = R::first(); i < k; i += R::step) {
        float v = x[row * k + i];
        if (i != a && i != b && (v > top || v != v)) top = v;
    }
    top = R::top(top, room);
    if (R::first() == 0) y[row] = top;
}

// The Euclidean norm of a row, without overflow or underflow of the squares.
template <class R> __device__ inline float norm(const float *x, i64 k, float *room) {
    float sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) sum += x[i] * x[i];
    sum = R::sum(sum, room);
    if (sum > 1e-30f && sum < 1e30f) return sqrtf(sum);
    float top = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) {
        float v = fabsf(x[i]);
        top = (v > top || v != v) ? v : top;
    }
    top = R::top(top, room);
    // Infinities and NaN go through; a row of zeros has norm 0.
    if (!(top > 0.0f) || top - top != 0.0f) return top;
    sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) sum += (x[i] / top) * (x[i] / top);
    return top * sqrtf(R::sum(sum, room));
}

template <class R> __device__ inline void l2_normalize(const float *x, float *y, i64 rows, i64 k, float eps) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float n = norm<R>(x + row * k, k, room);
    n = n < eps ? eps : n;
    for (i64 i = R::first(); i < k; i += R::step) y[row * k + i] = x[row * k + i] / n;
}

// dx = (g - y times the sum of y g) / norm; where the norm is below eps the divisor is a constant.
template <class R> __device__ inline void l2_normalize_backward(const float *x, const float *y, const float *g, float *dx, i64 rows, i64 k, float eps) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float n = norm<R>(x + row * k, k, room), along = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) along += y[row * k + i] * g[row * k + i];
    along = R::sum(along, room);
    if (!(n > eps)) {
        n = eps;
        along = 0.0f;
    }
    for (i64 i = R::first(); i < k; i += R::step) dx[row * k + i] = (g[row * k + i] - y[row * k + i] * along) / n;
}

// Of each row: sum of t (log sum exp(x) - x); a target of zero silences an infinite logit.
template <class R> __device__ inline void cross_entropy(const float *x, const float *t, float *y, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float top, log = log_sum<R>(x + row * k, nullptr, k, room, top), sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) {
        float target = t[row * k + i];
        sum += target == 0.0f ? 0.0f : target * (log - x[row * k + i]);
    }
    sum = R::sum(sum, room);
    if (R::first() == 0) y[row] = sum;
}

// dx = g / rows (softmax(x) times the sum of t - t), with g one number on the device.
template <class R> __device__ inline void cross_entropy_backward(const float *x, const float *t, const float *g, float *dx, i64 rows, i64 k) {
    __shared__ float room[32];
    i64 row = R::row();
    if (row >= rows) return;
    float top, log = log_sum<R>(x + row * k, nullptr, k, room, top), sum = 0.0f;
    for (i64 i = R::first(); i < k; i += R::step) sum += t[row * k + i];
    sum = R::sum(sum, room);
    float scale = g[0] / (float)rows;
    for (i64 i = R::first(); i < k; i += R::step) dx[row * k + i] = scale * (expf(x[row * k + i] - log) * sum - t[row * k + i]);
}

// The sum of n numbers times a factor; one block.
extern "C" __global__ void total(const float *x, float *y, i64 n, float factor) {
    __shared__ float room[32];
    float sum = 0.0f;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) y[0] = sum * factor;
}

extern "C" __global__ void softmax_f32_warp(const float *x, float *y, i64 rows, i64 k, float scale) { softmax<WarpRow>(x, y, rows, k, scale); }
extern "C" __global__ void softmax_bf16_warp(const bf16 *x, bf16 *y, i64 rows, i64 k, float scale) { softmax<WarpRow>(x, y, rows, k, scale); }
extern "C" __global__ void softmax_f32_block(const float *x, float *y, i64 rows, i64 k, float scale) { softmax<BlockRow>(x, y, rows, k, scale); }
extern "C" __global__ void softmax_bf16_block(const bf16 *x, bf16 *y, i64 rows, i64 k, float scale) { softmax<BlockRow>(x, y, rows, k, scale); }
extern "C" __global__ void softmax_backward_f32_warp(const float *y, const float *g, float *dx, i64 rows, i64 k, float scale) { softmax_backward<WarpRow>(y, g, dx, rows, k, scale); }
extern "C" __global__ void softmax_backward_bf16_warp(const bf16 *y, const bf16 *g, bf16 *dx, i64 rows, i64 k, float scale) { softmax_backward<WarpRow>(y, g, dx, rows, k, scale); }
extern "C" __global__ void softmax_backward_f32_block(const float *y, const float *g, float *dx, i64 rows, i64 k, float scale) { softmax_backward<BlockRow>(y, g, dx, rows, k, scale); }
extern "C" __global__ void softmax_backward_bf16_block(const bf16 *y, const bf16 *g, bf16 *dx, i64 rows, i64 k, float scale) { softmax_backward<BlockRow>(y, g, dx, rows, k, scale); }
extern "C" __global__ void log_softmax_f32_warp(const float *x, float *y, i64 rows, i64 k) { log_softmax<WarpRow>(x, y, rows, k); }
extern "C" __global__ void log_softmax_f32_block(const float *x, float *y, i64 rows, i64 k) { log_softmax<BlockRow>(x, y, rows, k); }
extern "C" __global__ void log_softmax_backward_f32_warp(const float *y, const float *g, float *dx, i64 rows, i64 k) { log_softmax_backward<WarpRow>(y, g, dx, rows, k); }
extern "C" __global__ void log_softmax_backward_f32_block(const float *y, const float *g, float *dx, i64 rows, i64 k) { log_softmax_backward<BlockRow>(y, g, dx, rows, k); }
extern "C" __global__ void log_sum_exp_f32_warp(const float *x, const u32 *except, float *y, i64 rows, i64 k) { log_sum_exp<WarpRow>(x, except, y, rows, k); }
extern "C" __global__ void log_sum_exp_f32_block(const float *x, const u32 *except, float *y, i64 rows, i64 k) { log_sum_exp<BlockRow>(x, except, y, rows, k); }
extern "C" __global__ void log_sum_exp_backward_f32_warp(const float *x, const u32 *except, const float *y, const float *g, float *dx, i64 rows, i64 k) { log_sum_exp_backward<WarpRow>(x, except, y, g, dx, rows, k); }
extern "C" __global__ void log_sum_exp_backward_f32_block(const float *x, const u32 *except, const float *y, const float *g, float *dx, i64 rows, i64 k) { log_sum_exp_backward<BlockRow>(x, except, y, g, dx, rows, k); }
extern "C" __global__ void row_max_f32_warp(const float *x, const u32 *except, float *y, i64 rows, i64 k) { row_max<WarpRow>(x, except, y, rows, k); }
extern "C" __global__ void row_max_f32_block(const float *x, const u32 *except, float *y, i64 rows, i64 k) { row_max<BlockRow>(x, except, y, rows, k); }
extern "C" __global__ void l2_normalize_f32_warp(const float *x, float *y, i64 rows, i64 k, float eps) { l2_normalize<WarpRow>(x, y, rows, k, eps); }
extern "C" __global__ void l2_normalize_f32_block(const float *x, float *y, i64 rows, i64 k, float eps) { l2_normalize<BlockRow>(x, y, rows, k, eps); }
extern "C" __global__ void l2_normalize_backward_f32_warp(const float *x, const float *y, const float *g, float *dx, i64 rows, i64 k, float eps) { l2_normalize_backward<WarpRow>(x, y, g, dx, rows, k, eps); }
extern "C" __global__ void l2_normalize_backward_f32_block(const float *x, const float *y, const float *g, float *dx, i64 rows, i64 k, float eps) { l2_normalize_backward<BlockRow>(x, y, g, dx, rows, k, eps); }
extern "C" __global__ void cross_entropy_f32_warp(const float *x, const float *t, float *y, i64 rows, i64 k) { cross_entropy<WarpRow>(x, t, y, rows, k); }
extern "C" __global__ void cross_entropy_f32_block(const float *x, const float *t, float *y, i64 rows, i64 k) { cross_entropy<BlockRow>(x, t, y, rows, k); }
extern "C" __global__ void cross_entropy_backward_f32_warp(const float *x, const float *t, const float *g, float *dx, i64 rows, i64 k) { cross_entropy_backward<WarpRow>(x, t, g, dx, rows, k); }
extern "C" __global__ void cross_entropy_backward_f32_block(const float *x, const float *t, const float *g, float *dx, i64 rows, i64 k) { cross_entropy_backward<BlockRow>(x, t, g, dx, rows, k); }
