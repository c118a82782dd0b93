// Sums over the rows of a matrix, and a row added to all of them.

// Sums over a chunk of rows, (chunks, c).
template <class T, int V> __device__ inline void column_sums(const T *x, float *sums, int c, i64 rows, i64 chunk, int lanes) {
    __shared__ float room[THREADS];
    Tile t = tile<V>(c, rows, chunk, lanes);
    bool inside = t.c < c;
    float sum[V];
    for (int v = 0; v < V; v++) sum[v] = 0.0f;
    if (inside) {
        for (i64 row = t.first + t.sub; row < t.last; row += t.subs) {
            float at[V];
            load(x + row * c + t.c, at);
            for (int v = 0; v < V; v++) sum[v] += at[v];
        }
    }
    over_subs(sum, t, lanes, room);
    if (inside && t.sub == 0) {
        for (int v = 0; v < V; v++) sums[(i64)blockIdx.y * c + t.c + v] = sum[v];
    }
}

extern "C" __global__ void column_sums_f32_v1(const float *x, float *sums, int c, i64 rows, i64 chunk, int lanes) { column_sums<float, 1>(x, sums, c, rows, chunk, lanes); }
extern "C" __global__ void column_sums_f32_v4(const float *x, float *sums, int c, i64 rows, i64 chunk, int lanes) { column_sums<float, 4>(x, sums, c, rows, chunk, lanes); }
extern "C" __global__ void column_sums_bf16_v1(const bf16 *x, float *sums, int c, i64 rows, i64 chunk, int lanes) { column_sums<bf16, 1>(x, sums, c, rows, chunk, lanes); }
extern "C" __global__ void column_sums_bf16_v4(const bf16 *x, float *sums, int c, i64 rows, i64 chunk, int lanes) { column_sums<bf16, 4>(x, sums, c, rows, chunk, lanes); }

// Adds the chunks: (chunks, c) to (c). Grid: (tiles of 32 columns).
extern "C" __global__ void column_finish(const float *sums, float *out, int c, int chunks) {
    __shared__ float room[THREADS];
    int lane = threadIdx.x % 32, sub = threadIdx.x / 32, at = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (at < c) {
        for (int k = sub; k < chunks; k += THREADS / 32) sum += sums[(i64)k * c + at];
    }
    room[threadIdx.x] = sum;
    __syncthreads();
    if (sub == 0 && at < c) {
        for (int s = 1; s < THREADS / 32; s++) sum += room[s * 32 + lane];
        out[at] = sum;
    }
}

// x += row, in place.
template <class T, int V> __device__ inline void add_row(T *x, const float *row, int c, i64 rows, i64 chunk, int lanes) {
    Tile t = tile<V>(c, rows, chunk, lanes);
    if (t.c >= c) return;
    float add[V];
    for (int v = 0; v < V; v++) add[v] = row[t.c + v];
    for (i64 i = t.first + t.sub; i < t.last; i += t.subs) {
        float at[V];
        load(x + i * c + t.c, at);
        for (int v = 0; v < V; v++) at[v] += add[v];
        store(at, x + i * c + t.c);
    }
}

extern "C" __global__ void add_row_f32_v1(float *x, const float *row, int c, i64 rows, i64 chunk, int lanes) { add_row<float, 1>(x, row, c, rows, chunk, lanes); }
extern "C" __global__ void add_row_f32_v4(float *x, const float *row, int c, i64 rows, i64 chunk, int lanes) { add_row<float, 4>(x, row, c, rows, chunk, lanes); }
extern "C" __global__ void add_row_bf16_v1(bf16 *x, const float *row, int c, i64 rows, i64 chunk, int lanes) { add_row<bf16, 1>(x, row, c, rows, chunk, lanes); }
extern "C" __global__ void add_row_bf16_v4(bf16 *x, const float *row, int c, i64 rows, i64 chunk, int lanes) { add_row<bf16, 4>(x, row, c, rows, chunk, lanes); }

// y = to + (x + row): a branch's last product with its bias, added to what it branched off.
template <class T, int V>
__device__ inline void add_branch(const float *to, const T *x, const float *row, float *y, int c, i64 rows, i64 chunk, int lanes) {
    Tile t = tile<V>(c, rows, chunk, lanes);
    if (t.c >= c) return;
    float add[V];
    for (int v = 0; v < V; v++) add[v] = row[t.c + v];
    for (i64 i = t.first + t.sub; i < t.last; i += t.subs) {
        float at[V], stem[V];
        load(x + i * c + t.c, at);
        load(to + i * c + t.c, stem);
        for (int v = 0; v < V; v++) at[v] = stem[v] + (at[v] + add[v]);
        store(at, y + i * c + t.c);
    }
}

extern "C" __global__ void add_branch_f32_v1(const float *to, const float *x, const float *row, float *y, int c, i64 rows, i64 chunk, int lanes) { add_branch<float, 1>(to, x, row, y, c, rows, chunk, lanes); }
extern "C" __global__ void add_branch_f32_v4(const float *to, const float *x, const float *row, float *y, int c, i64 rows, i64 chunk, int lanes) { add_branch<float, 4>(to, x, row, y, c, rows, chunk, lanes); }
extern "C" __global__ void add_branch_bf16_v1(const float *to, const bf16 *x, const float *row, float *y, int c, i64 rows, i64 chunk, int lanes) { add_branch<bf16, 1>(to, x, row, y, c, rows, chunk, lanes); }
extern "C" __global__ void add_branch_bf16_v4(const float *to, const bf16 *x, const float *row, float *y, int c, i64 rows, i64 chunk, int lanes) { add_branch<bf16, 4>(to, x, row, y, c, rows, chunk, lanes); }
