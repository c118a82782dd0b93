// Attention without a table of probabilities: FlashAttention-2 (Dao 2023, arXiv:2307.08691), from packed queries, keys and values
// (n, t, 3, heads, D) of bfloat16 to (n, t, heads, D), and back. Products on tensor cores with sums in f32; exponentials, maxima and
// sums of the softmax in f32; probabilities and their gradients are rounded to bfloat16 where they are factors.
//
// A block of four warps takes 64 rows of one head of one sample, a warp 16 of them, and walks over tiles of 64 rows of the other side: queries
// look at keys in `forward` and `to_queries`, keys at queries in `to_keys`, so that every sum has one owner and a fixed order (no atomics). Its own rows stay
// in registers as left factors; two tiles of the other side lie in shared memory, one being filled while the other is multiplied.
// Rows of 16 bytes more than needed spread 8 rows over all banks. Nothing is multiplied for 16 rows that are all behind the last.
//
// Grid: (n heads tiles), with tiles = t / 64, rounded up; 128 threads. Pointers are multiples of 16 bytes.

#define TILE 64
#define LOG2E 1.44269504088896341f

template <int D> struct alignas(16) Row {
    bf16 at[D + 8];
};

// Two tiles of two tensors each.
template <int D> struct Room {
    Row<D> at[2][2][TILE];
};

// The head and the rows of a block and a warp.
struct Place {
    i64 head;               // among all samples' heads
    i64 packed, joined;     // the head's first element in (n, t, 3, heads, D) and in (n, t, heads, D)
    i64 wide, narrow;       // elements from one token to the next there
    int tiles, first, own;  // tiles of t rows; the first row of the block and of the warp
};

template <int D> __device__ inline Place place(int t, int heads) {
    Place p;
    p.tiles = (t + TILE - 1) / TILE;
    p.head = blockIdx.x / p.tiles;
    p.first = (int)(blockIdx.x % p.tiles) * TILE;
    p.own = p.first + (int)threadIdx.x / 32 * 16;
    p.narrow = (i64)heads * D;
    p.wide = 3 * p.narrow;
    i64 sample = p.head / heads, head = p.head % heads;
    p.packed = sample * t * p.wide + head * D;
    p.joined = sample * t * p.narrow + head * D;
    return p;
}

// Begins to copy a tile of rows `stride` apart; behind row t are zeros.
template <int D> __device__ inline void fetch(Row<D> *to, const bf16 *from, i64 stride, int first, int t) {
#pragma unroll
    for (int i = threadIdx.x; i < TILE * D / 8; i += 128) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        bool there = first + row < t;
        copy16(&to[row].at[column], from + (there ? (first + row) * stride : 0) + column, there);
    }
}

// 16 rows as a left factor.
template <int D> __device__ inline void left(u32 (&a)[D / 16][4], const Row<D> *rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) ldmatrix(a[k], &rows[lane % 16].at[16 * k + lane / 16 * 8]);
}

// s (16 x 16) = a (16 x D) times the transpose of 16 rows.
template <int D> __device__ inline void with_rows(float (&s)[2][4], const u32 (&a)[D / 16][4], const Row<D> *rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) s[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        u32 b[4];
        ldmatrix(b, &rows[lane % 8 + lane / 16 * 8].at[16 * k + lane / 8 % 2 * 8]);
        mma(s[0], a[k], b[0], b[1]);
        mma(s[1], a[k], b[2], b[3]);
    }
}

// sum (16 x D) += p (16 x 16), rounded, times 16 rows.
template <int D> __device__ inline void add_rows(float (&sum)[D / 8][4], const float (&p)[2][4], const Row<D> *rows) {
    int lane = threadIdx.x % 32;
    u32 a[4] = {pair(p[0][0], p[0][1]), pair(p[0][2], p[0][3]), pair(p[1][0], p[1][1]), pair(p[1][2], p[1][3])};
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        u32 b[4];
        ldmatrix_transposed(b, &rows[lane % 16].at[16 * c + lane / 16 * 8]);
        mma(sum[2 * c], a, b[0], b[1]);
        mma(sum[2 * c + 1], a, b[2], b[3]);
    }
}

