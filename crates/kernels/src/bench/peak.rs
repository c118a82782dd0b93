//! What the machine can do at most: multiply-adds in registers, and streams through memory.

use std::time::{Duration, Instant};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::simd::ARCH;
use crate::cpu::vector::vectorized;

/// The highest rates measured, on all threads of rayon's pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// 10⁹ floating-point operations a second: fused multiply-adds of `f32` vectors that never leave the registers.
    pub gflops: f64,
    /// 10⁹ bytes a second: a = b + s · c on arrays of 32 MiB, about as large as the tensors of the measured operations (so
    /// where the last cache holds those, it holds these too), three transfers an element.
    pub gbytes: f64,
}

/// Measures both, for about half a second each.
pub fn peaks() -> Peaks {
    Peaks { gflops: flops(Duration::from_millis(500)), gbytes: bytes(Duration::from_millis(500)) }
}

/// Multiply-adds in one call of the register loop, a vector lane.
const TURNS: usize = 100_000;
/// Independent sums: enough to hide the latency of a multiply-add on two ports.
const SUMS: usize = 16;

fn flops(time: Duration) -> f64 {
    struct Loop;
    impl WithSimd for Loop {
        type Output = (usize, f32);
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> (usize, f32) {
            let mut sums = [simd.splat_f32s(1.0); SUMS];
            // Unknown to the compiler, which would otherwise compute the sums itself.
            let (scale, add) = std::hint::black_box((simd.splat_f32s(0.999_999), simd.splat_f32s(1e-6)));
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = simd.mul_add_e_f32s(*sum, scale, add);
                }
            }
            let total = sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b));
            (2 * TURNS * SUMS * S::F32_LANES, simd.reduce_sum_f32s(total))
        }
    }
    let threads = rayon::current_num_threads();
    best(time, || {
        let done: Vec<(usize, f32)> = (0..threads).into_par_iter().with_max_len(1).map(|_| ARCH.dispatch(Loop)).collect();
        std::hint::black_box(&done);
        done.iter().map(|d| d.0).sum::<usize>() as f64
    })
}

/// Floats of each of the three arrays.
const STREAM: usize = 8 << 20;

fn bytes(time: Duration) -> f64 {
    let (b, c) = (vec![1.0f32; STREAM], vec![2.0f32; STREAM]);
    let mut a = vec![0.0f32; STREAM];
    best(time, || {
        a.par_chunks_mut(1 << 16).zip(b.par_chunks(1 << 16)).zip(c.par_chunks(1 << 16)).for_each(|((a, b), c)| triad(a, b, c));
        std::hint::black_box(&a);
        (3 * 4 * STREAM) as f64
    })
}

vectorized! {
    fn triad<'a>(a: &'a mut [f32], b: &'a [f32], c: &'a [f32]) {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + 0.5 * c;
        }
    }
}

/// 10⁹ units of work a second, in the best of the runs that fit into `time`.
fn best(time: Duration, mut run: impl FnMut() -> f64) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), 0.0f64);
    while start.elapsed() < time {
        let one = Instant::now();
        let work = run();
        best = best.max(work / one.elapsed().as_secs_f64() * 1e-9);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_does_something() {
        assert!(flops(Duration::from_millis(1)) > 0.01);
    }
}
