// What the stand-ins for NVIDIA's libraries share: driver.cpp has these functions, the others call them.
#pragma once
#include <cstddef>

extern "C" {

// Appends work to a stream's queue (a CUstream, null for the default one). `work` is called once with `context` when its turn comes, which
// may be long after this returns, and on another thread.
void cuda_on_cpu_enqueue(void *stream, void (*work)(void *), void *context);

// Ends the program with a line on standard error unless the bytes lie within one live allocation of the device's memory.
void cuda_on_cpu_check(const void *address, std::size_t bytes, const char *who);

// Whether the memory is there and of the device; for what may fail with a status.
bool cuda_on_cpu_is_device(const void *address, std::size_t bytes);
}