// Over the four lanes that share rows.
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Writes the warp's 16 rows times a factor for the rows g and one for the rows g + 8, those below `rows`, by way of shared memory of the warp's own.
template <int D> __device__ inline void put(const float (&sum)[D / 8][4], float low, float high, Row<D> *room, bf16 *to, i64 stride, int rows) {
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        *reinterpret_cast<u32 *>(&room[g].at[8 * c + 2 * q]) = pair(sum[c][0] * low, sum[c][1] * low);
        *reinterpret_cast<u32 *>(&room[g + 8].at[8 * c + 2 * q]) = pair(sum[c][2] * high, sum[c][3] * high);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 2 * D; i += 32) {
        int row = i / (D / 8), column = i % (D / 8) * 8;
        if (row < rows) *reinterpret_cast<Pack<u32, 4> *>(&to[row * stride + column]) = *reinterpret_cast<Pack<u32, 4> *>(&room[row].at[column]);
    }
}

// y and, of every query, the logarithm of the sum of exp(scale q k): (n, heads, t).
template <int D> __device__ inline void forward(const bf16 *qkv, bf16 *y, float *logs, int t, int heads, float scale) {
    __shared__ Room<D> room;
    Place p = place<D>(t, heads);
    const bf16 *q = qkv + p.packed, *k = q + p.narrow, *v = k + p.narrow;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    fetch<D>(room.at[1][0], q, p.wide, p.first, t);
    copies_grouped();
    fetch<D>(room.at[0][0], k, p.wide, 0, t);
    fetch<D>(room.at[0][1], v, p.wide, 0, t);
    copies_grouped();
    copies_there<1>();
    __syncthreads();
    u32 queries[D / 16][4];
    left<D>(queries, room.at[1][0] + 16 * warp);
    __syncthreads();
    float o[D / 8][4] = {}, top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.0f, 0.0f};
    float steep = scale * LOG2E;
    for (int i = 0; i < p.tiles; i++) {
        if (i + 1 < p.tiles) {
            fetch<D>(room.at[(i + 1) % 2][0], k, p.wide, (i + 1) * TILE, t);
            fetch<D>(room.at[(i + 1) % 2][1], v, p.wide, (i + 1) * TILE, t);
        }
        copies_grouped();
        copies_there<1>();
        __syncthreads();
        if (p.own < t) {
            const Row<D> *keys = room.at[i % 2][0], *values = room.at[i % 2][1];
            int there = t - i * TILE;
            float s[TILE / 16][2][4];
#pragma unroll
            for (int j = 0; j < TILE / 16; j++) {
                if (16 * j < there) with_rows<D>(s[j], queries, keys + 16 * j);
            }
            if (there < TILE) {
#pragma unroll
                for (int e = 0; e < TILE / 2; e++) {
                    float &x = s[e / 8][e / 4 % 2][e % 4];
                    if (e / 4 * 8 + 2 * (lane % 4) + e % 2 >= there) x = NEGATIVE_INFINITY;
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float most = top[r];
#pragma unroll
                for (int e = 0; e < TILE / 4; e++) most = fmaxf(most, s[e / 4][e / 2 % 2][2 * r + e % 2]);
                most = quad_max(most);
                float shift = most * steep, fade = exp2f(top[r] * steep - shift);
                top[r] = most;
                sum[r] *= fade;
#pragma unroll
                for (int e = 0; e < TILE / 4; e++) {
                    float &x = s[e / 4][e / 2 % 2][2 * r + e % 2];
                    x = exp2f(x * steep - shift);
                    sum[r] += x;
                }
#pragma unroll
                for (int e = 0; e < D / 4; e++) o[e / 2][2 * r + e % 2] *= fade;
            }
#pragma unroll
            for (int j = 0; j < TILE / 16; j++) {
                if (16 * j < there) add_rows<D>(o, s[j], values + 16 * j);
            }
        }
        __syncthreads();
    }
    if (p.own >= t) return;
    float share[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float all = quad_sum(sum[r]);
        share[r] = 1.0f / all;
        int row = p.own + lane / 4 + 8 * r;
        if (lane % 4 == 0 && row < t) logs[p.head * t + row] = top[r] * scale + logf(all);
    }
    put<D>(o, share[0], share[1], room.at[0][0] + 16 * warp, y + p.joined + p.own * p.narrow, p.narrow, t - p.own);
}

