// A stand-in for cuRAND on the processor: uniform, normal and log-normal numbers and 32-bit integers.
//
// As in the real library: a seed gives the same numbers every time, in the order in which they are asked for; uniform numbers are above 0
// and at most 1; normal numbers are made in pairs, so that an odd count is refused; work is queued on the generator's stream.
// Unlike it: whatever generator is asked for, the numbers are those of Philox 4x32-10 (Salmon et al. 2011), in an order of their own;
// quasirandom generators, 64-bit integers and Poisson's distribution are missing.

#include "stand_in.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>

#if __has_include(<curand.h>) && !defined(NO_NVIDIA_HEADERS)
#include <curand.h>
#else
typedef struct CUstream_st *cudaStream_t;
typedef struct curandGenerator_st *curandGenerator_t;
typedef enum { CURAND_STATUS_SUCCESS = 0, CURAND_STATUS_NOT_INITIALIZED = 101, CURAND_STATUS_TYPE_ERROR = 103,
               CURAND_STATUS_OUT_OF_RANGE = 104, CURAND_STATUS_LENGTH_NOT_MULTIPLE = 105 } curandStatus_t;
typedef enum { CURAND_RNG_PSEUDO_DEFAULT = 100, CURAND_RNG_PSEUDO_XORWOW = 101, CURAND_RNG_PSEUDO_MRG32K3A = 121,
               CURAND_RNG_PSEUDO_MTGP32 = 141, CURAND_RNG_PSEUDO_MT19937 = 142, CURAND_RNG_PSEUDO_PHILOX4_32_10 = 161 } curandRngType_t;
#endif

struct curandGenerator_st {
    curandRngType_t type;
    cudaStream_t stream = nullptr;
    std::uint64_t seed = 0, place = 0; // the next 32 random bits
};

namespace {

using Status = curandStatus_t;
using Generator = curandGenerator_t;

// 32 random bits at each place of a sequence.
class Bits {
    std::uint64_t seed, block = ~std::uint64_t(0);
    std::array<std::uint32_t, 4> made;

public:
    explicit Bits(std::uint64_t seed) : seed(seed) {}

    std::uint32_t at(std::uint64_t place) {
        if (place / 4 != block) {
            block = place / 4;
            std::uint32_t key[] = {std::uint32_t(seed), std::uint32_t(seed >> 32)};
            made = {std::uint32_t(block), std::uint32_t(block >> 32), 0, 0};
            for (int round = 0; round < 10; ++round, key[0] += 0x9e3779b9, key[1] += 0xbb67ae85) {
                std::uint64_t a = std::uint64_t(0xd2511f53) * made[0], b = std::uint64_t(0xcd9e8d57) * made[2];
                made = {std::uint32_t(b >> 32) ^ made[1] ^ key[0], std::uint32_t(b), std::uint32_t(a >> 32) ^ made[3] ^ key[1],
                        std::uint32_t(a)};
            }
        }
        return made[place % 4];
    }

    // Above 0 and at most 1.
    void uniform(std::uint64_t place, float &to) { to = float(at(place)) * 0x1p-32f + 0x1p-33f; }
    void uniform(std::uint64_t place, double &to) {
        std::uint64_t bits = std::uint64_t(at(place)) << 32 | at(place + 1);
        to = (double(bits >> 11) + 1) * 0x1p-53;
    }
};

// Queues f(bits, place, element) for every element, of which each takes `each` places.
template <class T, class F> Status fill(const char *who, Generator g, T *out, std::size_t count, std::size_t each, F f) {
    if (!g)
        return CURAND_STATUS_NOT_INITIALIZED;
    if (count == 0)
        return CURAND_STATUS_SUCCESS;
    auto work = [=, seed = g->seed, first = g->place] {
        cuda_on_cpu_check(out, count * sizeof(T), who);
        Bits bits(seed);
        for (std::size_t i = 0; i < count; ++i)
            f(bits, first + i * each, i, out);
    };
    g->place += count * each;
    using Work = decltype(work);
    cuda_on_cpu_enqueue(g->stream, [](void *given) { (*std::unique_ptr<Work>(static_cast<Work *>(given)))(); }, new Work(work));
    return CURAND_STATUS_SUCCESS;
}

template <class T> Status uniform(const char *who, Generator g, T *out, std::size_t count) {
    auto one = [](Bits &bits, std::uint64_t place, std::size_t i, T *out) { bits.uniform(place, out[i]); };
    return fill(who, g, out, count, sizeof(T) / 4, one);
}

// By Box and Muller; the logarithms are normal where `logarithms`.
template <class T> Status normal(const char *who, Generator g, T *out, std::size_t count, T mean, T deviation, bool logarithms) {
    if (count % 2 != 0)
        return CURAND_STATUS_LENGTH_NOT_MULTIPLE;
    auto pair = [=](Bits &bits, std::uint64_t place, std::size_t i, T *out) {
        if (i % 2 != 0)
            return;
        T a, b;
        bits.uniform(place, a);
        bits.uniform(place + sizeof(T) / 4, b);
        T radius = std::sqrt(T(-2) * std::log(a)), angle = T(6.283185307179586) * b;
        T x = mean + deviation * radius * std::sin(angle), y = mean + deviation * radius * std::cos(angle);
        out[i] = logarithms ? std::exp(x) : x;
        out[i + 1] = logarithms ? std::exp(y) : y;
    };
    return fill(who, g, out, count, sizeof(T) / 4, pair);
}

} // namespace

