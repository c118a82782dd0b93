// The Epps-Pulley statistic of the columns of x (views, n, m): its empirical characteristic functions at t = k dt, k below `knots`.

// Means over n of cos(t x) and sin(t x), (views, knots, m). Grid: (tiles of 32 columns, knots, views).
extern "C" __global__ void ep_means(const float *x, float *cosines, float *sines, i64 n, int m, float dt) {
    __shared__ float first[THREADS], second[THREADS];
    int lane = threadIdx.x % 32, sub = threadIdx.x / 32, at = blockIdx.x * 32 + lane;
    float c = 0.0f, s = 0.0f, t = (float)blockIdx.y * dt;
    if (at < m) {
        for (i64 i = sub; i < n; i += THREADS / 32) {
            float angle = t * x[((i64)blockIdx.z * n + i) * m + at];
            c += cosf(angle);
            s += sinf(angle);
        }
    }
    first[threadIdx.x] = c;
    second[threadIdx.x] = s;
    __syncthreads();
    if (sub == 0 && at < m) {
        for (int j = 1; j < THREADS / 32; j++) {
            c += first[j * 32 + lane];
            s += second[j * 32 + lane];
        }
        i64 to = ((i64)blockIdx.z * gridDim.y + blockIdx.y) * m + at;
        cosines[to] = c / (float)n;
        sines[to] = s / (float)n;
    }
}

// The Gaussian's characteristic function at t, and twice the trapezoidal rule's weight times it.
__device__ inline float ep_target(float t) { return expf(-0.5f * t * t); }
__device__ inline float ep_weight(int knot, int knots, float dt) {
    return ep_target((float)knot * dt) * dt * (knot == 0 || knot + 1 == knots ? 1.0f : 2.0f);
}

// The terms of the sum, (views, knots, m).
extern "C" __global__ void ep_terms(const float *cosines, const float *sines, float *terms, i64 count, int m, int knots, float dt) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        int knot = (int)(i / m % knots);
        float c = cosines[i] - ep_target((float)knot * dt), s = sines[i];
        terms[i] = ep_weight(knot, knots, dt) * (c * c + s * s);
    }
}

// The gradient to x of the terms' sum times n, times `factor` and g, one number on the device. `count` counts x.
extern "C" __global__ void ep_backward(const float *x, const float *cosines, const float *sines, const float *g, float *dx, i64 count, i64 n, int m, int knots, float dt, float factor) {
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        i64 column = i / m / n * knots * m + i % m;
        float sum = 0.0f;
        for (int knot = 0; knot < knots; knot++) {
            float t = (float)knot * dt, angle = t * x[i];
            float c = cosines[column + (i64)knot * m] - ep_target(t), s = sines[column + (i64)knot * m];
            sum += ep_weight(knot, knots, dt) * t * (s * cosf(angle) - c * sinf(angle));
        }
        dx[i] = 2.0f * factor * g[0] * sum;
    }
}
