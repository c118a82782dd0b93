// Batch normalisation over rows of c channels, the rows cut into groups with statistics of their own.
// Tiles, chunks and groups are those of the prelude.

// Mean and sum of squared deviations of a chunk, (groups, chunks, c) each. Sums are of differences from the chunk's first row, so that a
// large mean cancels nothing.
template <class T, int V>
__device__ inline void bn_partial(const T *x, float *mean, float *square, int c, i64 rows, i64 chunk, int lanes) {
    __shared__ float room[THREADS];
    Tile t = tile<V>(c, rows, chunk, lanes);
    bool inside = t.c < c;
    float pivot[V], sum[V], squares[V];
    for (int v = 0; v < V; v++) pivot[v] = sum[v] = squares[v] = 0.0f;
    if (inside) {
        load(x + (t.base + t.first) * c + t.c, pivot);
        for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
            float at[V];
            load(x + (t.base + row) * c + t.c, at);
            for (int v = 0; v < V; v++) {
                float d = at[v] - pivot[v];
                sum[v] += d;
                squares[v] += d * d;
            }
        }
    }
    over_subs(sum, t, lanes, room);
    over_subs(squares, t, lanes, room);
    if (inside && t.sub == 0) {
        i64 to = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * c + t.c;
        float count = (float)(t.last - t.first);
        for (int v = 0; v < V; v++) {
            mean[to + v] = pivot[v] + sum[v] / count;
            float left = squares[v] - sum[v] * sum[v] / count;
            // Rounding may leave a little less than nothing; NaN stays.
            square[to + v] = left < 0.0f ? 0.0f : left;
        }
    }
}

extern "C" __global__ void bn_partial_f32_v1(const float *x, float *mean, float *square, int c, i64 rows, i64 chunk, int lanes) { bn_partial<float, 1>(x, mean, square, c, rows, chunk, lanes); }
extern "C" __global__ void bn_partial_f32_v4(const float *x, float *mean, float *square, int c, i64 rows, i64 chunk, int lanes) { bn_partial<float, 4>(x, mean, square, c, rows, chunk, lanes); }
extern "C" __global__ void bn_partial_bf16_v1(const bf16 *x, float *mean, float *square, int c, i64 rows, i64 chunk, int lanes) { bn_partial<bf16, 1>(x, mean, square, c, rows, chunk, lanes); }
extern "C" __global__ void bn_partial_bf16_v4(const bf16 *x, float *mean, float *square, int c, i64 rows, i64 chunk, int lanes) { bn_partial<bf16, 4>(x, mean, square, c, rows, chunk, lanes); }

// Joins the chunks (Chan, Golub and LeVeque 1979): mean, biased variance and 1 / sqrt(var + eps), (groups, c) each. 32 channels a block.
// Grid: (tiles of 32 channels, 1, groups).
extern "C" __global__ void bn_statistics(const float *means, const float *squares, float *mean, float *var, float *scale, int c, i64 rows, i64 chunk, int chunks, float eps) {
    __shared__ double counts[THREADS], centres[THREADS], spreads[THREADS];
    int lane = threadIdx.x % 32, sub = threadIdx.x / 32, at = blockIdx.x * 32 + lane;
    double count = 0.0, centre = 0.0, spread = 0.0;
    if (at < c) {
        for (int k = sub; k < chunks; k += THREADS / 32) {
            i64 from = ((i64)blockIdx.z * chunks + k) * c + at;
            double n = (double)(min((i64)(k + 1) * chunk, rows) - (i64)k * chunk), d = means[from] - centre;
            spread += squares[from] + d * d * count * n / (count + n);
            count += n;
            centre += d * n / count;
        }
    }
    counts[threadIdx.x] = count;
    centres[threadIdx.x] = centre;
    spreads[threadIdx.x] = spread;
    __syncthreads();
    if (sub == 0 && at < c) {
        for (int s = 1; s < THREADS / 32; s++) {
            double n = counts[s * 32 + lane], d = centres[s * 32 + lane] - centre;
            if (n == 0.0) continue;
            spread += spreads[s * 32 + lane] + d * d * count * n / (count + n);
            count += n;
            centre += d * n / count;
        }
        i64 to = (i64)blockIdx.z * c + at;
        double variance = spread / count;
        mean[to] = (float)centre;
        var[to] = (float)variance;
        scale[to] = (float)(1.0 / sqrt(variance + (double)eps));
    }
}

// 1 / sqrt(var + eps) of given variances.
extern "C" __global__ void bn_scale(const float *var, float *scale, int c, float eps) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < c) scale[i] = (float)(1.0 / sqrt((double)var[i] + (double)eps));
}

