//! The kernels on the processor: their sources behind a C++ compiler, with CUDA's words from `host.h`.

// The programs that ask for the feature use the engine alone.
#![cfg_attr(not(test), allow(dead_code))]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{DType, Result, bail};
use libloading::Library;

use super::launch::{Arg, Engine, Upload};
use super::source::{SOURCES, Source};

/// Elements before and after a buffer that no kernel may touch.
const GUARD: usize = 64;

/// Memory of the processor with a guard on both sides. Everything is kept as bytes.
pub(crate) struct HostBuffer {
    kind: DType,
    len: usize,
    /// Of 16 bytes each, so that packs are aligned.
    bytes: Vec<u128>,
}

/// A byte pattern that reads as NaN in `f32` and bfloat16.
const UNTOUCHED: u128 = u128::MAX;

impl HostBuffer {
    fn new(kind: DType, len: usize) -> Self {
        let size = (len * kind.size_in_bytes()).div_ceil(16) + 2 * GUARD;
        Self { kind, len, bytes: vec![UNTOUCHED; size] }
    }

    fn start(&self) -> *const u8 {
        // A guard's elements are 16 bytes long.
        self.bytes[GUARD..].as_ptr().cast()
    }

    fn start_mut(&mut self) -> *mut u8 {
        self.bytes[GUARD..].as_mut_ptr().cast()
    }

    fn raw<T: Copy>(&self) -> Vec<T> {
        assert!(size_of::<T>() * self.len <= (self.bytes.len() - 2 * GUARD) * 16);
        // SAFETY: the buffer holds `len` elements of `T`'s size, aligned to 16 bytes, and `T` is a number.
        (0..self.len).map(|i| unsafe { self.start().cast::<T>().add(i).read() }).collect()
    }

    fn write<T: Copy>(&mut self, values: &[T]) {
        assert!(size_of_val(values) <= (self.bytes.len() - 2 * GUARD) * 16);
        // SAFETY: the buffer has room for the values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start_mut().cast(), values.len()) };
    }

    /// Its values, after a look at the guards.
    pub fn read(&self) -> Vec<f32> {
        self.check();
        match self.kind {
            DType::F32 => self.raw(),
            DType::BF16 => self.raw::<u16>().into_iter().map(|b| f32::from_bits(u32::from(b) << 16)).collect(),
            DType::U32 => self.raw::<u32>().into_iter().map(|v| v as f32).collect(),
            other => panic!("{other:?} is read by no test"),
        }
    }

    fn check(&self) {
        let used = (self.len * self.kind.size_in_bytes()) % 16;
        let end = GUARD + self.len * self.kind.size_in_bytes() / 16;
        assert!(self.bytes[..GUARD].iter().all(|&b| b == UNTOUCHED), "something before a buffer was written");
        let tail = &self.bytes[end..];
        assert_eq!(tail[0] >> (8 * used), UNTOUCHED >> (8 * used), "something behind a buffer was written");
        assert!(tail[1..].iter().all(|&b| b == UNTOUCHED), "something behind a buffer was written");
    }
}

/// A source's kernels twice: for threads in ascending and in descending order, each with shared memory of its own, so that neither finds what
/// the other left there.
type Kernels = [Library; 2];

/// The sources, compiled once for a process.
pub(crate) struct Host(&'static HashMap<&'static str, Kernels>);

impl Host {
    pub fn new() -> Self {
        static LIBRARIES: OnceLock<HashMap<&'static str, Kernels>> = OnceLock::new();
        Self(LIBRARIES.get_or_init(|| built(SOURCES, "kernels")))
    }

    /// A source of a test's own.
    #[cfg(test)]
    pub fn of(source: &'static Source) -> Self {
        Self(Box::leak(Box::new(built(&[source], source.name))))
    }

    /// A buffer of these numbers, rounded to `kind`, after `offset` others.
    pub fn floats(&self, kind: DType, values: &[f32], offset: usize) -> HostBuffer {
        let mut buffer = HostBuffer::new(kind, offset + values.len());
        let mut all = vec![f32::NAN; offset];
        all.extend_from_slice(values);
        match kind {
            DType::F32 => buffer.write(&all),
            DType::BF16 => buffer.write(&crate::cpu::half::narrowed(&all)),
            other => panic!("{other:?} is written by no test"),
        }
        buffer
    }
}

