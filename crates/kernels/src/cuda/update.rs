//! Updates of many tensors by one launch: exponential moving averages, SGD, LARS, AdamW, sums of squares. Nothing waits for the device.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, Upload, View, int, launch};
use super::source::UPDATE;
use crate::update::{AdamwConfig, LarsConfig, SgdConfig};

/// Numbers that a block takes; `CHUNK` of `update.cu`.
pub(super) const CHUNK: usize = 16_384;

/// Words of a table's entry; `Entry` of `update.cu`.
const WORDS: usize = 7;

/// One tensor of a table: its length, the addresses of what is updated with what, and two factors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub len: usize,
    pub at: [u64; 4],
    pub a: f32,
    pub b: f32,
}

/// A table on the device.
pub(super) struct Table<B> {
    pub buffer: B,
    pub tensors: i32,
    pub chunks: usize,
}

impl<B> Table<B> {
    pub fn upload<E: Engine<Buffer = B>>(e: &E, rows: &[Row]) -> Result<Self> {
        let (mut words, mut chunks) = (Vec::with_capacity(rows.len() * WORDS), 0);
        for row in rows {
            words.extend([chunks as i64, row.len as i64]);
            words.extend(row.at.map(|address| address as i64));
            // Two floats, the first at the lower address.
            words.push((u64::from(row.a.to_bits()) | u64::from(row.b.to_bits()) << 32) as i64);
            chunks += row.len.div_ceil(CHUNK);
        }
        Ok(Self { buffer: e.upload(Upload::I64(&words))?, tensors: int("the number of tensors", rows.len())?, chunks })
    }

    pub fn grid(&self) -> [u32; 3] {
        [self.chunks as u32, 1, 1]
    }
}

/// Teachers (address 0) move towards students (address 1).
///
/// # Safety
/// The addresses must be those of `len` floats each, which stay until the device has run the kernel, and which nothing else writes.
pub(crate) unsafe fn ema<E: Engine>(e: &E, rows: &[Row], momentum: f64) -> Result<()> {
    let table = Table::upload(e, rows)?;
    let factors = [Arg::Float(momentum as f32), Arg::Float((1.0 - momentum) as f32)];
    let mut args = vec![Arg::In(&table.buffer, 0), Arg::Int(table.tensors)];
    args.extend(factors);
    // SAFETY: blocks take chunks of the tensors' lengths; the rest is the caller's word.
    unsafe { launch(e, &UPDATE, "ema", table.grid(), THREADS, args) }
}

/// A step of parameters (address 0) by gradients (1) with buffers (2); `a` is the learning rate, `b` the decay, `scales` each tensor's.
///
/// # Safety
/// As [`ema`].
pub(crate) unsafe fn sgd<E: Engine>(e: &E, rows: &[Row], scales: &[f32], config: SgdConfig) -> Result<()> {
    let table = Table::upload(e, rows)?;
    let bits: Vec<u32> = scales.iter().map(|s| s.to_bits()).collect();
    let scales = e.upload(Upload::U32(&bits))?;
    // SAFETY: there is a scale for each tensor; otherwise as the caller says.
    unsafe { step(e, &table, Some(View::all(&scales)), None, config) }
}

/// As [`sgd`], with scale and decay by LARS's rule, from norms that stay on the device.
///
/// # Safety
/// As [`ema`].
pub(crate) unsafe fn lars<E: Engine>(e: &E, rows: &[Row], config: SgdConfig, rule: LarsConfig) -> Result<()> {
    let table = Table::upload(e, rows)?;
    // SAFETY: as the caller says.
    let (weights, gradients) = unsafe { (squares(e, &table, 0)?, squares(e, &table, 1)?) };
    let mut adapted = e.alloc(DType::F32, 2 * rows.len())?;
    let args = vec![
        Arg::In(&table.buffer, 0),
        Arg::In(&weights, 0),
        Arg::In(&gradients, 0),
        Arg::Out(&mut adapted),
        Arg::Int(table.tensors),
        Arg::Float(rule.trust_coefficient as f32),
        Arg::Float(rule.eps as f32),
        Arg::Int(rule.clip.into()),
    ];
    // SAFETY: threads stop at the number of tensors.
    unsafe { launch(e, &UPDATE, "lars", [rows.len().div_ceil(THREADS as usize) as u32, 1, 1], THREADS, args)? };
    // SAFETY: there are a scale and a decay for each tensor; otherwise as the caller says.
    unsafe { step(e, &table, None, Some(View::all(&adapted)), config) }
}

