// Heads of queries, keys and values, packed beside each other and apart. A warp moves the d numbers of one head of one token.

// (n, t, parts, heads, d) to (parts, n, heads, t, d). `rows` is n t parts heads.
template <class T> __device__ inline void split_heads(const T *packed, T *apart, u32 rows, u32 n, u32 t, u32 parts, u32 heads, int d) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    u32 head = row % heads, rest = row / heads;
    u32 part = rest % parts;
    rest /= parts;
    u32 token = rest % t, sample = rest / t;
    i64 to = ((((i64)part * n + sample) * heads + head) * t + token) * d;
    for (int i = threadIdx.x % 32; i < d; i += 32) apart[to + i] = packed[(i64)row * d + i];
}

extern "C" __global__ void split_heads_f32(const float *packed, float *apart, int rows, int n, int t, int parts, int heads, int d) { split_heads(packed, apart, rows, n, t, parts, heads, d); }
extern "C" __global__ void split_heads_bf16(const bf16 *packed, bf16 *apart, int rows, int n, int t, int parts, int heads, int d) { split_heads(packed, apart, rows, n, t, parts, heads, d); }

// (n, heads, t, d) to part `part` of (n, t, parts, heads, d). `rows` is n t heads.
template <class T> __device__ inline void join_heads(const T *apart, T *packed, u32 rows, u32 t, u32 parts, u32 heads, int d, u32 part) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    u32 token = row % t, rest = row / t;
    u32 head = rest % heads, sample = rest / heads;
    i64 to = ((((i64)sample * t + token) * parts + part) * heads + head) * d;
    for (int i = threadIdx.x % 32; i < d; i += 32) packed[to + i] = apart[(i64)row * d + i];
}

extern "C" __global__ void join_heads_f32(const float *apart, float *packed, int rows, int t, int parts, int heads, int d, int part) { join_heads(apart, packed, rows, t, parts, heads, d, part); }
extern "C" __global__ void join_heads_bf16(const bf16 *apart, bf16 *packed, int rows, int t, int parts, int heads, int d, int part) { join_heads(apart, packed, rows, t, parts, heads, d, part); }
