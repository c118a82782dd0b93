// What the stand-in for the driver is held against: instructions by their definition in the PTX ISA, threads that meet, and mistakes that it has to
// see. Each mistake is made in a process of its own, which has to end with a line about it. Linked with libcuda; prints "ok" last.
#include <cuda.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

using std::string;

static void need(bool is, const string &what) {
    if (is) return;
    printf("failed: %s\n", what.c_str());
    exit(1);
}
static void fine(CUresult e, const char *what) { need(e == CUDA_SUCCESS, string(what) + ": error " + std::to_string((int)e)); }
#define DO(call) fine(call, #call)

static void open_device() {
    CUcontext context;
    DO(cuInit(0));
    DO(cuDevicePrimaryCtxRetain(&context, 0));
    DO(cuCtxSetCurrent(context));
}

static CUfunction function(const string &body, const string &more = "") {
    const string text = ".version 8.0\n.target sm_90\n.address_size 64\n" + more +
                        ".visible .entry k(.param .u64 k_0, .param .u64 k_1, .param .u32 k_2) {\n"
                        ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .f32 %f<20>; .reg .f64 %fd<9>;\n"
                        "ld.param.u64 %rd1, [k_0]; ld.param.u64 %rd2, [k_1]; ld.param.u32 %r1, [k_2];\n"
                        "cvta.to.global.u64 %rd1, %rd1; cvta.to.global.u64 %rd2, %rd2; mov.u32 %r2, %tid.x;\n" +
                        body + "\nret;\n}\n";
    CUmodule module;
    CUfunction f;
    DO(cuModuleLoadData(&module, text.c_str()));
    DO(cuModuleGetFunction(&f, module, "k"));
    return f;
}

static std::vector<uint32_t> run(const string &body, std::vector<uint32_t> in, size_t out, unsigned threads = 1, const string &more = "") {
    CUdeviceptr x, y;
    uint32_t n = (uint32_t)in.size();
    DO(cuMemAlloc(&x, 4 * in.size()));
    DO(cuMemAlloc(&y, 4 * out));
    DO(cuMemcpyHtoD(x, in.data(), 4 * in.size()));
    void *params[] = {&x, &y, &n};
    DO(cuLaunchKernel(function(body, more), 1, 1, 1, threads, 1, 1, 0, nullptr, params, nullptr));
    std::vector<uint32_t> got(out);
    DO(cuMemcpyDtoH(got.data(), y, 4 * out));
    DO(cuMemFree(x));
    DO(cuMemFree(y));
    return got;
}

static uint32_t word(float x) {
    uint32_t w;
    memcpy(&w, &x, 4);
    return w;
}

// An instruction of up to three inputs, %r4 to %r6 (and %f4 to %f6 with the same bits), to %r9 or %f9.
static void instruction(const string &text, std::vector<uint32_t> in, uint32_t want) {
    string body;
    for (size_t i = 0; i < in.size(); i++) {
        const string r = std::to_string(4 + i);
        body += "ld.global.u32 %r" + r + ", [%rd1+" + std::to_string(4 * i) + "]; mov.b32 %f" + r + ", %r" + r + ";\n";
    }
    const bool is_float = text.find("%f9") != string::npos;
    body += text + "\n" + (is_float ? "st.global.f32 [%rd2], %f9;" : "st.global.u32 [%rd2], %r9;");
    const uint32_t got = run(body, in, 1)[0];
    char line[200];
    snprintf(line, sizeof line, "%s gives %08x, not %08x", text.c_str(), got, want);
    need(got == want || (want == 0x7fffffffu && is_float && (got & 0x7fffffffu) > 0x7f800000u), line);
}

