// A C++ compiler in the place of NVRTC: CUDA's words for sources of this folder that are run by tests on the processor.
// Every CUDA thread is a fibre; the blocks run one after the other. A barrier that some threads of a block pass and others have left
// is reported, as is a parameter list that is not the caller's, element types included. Fibres run in ascending order of threads or in
// descending order: what a missing barrier hides in one shows in the other.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#include <ucontext.h>

#define TWINSIGHT_HOST
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

static inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
static inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
// Fibres change at barriers only, so that a plain addition is an atomic one.
template <class T> static inline T atomicAdd(T *at, T value) { T old = *at; *at = old + value; return old; }

// The prelude's.
struct bf16;

namespace host {

enum Wait { Ready, Block, Warp, Done };

// What a lane gives to an operation of its warp.
struct Given {
    unsigned words[6];
    const unsigned short *row;
};

// A copy to shared memory that was begun.
struct Copy {
    void *to;
    const void *from;
    std::size_t bytes;
    bool there;
};

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    Wait wait = Done;
    float shared = 0;
    // Of two operations of a warp one after the other, so that one pause is enough for each.
    Given given[2];
    unsigned operation = 0;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static unsigned current;
static bool descending;
static void (*body)(void **);
static void **body_args;

// Number `i` of `count` in the order of this launch.
static unsigned turn(unsigned i, unsigned count) { return descending ? count - 1 - i : i; }

static void entry() {
    body(body_args);
    fibres[current].wait = Done;
    swapcontext(&fibres[current].context, &scheduler);
}

static void pause(Wait wait) {
    fibres[current].wait = wait;
    swapcontext(&fibres[current].context, &scheduler);
}

static void resume(unsigned i) {
    current = i;
    threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    fibres[i].wait = Ready;
    swapcontext(&scheduler, &fibres[i].context);
}

// Whether threads first to last all wait for `wait`; -1 if some do while others have left.
static int all_wait(unsigned first, unsigned last, Wait wait) {
    unsigned waiting = 0, done = 0;
    for (unsigned i = first; i < last; i++) {
        waiting += fibres[i].wait == wait;
        done += fibres[i].wait == Done;
    }
    if (waiting > 0 && waiting + done == last - first && done > 0) return -1;
    return waiting == last - first;
}

// 0, or 1 where threads of a block or warp part at a barrier.
static int run_block() {
    unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    if (fibres.size() < threads) fibres.resize(threads);
    for (unsigned i = 0; i < threads; i++) {
        Fibre &f = fibres[i];
        f.stack.resize(64 * 1024);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, entry, 0);
        f.wait = Ready;
        f.operation = 0;
        f.open.clear();
        f.groups.clear();
    }
    unsigned warps = (threads + 31) / 32;
    for (;;) {
        for (unsigned warp = 0; warp < warps; warp++) {
            unsigned first = 32 * turn(warp, warps), last = first + 32 < threads ? first + 32 : threads;
            // A warp runs on to the next barrier of the block before the others move: as far from them as it can get.
            int at;
            do {
                for (unsigned i = first; i < last; i++) resume(first + turn(i - first, last - first));
                at = all_wait(first, last, Warp);
            } while (at == 1);
            if (at < 0) return 1;
        }
        if (all_wait(0, threads, Done) == 1) return 0;
        if (all_wait(0, threads, Block) != 1) return 1;
    }
}

// A parameter's kind; pointers by what they point to.
template <class T> constexpr char letter() {
    using To = typename std::remove_cv<typename std::remove_pointer<T>::type>::type;
    if (std::is_pointer<T>::value) {
        if (std::is_same<To, float>::value) return 'F';
        if (std::is_same<To, double>::value) return 'D';
        if (std::is_same<To, bf16>::value) return 'H';
        if (std::is_same<To, long long>::value) return 'L';
        if (std::is_same<To, unsigned char>::value) return 'B';
        if (std::is_same<To, unsigned>::value || std::is_same<To, int>::value) return 'U';
        return '?';
    }
    if (std::is_same<T, float>::value) return 'f';
    if (std::is_same<T, double>::value) return 'd';
    if (std::is_same<T, int>::value) return 'i';
    if (std::is_same<T, long long>::value) return 'l';
    return '?';
}

// Whether an argument goes to a parameter: 0 (written '0') to any pointer, words to pointers to anything of at most their size.
static bool fits(char parameter, char argument) {
    if (argument == '0') return std::strchr("FDHLBU", parameter) != nullptr;
    if (argument == 'U') return std::strchr("UFB", parameter) != nullptr;
    return parameter == argument;
}

template <class... A> struct Call {
    template <void (*f)(A...), std::size_t... I> static void unpacked(void **args, std::index_sequence<I...>) {
        f(*static_cast<typename std::remove_reference<A>::type *>(args[I])...);
    }
    template <void (*f)(A...)> static void call(void **args) { unpacked<f>(args, std::index_sequence_for<A...>{}); }
};

