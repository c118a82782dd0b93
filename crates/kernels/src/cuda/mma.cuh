// Products of small matrices by a warp on tensor cores, and copies to shared memory that run beside the work: PTX of compute capability 8.0
// and later, and nothing else of this folder is. host.h has the same functions for the processor.
//
// Where a matrix lies (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"), with g = lane / 4 and q = lane % 4:
// a, 16 x 16, four registers of two neighbours of a row: rows g, g + 8, g, g + 8, columns 2q and 2q + 1, the last two registers 8 columns further;
// b, 16 x 8, two registers of two neighbours of a column: column g, rows 2q and 2q + 1, the second register 8 rows further;
// c and d, 16 x 8 of f32: rows g, g, g + 8, g + 8, columns 2q, 2q + 1, 2q, 2q + 1. Side by side, two of these lie as an a does.

#ifndef TWINSIGHT_HOST

__device__ inline u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// d += a b, of bfloat16 numbers, added up in f32.
__device__ inline void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 bfloat16 numbers from shared memory: lane i names row i % 8 of matrix i / 8, 16 bytes at a multiple of 16. A lane gets of
// each matrix row g the columns 2q and 2q + 1.
__device__ inline void ldmatrix(u32 (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: column g of each, rows 2q and 2q + 1.
__device__ inline void ldmatrix_transposed(u32 (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two numbers rounded to bfloat16, to nearest, ties to even; `low` in the lower half.
__device__ inline u32 pair(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// Begins to copy 16 bytes, or 4, from global to shared memory, zeros in their stead unless `there`; `from` must be readable either way.
__device__ inline void copy16(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void copy4(void *to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}

// The copies that this thread began since the last call are a group.
__device__ inline void copies_grouped() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the last LEFT; other threads see the copies behind a barrier.
template <int LEFT> __device__ inline void copies_there() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#endif