static void instructions() {
    instruction("add.s32 %r9, %r4, %r5;", {0x7fffffff, 1}, 0x80000000);
    instruction("mul.hi.u32 %r9, %r4, %r5;", {0x80000000, 6}, 3);
    instruction("mul.hi.s32 %r9, %r4, %r5;", {0xffffffff, 6}, 0xffffffff);
    instruction("mad.lo.s32 %r9, %r4, %r5, %r6;", {7, 0xffffffff, 3}, 0xfffffffc);
    instruction("mul.wide.s32 %rd4, %r4, %r5; shr.s64 %rd4, %rd4, 32; cvt.u32.u64 %r9, %rd4;", {0xffffffff, 2}, 0xffffffff);
    instruction("add.cc.u32 %r8, %r4, %r4; addc.u32 %r9, %r5, 0;", {0x80000001, 5}, 6);
    instruction("div.s32 %r9, %r4, %r5;", {0xfffffff9, 2}, 0xfffffffd);
    instruction("rem.s32 %r9, %r4, %r5;", {0xfffffff9, 2}, 0xffffffff);
    instruction("shl.b32 %r9, %r4, %r5;", {1, 32}, 0);
    instruction("shr.s32 %r9, %r4, %r5;", {0x80000000, 40}, 0xffffffff);
    instruction("shf.l.wrap.b32 %r9, %r4, %r5, %r6;", {0x80000000, 1, 1}, 3);
    instruction("shf.r.clamp.b32 %r9, %r4, %r5, %r6;", {5, 7, 32}, 7);
    instruction("lop3.b32 %r9, %r4, %r5, %r6, 0xe8;", {0xc, 0xa, 0x6}, 0xe);
    instruction("prmt.b32 %r9, %r4, %r5, 0x5410;", {0xdddd1111, 0xcccc2222}, 0x22221111);
    instruction("prmt.b32 %r9, %r4, %r5, 0x9;", {0x00008000, 0}, 0x000000ff);
    instruction("bfe.u32 %r9, %r4, 4, 8;", {0x00000ab0}, 0xab);
    instruction("bfe.s32 %r9, %r4, 4, 8;", {0x00000ab0}, 0xffffffab);
    instruction("bfi.b32 %r9, %r4, %r5, 8, 4;", {0xf, 0}, 0xf00);
    instruction("brev.b32 %r9, %r4;", {1}, 0x80000000);
    instruction("clz.b32 %r9, %r4;", {0x00010000}, 15);
    instruction("popc.b32 %r9, %r4;", {0xf0f0}, 8);
    instruction("bfind.u32 %r9, %r4;", {0x00010000}, 16);
    instruction("setp.lt.s32 %p1, %r4, %r5; selp.b32 %r9, 1, 2, %p1;", {0xffffffff, 0}, 1);
    instruction("setp.lt.u32 %p1, %r4, %r5; selp.b32 %r9, 1, 2, %p1;", {0xffffffff, 0}, 2);
    const uint32_t nan = 0x7fffffff;
    instruction("setp.lt.f32 %p1, %f4, %f5; selp.b32 %r9, 1, 2, %p1;", {nan, word(1)}, 2);
    instruction("setp.ltu.f32 %p1, %f4, %f5; selp.b32 %r9, 1, 2, %p1;", {nan, word(1)}, 1);
    instruction("setp.ne.f32 %p1, %f4, %f5; selp.b32 %r9, 1, 2, %p1;", {nan, word(1)}, 2);
    instruction("setp.neu.f32 %p1, %f4, %f5; selp.b32 %r9, 1, 2, %p1;", {nan, word(1)}, 1);
    instruction("max.f32 %f9, %f4, %f5;", {nan, word(-3)}, word(-3));
    instruction("max.NaN.f32 %f9, %f4, %f5;", {nan, word(-3)}, nan);
    instruction("fma.rn.f32 %f9, %f4, %f5, %f6;", {word(1 + 0x1p-12f), word(1 + 0x1p-12f), word(-1 - 0x1p-11f)}, word(0x1p-24f));
    instruction("add.sat.f32 %f9, %f4, %f5;", {word(2), word(3)}, word(1));
    instruction("abs.f32 %f9, %f4;", {0x80000000}, 0);
    instruction("cvt.rni.s32.f32 %r9, %f4;", {word(2.5f)}, 2);
    instruction("cvt.rzi.s32.f32 %r9, %f4;", {word(-2.9f)}, 0xfffffffe);
    instruction("cvt.rmi.s32.f32 %r9, %f4;", {word(-2.1f)}, 0xfffffffd);
    instruction("cvt.rzi.u32.f32 %r9, %f4;", {word(-5)}, 0);
    instruction("cvt.rzi.s32.f32 %r9, %f4;", {word(1e20f)}, 0x7fffffff);
    instruction("cvt.rzi.s32.f32 %r9, %f4;", {nan}, 0);
    instruction("cvt.rn.bf16.f32 %h1, %f4; cvt.u32.u16 %r9, %h1;", {0x3f808000}, 0x3f80);
    instruction("cvt.rn.bf16.f32 %h1, %f4; cvt.u32.u16 %r9, %h1;", {0x3f818000}, 0x3f82);
    instruction("cvt.rn.bf16x2.f32 %r9, %f4, %f5;", {word(1), word(2)}, 0x3f804000);
    instruction("cvt.rn.f16.f32 %h1, %f4; cvt.u32.u16 %r9, %h1;", {word(1)}, 0x3c00);
    instruction("add.rz.f32 %f9, %f4, %f5;", {0x3effffff, word(0.5f)}, 0x3f7fffff);
    instruction("add.rp.f32 %f9, %f4, %f5;", {word(1), 1}, 0x3f800001);
    instruction("fma.rm.f32 %f9, %f4, %f5, %f6;", {word(1), word(1), 0x80000001}, 0x3f7fffff);
    instruction("min.f32 %f9, %f4, %f5;", {0, 0x80000000}, 0x80000000);
    instruction("cvt.rzi.s64.f32 %rd4, %f4; shr.u64 %rd4, %rd4, 32; cvt.u32.u64 %r9, %rd4;", {nan}, 0x80000000);
    instruction("mov.u32 %r9, %r4; sub.u32 %r9, %r5, %r9; add.u32 %r9, %r9, %r9;", {3, 10}, 14);
    instruction("{ .local .align 8 .b8 own[8]; .reg .b64 %at; mov.u64 %at, own; cvta.local.u64 %at, %at; st.u32 [%at+4], %r4; ld.u32 %r9, [%at+4]; }", {9}, 9);
    instruction("cvt.s32.s8 %r9, %r4;", {0x80}, 0xffffff80);
    instruction("cvt.sat.u8.s32 %r9, %r4;", {300}, 255);
    instruction("cvt.f64.f32 %fd1, %f4; cvt.rz.f32.f64 %f9, %fd1;", {word(1.5f)}, word(1.5f));
    instruction("mov.b64 %rd4, {%r4, %r5}; mov.b64 {%r8, %r9}, %rd4;", {1, 2}, 2);
    instruction("{ .reg .b32 %r9x; mov.u32 %r9x, 5; add.u32 %r9, %r9x, %r4; }", {1}, 6);
}