template <class... A> static const char *letters(void (*)(A...)) {
    static const char text[] = {letter<A>()..., 0};
    return text;
}

template <class... A> static Call<A...> call_of(void (*)(A...)) { return {}; }

static std::mutex one_at_a_time;

// 0, 1 as run_block, 2 for another parameter list than `signature`.
static int run(void (*f)(void **), const char *letters, const char *signature, const unsigned *grid, const unsigned *block, bool down, void **args) {
    std::lock_guard<std::mutex> lock(one_at_a_time);
    if (std::strlen(letters) != std::strlen(signature)) return 2;
    for (std::size_t i = 0; letters[i]; i++)
        if (!fits(letters[i], signature[i])) return 2;
    descending = down;
    body = f;
    body_args = args;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (int error = run_block()) return error;
            }
    return 0;
}

}  // namespace host

static inline void __syncthreads() { host::pause(host::Block); }

static inline float __shfl_xor_sync(unsigned, float x, int step) {
    unsigned me = host::current;
    host::fibres[me].shared = x;
    host::pause(host::Warp);
    float other = host::fibres[me ^ (unsigned)step].shared;
    host::pause(host::Warp);
    return other;
}

static inline void __syncwarp() { host::pause(host::Warp); }

// What mma.cuh has, by the layouts that stand there.

namespace host {

// What the lanes of this warp give to an operation of it, by lane.
struct Lanes {
    unsigned first, operation;
    const Given &operator[](unsigned lane) const { return fibres[first + lane].given[operation]; }
};

static Lanes exchanged(const Given &given) {
    Fibre &f = fibres[current];
    unsigned operation = f.operation;
    f.operation = 1 - operation;
    f.given[operation] = given;
    pause(Warp);
    return {current / 32 * 32, operation};
}

static float half(unsigned word, unsigned which) { return __uint_as_float(which ? word & 0xffff0000u : word << 16); }

static void matrices(unsigned (&to)[4], const void *row, bool transposed) {
    if (reinterpret_cast<std::size_t>(row) % 16 != 0) std::abort();
    unsigned lane = current % 32, g = lane / 4, q = lane % 4;
    Lanes lanes = exchanged({{}, static_cast<const unsigned short *>(row)});
    for (unsigned i = 0; i < 4; i++) {
        auto at = [&](unsigned row, unsigned column) { return (unsigned)lanes[8 * i + row].row[column]; };
        to[i] = transposed ? at(2 * q, g) | at(2 * q + 1, g) << 16 : at(g, 2 * q) | at(g, 2 * q + 1) << 16;
    }
    // Nobody may write there before all have read.
    pause(Warp);
}

static void copied(const Copy &c) {
    if (c.there) std::memcpy(c.to, c.from, c.bytes);
    else std::memset(c.to, 0, c.bytes);
}

// Copies happen as early as they can where threads run in ascending order, and as late as they can in descending order.
static void begin(const Copy &c) {
    if (reinterpret_cast<std::size_t>(c.to) % c.bytes != 0 || reinterpret_cast<std::size_t>(c.from) % c.bytes != 0) std::abort();
    if (descending) fibres[current].open.push_back(c);
    else copied(c);
}

}  // namespace host

static inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    unsigned lane = host::current % 32;
    host::Lanes lanes = host::exchanged({{a[0], a[1], a[2], a[3], b0, b1}, nullptr});
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned left = lanes[row % 8 * 4 + k % 8 / 2].words[row / 8 + k / 8 * 2];
            unsigned right = lanes[column * 4 + k % 8 / 2].words[4 + k / 8];
            d[i] += host::half(left, k % 2) * host::half(right, k % 2);
        }
    }
}

static inline void ldmatrix(unsigned (&to)[4], const void *row) { host::matrices(to, row, false); }
static inline void ldmatrix_transposed(unsigned (&to)[4], const void *row) { host::matrices(to, row, true); }

static inline unsigned pair(float low, float high) {
    auto rounded = [](float x) {
        unsigned bits = __float_as_uint(x);
        return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}

static inline void copy16(void *to, const void *from, bool there) { host::begin({to, from, 16, there}); }
static inline void copy4(void *to, const void *from, bool there) { host::begin({to, from, 4, there}); }

static inline void copies_grouped() {
    host::Fibre &f = host::fibres[host::current];
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}

template <int LEFT> static inline void copies_there() {
    std::vector<std::vector<host::Copy>> &groups = host::fibres[host::current].groups;
    while (groups.size() > LEFT) {
        for (const host::Copy &c : groups.front()) host::copied(c);
        groups.erase(groups.begin());
    }
}

// Written by the tests for every kernel of a source.
#define HOST_KERNEL(name)                                                                                                                 \
    extern "C" __attribute__((visibility("default"))) int run_##name(                                                                   \
        const char *signature, const unsigned *grid, const unsigned *block, int down, void **args) {                                    \
        return host::run(&decltype(host::call_of(name))::template call<name>, host::letters(name), signature, grid, block, down, args); \
    }
