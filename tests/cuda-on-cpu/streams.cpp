// The driver's streams and events. What a stream was told is done when somebody waits for it, or at once.
#include <algorithm>
#include <cstdlib>

#include "driver.h"
#include "stand_in.h"

namespace {

CUstream_st legacy;
// Never freed: a program's last threads may still use them.
std::vector<CUstream_st *> &streams = *new std::vector<CUstream_st *>{&legacy};
std::map<CUstream_st *, bool> &live = *new std::map<CUstream_st *, bool>{{&legacy, true}};

}  // namespace

namespace stand_in {

CUstream_st *stream_of(CUstream s) {
    if (!s || s == CU_STREAM_LEGACY) return &legacy;
    // Each thread's own stream is refused: what it would take to order them, nobody here does.
    if (s == CU_STREAM_PER_THREAD) return nullptr;
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

}  // namespace stand_in

extern "C" {

void cuda_on_cpu_enqueue(void *stream, void (*work)(void *), void *context) {
    Lock lock(one_at_a_time);
    counted.other++;
    if (tell((CUstream)stream, [=] { work(context); }) != CUDA_SUCCESS) fail("work for a stream that is not there");
}

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
    CUstream_st *stream = stream_of(s);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->work.empty() && ++stream->asked > 2) stream->asked = 0, stream->all();
    return stream->work.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
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
}