// The gradient to the queries, part 0 of `dx` (n, t, 3, heads, D); and `along` (n, heads, t), of every query the sum of y g.
// With P = exp(scale q k - log) and dP = g v: dS = P (dP - along), dq = scale dS k.
template <int D>
__device__ inline void to_queries(const bf16 *qkv, const bf16 *y, const bf16 *g, const float *logs, float *along, bf16 *dx, int t, int heads, float scale) {
    __shared__ Room<D> room;
    Place p = place<D>(t, heads);
    const bf16 *q = qkv + p.packed, *k = q + p.narrow, *v = k + p.narrow;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    fetch<D>(room.at[1][0], q, p.wide, p.first, t);
    fetch<D>(room.at[1][1], g + p.joined, p.narrow, p.first, t);
    copies_grouped();
    fetch<D>(room.at[0][0], k, p.wide, 0, t);
    fetch<D>(room.at[0][1], v, p.wide, 0, t);
    copies_grouped();
    copies_there<1>();
    __syncthreads();
    u32 queries[D / 16][4], grads[D / 16][4];
    left<D>(queries, room.at[1][0] + 16 * warp);
    left<D>(grads, room.at[1][1] + 16 * warp);
    __syncthreads();
    float log[2], mean[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = p.own + lane / 4 + 8 * r;
        log[r] = row < t ? logs[p.head * t + row] * LOG2E : 0.0f;
        float sum = 0.0f;
        if (row < t) {
            const bf16 *at = y + p.joined + row * p.narrow + 2 * (lane % 4);
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                u32 a = *reinterpret_cast<const u32 *>(at + 8 * c), b = grads[c / 2][r + c % 2 * 2];
                sum += __uint_as_float(a << 16) * __uint_as_float(b << 16);
                sum += __uint_as_float(a & 0xffff0000u) * __uint_as_float(b & 0xffff0000u);
            }
        }
        mean[r] = quad_sum(sum);
        if (lane % 4 == 0 && row < t) along[p.head * t + row] = mean[r];
    }
    float dq[D / 8][4] = {}, steep = scale * LOG2E;
    for (int i = 0; i < p.tiles; i++) {
        if (i + 1 < p.tiles) {
            fetch<D>(room.at[(i + 1) % 2][0], k, p.wide, (i + 1) * TILE, t);
            fetch<D>(room.at[(i + 1) % 2][1], v, p.wide, (i + 1) * TILE, t);
        }
        copies_grouped();
        copies_there<1>();
        __syncthreads();
        const Row<D> *keys = room.at[i % 2][0], *values = room.at[i % 2][1];
        int there = p.own < t ? min(t - i * TILE, TILE) : 0;
        for (int j = 0; j < there; j += 16) {
            float s[2][4], ds[2][4];
            with_rows<D>(s, queries, keys + j);
            with_rows<D>(ds, grads, values + j);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int r = e / 2 % 2;
                float prob = exp2f(s[e / 4][e % 4] * steep - log[r]);
                // Behind the last key there is no probability, which would be any number otherwise.
                if (j + e / 4 * 8 + 2 * (lane % 4) + e % 2 >= there) prob = 0.0f;
                ds[e / 4][e % 4] = prob * (ds[e / 4][e % 4] - mean[r]);
            }
            add_rows<D>(dq, ds, keys + j);
        }
        __syncthreads();
    }
    if (p.own >= t) return;
    put<D>(dq, scale, scale, room.at[0][0] + 16 * warp, dx + p.packed + p.own * p.wide, p.wide, t - p.own);
}

