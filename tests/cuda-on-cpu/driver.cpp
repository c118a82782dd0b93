// A stand-in for the CUDA driver on a machine without a GPU: one device, whose memory is the host's. Streams are queues; what is queued is done
// when somebody waits for it (CUDA_ON_CPU_ORDER=late, the default) or at once (early), so that what is not ordered shows. New memory and
// memory that is freed is filled with NaN; kernels and copies look at the bounds of what they touch. README.md says how it is used.
// Here are the device, modules and launches, and the record of a run.
#include "driver.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace {

// Never freed: the record is written at the end.
std::vector<std::shared_ptr<Kernel>> &every_kernel = *new std::vector<std::shared_ptr<Kernel>>;

void write_record() {
    const char *to = getenv("CUDA_ON_CPU_LOG");
    if (!to) return;
    FILE *file = string(to) == "-" ? stderr : fopen(to, "a");
    if (!file) return;
    fprintf(file, "launches %llu, other work %llu, waits of the host %llu, copies up %llu (%llu bytes), down %llu (%llu bytes), within %llu, sets %llu, most memory %zu\n",
            counted.launches, counted.other, counted.waits, counted.host_to_device, counted.bytes_up, counted.device_to_host, counted.bytes_down,
            counted.device_to_device, counted.sets, counted.most_memory);
    auto all = every_kernel;
    std::sort(all.begin(), all.end(), [](auto &a, auto &b) { return a->nanoseconds > b->nanoseconds; });
    for (auto &k : all)
        if (k->starts) fprintf(file, "%8llu x %-60s %10.3f ms\n", k->starts, k->function->name.c_str(), (double)k->nanoseconds / 1e6);
    if (file != stderr) fclose(file);
}

struct AtEnd {
    ~AtEnd() { write_record(); }
} at_end;

}  // namespace

namespace stand_in {

std::recursive_mutex one_at_a_time;

unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *v = getenv(name);
    return v && *v ? strtoull(v, nullptr, 10) : otherwise;
}

bool late() {
    static const bool is = !getenv("CUDA_ON_CPU_ORDER") || string(getenv("CUDA_ON_CPU_ORDER")) != "early";
    return is;
}

void fail(const string &why) {
    fprintf(stderr, "cuda-on-cpu: %s\n", why.c_str());
    abort();
}

Counted counted;
CUctx_st the_context;
thread_local CUcontext current;
bool started;

}  // namespace stand_in

extern "C" {

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
    unsigned all_shared = kernel->shared_bytes + shared;
    if (shared > kernel->most_shared || all_shared > (kernel->most_shared > 48 * 1024 ? 227u : 48u) * 1024) {
        fprintf(stderr, "cuda-on-cpu: %s: %u bytes of shared memory are refused\n", function.name.c_str(), all_shared);
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto bytes = std::make_shared<std::vector<u8>>(function.parameter_bytes + 16);
    for (size_t i = 0; i < function.parameters.size(); i++)
        memcpy(bytes->data() + function.parameters[i].offset, params[i], function.parameters[i].bytes);
    counted.launches++;
    return tell(s, [=] { run(*kernel, {gx, gy, gz}, {bx, by, bz}, shared, bytes->data(), late()); });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction, int threads, size_t) { return *n = std::max(1, 2048 / std::max(threads, 1)), CUDA_SUCCESS; }
CUresult cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction, CUoccupancyB2DSize, size_t, int) { return *grid = 132, *block = 256, CUDA_SUCCESS; }
}
