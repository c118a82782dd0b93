// Layer normalisation of rows of c numbers; a warp takes a row. The input is f32, the result and the gradient to it f32 or bfloat16.

// y = (x - mean) scale w + b, with scale = 1 / sqrt(var + eps); mean and scale, (rows), are for the backward pass.
template <class T>
__device__ inline void layer_norm(const float *x, const float *w, const float *b, T *y, float *mean, float *scale, int c, i64 rows, float eps) {
    i64 row = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * c;
    float sum = 0.0f;
    for (int i = lane; i < c; i += 32) sum += x[i];
    float centre = warp_sum(sum) / c;
    float square = 0.0f;
    for (int i = lane; i < c; i += 32) square += (x[i] - centre) * (x[i] - centre);
    float s = 1.0f / sqrtf(warp_sum(square) / c + eps);
    for (int i = lane; i < c; i += 32) narrow((x[i] - centre) * s * w[i] + b[i], y[row * c + i]);
    if (lane == 0) {
        mean[row] = centre;
        scale[row] = s;
    }
}

extern "C" __global__ void layer_norm_f32(const float *x, const float *w, const float *b, float *y, float *mean, float *scale, int c, i64 rows, float eps) { layer_norm(x, w, b, y, mean, scale, c, rows, eps); }
extern "C" __global__ void layer_norm_bf16(const float *x, const float *w, const float *b, bf16 *y, float *mean, float *scale, int c, i64 rows, float eps) { layer_norm(x, w, b, y, mean, scale, c, rows, eps); }

// The gradient to x, added to `add` unless that is null.
template <class T>
__device__ inline void layer_norm_input(const float *x, const float *w, const T *g, const float *mean, const float *scale, const float *add, float *dx, int c, i64 rows) {
    i64 row = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * c;
    g += row * c;
    float centre = mean[row], s = scale[row], level = 0.0f, along = 0.0f;
    for (int i = lane; i < c; i += 32) {
        float weighted = widened(g[i]) * w[i];
        level += weighted;
        along += weighted * ((x[i] - centre) * s);
    }
    level = warp_sum(level) / c;
    along = warp_sum(along) / c;
    for (int i = lane; i < c; i += 32) {
        float own = s * ((widened(g[i]) * w[i] - level) - (x[i] - centre) * s * along);
        dx[row * c + i] = add ? add[row * c + i] + own : own;
    }
}

extern "C" __global__ void layer_norm_input_f32(const float *x, const float *w, const float *g, const float *mean, const float *scale, const float *add, float *dx, int c, i64 rows) { layer_norm_input(x, w, g, mean, scale, add, dx, c, rows); }
extern "C" __global__ void layer_norm_input_bf16(const float *x, const float *w, const bf16 *g, const float *mean, const float *scale, const float *add, float *dx, int c, i64 rows) { layer_norm_input(x, w, g, mean, scale, add, dx, c, rows); }

// Sums over a chunk of rows of g (x - mean) scale and of g, (chunks, 2 c): the gradients to weight and bias.
template <class T, int V>
__device__ inline void layer_norm_parameters(const float *x, const T *g, const float *mean, const float *scale, float *sums, int c, i64 rows, i64 chunk, int lanes) {
    __shared__ float room[THREADS];
    Tile t = tile<V>(c, rows, chunk, lanes);
    bool inside = t.c < c;
    float product[V], sum[V];
    for (int v = 0; v < V; v++) product[v] = sum[v] = 0.0f;
    if (inside) {
        for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
            float in[V], grad[V], centre = mean[row], s = scale[row];
            load(x + row * c + t.c, in);
            load(g + row * c + t.c, grad);
            for (int v = 0; v < V; v++) {
                product[v] += grad[v] * ((in[v] - centre) * s);
                sum[v] += grad[v];
            }
        }
    }
    over_subs(product, t, lanes, room);
    over_subs(sum, t, lanes, room);
    if (inside && t.sub == 0) {
        for (int v = 0; v < V; v++) {
            sums[(i64)blockIdx.y * 2 * c + t.c + v] = product[v];
            sums[((i64)blockIdx.y * 2 + 1) * c + t.c + v] = sum[v];
        }
    }
}

extern "C" __global__ void layer_norm_parameters_f32_v1(const float *x, const float *g, const float *mean, const float *scale, float *sums, int c, i64 rows, i64 chunk, int lanes) { layer_norm_parameters<float, 1>(x, g, mean, scale, sums, c, rows, chunk, lanes); }
extern "C" __global__ void layer_norm_parameters_f32_v4(const float *x, const float *g, const float *mean, const float *scale, float *sums, int c, i64 rows, i64 chunk, int lanes) { layer_norm_parameters<float, 4>(x, g, mean, scale, sums, c, rows, chunk, lanes); }
extern "C" __global__ void layer_norm_parameters_bf16_v1(const float *x, const bf16 *g, const float *mean, const float *scale, float *sums, int c, i64 rows, i64 chunk, int lanes) { layer_norm_parameters<bf16, 1>(x, g, mean, scale, sums, c, rows, chunk, lanes); }
extern "C" __global__ void layer_norm_parameters_bf16_v4(const float *x, const bf16 *g, const float *mean, const float *scale, float *sums, int c, i64 rows, i64 chunk, int lanes) { layer_norm_parameters<bf16, 4>(x, g, mean, scale, sums, c, rows, chunk, lanes); }