// The gradients to keys and values, parts 1 and 2 of `dx`: dk = scale (transpose of dS) q, dv = (transpose of P) g.
template <int D>
__device__ inline void to_keys(const bf16 *qkv, const bf16 *g, const float *logs, const float *along, bf16 *dx, int t, int heads, float scale) {
    __shared__ Room<D> room;
    __shared__ float sums[2][2][TILE];
    Place p = place<D>(t, heads);
    const bf16 *q = qkv + p.packed, *k = q + p.narrow, *v = k + p.narrow;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    g += p.joined;
    // Of a tile of queries, the logarithms and the sums of y g.
    auto fetch_sums = [&](int to, int first) {
        const float *from = (threadIdx.x < TILE ? logs : along) + p.head * t;
        int i = threadIdx.x % TILE;
        bool there = first + i < t;
        copy4(&sums[to][threadIdx.x / TILE][i], from + (there ? first + i : 0), there);
    };
    fetch<D>(room.at[1][0], k, p.wide, p.first, t);
    fetch<D>(room.at[1][1], v, p.wide, p.first, t);
    copies_grouped();
    fetch<D>(room.at[0][0], q, p.wide, 0, t);
    fetch<D>(room.at[0][1], g, p.narrow, 0, t);
    fetch_sums(0, 0);
    copies_grouped();
    copies_there<1>();
    __syncthreads();
    u32 keys[D / 16][4], values[D / 16][4];
    left<D>(keys, room.at[1][0] + 16 * warp);
    left<D>(values, room.at[1][1] + 16 * warp);
    __syncthreads();
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, steep = scale * LOG2E;
    for (int i = 0; i < p.tiles; i++) {
        if (i + 1 < p.tiles) {
            fetch<D>(room.at[(i + 1) % 2][0], q, p.wide, (i + 1) * TILE, t);
            fetch<D>(room.at[(i + 1) % 2][1], g, p.narrow, (i + 1) * TILE, t);
            fetch_sums((i + 1) % 2, (i + 1) * TILE);
        }
        copies_grouped();
        copies_there<1>();
        __syncthreads();
        const Row<D> *queries = room.at[i % 2][0], *grads = room.at[i % 2][1];
        int there = p.own < t ? min(t - i * TILE, TILE) : 0;
        for (int j = 0; j < there; j += 16) {
            // Queries behind the last are zeros, as are their sums and gradients: they add nothing.
            float s[2][4], ds[2][4];
            with_rows<D>(s, keys, queries + j);
            with_rows<D>(ds, values, grads + j);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int column = j + e / 4 * 8 + 2 * (lane % 4) + e % 2;
                float prob = exp2f(s[e / 4][e % 4] * steep - sums[i % 2][0][column] * LOG2E);
                s[e / 4][e % 4] = prob;
                ds[e / 4][e % 4] = prob * (ds[e / 4][e % 4] - sums[i % 2][1][column]);
            }
            add_rows<D>(dv, s, grads + j);
            add_rows<D>(dk, ds, queries + j);
        }
        __syncthreads();
    }
    if (p.own >= t) return;
    bf16 *to = dx + p.packed + p.own * p.wide + p.narrow;
    put<D>(dk, scale, scale, room.at[0][0] + 16 * warp, to, p.wide, t - p.own);
    put<D>(dv, 1.0f, 1.0f, room.at[0][1] + 16 * warp, to + p.narrow, p.wide, t - p.own);
}

extern "C" __global__ void flash_forward_32(const bf16 *qkv, bf16 *y, float *logs, int t, int heads, float scale) { forward<32>(qkv, y, logs, t, heads, scale); }
extern "C" __global__ void flash_to_queries_32(const bf16 *qkv, const bf16 *y, const bf16 *g, const float *logs, float *along, bf16 *dx, int t, int heads, float scale) { to_queries<32>(qkv, y, g, logs, along, dx, t, heads, scale); }
extern "C" __global__ void flash_to_keys_32(const bf16 *qkv, const bf16 *g, const float *logs, const float *along, bf16 *dx, int t, int heads, float scale) { to_keys<32>(qkv, g, logs, along, dx, t, heads, scale); }
extern "C" __global__ void flash_forward_64(const bf16 *qkv, bf16 *y, float *logs, int t, int heads, float scale) { forward<64>(qkv, y, logs, t, heads, scale); }
extern "C" __global__ void flash_to_queries_64(const bf16 *qkv, const bf16 *y, const bf16 *g, const float *logs, float *along, bf16 *dx, int t, int heads, float scale) { to_queries<64>(qkv, y, g, logs, along, dx, t, heads, scale); }
extern "C" __global__ void flash_to_keys_64(const bf16 *qkv, const bf16 *g, const float *logs, const float *along, bf16 *dx, int t, int heads, float scale) { to_keys<64>(qkv, g, logs, along, dx, t, heads, scale); }