/// # Safety
/// As [`ema`]; `scales` has a float, or `adapted` two, for each tensor.
unsafe fn step<E: Engine>(
    e: &E,
    table: &Table<E::Buffer>,
    scales: Option<View<'_, E::Buffer>>,
    adapted: Option<View<'_, E::Buffer>>,
    config: SgdConfig,
) -> Result<()> {
    let args = vec![
        Arg::In(&table.buffer, 0),
        Arg::maybe(scales),
        Arg::maybe(adapted),
        Arg::Int(table.tensors),
        Arg::Float(config.momentum as f32),
        Arg::Int(config.nesterov.into()),
    ];
    // SAFETY: blocks take chunks of the tensors' lengths; the rest is the caller's word.
    unsafe { launch(e, &UPDATE, "sgd", table.grid(), THREADS, args) }
}

/// A step of parameters (address 0) by gradients (1) with moments (2 and 3); `a` is lr / correction, `b` is 1 − lr · decay.
///
/// # Safety
/// As [`ema`].
pub(crate) unsafe fn adamw<E: Engine>(e: &E, rows: &[Row], config: AdamwConfig) -> Result<()> {
    let table = Table::upload(e, rows)?;
    let correction = 1.0 - config.beta2.powf(config.step as f64);
    let factors = [config.beta1, 1.0 - config.beta1, config.beta2, 1.0 - config.beta2, config.eps, 1.0 / correction.sqrt()];
    let mut args = vec![Arg::In(&table.buffer, 0), Arg::Int(table.tensors)];
    args.extend(factors.map(|f| Arg::Float(f as f32)));
    // SAFETY: blocks take chunks of the tensors' lengths; the rest is the caller's word.
    unsafe { launch(e, &UPDATE, "adamw", table.grid(), THREADS, args) }
}

/// The sums of squares of the tensors at address 0, (tensors) of `f32`.
///
/// # Safety
/// As [`ema`], for reading.
pub(crate) unsafe fn square_sums<E: Engine>(e: &E, rows: &[Row]) -> Result<E::Buffer> {
    // SAFETY: as the caller says.
    unsafe { squares(e, &Table::upload(e, rows)?, 0) }
}

/// # Safety
/// As [`square_sums`].
unsafe fn squares<E: Engine>(e: &E, table: &Table<E::Buffer>, which: i32) -> Result<E::Buffer> {
    let mut parts = e.alloc(DType::F32, table.chunks)?;
    let args = vec![Arg::In(&table.buffer, 0), Arg::Out(&mut parts), Arg::Int(table.tensors), Arg::Int(which)];
    // SAFETY: blocks take chunks of the tensors' lengths, each with a part of its own; the rest is the caller's word.
    unsafe { launch(e, &UPDATE, "square_sums", table.grid(), THREADS, args)? };
    let mut sums = e.alloc(DType::F32, table.tensors as usize)?;
    let args = vec![
        Arg::In(&table.buffer, 0),
        Arg::In(&parts, 0),
        Arg::Out(&mut sums),
        Arg::Int(table.tensors),
        Arg::Long(table.chunks as i64),
    ];
    // SAFETY: a block for each tensor, over its chunks.
    unsafe { launch(e, &UPDATE, "square_sums_finish", [table.tensors as u32, 1, 1], THREADS, args)? };
    Ok(sums)
}