// y = (x - mean) scale weight + bias [+ residual], negative values cut if `relu`. Null for weight means ones, for bias zeros.
template <class T, int V>
__device__ inline void bn_apply(const T *x, const T *residual, const float *weight, const float *bias, const float *mean, const float *scale, T *y, int c, i64 rows, i64 chunk, int lanes, int relu) {
    Tile t = tile<V>(c, rows, chunk, lanes);
    if (t.c >= c) return;
    float slope[V], shift[V];
    for (int v = 0; v < V; v++) {
        i64 at = (i64)blockIdx.z * c + t.c + v;
        slope[v] = scale[at] * (weight ? weight[t.c + v] : 1.0f);
        shift[v] = (bias ? bias[t.c + v] : 0.0f) - mean[at] * slope[v];
    }
    for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
        i64 at = (t.base + row) * c + t.c;
        float in[V], out[V];
        load(x + at, in);
        for (int v = 0; v < V; v++) out[v] = in[v] * slope[v] + shift[v];
        if (residual) {
            load(residual + at, in);
            for (int v = 0; v < V; v++) out[v] += in[v];
        }
        if (relu) {
            for (int v = 0; v < V; v++) out[v] = out[v] < 0.0f ? 0.0f : out[v];
        }
        store(out, y + at);
    }
}

extern "C" __global__ void bn_apply_f32_v1(const float *x, const float *residual, const float *weight, const float *bias, const float *mean, const float *scale, float *y, int c, i64 rows, i64 chunk, int lanes, int relu) { bn_apply<float, 1>(x, residual, weight, bias, mean, scale, y, c, rows, chunk, lanes, relu); }
extern "C" __global__ void bn_apply_f32_v4(const float *x, const float *residual, const float *weight, const float *bias, const float *mean, const float *scale, float *y, int c, i64 rows, i64 chunk, int lanes, int relu) { bn_apply<float, 4>(x, residual, weight, bias, mean, scale, y, c, rows, chunk, lanes, relu); }
extern "C" __global__ void bn_apply_bf16_v1(const bf16 *x, const bf16 *residual, const float *weight, const float *bias, const float *mean, const float *scale, bf16 *y, int c, i64 rows, i64 chunk, int lanes, int relu) { bn_apply<bf16, 1>(x, residual, weight, bias, mean, scale, y, c, rows, chunk, lanes, relu); }
extern "C" __global__ void bn_apply_bf16_v4(const bf16 *x, const bf16 *residual, const float *weight, const float *bias, const float *mean, const float *scale, bf16 *y, int c, i64 rows, i64 chunk, int lanes, int relu) { bn_apply<bf16, 4>(x, residual, weight, bias, mean, scale, y, c, rows, chunk, lanes, relu); }

// Sums over a chunk of g and g (x - mean), (groups, chunks, c) each, where g counts as zero where `gate` (null for none) is not positive;
// `cut` (null for none) takes that g.
template <class T, int V>
__device__ inline void bn_sums(const T *g, const T *gate, const T *x, const float *mean, T *cut, float *sums, float *products, int c, i64 rows, i64 chunk, int lanes) {
    __shared__ float room[THREADS];
    Tile t = tile<V>(c, rows, chunk, lanes);
    bool inside = t.c < c;
    float centre[V], sum[V], product[V];
    for (int v = 0; v < V; v++) centre[v] = sum[v] = product[v] = 0.0f;
    if (inside) {
        for (int v = 0; v < V; v++) centre[v] = mean[(i64)blockIdx.z * c + t.c + v];
        for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
            i64 at = (t.base + row) * c + t.c;
            float grad[V], in[V];
            load(g + at, grad);
            if (gate) {
                load(gate + at, in);
                for (int v = 0; v < V; v++) grad[v] = in[v] <= 0.0f ? 0.0f : grad[v];
                if (cut) store(grad, cut + at);
            }
            load(x + at, in);
            for (int v = 0; v < V; v++) {
                sum[v] += grad[v];
                product[v] += grad[v] * (in[v] - centre[v]);
            }
        }
    }
    over_subs(sum, t, lanes, room);
    over_subs(product, t, lanes, room);
    if (inside && t.sub == 0) {
        i64 to = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * c + t.c;
        for (int v = 0; v < V; v++) {
            sums[to + v] = sum[v];
            products[to + v] = product[v];
        }
    }
}

extern "C" __global__ void bn_sums_f32_v1(const float *g, const float *gate, const float *x, const float *mean, float *cut, float *sums, float *products, int c, i64 rows, i64 chunk, int lanes) { bn_sums<float, 1>(g, gate, x, mean, cut, sums, products, c, rows, chunk, lanes); }
extern "C" __global__ void bn_sums_f32_v4(const float *g, const float *gate, const float *x, const float *mean, float *cut, float *sums, float *products, int c, i64 rows, i64 chunk, int lanes) { bn_sums<float, 4>(g, gate, x, mean, cut, sums, products, c, rows, chunk, lanes); }
extern "C" __global__ void bn_sums_bf16_v1(const bf16 *g, const bf16 *gate, const bf16 *x, const float *mean, bf16 *cut, float *sums, float *products, int c, i64 rows, i64 chunk, int lanes) { bn_sums<bf16, 1>(g, gate, x, mean, cut, sums, products, c, rows, chunk, lanes); }
extern "C" __global__ void bn_sums_bf16_v4(const bf16 *g, const bf16 *gate, const bf16 *x, const float *mean, bf16 *cut, float *sums, float *products, int c, i64 rows, i64 chunk, int lanes) { bn_sums<bf16, 4>(g, gate, x, mean, cut, sums, products, c, rows, chunk, lanes); }

