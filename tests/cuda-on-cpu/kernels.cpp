// Kernels on the processor: translated, compiled by the C++ compiler into a library each (kept for later runs), and run block after block.
// Where threads meet, each is a fibre; a warp runs on to the next barrier of its block before another moves, as far from it as it can get.
#include "kernels.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <vector>

using std::string;

static string text_of(const string &path) {
    std::ifstream file(path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

// What the processor can do: libraries made for another one don't run here.
static const string &processor() {
    static const string flags = [] {
        const string all = text_of("/proc/cpuinfo");
        size_t at = all.find("flags");
        return at == string::npos ? string() : all.substr(at, all.find('\n', at) - at);
    }();
    return flags;
}

void compile(Kernel &kernel) {
    if (kernel.entry) return;
    Translated code = kernel.module->translated(*kernel.function);
    kernel.shared_bytes = code.shared_bytes;
    kernel.together = code.together;
    const string sources = CUDA_ON_CPU_SOURCES;
    static const string header = text_of(sources + "/run.h");
    const char *named = getenv("CUDA_ON_CPU_CACHE"), *temporary = getenv("TMPDIR"), *compiler = getenv("CXX");
    const string folder = named ? named : string(temporary ? temporary : "/tmp") + "/cuda-on-cpu-" + std::to_string(getuid());
    mkdir(folder.c_str(), 0700);
    // What lies there is loaded.
    struct stat there;
    if (stat(folder.c_str(), &there) != 0 || !S_ISDIR(there.st_mode) || there.st_uid != getuid() || (there.st_mode & 022))
        throw std::runtime_error(folder + " is no folder that only its owner, this user, writes to; name another by CUDA_ON_CPU_CACHE");
    const string flags = " -std=c++17 -O1 -march=native -ffp-contract=off -fno-strict-aliasing -w -shared -fPIC -I '" + sources + "'";
    char key[32];
    snprintf(key, sizeof key, "%016zx", std::hash<string>{}(code.text + header + (compiler ? compiler : "") + flags + processor()));
    const string stem = folder + "/" + kernel.function->name.substr(0, 100) + "-" + key, library = stem + ".so";
    if (access(library.c_str(), R_OK) != 0) {
        // Of this process until it is whole.
        const string own = stem + "-" + std::to_string(getpid());
        std::ofstream(own + ".cpp") << code.text;
        const string command = (compiler ? compiler : "c++") + flags + " -o '" + own + ".so' '" + own + ".cpp' 2> '" + own + ".log'";
        if (system(command.c_str()) != 0)
            throw std::runtime_error(kernel.function->name + " does not compile, see " + own + ".cpp: " + text_of(own + ".log").substr(0, 2000));
        rename((own + ".so").c_str(), library.c_str());
        unlink((own + ".log").c_str());
        unlink((own + ".cpp").c_str());
    }
    void *loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!loaded) throw std::runtime_error(string("a kernel's library is not loaded: ") + dlerror());
    ((void (*)(void (*)(u64, u64)))dlsym(loaded, "cuda_on_cpu_variables"))(variable_there);
    kernel.entry = (Entry)dlsym(loaded, "cuda_on_cpu_entry");
}

// Fibres.

asm(R"(
.text
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
extern "C" void cuda_on_cpu_switch(void **save, void *to) __attribute__((visibility("hidden")));

namespace {

const size_t STACK = 256 * 1024;
void *scheduler;
Thread *running;
Entry body;
const u8 *arguments;

void fibre() {
    body(*running, arguments);
    running->wait = DONE;
    cuda_on_cpu_switch(&running->stack_pointer, scheduler);
    abort();
}

void prepare(Thread &t) {
    if (!t.stack) {
        void *room = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        // The page below is nobody's, so that a stack that is too small shows.
        if (room == MAP_FAILED || mprotect(room, 4096, PROT_NONE) != 0) abort();
        t.stack = (u8 *)room;
    }
    // As the switch leaves it: six registers, and where to return to. A function begins 8 bytes off a multiple of 16.
    void **top = (void **)(t.stack + STACK - 64);
    *--top = nullptr;
    *--top = (void *)fibre;
    top -= 6;
    for (int i = 0; i < 6; i++) top[i] = nullptr;
    t.stack_pointer = top;
    t.wait = READY;
    t.copy_count = t.group_count = 0;
}

void resume(Thread &t) {
    running = &t;
    t.wait = READY;
    cuda_on_cpu_switch(&scheduler, t.stack_pointer);
}

void together(Block &b, bool descending) {
    for (unsigned i = 0; i < b.count; i++) prepare(b.threads[i]);
    unsigned warps = (b.count + 31) / 32;
    for (;;) {
        for (unsigned w = 0; w < warps; w++) {
            unsigned first = 32 * (descending ? warps - 1 - w : w), last = std::min(first + 32, b.count);
            // Lanes that may go on: those whose mask's lanes are all beside them, or gone.
            u32 go = ~0u;
            while (go) {
                for (unsigned k = first; k < last; k++) {
                    unsigned i = descending ? last - 1 - (k - first) : k;
                    if ((go >> (i - first) & 1) && b.threads[i].wait != DONE) resume(b.threads[i]);
                }
                u32 waiting = 0, done = last - first < 32 ? ~0u << (last - first) : 0;
                for (unsigned i = first; i < last; i++) {
                    waiting |= (u32)(b.threads[i].wait == WARP) << (i - first);
                    done |= (u32)(b.threads[i].wait == DONE) << (i - first);
                }
                go = 0;
                for (unsigned i = first; i < last; i++)
                    if ((waiting >> (i - first) & 1) && (b.threads[i].mask & ~(waiting | done)) == 0) go |= 1u << (i - first);
            }
        }
        unsigned done = 0, at_barrier = 0;
        for (unsigned i = 0; i < b.count; i++) done += b.threads[i].wait == DONE, at_barrier += b.threads[i].wait == BLOCK;
        if (done == b.count) return;
        if (at_barrier + done < b.count) cuda_on_cpu_fail(b.threads[0], "threads of a warp wait for others that do not come", done);
        if (done > 0) cuda_on_cpu_fail(b.threads[0], "threads of a block wait at a barrier that others have passed by", done);
    }
}

std::vector<Thread> threads;
std::vector<u8> shared;

}  // namespace

void run(Kernel &kernel, Dim grid, Dim block, unsigned dynamic_shared, const u8 *params, bool descending) {
    auto begin = std::chrono::steady_clock::now();
    Block b{};
    b.grid = grid, b.block = block, b.count = block.x * block.y * block.z;
    b.late = descending, b.kernel = kernel.function->name.c_str();
    b.shared_bytes = kernel.shared_bytes + dynamic_shared;
    if (threads.size() < b.count) threads.resize(b.count, Thread{});
    if (shared.size() < b.shared_bytes + 256) shared.resize(b.shared_bytes + 256);
    b.shared = shared.data() + (256 - (u64)shared.data() % 256);
    b.threads = threads.data();
    body = kernel.entry, arguments = params;
    for (unsigned i = 0; i < b.count; i++) {
        Thread &t = threads[i];
        t.block = &b, t.index = i, t.lane = i % 32;
        t.tid = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        for (auto &k : t.known) k = {1, 0};
    }
    // Without meeting, all threads are one after the other the same one, which remembers what memory there is.
    Thread alone = threads[0];
    u64 blocks = (u64)grid.x * grid.y * grid.z;
    for (u64 k = 0; k < blocks; k++) {
        u64 i = descending ? blocks - 1 - k : k;
        b.at = {(u32)(i % grid.x), (u32)(i / grid.x % grid.y), (u32)(i / grid.x / grid.y)};
        if (b.shared_bytes) memset(b.shared, 0xff, b.shared_bytes);
        if (kernel.together) {
            together(b, descending);
            continue;
        }
        for (unsigned n = 0; n < b.count; n++) {
            unsigned j = descending ? b.count - 1 - n : n;
            alone.index = j, alone.lane = j % 32, alone.tid = threads[j].tid;
            kernel.entry(alone, params);
        }
    }
    kernel.starts++;
    kernel.nanoseconds += (unsigned long long)std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - begin).count();
}

extern "C" {

void cuda_on_cpu_pause(Thread &t, Wait wait, u32 mask) {
    t.wait = wait, t.mask = mask;
    cuda_on_cpu_switch(&t.stack_pointer, scheduler);
}

void cuda_on_cpu_fail(Thread &t, const char *why, u64 number) {
    fprintf(stderr, "cuda-on-cpu: %s: %s (0x%llx); block (%u, %u, %u) of (%u, %u, %u), thread (%u, %u, %u) of (%u, %u, %u)\n", t.block->kernel, why,
            (unsigned long long)number, t.block->at.x, t.block->at.y, t.block->at.z, t.block->grid.x, t.block->grid.y, t.block->grid.z, t.tid.x,
            t.tid.y, t.tid.z, t.block->block.x, t.block->block.y, t.block->block.z);
    abort();
}

void cuda_on_cpu_look_up(Thread &t, u64 address, u32 bytes, u32 place) {
    u64 first, end;
    if (address % bytes) cuda_on_cpu_fail(t, ("an address is no multiple of its " + std::to_string(bytes) + " bytes").c_str(), address);
    if (!allocation_of(address, first, end) || address + bytes > end)
        cuda_on_cpu_fail(t, (std::to_string(bytes) + " bytes are of no live allocation" + nearest_allocation(address)).c_str(), address);
    t.known[place] = {first, end};
}

static void make(const Copy &c) {
    memcpy(c.to, c.from, c.given);
    memset(c.to + c.given, 0, c.bytes - c.given);
}

// As early as they can where threads run in ascending order, and as late as they can in descending order.
void cuda_on_cpu_copy(Thread &t, u8 *to, const u8 *from, u32 bytes, u32 given) {
    Copy c{to, from, bytes, given};
    if (!t.block->late) return make(c);
    if (t.copy_count == t.copy_room) {
        t.copy_room = t.copy_room ? 2 * t.copy_room : 64;
        t.copies = (Copy *)realloc(t.copies, t.copy_room * sizeof(Copy));
    }
    t.copies[t.copy_count++] = c;
}

// `groups` has how many copies there are up to the end of each.
void cuda_on_cpu_copies_grouped(Thread &t) {
    if (t.group_count == 64) cuda_on_cpu_fail(t, "more groups of copies wait than are provided for", t.group_count);
    t.groups[t.group_count++] = t.copy_count;
}

void cuda_on_cpu_copies_there(Thread &t, u32 left) {
    if (t.group_count <= left) return;
    u32 gone = t.group_count - left, end = t.groups[gone - 1];
    for (u32 i = 0; i < end; i++) make(t.copies[i]);
    for (u32 i = end; i < t.copy_count; i++) t.copies[i - end] = t.copies[i];
    t.copy_count -= end;
    for (u32 i = gone; i < t.group_count; i++) t.groups[i - gone] = t.groups[i] - end;
    t.group_count = left;
}
}
