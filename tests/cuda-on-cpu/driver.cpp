// A stand-in for the CUDA driver on a machine without a GPU: one device, whose memory is the host's. Streams are queues; what is queued is done
// when somebody waits for it (CUDA_ON_CPU_ORDER=late, the default) or at once (early), so that what is not ordered shows. New memory and
// memory that is freed is filled with NaN; kernels and copies look at the bounds of what they touch. README.md says how it is used.
#include <cuda.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "stand_in.h"

using std::string;

namespace {

typedef std::lock_guard<std::recursive_mutex> Lock;

std::recursive_mutex one_at_a_time;

unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *v = getenv(name);
    return v && *v ? strtoull(v, nullptr, 10) : otherwise;
}

bool late() {
    static const bool is = !getenv("CUDA_ON_CPU_ORDER") || string(getenv("CUDA_ON_CPU_ORDER")) != "early";
    return is;
}

// Memory.

struct Allocation {
    size_t bytes;
    bool pooled, freed = false;
};
std::map<u64, Allocation> device_memory, host_memory;
// What is freed in the order of a stream is not in use from then on, whenever that stream comes to it.
size_t in_use, pooled_in_use, pool_reserved, pool_most, most_in_use;
const size_t TOTAL = setting("CUDA_ON_CPU_MEMORY", 8ull << 30);
// Between allocations, so that nobody's end is another's beginning.
const size_t GAP = 256;

// What a run did, for CUDA_ON_CPU_LOG.
struct {
    unsigned long long launches, waits, host_to_device, device_to_host, device_to_device, sets, bytes_up, bytes_down, other;
} counted;
std::vector<std::shared_ptr<Kernel>> every_kernel;

size_t taken() { return in_use - pooled_in_use + std::max(pool_reserved, pooled_in_use); }

bool within(const std::map<u64, Allocation> &memory, u64 address, size_t bytes, u64 *first = nullptr, u64 *end = nullptr) {
    auto at = memory.upper_bound(address);
    if (at == memory.begin()) return false;
    --at;
    if (address + bytes > at->first + at->second.bytes) return false;
    if (first) *first = at->first;
    if (end) *end = at->first + at->second.bytes;
    return true;
}

void write_record();

struct AtEnd {
    ~AtEnd() { write_record(); }
} at_end;

}  // namespace

bool allocation_of(u64 address, u64 &first, u64 &end) { return within(device_memory, address, 1, &first, &end); }

string nearest_allocation(u64 address) {
    auto at = device_memory.upper_bound(address);
    if (at == device_memory.begin()) return "";
    --at;
    return "; the last one before it has " + std::to_string(at->second.bytes) + " bytes, and ends " +
           std::to_string((long long)(address - at->first - at->second.bytes)) + " bytes before it";
}

// Streams and events.

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

