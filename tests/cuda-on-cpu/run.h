// What kernels need that were translated from PTX to C++: numbers, memory with a look at its bounds, and what threads do together.
// driver.cpp runs them.
#pragma once
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

struct Dim {
    u32 x, y, z;
};

enum Wait : u32 { READY, BLOCK, WARP, DONE };

// A copy to shared memory that was begun and not yet made.
struct Copy {
    u8 *to;
    const u8 *from;
    u32 bytes, given;
};

struct Block;

// A CUDA thread.
struct Thread {
    Dim tid;
    u32 index, lane, carry;
    Block *block;
    // Parts of memory that were looked up, by the place in the program.
    struct {
        u64 first, end;
    } known[8];
    // What it waits for, and what it gives to its warp.
    Wait wait;
    u32 mask;
    u64 given[4];
    void *stack_pointer;
    u8 *stack;
    Copy *copies;
    u32 copy_count, copy_room, group_count, groups[64];
};

// A block of threads that is run.
struct Block {
    Dim grid, block, at;
    u8 *shared;
    u32 shared_bytes, count;
    Thread *threads;
    bool late;
    const char *kernel;
};

typedef void (*Entry)(Thread &, const u8 *);

extern "C" {
// Lets the others run until all of the block, or of the mask's lanes in this warp, are there.
void cuda_on_cpu_pause(Thread &t, Wait wait, u32 mask);
// Looks an address of the device's memory up; ends the program with a line where it has none, or no multiple of the bytes.
void cuda_on_cpu_look_up(Thread &t, u64 address, u32 bytes, u32 place);
void cuda_on_cpu_fail(Thread &t, const char *why, u64 number);
void cuda_on_cpu_copy(Thread &t, u8 *to, const u8 *from, u32 bytes, u32 given);
void cuda_on_cpu_copies_grouped(Thread &t);
void cuda_on_cpu_copies_there(Thread &t, u32 left);
}

// Bits.

template <class To, class From> static inline To bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline float f32_of(u32 x) { return bits<float>(x); }
static inline u32 bits_of(float x) { return bits<u32>(x); }

// bfloat16 and half precision, computed in f32.
struct B16 {
    u16 b;
    B16() = default;
    explicit B16(float x) {
        u32 v = bits_of(x);
        b = x != x ? 0x7fff : (u16)((v + 0x7fff + (v >> 16 & 1)) >> 16);
    }
    operator float() const { return f32_of((u32)b << 16); }
};
struct H16 {
    u16 b;
    H16() = default;
    explicit H16(float x) { b = bits<u16>((_Float16)x); }
    operator float() const { return (float)bits<_Float16>(b); }
};
template <class E> struct Two {
    E lo, hi;
};

// A register read as a type, and a value written to a register.
template <class T, class R> static inline T as(R r) {
    if constexpr (sizeof(T) == sizeof(R)) return bits<T>(r);
    else if constexpr (sizeof(T) == 1) return bits<T>((u8)r);
    else if constexpr (sizeof(T) == 2) return bits<T>((u16)r);
    else if constexpr (sizeof(T) == 4) return bits<T>((u32)r);
    else return bits<T>((u64)r);
}
template <class R> static inline void put(R &r, s8 v) { r = (R)(s64)v; }
template <class R> static inline void put(R &r, s16 v) { r = (R)(s64)v; }
template <class R> static inline void put(R &r, s32 v) { r = (R)(s64)v; }
template <class R> static inline void put(R &r, s64 v) { r = (R)v; }
template <class R> static inline void put(R &r, u8 v) { r = (R)v; }
template <class R> static inline void put(R &r, u16 v) { r = (R)v; }
template <class R> static inline void put(R &r, u32 v) { r = (R)v; }
template <class R> static inline void put(R &r, u64 v) { r = (R)v; }
template <class R> static inline void put(R &r, bool v) { r = (R)v; }
template <class R> static inline void put(R &r, float v) { r = (R)bits<u32>(v); }
template <class R> static inline void put(R &r, double v) { r = (R)bits<u64>(v); }
template <class R> static inline void put(R &r, B16 v) { r = (R)v.b; }
template <class R> static inline void put(R &r, H16 v) { r = (R)v.b; }
template <class R, class E> static inline void put(R &r, Two<E> v) { r = (R)bits<u32>(v); }

// Memory.

