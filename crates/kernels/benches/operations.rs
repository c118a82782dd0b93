//! Every operation of [`twinsight_kernels::bench::cases`] under criterion: `cargo bench -p twinsight-kernels [-- FILTER]`.
//! `twinsight bench kernels` prints the same list as a table with shares of the machine's peak.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use twinsight_kernels::CachingAllocator;
use twinsight_kernels::bench::{Unit, cases};

// As in the program: without it, clearing fresh pages takes a third of the time of what is bound by memory.
#[global_allocator]
static ALLOCATOR: CachingAllocator<mimalloc::MiMalloc> = CachingAllocator::new(mimalloc::MiMalloc, 4 << 30);

fn operations(c: &mut Criterion) {
    for case in cases() {
        let mut group = c.benchmark_group(format!("{} {}", case.operation, case.pass));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        group.throughput(match case.unit {
            Unit::Flops => Throughput::Elements(case.work as u64),
            Unit::Bytes => Throughput::Bytes(case.work as u64),
        });
        group.bench_function(&case.shape, |b| {
            // Inputs are made only for the cases that the filter lets through.
            let mut run = case.prepare().expect("inputs");
            b.iter(|| run().expect("a run"));
        });
        group.finish();
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);