namespace {

CUctx_st the_context;
CUstream_st legacy, per_thread;
CUmemPoolHandle_st the_pool;
std::vector<CUstream_st *> streams = {&legacy, &per_thread};
thread_local CUcontext current;
bool started;
std::map<CUstream_st *, bool> live = {{&legacy, true}, {&per_thread, true}};

CUstream_st *stream_of(CUstream s) {
    if (!s || s == CU_STREAM_LEGACY) return &legacy;
    if (s == CU_STREAM_PER_THREAD) return &per_thread;
    return live.count(s) ? s : nullptr;
}

void everything() {
    for (CUstream_st *s : streams) s->all();
}

CUresult tell(CUstream to, std::function<void()> work) {
    CUstream_st *s = stream_of(to);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    // The old default stream and the others that are not apart from it wait for one another.
    if (s == &legacy) {
        for (CUstream_st *other : streams)
            if (other->blocking) other->all();
    } else if (s->blocking) legacy.all();
    s->work.push_back(std::move(work));
    s->told++;
    static const u64 most = setting("CUDA_ON_CPU_QUEUE", 1 << 14);
    if (!late() || s == &legacy) s->all();
    else if (s->work.size() > most) s->until(s->told - most / 2);
    return CUDA_SUCCESS;
}

#define READY_OR_FAIL                                    \
    Lock lock(one_at_a_time);                            \
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;     \
    if (!current) return CUDA_ERROR_INVALID_CONTEXT

[[noreturn]] void fail(const string &why) {
    fprintf(stderr, "cuda-on-cpu: %s\n", why.c_str());
    abort();
}

CUresult allocate(CUdeviceptr *to, size_t bytes, bool pooled) {
    if (!to || bytes == 0) {
        fprintf(stderr, "cuda-on-cpu: an allocation of no bytes is refused\n");
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto room = [&] { return std::max(taken(), in_use + bytes) <= TOTAL && (in_use - pooled_in_use) + std::max(pool_reserved, pooled_in_use + (pooled ? bytes : 0)) + (pooled ? 0 : bytes) <= TOTAL; };
        if (!room()) pool_reserved = pooled_in_use;
    if (!room()) return CUDA_ERROR_OUT_OF_MEMORY;
    void *at = nullptr;
    if (posix_memalign(&at, 256, (bytes + GAP + 255) / 256 * 256) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(at, 0xff, bytes);
    device_memory[(u64)at] = {bytes, pooled, false};
    in_use += bytes;
    if (pooled) pooled_in_use += bytes, pool_reserved = std::max(pool_reserved, pooled_in_use), pool_most = std::max(pool_most, pooled_in_use);
    most_in_use = std::max(most_in_use, in_use);
    *to = (CUdeviceptr)at;
    return CUDA_SUCCESS;
}

void no_longer_in_use(u64 at) {
    auto found = device_memory.find(at);
    if (found == device_memory.end() || found->second.freed) fail("memory is freed that is not allocated, or in another way than by its beginning");
    found->second.freed = true;
    in_use -= found->second.bytes;
    if (found->second.pooled) pooled_in_use -= found->second.bytes;
}

void release(u64 at) {
    auto found = device_memory.find(at);
    memset((void *)at, 0xff, found->second.bytes);
    device_memory.erase(found);
    free((void *)at);
}

void looked_at(u64 address, size_t bytes, const char *who) {
    if (!within(device_memory, address, bytes))
        fail(string(who) + ": " + std::to_string(bytes) + " bytes are of no live allocation" + nearest_allocation(address));
}

void write_record() {
    const char *to = getenv("CUDA_ON_CPU_LOG");
    if (!to) return;
    FILE *file = string(to) == "-" ? stderr : fopen(to, "a");
    if (!file) return;
    fprintf(file, "launches %llu, other work %llu, waits of the host %llu, copies up %llu (%llu bytes), down %llu (%llu bytes), within %llu, sets %llu, most memory %zu\n",
            counted.launches, counted.other, counted.waits, counted.host_to_device, counted.bytes_up, counted.device_to_host, counted.bytes_down,
            counted.device_to_device, counted.sets, most_in_use);
    auto all = every_kernel;
    std::sort(all.begin(), all.end(), [](auto &a, auto &b) { return a->nanoseconds > b->nanoseconds; });
    for (auto &k : all)
        if (k->starts) fprintf(file, "%8llu x %-60s %10.3f ms\n", k->starts, k->function->name.c_str(), (double)k->nanoseconds / 1e6);
    if (file != stderr) fclose(file);
}

}  // namespace

extern "C" {

void cuda_on_cpu_enqueue(void *stream, void (*work)(void *), void *context) {
    Lock lock(one_at_a_time);
    counted.other++;
    if (tell((CUstream)stream, [=] { work(context); }) != CUDA_SUCCESS) fail("work for a stream that is not there");
}

void cuda_on_cpu_check(const void *address, size_t bytes, const char *who) {
    Lock lock(one_at_a_time);
    if (bytes) looked_at((u64)address, bytes, who);
}

bool cuda_on_cpu_is_device(const void *address, size_t bytes) {
    Lock lock(one_at_a_time);
    return within(device_memory, (u64)address, std::max<size_t>(bytes, 1));
}

// The device.

CUresult cuInit(unsigned) {
    started = true;
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *v) { return *v = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { return *n = 1, started ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED; }
CUresult cuDeviceGet(CUdevice *d, int n) {
    if (!started) return CUDA_ERROR_NOT_INITIALIZED;
    if (n != 0) return CUDA_ERROR_INVALID_DEVICE;
    return *d = 0, CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int len, CUdevice) { return snprintf(name, (size_t)len, "a processor in the place of a GPU"), CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice) { return *bytes = TOTAL, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
    if (d != 0) return CUDA_ERROR_INVALID_DEVICE;
    static const std::map<int, int> known = {{CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
                                             {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
                                             {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 0x7fffffff},
                                             {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
                                             {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
                                             {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
                                             {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132},
                                             {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 * 1024},
                                             {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 * 1024},
                                             {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
                                             {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
                                             {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
                                             {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
                                             {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
                                             {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
                                             {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1}};
    auto found = known.find((int)a);
    if (found == known.end()) fprintf(stderr, "cuda-on-cpu: attribute %d of the device is given as 0\n", (int)a);
    return *v = found == known.end() ? 0 : found->second, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice) { return *c = &the_context, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { return current = c, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) { return *c = current, CUDA_SUCCESS; }
CUresult cuCtxSynchronize() {
    READY_OR_FAIL;
    counted.waits++;
    everything();
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult e, const char **s) {
    static const std::map<int, const char *> names = {{CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
                                                      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
                                                      {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
                                                      {CUDA_ERROR_INVALID_PTX, "CUDA_ERROR_INVALID_PTX"},
                                                      {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY"},
                                                      {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}};
    auto found = names.find((int)e);
    return *s = found == names.end() ? "an error of the stand-in for the CUDA driver" : found->second, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char **s) { return cuGetErrorName(e, s); }

// NVRTC asks for tables that are not documented, and does without them.
CUresult cuGetExportTable(const void **table, const CUuuid *) { return *table = nullptr, CUDA_ERROR_NOT_FOUND; }

// Memory.

CUresult cuMemGetInfo(size_t *free_bytes, size_t *total) {
    READY_OR_FAIL;
    return *total = TOTAL, *free_bytes = TOTAL - std::min(taken(), TOTAL), CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *to, size_t bytes) {
    READY_OR_FAIL;
    return allocate(to, bytes, false);
}
CUresult cuMemAllocAsync(CUdeviceptr *to, size_t bytes, CUstream s) {
    READY_OR_FAIL;
    return stream_of(s) ? allocate(to, bytes, true) : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuMemFree(CUdeviceptr at) {
    READY_OR_FAIL;
    if (!at) return CUDA_SUCCESS;
    everything();
    no_longer_in_use(at);
    return release(at), CUDA_SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr at, CUstream s) {
    READY_OR_FAIL;
    if (!at) return CUDA_ERROR_INVALID_VALUE;
    if (!stream_of(s)) return CUDA_ERROR_INVALID_HANDLE;
    no_longer_in_use(at);
    return tell(s, [=] { release(at); });
}
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *p, CUdevice) { return *p = &the_pool, CUDA_SUCCESS; }
CUresult cuDeviceGetMemPool(CUmemoryPool *p, CUdevice) { return *p = &the_pool, CUDA_SUCCESS; }
CUresult cuMemPoolSetAttribute(CUmemoryPool p, CUmemPool_attribute a, void *v) {
    Lock lock(one_at_a_time);
    if (p != &the_pool) return CUDA_ERROR_INVALID_VALUE;
    if (a == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) return p->threshold = *(u64 *)v, CUDA_SUCCESS;
    if (a != CU_MEMPOOL_ATTR_USED_MEM_HIGH || *(u64 *)v != 0) return CUDA_ERROR_INVALID_VALUE;
    return pool_most = pooled_in_use, CUDA_SUCCESS;
}
CUresult cuMemPoolGetAttribute(CUmemoryPool p, CUmemPool_attribute a, void *v) {
    Lock lock(one_at_a_time);
    if (p != &the_pool) return CUDA_ERROR_INVALID_VALUE;
    if (a == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) *(u64 *)v = p->threshold;
    else if (a == CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) *(u64 *)v = pool_reserved;
    else if (a == CU_MEMPOOL_ATTR_USED_MEM_HIGH) *(u64 *)v = pool_most;
    else if (a == CU_MEMPOOL_ATTR_USED_MEM_CURRENT) *(u64 *)v = pooled_in_use;
    else return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}
CUresult cuMemPoolTrimTo(CUmemoryPool p, size_t keep) {
    Lock lock(one_at_a_time);
    if (p != &the_pool) return CUDA_ERROR_INVALID_VALUE;
    return pool_reserved = std::max(pooled_in_use, std::min(pool_reserved, keep)), CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **to, size_t bytes, unsigned) {
    READY_OR_FAIL;
    if (bytes == 0 || posix_memalign(to, 4096, bytes) != 0) return CUDA_ERROR_INVALID_VALUE;
    memset(*to, 0xff, bytes);
    host_memory[(u64)*to] = {bytes, false, false};
    return CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *at) {
    READY_OR_FAIL;
    auto found = host_memory.find((u64)at);
    if (found == host_memory.end()) return CUDA_ERROR_INVALID_VALUE;
    // What still reads it finds NaN; the room is kept.
    memset(at, 0xff, found->second.bytes);
    host_memory.erase(found);
    return CUDA_SUCCESS;
}

static CUresult copy_up(CUdeviceptr to, const void *from, size_t bytes, CUstream s) {
    counted.host_to_device++, counted.bytes_up += bytes;
    if (within(host_memory, (u64)from, bytes)) return tell(s, [=] { looked_at(to, bytes, "a copy to the device"), memcpy((void *)to, from, bytes); });
    // Of memory that is not page-locked the driver makes its own copy first.
    auto own = std::make_shared<std::vector<u8>>((const u8 *)from, (const u8 *)from + bytes);
    return tell(s, [=] { looked_at(to, bytes, "a copy to the device"), memcpy((void *)to, own->data(), bytes); });
}
static CUresult copy_down(void *to, CUdeviceptr from, size_t bytes, CUstream s) {
    counted.device_to_host++, counted.bytes_down += bytes;
    CUresult told = tell(s, [=] { looked_at(from, bytes, "a copy from the device"), memcpy(to, (const void *)from, bytes); });
    // To memory that is not page-locked it waits.
    if (told == CUDA_SUCCESS && !within(host_memory, (u64)to, bytes)) counted.waits++, stream_of(s)->all();
    return told;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream s) {
    READY_OR_FAIL;
    return copy_up(to, from, bytes, s);
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    READY_OR_FAIL;
    return copy_up(to, from, bytes, nullptr);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream s) {
    READY_OR_FAIL;
    return copy_down(to, from, bytes, s);
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    READY_OR_FAIL;
    return copy_down(to, from, bytes, nullptr);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream s) {
    READY_OR_FAIL;
    counted.device_to_device++;
    return tell(s, [=] {
        looked_at(to, bytes, "a copy within the device"), looked_at(from, bytes, "a copy within the device");
        if (to < from + bytes && from < to + bytes) fail("a copy within the device overlaps itself");
        memcpy((void *)to, (const void *)from, bytes);
    });
}
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoDAsync(to, from, bytes, nullptr); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream s) {
    READY_OR_FAIL;
    counted.sets++;
    return tell(s, [=] { looked_at(to, count, "a memset"), memset((void *)to, value, count); });
}
CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) { return cuMemsetD8Async(to, value, count, nullptr); }

// Streams and events.

CUresult cuStreamCreate(CUstream *s, unsigned flags) {
    READY_OR_FAIL;
    *s = new CUstream_st;
    (*s)->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    streams.push_back(*s);
    live[*s] = true;
    return CUDA_SUCCESS;
}
CUresult cuStreamCreateWithPriority(CUstream *s, unsigned flags, int) { return cuStreamCreate(s, flags); }
CUresult cuStreamDestroy(CUstream s) {
    READY_OR_FAIL;
    if (!s || !live.count(s)) return CUDA_ERROR_INVALID_HANDLE;
    s->all();
    streams.erase(std::find(streams.begin(), streams.end(), s));
    live.erase(s);
    // Events may still name it.
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream s) {
    READY_OR_FAIL;
    if (!stream_of(s)) return CUDA_ERROR_INVALID_HANDLE;
    counted.waits++;
    stream_of(s)->all();
    return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream s) {
    READY_OR_FAIL;
    return !stream_of(s) ? CUDA_ERROR_INVALID_HANDLE : stream_of(s)->work.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) { return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS; }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned) {
    READY_OR_FAIL;
    CUstream_st *other = e->stream;
    u64 after = e->after;
    if (!other) return CUDA_SUCCESS;
    return tell(s, [=] { other->until(after); });
}
CUresult cuEventCreate(CUevent *e, unsigned flags) {
    READY_OR_FAIL;
    *e = new CUevent_st;
    (*e)->timed = !(flags & CU_EVENT_DISABLE_TIMING);
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent e, CUstream s) {
    READY_OR_FAIL;
    CUstream_st *stream = stream_of(s);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    e->stream = stream, e->after = stream->told + 1, e->asked = 0;
    return tell(s, [=] { e->time = std::chrono::steady_clock::now(); });
}
CUresult cuEventQuery(CUevent e) {
    READY_OR_FAIL;
    if (!e->stream || e->stream->done >= e->after) return CUDA_SUCCESS;
    // Whoever goes on asking gets it done at some time.
    if (++e->asked > 2) e->stream->until(e->after);
    return e->stream->done >= e->after ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventSynchronize(CUevent e) {
    READY_OR_FAIL;
    counted.waits++;
    if (e->stream) e->stream->until(e->after);
    return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) {
    READY_OR_FAIL;
    if (!a->stream || !b->stream || !a->timed || !b->timed) return CUDA_ERROR_INVALID_HANDLE;
    if (a->stream->done < a->after || b->stream->done < b->after) return CUDA_ERROR_NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(b->time - a->time).count();
    return CUDA_SUCCESS;
}
CUresult cuLaunchHostFunc(CUstream s, CUhostFn f, void *data) {
    READY_OR_FAIL;
    return tell(s, [=] { f(data); });
}

// Kernels.

CUresult cuModuleLoadData(CUmodule *m, const void *image) {
    READY_OR_FAIL;
    try {
        auto module = std::make_shared<Module>(string((const char *)image));
        if (module->entries().empty()) return CUDA_ERROR_INVALID_IMAGE;
        *m = new CUmod_st{module, {}};
    } catch (const std::exception &e) {
        fprintf(stderr, "cuda-on-cpu: a module: %s\n", e.what());
        return CUDA_ERROR_INVALID_PTX;
    }
    return CUDA_SUCCESS;
}
// Of files, of contexts beside the first and between devices: nothing here needs them.
CUresult cuModuleLoad(CUmodule *, const char *) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuCtxDestroy(CUcontext) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuMemcpyPeerAsync(CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
    READY_OR_FAIL;
    auto known = m->functions.find(name);
    if (known != m->functions.end()) return *f = known->second, CUDA_SUCCESS;
    const Function *found = m->module->entry(name);
    if (!found) return CUDA_ERROR_NOT_FOUND;
    auto kernel = std::make_shared<Kernel>();
    kernel->module = m->module, kernel->function = found;
    every_kernel.push_back(kernel);
    *f = m->functions[name] = new CUfunc_st{kernel, m};
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    READY_OR_FAIL;
    if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (v > 227 * 1024) return CUDA_ERROR_INVALID_VALUE;
    return f->kernel->most_shared = (unsigned)v, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
    READY_OR_FAIL;
    return *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? (int)f->kernel->function->max_threads : 0, CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s,
                        void **params, void **extra) {
    READY_OR_FAIL;
    std::shared_ptr<Kernel> kernel = f->kernel;
    const Function &function = *kernel->function;
    u64 threads = (u64)bx * by * bz;
    bool sizes = gx && gy && gz && threads && gx <= 0x7fffffffu && gy <= 65535 && gz <= 65535 && bz <= 64 && threads <= 1024;
    if (!sizes || extra || threads > function.max_threads) {
        fprintf(stderr, "cuda-on-cpu: %s: a launch of (%u, %u, %u) blocks of (%u, %u, %u) threads is refused\n", function.name.c_str(), gx, gy, gz, bx, by, bz);
        return CUDA_ERROR_INVALID_VALUE;
    }
    try {
        compile(*kernel);
    } catch (const std::exception &e) {
        fprintf(stderr, "cuda-on-cpu: %s\n", e.what());
        return CUDA_ERROR_INVALID_PTX;
    }
    if (kernel->shared_bytes > 48 * 1024 || shared > kernel->most_shared) return CUDA_ERROR_INVALID_VALUE;
    auto bytes = std::make_shared<std::vector<u8>>(function.parameter_bytes + 16);
    for (size_t i = 0; i < function.parameters.size(); i++)
        memcpy(bytes->data() + function.parameters[i].offset, params[i], function.parameters[i].bytes);
    counted.launches++;
    return tell(s, [=] { run(*kernel, {gx, gy, gz}, {bx, by, bz}, shared, bytes->data(), late()); });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction, int threads, size_t) { return *n = std::max(1, 2048 / std::max(threads, 1)), CUDA_SUCCESS; }
CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction, CUoccupancyB2DSize, size_t, int) { return *grid = 132, *block = 256, CUDA_SUCCESS; }
}
