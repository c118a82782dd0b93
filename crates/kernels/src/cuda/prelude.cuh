// What every source of this folder starts with: element types and sums over the threads of a warp or a block.
// Compiled at run time by NVRTC, and by a C++ compiler behind host.h for the tests; no header of the toolkit is needed.

typedef long long i64;
typedef unsigned short u16;
typedef unsigned int u32;

#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// A bfloat16 as it lies in memory.
struct bf16 {
    u16 bits;
};

__device__ inline float widened(float x) { return x; }
__device__ inline float widened(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Rounded to nearest, ties to even; NaN stays NaN.
__device__ inline void narrow(float x, float &out) { out = x; }
__device__ inline void narrow(float x, bf16 &out) {
    u32 bits = __float_as_uint(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = (u16)(x != x ? ((bits >> 16) | 0x40u) : rounded);
}

// V neighbouring elements, read and written at once; their address must be a multiple of their size.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

template <class T, int V> __device__ inline void load(const T *from, float (&to)[V]) {
    Pack<T, V> pack = *reinterpret_cast<const Pack<T, V> *>(from);
    for (int i = 0; i < V; i++) to[i] = widened(pack.at[i]);
}

template <class T, int V> __device__ inline void store(const float (&from)[V], T *to) {
    Pack<T, V> pack;
    for (int i = 0; i < V; i++) narrow(from[i], pack.at[i]);
    *reinterpret_cast<Pack<T, V> *>(to) = pack;
}

// The sum over the 32 threads of a warp, the same bits in each of them.
__device__ inline float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, step);
        // NaN wins, so that it is seen.
        x = (other > x || other != other) ? other : x;
    }
    return x;
}

// The sum over all threads of a block of whole warps, the same bits in each of them; `room` holds 32 floats.
__device__ inline float block_sum(float x, float *room) {
    x = warp_sum(x);
    int warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < warps; i++) sum += room[i];
    __syncthreads();
    return sum;
}

__device__ inline float block_max(float x, float *room) {
    x = warp_max(x);
    int warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    float top = room[0];
    for (int i = 1; i < warps; i++) top = (room[i] > top || room[i] != room[i]) ? room[i] : top;
    __syncthreads();
    return top;
}

// Columns of a matrix whose rows are cut into groups: a block of 256 threads takes `lanes` packs of V neighbouring columns and
// 256 / lanes rows at a time (lanes a power of two). Grid: (tiles of columns, chunks of a group's rows, groups). Partial sums go by chunk and
// are added in the chunks' order, so that results have the same bits every time.

#define THREADS 256

struct Tile {
    int lane, sub, subs, c;
    i64 first, last, base;  // rows of the chunk within the group; the group's first row
};

template <int V> __device__ inline Tile tile(int c, i64 rows, i64 chunk, int lanes) {
    Tile t;
    t.lane = threadIdx.x % lanes;
    t.sub = threadIdx.x / lanes;
    t.subs = THREADS / lanes;
    t.c = (blockIdx.x * lanes + t.lane) * V;
    t.first = (i64)blockIdx.y * chunk;
    t.last = min(t.first + chunk, rows);
    t.base = (i64)blockIdx.z * rows;
    return t;
}

// Adds the subs' values of a lane in their order; the result is there for sub 0.
template <int V> __device__ inline void over_subs(float (&a)[V], const Tile &t, int lanes, float *room) {
    for (int v = 0; v < V; v++) {
        room[threadIdx.x] = a[v];
        __syncthreads();
        if (t.sub == 0) {
            for (int s = 1; s < t.subs; s++) a[v] += room[s * lanes + t.lane];
        }
        __syncthreads();
    }
}