// Threads that meet: at a barrier, by shuffles, votes and sums of a warp.
static void together() {
    const string shared = ".shared .align 4 .b8 room[256];\n", at = "mul.wide.u32 %rd5, %r2, 4; add.u64 %rd6, %rd1, %rd5; add.u64 %rd7, %rd2, %rd5; ld.global.u32 %r4, [%rd6];\n";
    std::vector<uint32_t> in(64), got;
    for (uint32_t i = 0; i < 64; i++) in[i] = 100 + i;
    got = run(at + "mov.u32 %r10, room; shl.b32 %r11, %r2, 2; add.u32 %r12, %r10, %r11; st.shared.u32 [%r12], %r4; bar.sync 0;\n"
                   "sub.u32 %r13, 63, %r2; shl.b32 %r13, %r13, 2; add.u32 %r13, %r10, %r13; ld.shared.u32 %r14, [%r13]; st.global.u32 [%rd7], %r14;",
              in, 64, 64, shared);
    for (uint32_t i = 0; i < 64; i++) need(got[i] == 163 - i, "what is put into shared memory before a barrier is there behind it");
    got = run(at + "shfl.sync.bfly.b32 %r5|%p1, %r4, 1, 31, -1; st.global.u32 [%rd7], %r5;", in, 64, 64);
    for (uint32_t i = 0; i < 64; i++) need(got[i] == 100 + (i ^ 1), "shfl.bfly");
    got = run(at + "shfl.sync.down.b32 %r5|%p1, %r4, 4, 0x181f, -1; selp.b32 %r5, %r5, 7, %p1; st.global.u32 [%rd7], %r5;", in, 64, 64);
    for (uint32_t i = 0; i < 64; i++) need(got[i] == (i % 8 < 4 ? 104 + i : 7), "shfl.down of eight lanes");
    got = run(at + "and.b32 %r5, %r4, 1; setp.eq.u32 %p1, %r5, 0; vote.sync.ballot.b32 %r6, %p1, -1; st.global.u32 [%rd7], %r6;", in, 64, 64);
    need(got[40] == 0x55555555, "vote.ballot");
    got = run(at + "redux.sync.add.s32 %r5, %r4, -1; st.global.u32 [%rd7], %r5;", in, 64, 64);
    need(got[33] == 32 * 132 + 496, "redux.add");
    // Half of the warp has left.
    got = run(at + "setp.gt.u32 %p1, %r2, 15; @%p1 ret; setp.eq.u32 %p2, %r2, 99; vote.sync.ballot.b32 %r5, %p2, -1; redux.sync.add.s32 %r6, 1, -1; add.u32 %r5, %r5, %r6; st.global.u32 [%rd7], %r5;", in, 64, 32);
    need(got[3] == 16, "lanes that have left take no part");
    got = run("atom.global.dec.u32 %r5, [%rd2], 7;", {1}, 1, 2);
    need(got[0] == 6, "atom.dec");
    got = run("mov.u64 %rd5, table; mul.wide.u32 %rd6, %r2, 4; add.u64 %rd5, %rd5, %rd6; ld.global.u32 %r5, [%rd5]; add.u64 %rd7, %rd2, %rd6; st.global.u32 [%rd7], %r5;",
              {1}, 3, 3, ".global .align 4 .u32 table[3] = {7, 8, 9};\n");
    need(got[0] == 7 && got[2] == 9, "a module's table");
    got = run("atom.global.add.u32 %r5, [%rd2], 1;", {1}, 1, 64);
    need(got[0] == 0xffffffffu + 64, "atom.add; memory is filled with ones at first");
}