static inline u8 *global_at(Thread &t, u64 a, u32 bytes, u32 place) {
    if (a < t.known[place].first || a + bytes > t.known[place].end || a % bytes) cuda_on_cpu_look_up(t, a, bytes, place);
    return (u8 *)a;
}
static inline u8 *shared_at(Thread &t, u64 a, u32 bytes, u32) {
    if ((u32)a + (u64)bytes > t.block->shared_bytes || a % bytes) cuda_on_cpu_fail(t, "shared memory is read or written beyond its end", a);
    return t.block->shared + (u32)a;
}
static inline u8 *any_at(Thread &t, u64 a, u32 bytes, u32) {
    if (a % bytes) cuda_on_cpu_fail(t, "an address is no multiple of its bytes", a);
    return (u8 *)a;
}
static inline u8 *own_at(Thread &, u64 a, u32, u32) { return (u8 *)a; }
template <class T> static inline T load(const u8 *at) {
    T x;
    memcpy(&x, at, sizeof x);
    return x;
}
template <class T> static inline void store(u8 *at, T x) { memcpy(at, &x, sizeof x); }

// Arithmetic: as PTX has it where C++ leaves it open.

template <class T> struct Unsigned { typedef T type; };
template <> struct Unsigned<s16> { typedef u16 type; };
template <> struct Unsigned<s32> { typedef u32 type; };
template <> struct Unsigned<s64> { typedef u64 type; };
template <class T> struct IsFloat { static const bool value = false; };
template <> struct IsFloat<float> { static const bool value = true; };
template <> struct IsFloat<double> { static const bool value = true; };
template <> struct IsFloat<B16> { static const bool value = true; };
template <> struct IsFloat<H16> { static const bool value = true; };
#define WRAPPING(name, op)                                                          \
    template <class T> static inline T name(T a, T b) {                             \
        if constexpr (!IsFloat<T>::value) {                                           \
            typedef typename Unsigned<T>::type U;                                   \
            return (T)(U)((U)a op(U) b);                                            \
        } else return T(a op b);                                                    \
    }
