// Kernels that are run: what driver.cpp asks of kernels.cpp.
#pragma once
#include <memory>
#include <string>

#include "ptx.h"
#include "run.h"

// A kernel, compiled when it is first started.
struct Kernel {
    std::shared_ptr<Module> module;
    const Function *function = nullptr;
    unsigned shared_bytes = 0, most_shared = 48 * 1024;
    bool together = false;
    Entry entry = nullptr;
    // For the record of a run.
    unsigned long long starts = 0, nanoseconds = 0;
};

// Translates and compiles; throws std::runtime_error.
void compile(Kernel &kernel);

// Runs all blocks, in ascending order of blocks, warps and threads, or in descending order.
void run(Kernel &kernel, Dim grid, Dim block, unsigned dynamic_shared, const u8 *params, bool descending);

// A module's variable, which is memory of the device from then on.
void variable_there(u64 address, u64 bytes);

// The live allocation of the device's memory that holds the address.
bool allocation_of(u64 address, u64 &first, u64 &end);
std::string nearest_allocation(u64 address);