static string told_by(const std::function<void()> &mistake) {
    int ends[2];
    need(pipe(ends) == 0, "a pipe");
    fflush(stdout);
    if (fork() == 0) {
        dup2(ends[1], 2);
        mistake();
        _exit(0);
    }
    close(ends[1]);
    string all;
    char part[512];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) all.append(part, (size_t)n);
    int status = 0;
    wait(&status);
    need(WIFSIGNALED(status), "a mistake went unseen: " + all);
    return all;
}

static void mistakes() {
    auto seen = [](const char *words, const std::function<void()> &mistake) {
        const string told = told_by(mistake);
        need(told.find(words) != string::npos, string("expected \"") + words + "\", got: " + told);
    };
    const string at = "mul.wide.u32 %rd5, %r2, 4; add.u64 %rd6, %rd1, %rd5;";
    seen("no live allocation; the last one before it has 12 bytes, and ends 0 bytes before it",
         [&] { run(at + "ld.global.u32 %r4, [%rd6];", {1, 2, 3}, 1, 4); });
    seen("no multiple of its 8 bytes", [&] { run("ld.global.u64 %rd6, [%rd1+4];", {1, 2, 3, 4}, 1); });
    seen("beyond its end", [&] { run("mov.u32 %r9, room; st.shared.u32 [%r9+16], %r1;", {1}, 1, 1, ".shared .align 4 .b8 room[16];\n"); });
    seen("others have passed by", [&] { run("setp.lt.u32 %p1, %r2, 5; @%p1 bra $L; bar.sync 0;\n$L:", {1}, 1, 64); });
    seen("no multiple of its bytes", [&] { run("ld.u32 %r9, [%rd1+2];", {1, 2}, 1); });
    seen("a copy to the device", [] {
        CUdeviceptr x;
        DO(cuMemAlloc(&x, 8));
        DO(cuMemcpyHtoD(x, "0123456789ab", 12));
    });
    seen("is freed that is not allocated", [] {
        CUdeviceptr x;
        DO(cuMemAlloc(&x, 8));
        DO(cuMemFree(x));
        DO(cuMemFree(x));
    });
}