/// The updates of tensors on a CUDA device: as those of [`crate::update`] with the same names, of checked tensors.
#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::{Result, Tensor, Var, bail};

    use super::super::launch::Engine;
    use super::super::tensor::{Reading, gpu, serves, tensor};
    use super::Row;
    use crate::update::{AdamwConfig, AdamwTensor, LarsConfig, SgdConfig, SgdTensor};

    /// Whether all tensors are on one CUDA device that this module serves, and there is one at all.
    pub(crate) fn all_served<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> bool {
        let Some(first) = tensors.next() else { return false };
        serves(first) && tensors.all(|t| t.device().same_device(first.device()))
    }

    /// Runs `f` with a row for every group of tensors, whose locks are held until the kernels are started: everything on the device's
    /// stream that follows, and the freeing of a tensor's memory too, comes after them.
    pub(crate) fn with_rows<R>(groups: &[(Vec<Tensor>, f32, f32)], f: impl FnOnce(&[Row]) -> Result<R>) -> Result<R> {
        let mut held = Vec::with_capacity(groups.len());
        for (tensors, ..) in groups {
            held.push(tensors.iter().map(Reading::of).collect::<Result<Vec<_>>>()?);
        }
        let mut rows = Vec::with_capacity(groups.len());
        for ((tensors, a, b), held) in groups.iter().zip(&held) {
            let mut at = [0; 4];
            for ((at, reading), t) in at.iter_mut().zip(held).zip(tensors) {
                let view = reading.view()?;
                *at = gpu(t)?.address(view.buffer, view.offset)?;
            }
            rows.push(Row { len: tensors[0].elem_count(), at, a: *a, b: *b });
        }
        f(&rows)
    }

    /// A variable, which is written and so must lie in one piece.
    fn written(op: &str, var: &Var) -> Result<Tensor> {
        if !var.is_contiguous() {
            bail!("{op}: a variable of shape {:?} is not contiguous, so that it cannot be updated in place", var.dims());
        }
        Ok(var.detach())
    }

    pub(crate) fn ema(pairs: &[(&Var, &Tensor)], momentum: f64) -> Result<()> {
        let groups = pairs
            .iter()
            .map(|(t, s)| Ok((vec![written("ema", t)?, s.detach().contiguous()?], 0.0, 0.0)))
            .collect::<Result<Vec<_>>>()?;
        // SAFETY: the tensors have equal lengths, are held, and are written in the stream's order.
        with_rows(&groups, |rows| unsafe { super::ema(&gpu(pairs[0].0)?, rows, momentum) })
    }

    pub(crate) fn sgd(tensors: &[SgdTensor<'_>], config: SgdConfig) -> Result<()> {
        let scales: Vec<f32> = tensors.iter().map(|t| t.scale as f32).collect();
        // SAFETY: as in `ema`.
        with_rows(&steps(tensors)?, |rows| unsafe { super::sgd(&gpu(tensors[0].param)?, rows, &scales, config) })
    }

    pub(crate) fn lars(tensors: &[SgdTensor<'_>], config: SgdConfig, rule: LarsConfig) -> Result<()> {
        // SAFETY: as in `ema`.
        with_rows(&steps(tensors)?, |rows| unsafe { super::lars(&gpu(tensors[0].param)?, rows, config, rule) })
    }

    fn steps(tensors: &[SgdTensor<'_>]) -> Result<Vec<(Vec<Tensor>, f32, f32)>> {
        tensors
            .iter()
            .map(|t| {
                let three = vec![written("sgd", t.param)?, t.grad.detach().contiguous()?, written("sgd", t.momentum)?];
                Ok((three, t.lr as f32, t.weight_decay as f32))
            })
            .collect()
    }

    pub(crate) fn adamw(tensors: &[AdamwTensor<'_>], config: AdamwConfig) -> Result<()> {
        let correction = 1.0 - config.beta1.powf(config.step as f64);
        let groups = tensors
            .iter()
            .map(|t| {
                let moments = [written("adamw", t.first)?, written("adamw", t.second)?];
                let mut four = vec![written("adamw", t.param)?, t.grad.detach().contiguous()?];
                four.extend(moments);
                Ok((four, (t.lr / correction) as f32, (1.0 - t.lr * t.weight_decay) as f32))
            })
            .collect::<Result<Vec<_>>>()?;
        // SAFETY: as in `ema`.
        with_rows(&groups, |rows| unsafe { super::adamw(&gpu(tensors[0].param)?, rows, config) })
    }

    /// All sums at once, in one copy from the device, which waits for it.
    pub(crate) fn square_sums(tensors: &[&Tensor]) -> Result<Vec<f64>> {
        let groups = tensors.iter().map(|t| Ok((vec![t.detach().contiguous()?], 0.0, 0.0))).collect::<Result<Vec<_>>>()?;
        // SAFETY: as in `ema`; nothing is written.
        let sums = with_rows(&groups, |rows| unsafe { super::square_sums(&gpu(tensors[0])?, rows) })?;
        Ok(tensor(sums, tensors.len()).to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::super::emulated::{Host, HostBuffer, close, values};
    use super::*;
    use crate::update::{AdamwTensor, SgdTensor};

    /// Lengths with empty tensors in all places, whole chunks, and parts of them.
    const LENGTHS: [usize; 8] = [0, 1, 300, 0, CHUNK, CHUNK + 1, 2 * CHUNK - 5, 0];

    struct Case {
        vars: Vec<Vec<Var>>,
        buffers: Vec<Vec<HostBuffer>>,
    }

    impl Case {
        fn new(host: &Host, each: usize) -> Result<Self> {
            let (mut vars, mut buffers) = (Vec::new(), Vec::new());
            for (i, &len) in LENGTHS.iter().enumerate() {
                let all: Vec<Vec<f32>> = (0..each)
                    .map(|j| {
                        let v = values(len, (10 * i + j) as u64);
                        // The fourth is a moment, which is not negative.
                        if j == 3 { v.iter().map(|v| v.abs()).collect() } else { v }
                    })
                    .collect();
                buffers.push(all.iter().map(|v| host.floats(DType::F32, v, 0)).collect());
                vars.push(all.into_iter().map(|v| Var::from_vec(v, len, &Device::Cpu)).collect::<Result<_>>()?);
            }
            Ok(Self { vars, buffers })
        }

        fn rows(&self, host: &Host, factors: impl Fn(usize) -> (f32, f32)) -> Result<Vec<Row>> {
            let row = |(i, buffers): (usize, &Vec<HostBuffer>)| {
                let (mut at, (a, b)) = ([0; 4], factors(i));
                for (at, buffer) in at.iter_mut().zip(buffers) {
                    *at = host.address(buffer, 0)?;
                }
                Ok(Row { len: LENGTHS[i], at, a, b })
            };
            self.buffers.iter().enumerate().map(row).collect()
        }

        fn agree(&self, what: &str) -> Result<()> {
            for (i, (vars, buffers)) in self.vars.iter().zip(&self.buffers).enumerate() {
                for (j, (var, buffer)) in vars.iter().zip(buffers).enumerate() {
                    close(&format!("{what}: tensor {i}, part {j}"), &buffer.read(), &var.to_vec1::<f32>()?, 2e-6);
                }
            }
            Ok(())
        }

        fn sgd_tensors(&self, decay: impl Fn(usize) -> f64, scale: f64) -> Vec<SgdTensor<'_>> {
            let tensors = self.vars.iter().enumerate();
            tensors
                .map(|(i, v)| {
                    let (lr, weight_decay) = (0.1 * (i + 1) as f64, decay(i));
                    SgdTensor { param: &v[0], grad: &v[1], momentum: &v[2], lr, weight_decay, scale }
                })
                .collect()
        }
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn averages_and_sgd_are_those_of_the_cpu() -> Result<()> {
        let host = Host::new();
        let case = Case::new(&host, 2)?;
        let pairs: Vec<(&Var, &Tensor)> = case.vars.iter().map(|v| (&v[0], v[1].as_tensor())).collect();
        crate::update::ema(&pairs, 0.9)?;
        // SAFETY: the addresses are those of buffers of the rows' lengths, which outlive the call.
        unsafe { ema(&host, &case.rows(&host, |_| (0.0, 0.0))?, 0.9)? };
        case.agree("ema")?;
        for config in [
            SgdConfig { momentum: 0.0, nesterov: false },
            SgdConfig { momentum: 0.9, nesterov: false },
            SgdConfig { momentum: 0.9, nesterov: true },
        ] {
            let case = Case::new(&host, 3)?;
            let decay = |i: usize| 0.01 * i as f64;
            crate::update::sgd(&case.sgd_tensors(decay, 0.5), config)?;
            let rows = case.rows(&host, |i| (0.1 * (i + 1) as f32, decay(i) as f32))?;
            // SAFETY: as above.
            unsafe { sgd(&host, &rows, &[0.5; LENGTHS.len()], config)? };
            case.agree(&format!("{config:?}"))?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn lars_adamw_and_norms_are_those_of_the_cpu() -> Result<()> {
        let host = Host::new();
        for clip in [false, true] {
            let (config, rule) =
                (SgdConfig { momentum: 0.9, nesterov: false }, LarsConfig { trust_coefficient: 0.02, eps: 1e-8, clip });
            let case = Case::new(&host, 3)?;
            // Without a decay there is no ratio.
            let decay = |i: usize| if i.is_multiple_of(2) { 0.1 } else { 0.0 };
            crate::update::lars(&case.sgd_tensors(decay, 1.0), config, rule)?;
            let rows = case.rows(&host, |i| (0.1 * (i + 1) as f32, decay(i) as f32))?;
            // SAFETY: the addresses are those of buffers of the rows' lengths, which outlive the call.
            unsafe { lars(&host, &rows, config, rule)? };
            case.agree("lars")?;
        }
        let config = AdamwConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 3 };
        let case = Case::new(&host, 4)?;
        fn tensor(v: &[Var]) -> AdamwTensor<'_> {
            AdamwTensor { param: &v[0], grad: &v[1], first: &v[2], second: &v[3], lr: 0.01, weight_decay: 0.1 }
        }
        let sums = {
            let all: Vec<&Tensor> = case.vars.iter().map(|v| v[0].as_tensor()).collect();
            crate::update::square_sums(&all)?.into_iter().map(|v| v as f32).collect::<Vec<_>>()
        };
        let rows = case.rows(&host, |_| ((0.01 / (1.0 - 0.9f64.powi(3))) as f32, 1.0 - 0.001))?;
        // SAFETY: as above.
        close("square sums", &unsafe { square_sums(&host, &rows)? }.read(), &sums, 1e-5);
        crate::update::adamw(&case.vars.iter().map(|v| tensor(v)).collect::<Vec<_>>(), config)?;
        // SAFETY: as above.
        unsafe { adamw(&host, &rows, config)? };
        case.agree("adamw")
    }
}