// Adds the chunks. To the parameters: dweight = sum over groups of products scale, dbias = sum of sums. For the gradient to x, which is
// g slope + x along + shift, (groups, c) each: along and shift are zero unless the statistics are functions of x (`from_batch`).
// Grid: (tiles of 32 channels).
extern "C" __global__ void bn_backward(const float *sums, const float *products, const float *weight, const float *mean, const float *scale, float *dweight, float *dbias, float *slope, float *along, float *shift, int c, i64 rows, int chunks, int groups, int from_batch) {
    __shared__ double first[THREADS], second[THREADS];
    int lane = threadIdx.x % 32, sub = threadIdx.x / 32, at = blockIdx.x * 32 + lane;
    double dw = 0.0, db = 0.0;
    for (int group = 0; group < groups; group++) {
        double sum = 0.0, product = 0.0;
        if (at < c) {
            for (int k = sub; k < chunks; k += THREADS / 32) {
                i64 from = ((i64)group * chunks + k) * c + at;
                sum += sums[from];
                product += products[from];
            }
        }
        first[threadIdx.x] = sum;
        second[threadIdx.x] = product;
        __syncthreads();
        if (sub == 0 && at < c) {
            for (int s = 1; s < THREADS / 32; s++) {
                sum += first[s * 32 + lane];
                product += second[s * 32 + lane];
            }
            i64 to = (i64)group * c + at;
            double one = scale[to], a = one * (weight ? weight[at] : 1.0f);
            dw += product * one;
            db += sum;
            double k = from_batch ? -a * one * one * product / (double)rows : 0.0;
            slope[to] = (float)a;
            along[to] = (float)k;
            shift[to] = from_batch ? (float)(-a * sum / (double)rows - mean[to] * k) : 0.0f;
        }
        __syncthreads();
    }
    if (sub == 0 && at < c) {
        dweight[at] = (float)dw;
        dbias[at] = (float)db;
    }
}

// dx = g slope + x along + shift, where g counts as zero where `gate` (null for none) is not positive.
template <class T, int V>
__device__ inline void bn_input(const T *g, const T *gate, const T *x, const float *slope, const float *along, const float *shift, T *dx, int c, i64 rows, i64 chunk, int lanes) {
    Tile t = tile<V>(c, rows, chunk, lanes);
    if (t.c >= c) return;
    float a[V], b[V], d[V];
    for (int v = 0; v < V; v++) {
        i64 at = (i64)blockIdx.z * c + t.c + v;
        a[v] = slope[at];
        b[v] = along[at];
        d[v] = shift[at];
    }
    for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
        i64 at = (t.base + row) * c + t.c;
        float grad[V], in[V], out[V];
        load(g + at, grad);
        if (gate) {
            load(gate + at, in);
            for (int v = 0; v < V; v++) grad[v] = in[v] <= 0.0f ? 0.0f : grad[v];
        }
        load(x + at, in);
        for (int v = 0; v < V; v++) out[v] = grad[v] * a[v] + (in[v] * b[v] + d[v]);
        store(out, dx + at);
    }
}

extern "C" __global__ void bn_input_f32_v1(const float *g, const float *gate, const float *x, const float *slope, const float *along, const float *shift, float *dx, int c, i64 rows, i64 chunk, int lanes) { bn_input<float, 1>(g, gate, x, slope, along, shift, dx, c, rows, chunk, lanes); }
extern "C" __global__ void bn_input_f32_v4(const float *g, const float *gate, const float *x, const float *slope, const float *along, const float *shift, float *dx, int c, i64 rows, i64 chunk, int lanes) { bn_input<float, 4>(g, gate, x, slope, along, shift, dx, c, rows, chunk, lanes); }
extern "C" __global__ void bn_input_bf16_v1(const bf16 *g, const bf16 *gate, const bf16 *x, const float *slope, const float *along, const float *shift, bf16 *dx, int c, i64 rows, i64 chunk, int lanes) { bn_input<bf16, 1>(g, gate, x, slope, along, shift, dx, c, rows, chunk, lanes); }
extern "C" __global__ void bn_input_bf16_v4(const bf16 *g, const bf16 *gate, const bf16 *x, const float *slope, const float *along, const float *shift, bf16 *dx, int c, i64 rows, i64 chunk, int lanes) { bn_input<bf16, 4>(g, gate, x, slope, along, shift, dx, c, rows, chunk, lanes); }

// Running statistics take up those of the groups in their order: r = (1 - momentum) r + momentum s, the variance by count / (count - 1).
extern "C" __global__ void bn_running(const float *mean, const float *var, float *running_mean, float *running_var, int c, int groups, float momentum, float unbiased) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= c) return;
    float m = running_mean[i], v = running_var[i];
    for (int group = 0; group < groups; group++) {
        m = m * (1.0f - momentum) + mean[(i64)group * c + i] * momentum;
        v = v * (1.0f - momentum) + var[(i64)group * c + i] * unbiased * momentum;
    }
    running_mean[i] = m;
    running_var[i] = v;
}