WRAPPING(add, +)
WRAPPING(sub, -)
#undef WRAPPING
template <class T> static inline T mul(T a, T b) {
    if constexpr (IsFloat<T>::value) return T(a * b);
    else return (T)((u64)a * (u64)b);
}
static inline float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double fma_(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline B16 fma_(B16 a, B16 b, B16 c) { return B16((float)((double)(float)a * (double)(float)b + (double)(float)c)); }
static inline H16 fma_(H16 a, H16 b, H16 c) { return H16((float)((double)(float)a * (double)(float)b + (double)(float)c)); }
template <class T> static inline T div_(T a, T b) {
    if constexpr (IsFloat<T>::value) return T(a / b);
    else return b == 0 ? (T)-1 : (T(-1) < T(0) && b == (T)-1) ? sub<T>(0, a) : (T)(a / b);
}
template <class T> static inline T rem_(T a, T b) { return b == 0 ? a : (T(-1) < T(0) && b == (T)-1) ? 0 : (T)(a % b); }
template <class T> static inline T neg_(T a) {
    if constexpr (IsFloat<T>::value) return T(-a);
    else return sub<T>(0, a);
}
template <class T> static inline T abs_(T a) {
    if constexpr (IsFloat<T>::value) return T((a < 0 || (a == 0 && 1 / (double)a < 0)) ? -a : a);
    else return a < 0 ? neg_(a) : a;
}
template <class T> static inline T min_(T a, T b) {
    // Of zeros the negative one is less.
    if constexpr (IsFloat<T>::value) return a != a ? b : b != b ? a : b < a || (b == a && std::signbit((double)b)) ? b : a;
    else return b < a ? b : a;
}
template <class T> static inline T max_(T a, T b) {
    if constexpr (IsFloat<T>::value) return a != a ? b : b != b ? a : a < b || (b == a && std::signbit((double)a)) ? b : a;
    else return a < b ? b : a;
}
template <class T> static inline T min_nan(T a, T b) { return a != a ? a : b != b ? b : min_(a, b); }
template <class T> static inline T max_nan(T a, T b) { return a != a ? a : b != b ? b : max_(a, b); }
// Rounded toward zero, down or up; what is volatile is not moved out of the mode.
#define ROUNDED __attribute__((noinline, optimize("rounding-math")))
template <class F> ROUNDED static auto in_mode(int mode, F f) {
    int before = std::fegetround();
    std::fesetround(mode);
    auto y = f();
    std::fesetround(before);
    return y;
}
template <class T> ROUNDED static T add_to(int mode, T a, T b) {
    volatile T x = a, y = b;
    return in_mode(mode, [&]() ROUNDED { volatile T z = x + y; return (T)z; });
}
template <class T> ROUNDED static T sub_to(int mode, T a, T b) {
    volatile T x = a, y = b;
    return in_mode(mode, [&]() ROUNDED { volatile T z = x - y; return (T)z; });
}
template <class T> ROUNDED static T mul_to(int mode, T a, T b) {
    volatile T x = a, y = b;
    return in_mode(mode, [&]() ROUNDED { volatile T z = x * y; return (T)z; });
}
template <class T> ROUNDED static T div_to(int mode, T a, T b) {
    volatile T x = a, y = b;
    return in_mode(mode, [&]() ROUNDED { volatile T z = x / y; return (T)z; });
}
template <class T> ROUNDED static T fma_to(int mode, T a, T b, T c) {
    volatile T x = a, y = b, w = c;
    return in_mode(mode, [&]() ROUNDED { volatile T z = std::fma((T)x, (T)y, (T)w); return (T)z; });
}
template <class T> static inline T clamp01(T a) { return a != a ? T(0.0f) : a < 0 ? T(0.0f) : a > 1 ? T(1.0f) : a; }
#define PAIRS1(name) template <class E> static inline Two<E> name(Two<E> a) { return {name(a.lo), name(a.hi)}; }
#define PAIRS2(name) template <class E> static inline Two<E> name(Two<E> a, Two<E> b) { return {name(a.lo, b.lo), name(a.hi, b.hi)}; }
PAIRS1(neg_) PAIRS1(abs_) PAIRS2(add) PAIRS2(sub) PAIRS2(mul) PAIRS2(min_) PAIRS2(max_) PAIRS2(min_nan) PAIRS2(max_nan)
template <class E> static inline Two<E> fma_(Two<E> a, Two<E> b, Two<E> c) { return {fma_(a.lo, b.lo, c.lo), fma_(a.hi, b.hi, c.hi)}; }

template <class T> static inline T shl_(T a, u32 by) { return by >= 8 * sizeof(T) ? 0 : (T)((typename Unsigned<T>::type)a << by); }
template <class T> static inline T shr_(T a, u32 by) {
    if (by >= 8 * sizeof(T)) return T(-1) < T(0) && a < 0 ? (T)-1 : 0;
    return (T)(a >> by);
}
static inline u32 shf_l(u32 a, u32 b, u32 by, bool wrap) { by = wrap ? by & 31 : by > 32 ? 32 : by; return (u32)((((u64)b << 32 | a) << by) >> 32); }
static inline u32 shf_r(u32 a, u32 b, u32 by, bool wrap) { by = wrap ? by & 31 : by > 32 ? 32 : by; return (u32)(((u64)b << 32 | a) >> by); }
static inline u32 lop3_(u32 a, u32 b, u32 c, u32 table) {
    u32 r = 0;
    for (u32 i = 0; i < 8; i++)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}
static inline u32 prmt_(u32 a, u32 b, u32 c) {
    u64 both = (u64)b << 32 | a;
    u32 r = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 pick = c >> 4 * i & 15, byte = (u32)(both >> 8 * (pick & 7)) & 255;
        r |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}
template <class T> static inline T bfe_(T a, u32 at, u32 len) {
    const u32 width = 8 * sizeof(T);
    typedef typename Unsigned<T>::type U;
    at &= 255, len &= 255;
    U r = 0;
    for (u32 i = 0; i < width; i++) {
        u32 from = at + (i < len ? i : len ? len - 1 : 0);
        bool bit = i < len ? at + i < width && ((U)a >> (at + i) & 1) : T(-1) < T(0) && len > 0 && ((U)a >> (from < width ? from : width - 1) & 1);
        if (i < len && T(-1) < T(0) && at + i >= width) bit = (U)a >> (width - 1) & 1;
        r |= (U)bit << i;
    }
    return (T)r;
}
template <class T> static inline T bfi_(T a, T b, u32 at, u32 len) {
    const u32 width = 8 * sizeof(T);
    for (u32 i = 0; i < (len & 255) && i + (at & 255) < width; i++) {
        T bit = (T)1 << (i + (at & 255));
        b = (a >> i & 1) ? (T)(b | bit) : (T)(b & ~bit);
    }
    return b;
}
static inline u32 brev_(u32 a) { u32 r = 0; for (u32 i = 0; i < 32; i++) r |= (a >> i & 1) << (31 - i); return r; }
static inline u64 brev_(u64 a) { return (u64)brev_((u32)a) << 32 | brev_((u32)(a >> 32)); }
static inline u32 clz_(u32 a) { return a ? (u32)__builtin_clz(a) : 32; }
static inline u32 clz_(u64 a) { return a ? (u32)__builtin_clzll(a) : 64; }
static inline u32 popc_(u64 a) { return (u32)__builtin_popcountll(a); }
template <class T> static inline u32 bfind_(T a, bool shift) {
    u64 v = T(-1) < T(0) && a < 0 ? (u64)~a : (u64)a;
    if (sizeof(T) == 4) v = (u32)v;
    if (!v) return ~0u;
    u32 at = 63 - (u32)__builtin_clzll(v);
    return shift ? 8 * sizeof(T) - 1 - at : at;
}
template <class T> static inline T mul_hi(T a, T b) {
    if constexpr (sizeof(T) == 8) {
        if constexpr (T(-1) < T(0)) return (T)((__int128)a * b >> 64);
        else return (T)((unsigned __int128)a * b >> 64);
    } else if constexpr (T(-1) < T(0)) return (T)((s64)a * b >> 8 * sizeof(T));
    else return (T)((u64)a * b >> 8 * sizeof(T));
}
// With the carry flag.
template <class T> static inline T add_carry(Thread &t, T a, T b, bool in, bool out) {
    unsigned __int128 sum = (unsigned __int128)a + b + (in ? t.carry : 0);
    if (out) t.carry = (u32)(sum >> 8 * sizeof(T));
    return (T)sum;
}
template <class T> static inline T sub_carry(Thread &t, T a, T b, bool in, bool out) {
    unsigned __int128 rest = (unsigned __int128)a - b - (in ? t.carry : 0);
    if (out) t.carry = (u32)(rest >> 8 * sizeof(T)) & 1;
    return (T)rest;
}

// Numbers to whole numbers: beyond the range the nearest, NaN as 0.
template <class T> static inline T whole(double x) {
    if (x != x) return sizeof(T) == 8 ? (T)((u64)1 << 63) : 0;
    const bool is_signed = T(-1) < T(0);
    const double high = is_signed ? std::ldexp(1.0, 8 * sizeof(T) - 1) : std::ldexp(1.0, 8 * sizeof(T));
    if (x >= high) return is_signed ? (T)~((u64)1 << (8 * sizeof(T) - 1)) : (T)~(u64)0;
    if (is_signed && x < -high) return (T)((u64)1 << (8 * sizeof(T) - 1));
    if (!is_signed && x <= -1.0) return 0;
    return (T)x;
}
template <class To, class From> static inline To saturated(From x) {
    __int128 v = x, high = To(-1) < To(0) ? ((__int128)1 << (8 * sizeof(To) - 1)) - 1 : ((__int128)1 << 8 * sizeof(To)) - 1;
    __int128 low = To(-1) < To(0) ? -high - 1 : 0;
    return (To)(v > high ? high : v < low ? low : v);
}
static inline float toward_zero(double x) {
    float y = (float)x;
    return std::fabs((double)y) > std::fabs(x) && !std::isinf(x) ? std::nextafterf(y, 0.0f) : y;
}
static inline u32 tf32_of(float x) {
    u32 b = bits_of(x);
    return (b & 0x7f800000u) == 0x7f800000u ? b : (b + 0x1000u) & 0xffffe000u;
}

// Of the warp.

static inline Thread &lane_of(Thread &t, u32 lane) { return t.block->threads[t.index - t.lane + lane]; }
// Lanes of the mask that are there: none beyond the block's end, and none that has left.
static inline u32 members(Thread &t, u32 mask) {
    u32 first = t.index - t.lane, left = t.block->count - first, there = 0;
    for (u32 i = 0; i < 32 && i < left; i++) there |= (u32)(t.block->threads[first + i].wait != DONE) << i;
    return mask & there;
}
enum Shuffle { UP, DOWN, BUTTERFLY, INDEX };
static inline u32 shuffle(Thread &t, Shuffle kind, u32 a, u32 b, u32 c, u32 mask, bool &there) {
    t.given[0] = a;
    cuda_on_cpu_pause(t, WARP, mask);
    u32 segment = c >> 8 & 31, clamp = c & 31, high = (t.lane & segment) | (clamp & ~segment), low = t.lane & segment, j = 0;
    b &= 31;
    if (kind == UP) j = t.lane - b, there = (s32)j >= (s32)high;
    else if (kind == DOWN) j = t.lane + b, there = j <= high;
    else if (kind == BUTTERFLY) j = t.lane ^ b, there = j <= high;
    else j = low | (b & ~segment), there = j <= high;
    if (!there) j = t.lane;
    if (!(members(t, mask) >> j & 1)) cuda_on_cpu_fail(t, "a shuffle reads a lane that takes no part", j);
    u32 got = (u32)lane_of(t, j).given[0];
    cuda_on_cpu_pause(t, WARP, mask);
    return got;
}
static inline u32 ballot(Thread &t, bool p, u32 mask) {
    t.given[0] = p;
    cuda_on_cpu_pause(t, WARP, mask);
    u32 got = 0, all = members(t, mask);
    for (u32 i = 0; i < 32; i++)
        if (all >> i & 1) got |= (u32)(lane_of(t, i).given[0] & 1) << i;
    cuda_on_cpu_pause(t, WARP, mask);
    return got;
}
template <class T, class F> static inline T reduced(Thread &t, T x, u32 mask, F f) {
    t.given[0] = (u64)x;
    cuda_on_cpu_pause(t, WARP, mask);
    T got = 0;
    bool first = true;
    u32 all = members(t, mask);
    for (u32 i = 0; i < 32; i++)
        if (all >> i & 1) {
            T v = (T)lane_of(t, i).given[0];
            got = first ? v : f(got, v);
            first = false;
        }
    cuda_on_cpu_pause(t, WARP, mask);
    return got;
}

// ldmatrix of four matrices of 8 x 8 numbers of 16 bits: lane i names row i % 8 of matrix i / 8.
static inline void ldmatrix4(Thread &t, u64 row, bool transposed, u32 *to) {
    if (row % 16 || (u32)row + 16u > t.block->shared_bytes) cuda_on_cpu_fail(t, "ldmatrix reads a row beyond shared memory, or no multiple of 16 bytes", row);
    t.given[0] = row;
    cuda_on_cpu_pause(t, WARP, ~0u);
    u32 g = t.lane / 4, q = t.lane % 4;
    for (u32 i = 0; i < 4; i++) {
        auto at = [&](u32 r, u32 c) { return (u32)load<u16>(t.block->shared + (u32)lane_of(t, 8 * i + r).given[0] + 2 * c); };
        to[i] = transposed ? at(2 * q, g) | at(2 * q + 1, g) << 16 : at(g, 2 * q) | at(g, 2 * q + 1) << 16;
    }
    cuda_on_cpu_pause(t, WARP, ~0u);
}
// mma.m16n8k16 of bfloat16 numbers, added up in f32, by the fragments that the PTX ISA draws.
static inline void mma_bf16(Thread &t, float *d, const u32 *a, const u32 *b, const float *c) {
    t.given[0] = a[0] | (u64)a[1] << 32, t.given[1] = a[2] | (u64)a[3] << 32, t.given[2] = b[0] | (u64)b[1] << 32;
    cuda_on_cpu_pause(t, WARP, ~0u);
    for (u32 i = 0; i < 4; i++) {
        u32 row = t.lane / 4 + i / 2 * 8, column = t.lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (u32 k = 0; k < 16; k++) {
            u32 left = (u32)(lane_of(t, row % 8 * 4 + k % 8 / 2).given[k / 8] >> 32 * (row / 8));
            u32 right = (u32)(lane_of(t, column * 4 + k % 8 / 2).given[2] >> 32 * (k / 8));
            sum += f32_of(k % 2 ? left & 0xffff0000u : left << 16) * f32_of(k % 2 ? right & 0xffff0000u : right << 16);
        }
        d[i] = sum;
    }
    cuda_on_cpu_pause(t, WARP, ~0u);
}