extern "C" {

Status curandCreateGenerator(Generator *to, curandRngType_t type) {
    switch (to ? int(type) : 0) {
    case CURAND_RNG_PSEUDO_DEFAULT:
    case CURAND_RNG_PSEUDO_XORWOW:
    case CURAND_RNG_PSEUDO_MRG32K3A:
    case CURAND_RNG_PSEUDO_MTGP32:
    case CURAND_RNG_PSEUDO_MT19937:
    case CURAND_RNG_PSEUDO_PHILOX4_32_10: *to = new curandGenerator_st{type}; return CURAND_STATUS_SUCCESS;
    default: return CURAND_STATUS_TYPE_ERROR;
    }
}

Status curandDestroyGenerator(Generator g) {
    if (!g)
        return CURAND_STATUS_NOT_INITIALIZED;
    delete g;
    return CURAND_STATUS_SUCCESS;
}

Status curandSetStream(Generator g, cudaStream_t stream) {
    return g ? g->stream = stream, CURAND_STATUS_SUCCESS : CURAND_STATUS_NOT_INITIALIZED;
}

// Begins the sequence of the seed.
Status curandSetPseudoRandomGeneratorSeed(Generator g, unsigned long long seed) {
    return g ? g->seed = seed, g->place = 0, CURAND_STATUS_SUCCESS : CURAND_STATUS_NOT_INITIALIZED;
}

// The Mersenne Twisters have no offset.
Status curandSetGeneratorOffset(Generator g, unsigned long long offset) {
    if (!g)
        return CURAND_STATUS_NOT_INITIALIZED;
    if (g->type == CURAND_RNG_PSEUDO_MTGP32 || g->type == CURAND_RNG_PSEUDO_MT19937)
        return CURAND_STATUS_TYPE_ERROR;
    g->place = offset;
    return CURAND_STATUS_SUCCESS;
}

Status curandGenerate(Generator g, unsigned int *out, std::size_t count) {
    auto one = [](Bits &bits, std::uint64_t place, std::size_t i, unsigned int *out) { out[i] = bits.at(place); };
    return fill(__func__, g, out, count, 1, one);
}

// Of the real library's generators only quasirandom ones of 64 bits have these.
Status curandGenerateLongLong(Generator, unsigned long long *, std::size_t) { return CURAND_STATUS_TYPE_ERROR; }

Status curandGeneratePoisson(Generator, unsigned int *, std::size_t, double) { return CURAND_STATUS_TYPE_ERROR; }

Status curandGenerateUniform(Generator g, float *out, std::size_t count) { return uniform(__func__, g, out, count); }

Status curandGenerateUniformDouble(Generator g, double *out, std::size_t count) { return uniform(__func__, g, out, count); }

Status curandGenerateNormal(Generator g, float *out, std::size_t count, float mean, float deviation) {
    return normal(__func__, g, out, count, mean, deviation, false);
}

Status curandGenerateNormalDouble(Generator g, double *out, std::size_t count, double mean, double deviation) {
    return normal(__func__, g, out, count, mean, deviation, false);
}

Status curandGenerateLogNormal(Generator g, float *out, std::size_t count, float mean, float deviation) {
    return normal(__func__, g, out, count, mean, deviation, true);
}

Status curandGenerateLogNormalDouble(Generator g, double *out, std::size_t count, double mean, double deviation) {
    return normal(__func__, g, out, count, mean, deviation, true);
}
}
