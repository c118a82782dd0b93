// The driver's memory: of the device, page-locked, and copies.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "driver.h"
#include "stand_in.h"

namespace stand_in {

const size_t TOTAL = setting("CUDA_ON_CPU_MEMORY", 8ull << 30);

}  // namespace stand_in

namespace {

struct Allocation {
    size_t bytes;
    bool pooled, freed = false;
};
// Never freed: a program's last threads may still use them.
std::map<u64, Allocation> &device_memory = *new std::map<u64, Allocation>, &host_memory = *new std::map<u64, Allocation>;
// What is freed in the order of a stream is not in use from then on, whenever that stream comes to it.
size_t in_use, pooled_in_use, pool_reserved, pool_most;
// Between allocations, so that nobody's end is another's beginning.
const size_t GAP = 256;

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

CUmemPoolHandle_st the_pool;

CUresult allocate(CUdeviceptr *to, size_t bytes, bool pooled) {
    if (!to || bytes == 0) {
        fprintf(stderr, "cuda-on-cpu: an allocation of no bytes is refused\n");
        return CUDA_ERROR_INVALID_VALUE;
    }
    auto room = [&] {
        size_t pool = std::max(pool_reserved, pooled_in_use + (pooled ? bytes : 0));
        return in_use - pooled_in_use + (pooled ? 0 : bytes) + pool <= TOTAL;
    };
    if (!room()) pool_reserved = pooled_in_use;
    if (!room()) return CUDA_ERROR_OUT_OF_MEMORY;
    void *at = nullptr;
    if (posix_memalign(&at, 256, (bytes + GAP + 255) / 256 * 256) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(at, 0xff, bytes);
    device_memory[(u64)at] = {bytes, pooled, false};
    in_use += bytes;
    if (pooled) pooled_in_use += bytes, pool_reserved = std::max(pool_reserved, pooled_in_use), pool_most = std::max(pool_most, pooled_in_use);
    counted.most_memory = std::max(counted.most_memory, in_use);
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

}  // namespace

bool allocation_of(u64 address, u64 &first, u64 &end) { return within(device_memory, address, 1, &first, &end); }

void variable_there(u64 address, u64 bytes) { device_memory[address] = {bytes, false, false}; }

string nearest_allocation(u64 address) {
    auto at = device_memory.upper_bound(address);
    if (at == device_memory.begin()) return "";
    --at;
    return "; the last one before it has " + std::to_string(at->second.bytes) + " bytes, and ends " +
           std::to_string((long long)(address - at->first - at->second.bytes)) + " bytes before it";
}

void stand_in::looked_at(u64 address, size_t bytes, const char *who) {
    if (!within(device_memory, address, bytes))
        fail(string(who) + ": " + std::to_string(bytes) + " bytes are of no live allocation" + nearest_allocation(address));
}

extern "C" {

void cuda_on_cpu_check(const void *address, size_t bytes, const char *who) {
    Lock lock(one_at_a_time);
    if (bytes) looked_at((u64)address, bytes, who);
}

bool cuda_on_cpu_is_device(const void *address, size_t bytes) {
    Lock lock(one_at_a_time);
    return within(device_memory, (u64)address, std::max<size_t>(bytes, 1));
}

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
    if (!stream_of(s)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult made = allocate(to, bytes, true);
    if (made != CUDA_SUCCESS) return made;
    // The memory is there when the stream comes to it: what another stream writes before is lost.
    return tell(s, [at = *to, bytes] { memset((void *)at, 0xff, bytes); });
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
    if (bytes == 0) return CUDA_SUCCESS;
    counted.host_to_device++, counted.bytes_up += bytes;
    if (within(host_memory, (u64)from, bytes)) return tell(s, [=] { looked_at(to, bytes, "a copy to the device"), memcpy((void *)to, from, bytes); });
    // Of memory that is not page-locked the driver makes its own copy first.
    auto own = std::make_shared<std::vector<u8>>((const u8 *)from, (const u8 *)from + bytes);
    return tell(s, [=] { looked_at(to, bytes, "a copy to the device"), memcpy((void *)to, own->data(), bytes); });
}
static CUresult copy_down(void *to, CUdeviceptr from, size_t bytes, CUstream s) {
    if (bytes == 0) return CUDA_SUCCESS;
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
    if (bytes == 0) return CUDA_SUCCESS;
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
    if (count == 0) return CUDA_SUCCESS;
    counted.sets++;
    return tell(s, [=] { looked_at(to, count, "a memset"), memset((void *)to, value, count); });
}
CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count) { return cuMemsetD8Async(to, value, count, nullptr); }
}
