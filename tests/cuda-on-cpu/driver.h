// What the parts of the stand-in for the driver share: the device's memory, streams as queues, and what is counted.
#pragma once
#include <cuda.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "kernels.h"

using std::string;

struct CUevent_st {
    CUstream_st *stream = nullptr;
    // How much of the stream's work it comes after.
    u64 after = 0;
    unsigned asked = 0;
    bool timed = true;
    std::chrono::steady_clock::time_point time;
};

struct CUstream_st {
    std::deque<std::function<void()>> work;
    u64 told = 0, done = 0;
    unsigned asked = 0;
    bool running = false, blocking = true;
    CUcontext context = nullptr;

    // Runs what was told up to a number.
    void until(u64 number) {
        if (running) return;
        running = true;
        while (done < number && !work.empty()) {
            auto next = std::move(work.front());
            work.pop_front();
            next();
            done++;
        }
        running = false;
    }
    void all() { until(told); }
};

struct CUctx_st {
    int number;
};
struct CUmod_st {
    std::shared_ptr<Module> module;
    std::map<string, CUfunc_st *> functions;
};
struct CUfunc_st {
    std::shared_ptr<Kernel> kernel;
    CUmod_st *module;
};
struct CUmemPoolHandle_st {
    u64 threshold;
};

namespace stand_in {

typedef std::lock_guard<std::recursive_mutex> Lock;
extern std::recursive_mutex one_at_a_time;

// A number of the environment.
unsigned long long setting(const char *name, unsigned long long otherwise);
// Whether what nobody waits for is put off.
bool late();
// Ends the program with a line.
[[noreturn]] void fail(const string &why);

// What a run did, for CUDA_ON_CPU_LOG.
struct Counted {
    unsigned long long launches, waits, host_to_device, device_to_host, device_to_device, sets, bytes_up, bytes_down, other;
    size_t most_memory;
};
extern Counted counted;

// The device's one context, this thread's, and whether the driver was started.
extern CUctx_st the_context;
extern thread_local CUcontext current;
extern bool started;

// A stream that is there, or null.
CUstream_st *stream_of(CUstream s);
// Does all that any stream was told.
void everything();
// Appends work to a stream.
CUresult tell(CUstream to, std::function<void()> work);

extern const size_t TOTAL;
// Ends the program unless the bytes lie within one live allocation of the device.
void looked_at(u64 address, size_t bytes, const char *who);

}  // namespace stand_in

using namespace stand_in;

#define READY_OR_FAIL                                    \
    Lock lock(one_at_a_time);                            \
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;     \
    if (!current) return CUDA_ERROR_INVALID_CONTEXT