fn built(sources: &[&'static Source], name: &str) -> HashMap<&'static str, Kernels> {
    let folder = std::env::temp_dir().join(format!("twinsight-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let built = sources.iter().map(|source| (source.name, compiled(source, &folder))).collect();
    std::fs::remove_dir_all(&folder).expect("removed again");
    built
}

fn compiled(source: &Source, folder: &Path) -> Kernels {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/host.h");
    let kernels: String = source.kernels().iter().map(|k| format!("HOST_KERNEL({k})\n")).collect();
    let text = format!("#include \"{}\"\n{}\n{kernels}", here.display(), source.text);
    let (file, library) = (folder.join(format!("{}.cpp", source.name)), folder.join(format!("{}.so", source.name)));
    std::fs::write(&file, text).expect("a source is written");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command
        .args([
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-g0",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Wno-unused-function",
            "-Wno-unknown-pragmas",
        ])
        // Packs are read from arrays of their elements, and pairs as words.
        .arg("-fno-strict-aliasing")
        // Without this, statics of inline functions are one for all libraries of the process.
        .args(["-fvisibility=hidden", "-o"])
        .arg(&library)
        .arg(&file);
    let output = command.output().unwrap_or_else(|e| panic!("{compiler}: {e}; a C++ compiler is needed, name one by CXX"));
    assert!(output.status.success(), "{}: {}", source.name, String::from_utf8_lossy(&output.stderr));
    let second = folder.join(format!("{}-2.so", source.name));
    std::fs::copy(&library, &second).expect("a second library is written");
    // SAFETY: the library is the one just made, which runs nothing when it is loaded.
    [library, second].map(|path| unsafe { Library::new(&path) }.expect("the library is loaded"))
}

type Run = unsafe extern "C" fn(*const c_char, *const u32, *const u32, c_int, *mut *mut c_void) -> c_int;

/// Kernels that write to addresses of a table, so that running them twice is not running them once.
const THROUGH_TABLES: [&str; 3] = ["ema", "sgd", "adamw"];

/// The letter of an argument's kind, as `letter` of `host.h` has them; 0 for a null pointer.
fn letter(arg: &Arg<'_, HostBuffer>) -> char {
    let of = |kind: DType| match kind {
        DType::F32 => 'F',
        DType::BF16 => 'H',
        DType::U32 => 'U',
        DType::U8 => 'B',
        DType::I64 => 'L',
        DType::F64 => 'D',
        other => panic!("{other:?} goes to no kernel"),
    };
    match arg {
        Arg::In(b, _) | Arg::Changed(b, _) => of(b.kind),
        Arg::Out(b) => of(b.kind),
        Arg::Null => '0',
        Arg::Int(_) => 'i',
        Arg::Long(_) => 'l',
        Arg::Float(_) => 'f',
        Arg::Double(_) => 'd',
    }
}

impl Engine for Host {
    type Buffer = HostBuffer;

    fn alloc(&self, kind: DType, len: usize) -> Result<HostBuffer> {
        Ok(HostBuffer::new(kind, len))
    }

    fn upload(&self, values: Upload<'_>) -> Result<HostBuffer> {
        let (kind, len) = match values {
            Upload::U8(v) => (DType::U8, v.len()),
            Upload::U32(v) => (DType::U32, v.len()),
            Upload::I64(v) => (DType::I64, v.len()),
        };
        let mut buffer = HostBuffer::new(kind, len);
        match values {
            Upload::U8(v) => buffer.write(v),
            Upload::U32(v) => buffer.write(v),
            Upload::I64(v) => buffer.write(v),
        }
        Ok(buffer)
    }

    fn address(&self, buffer: &HostBuffer, offset: usize) -> Result<u64> {
        Ok(buffer.start() as u64 + (offset * buffer.kind.size_in_bytes()) as u64)
    }

    unsafe fn start(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        args: Vec<Arg<'_, HostBuffer>>,
    ) -> Result<()> {
        let signature: String = args.iter().map(letter).collect();
        let signature = CString::new(signature).expect("letters");
        let once = THROUGH_TABLES.contains(&kernel) || args.iter().any(|arg| matches!(arg, Arg::Changed(..)));
        let mut outputs = Vec::new();
        let mut room: Vec<u64> = Vec::with_capacity(args.len());
        for arg in args {
            room.push(match arg {
                Arg::In(b, offset) | Arg::Changed(b, offset) => b.start() as u64 + (offset * b.kind.size_in_bytes()) as u64,
                Arg::Out(b) => {
                    let at = b.start_mut() as u64;
                    outputs.push(b);
                    at
                }
                Arg::Null => 0,
                Arg::Int(v) => u64::from(v as u32),
                Arg::Long(v) => v as u64,
                Arg::Float(v) => u64::from(v.to_bits()),
                Arg::Double(v) => v.to_bits(),
            });
        }
        let mut pointers: Vec<*mut c_void> = room.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let block = [block, 1, 1];
        // SAFETY: every kernel has a function of this name and type (HOST_KERNEL); it compares the parameters' kinds with the signature
        // before it reads one, and the caller answers for the bounds.
        let mut run = |down: bool| unsafe {
            let run = self.0[source.name][usize::from(down)]
                .get::<Run>(format!("run_{kernel}").as_bytes())
                .expect("every kernel is exported");
            match run(signature.as_ptr(), grid.as_ptr(), block.as_ptr(), down.into(), pointers.as_mut_ptr()) {
                0 => Ok(()),
                1 => bail!("{kernel}: threads of a block part at a barrier"),
                _ => bail!("{kernel}: its parameters are not {}", signature.to_string_lossy()),
            }
        };
        let before: Vec<Vec<u128>> = outputs.iter().map(|b| b.bytes.clone()).collect();
        run(false)?;
        if once {
            return Ok(());
        }
        let after: Vec<Vec<u128>> = outputs.iter().map(|b| b.bytes.clone()).collect();
        outputs.iter_mut().zip(&before).for_each(|(b, bytes)| b.bytes.copy_from_slice(bytes));
        run(true)?;
        if outputs.iter().zip(&after).any(|(b, bytes)| b.bytes != *bytes) {
            bail!("{kernel}: its result depends on the order in which threads run; is a barrier missing?");
        }
        Ok(())
    }
}

/// Values in [-1, 1).
pub(crate) fn values(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let z = (i + 1).wrapping_add(seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Fails unless the difference's norm is at most `tolerance` of the reference's, and each difference at most eight times as much of its
/// number and of the numbers' root mean square together.
pub(crate) fn close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(&g, &w)| f64::from(g) - f64::from(w)));
    let size = norm(&mut want.iter().map(|&w| f64::from(w)));
    assert!(off <= tolerance * size + 1e-7, "{what}: off by {off:e} of {size:e}: {:?} for {:?}", head(got), head(want));
    let usual = size / (want.len().max(1) as f64).sqrt();
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let (off, most) = ((f64::from(g) - f64::from(w)).abs(), 8.0 * tolerance * (f64::from(w).abs() + usual) + 1e-7);
        assert!(off <= most, "{what}: value {i} of {} is {g:e}, expected {w:e} within {most:e}", got.len());
    }
}

fn head(x: &[f32]) -> &[f32] {
    &x[..x.len().min(6)]
}

#[test]
#[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
fn a_launch_with_other_arguments_than_the_kernel_takes_is_refused() {
    let host = Host::new();
    let mut y = host.alloc(DType::F32, 4).expect("room");
    let args = vec![Arg::Null, Arg::Out(&mut y), Arg::Int(4)];
    // SAFETY: the kernel is not run.
    let error = unsafe { host.start(&super::source::ELEMENTWISE, "relu_f32", [1, 1, 1], 32, args) }
        .expect_err("an int for a long long")
        .to_string();
    assert!(error.contains("parameters are not 0Fi"), "{error}");
    let x = host.floats(DType::F32, &[1.0; 4], 0);
    let args = vec![Arg::In(&x, 0), Arg::Out(&mut y), Arg::Long(4)];
    // SAFETY: as above.
    let error = unsafe { host.start(&super::source::ELEMENTWISE, "relu_bf16", [1, 1, 1], 32, args) }
        .expect_err("f32 for bfloat16")
        .to_string();
    assert!(error.contains("parameters are not FFl"), "{error}");
    y.bytes[GUARD + 1] = 0;
    assert!(std::panic::catch_unwind(|| y.check()).is_err(), "a write behind a buffer is seen");
}

#[test]
#[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
fn a_missing_barrier_is_seen() {
    static KERNELS: Source = Source {
        name: "barriers",
        text: concat!(
            include_str!("prelude.cuh"),
            r#"
template <bool BARRIER> __device__ inline void neighbours(const float *x, float *y) {
    __shared__ float room[64];
    room[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();
    y[threadIdx.x] = threadIdx.x > 0 ? room[threadIdx.x - 1] : 0.0f;
}
extern "C" __global__ void with_barrier(const float *x, float *y) { neighbours<true>(x, y); }
extern "C" __global__ void without_barrier(const float *x, float *y) { neighbours<false>(x, y); }
"#
        ),
    };
    let host = Host::of(&KERNELS);
    let x = host.floats(DType::F32, &values(64, 1), 0);
    let run = |kernel: &str| {
        let mut y = host.alloc(DType::F32, 64).expect("room");
        // SAFETY: both buffers have a number for each of the 64 threads.
        unsafe { host.start(&KERNELS, kernel, [1, 1, 1], 64, vec![Arg::In(&x, 0), Arg::Out(&mut y)]) }.map(|()| y.read())
    };
    assert_eq!(run("with_barrier").expect("runs")[1..], x.read()[..63]);
    let error = run("without_barrier").expect_err("neighbours are read before they are written").to_string();
    assert!(error.contains("a barrier missing"), "{error}");
}