// What nobody waits for is not there (unless it is done early, as CUDA_ON_CPU_ORDER=early asks).
static void order() {
    const char *asked = getenv("CUDA_ON_CPU_ORDER");
    const bool late = !asked || strcmp(asked, "early") != 0;
    CUstream one, two;
    CUevent event;
    CUdeviceptr x, y;
    uint32_t *host, got = 0;
    DO(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    DO(cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
    DO(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    DO(cuMemAllocAsync(&x, 4, one));
    DO(cuMemAllocAsync(&y, 4, one));
    DO(cuMemHostAlloc((void **)&host, 4, 0));
    // Page-locked memory that is changed while its copy waits.
    *host = 5;
    DO(cuMemcpyHtoDAsync(x, host, 4, one));
    *host = 6;
    DO(cuMemcpyDtoHAsync(&got, x, 4, one));
    need(got == (late ? 6u : 5u), "a copy of page-locked memory reads it when its turn comes");
    // Memory that is not page-locked is read before the call returns.
    uint32_t plain = 7;
    DO(cuMemcpyHtoDAsync(x, &plain, 4, one));
    plain = 8;
    DO(cuMemcpyDtoHAsync(&got, x, 4, one));
    need(got == 7, "a copy of other memory has read it when it returns");
    // Another stream sees nothing of it without an event, and all with one.
    plain = 9;
    DO(cuMemcpyHtoDAsync(x, &plain, 4, one));
    DO(cuMemcpyDtoDAsync(y, x, 4, two));
    DO(cuMemcpyDtoHAsync(&got, y, 4, two));
    need(got == (late ? 7u : 9u), "streams are apart");
    DO(cuEventRecord(event, one));
    need(cuEventQuery(event) == (late ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS), "an event comes when somebody waits");
    DO(cuStreamWaitEvent(two, event, 0));
    DO(cuMemcpyDtoDAsync(y, x, 4, two));
    DO(cuMemcpyDtoHAsync(&got, y, 4, two));
    need(got == 9, "an event orders streams");
    // Memory is there when its stream comes to it: what another stream wrote before is lost.
    CUdeviceptr z;
    DO(cuStreamSynchronize(one));
    DO(cuMemAllocAsync(&z, 4, one));
    DO(cuMemcpyHtoDAsync(z, &plain, 4, two));
    DO(cuStreamSynchronize(two));
    DO(cuMemcpyDtoHAsync(&got, z, 4, one));
    need(got == (late ? 0xffffffffu : 9u), "allocations are ordered by their stream");
    DO(cuMemFreeAsync(z, one));
    DO(cuMemFreeAsync(x, one));
    DO(cuMemFreeAsync(y, two));
    DO(cuCtxSynchronize());
    need(cuMemAlloc(&x, 1ull << 50) == CUDA_ERROR_OUT_OF_MEMORY, "memory has an end");
}

int main() {
    open_device();
    instructions();
    together();
    mistakes();
    order();
    printf("ok\n");
}
