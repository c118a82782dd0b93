//! In-place updates of variables on the CPU, without allocation: the locks of a parameter's tensors are taken one inside
//! the other, and the innermost operation walks all of them in parallel blocks.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::memory::{blocks, host, values};
use super::vector::{reduce_f64, vectorized};
use crate::trace::span;
use crate::update::{AdamwConfig, AdamwTensor, Clip, SgdConfig, SgdTensor};

/// Floats that one task updates.
const BLOCK: usize = 32_768;

/// See [`crate::update::ema`].
pub(crate) fn ema(pairs: &[(&Var, &Tensor)], momentum: f64) -> Result<()> {
    let _span = span("teacher update", 0);
    for (teacher, student) in pairs {
        teacher.inplace_op2(
            &student.contiguous()?,
            &Walk2("ema", |t: &mut [f32], s: &[f32]| {
                t.par_chunks_mut(BLOCK)
                    .zip(s.par_chunks(BLOCK))
                    .for_each(|(t, s)| ema_block(t, s, momentum as f32, (1.0 - momentum) as f32));
            }),
        )?;
    }
    Ok(())
}

/// See [`crate::update::sgd`].
pub(crate) fn sgd(tensors: &[SgdTensor<'_>], config: SgdConfig) -> Result<()> {
    let _span = span("optimizer", 0);
    for t in tensors {
        let grad = t.grad.contiguous()?;
        let (decay, scale, lr) = (t.weight_decay as f32, t.scale as f32, t.lr as f32);
        if config.momentum == 0.0 {
            t.param.inplace_op2(
                &grad,
                &Walk2("sgd", |p: &mut [f32], g: &[f32]| {
                    p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).for_each(|(p, g)| sgd_block(p, g, decay, scale, lr));
                }),
            )?;
            continue;
        }
        let momentum = config.momentum as f32;
        distinct("sgd", &[t.param, t.momentum], &grad)?;
        nested("sgd", t.momentum, |m| {
            t.param.inplace_op2(
                &grad,
                &Walk2("sgd", |p: &mut [f32], g: &[f32]| {
                    let mut m = m.borrow_mut();
                    let blocks = p.par_chunks_mut(BLOCK).zip(m.par_chunks_mut(BLOCK)).zip(g.par_chunks(BLOCK));
                    blocks.for_each(|((p, m), g)| momentum_block(p, m, g, decay, scale, lr, momentum, config.nesterov));
                }),
            )
        })?;
    }
    Ok(())
}

/// See [`crate::update::adamw`].
pub(crate) fn adamw(tensors: &[AdamwTensor<'_>], config: AdamwConfig) -> Result<()> {
    let _span = span("optimizer", 0);
    let correction1 = 1.0 - config.beta1.powf(config.step as f64);
    let correction2 = 1.0 - config.beta2.powf(config.step as f64);
    for t in tensors {
        let grad = t.grad.contiguous()?;
        let c = AdamwConstants {
            beta1: config.beta1 as f32,
            rest1: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            rest2: (1.0 - config.beta2) as f32,
            eps: config.eps as f32,
            root: (1.0 / correction2.sqrt()) as f32,
            lr: (t.lr / correction1) as f32,
            keep: (1.0 - t.lr * t.weight_decay) as f32,
        };
        distinct("adamw", &[t.param, t.first, t.second], &grad)?;
        nested("adamw", t.first, |first| {
            nested("adamw", t.second, |second| {
                t.param.inplace_op2(
                    &grad,
                    &Walk2("adamw", |p: &mut [f32], g: &[f32]| {
                        let (mut first, mut second) = (first.borrow_mut(), second.borrow_mut());
                        let moments = first.par_chunks_mut(BLOCK).zip(second.par_chunks_mut(BLOCK));
                        let blocks = p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(moments);
                        blocks.for_each(|((p, g), (first, second))| adamw_block(p, g, first, second, c));
                    }),
                )
            })
        })?;
    }
    Ok(())
}

/// See [`crate::update::square_sums`].
pub(crate) fn square_sums(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let _span = span("gradient norms", 0);
    tensors
        .iter()
        .map(|t| {
            let t = t.contiguous()?;
            let (storage, layout) = t.storage_and_layout();
            let x = host(&storage, layout)?;
            let parts: Vec<f64> = blocks(x.len(), BLOCK).map(|range| square_sum(&x[range])).collect();
            Ok(parts.iter().sum())
        })
        .collect()
}

/// See [`crate::update::clip`].
pub(crate) fn clip(tensors: &mut [&mut Tensor], max: f64, of: Clip) -> Result<()> {
    let squares = square_sums(&tensors.iter().map(|t| &**t).collect::<Vec<_>>())?;
    let together = squares.iter().sum::<f64>().sqrt();
    for (t, square) in tensors.iter_mut().zip(squares) {
        let norm = if of == Clip::Together { together } else { square.sqrt() };
        let factor = max / (norm + 1e-6);
        if (of == Clip::Together && norm > max) || (of == Clip::Each && factor < 1.0) {
            **t = (t.detach() * factor)?;
        }
    }
    Ok(())
}

/// Refuses tensors that share storage, whose locks could not be taken together.
fn distinct(op: &str, written: &[&Var], read: &Tensor) -> Result<()> {
    let mut starts = Vec::with_capacity(written.len() + 1);
    for t in written.iter().map(|v| v.as_tensor()).chain([read]) {
        let (storage, _) = t.storage_and_layout();
        starts.push(std::ptr::from_ref(&*storage));
    }
    starts.sort_unstable();
    if starts.windows(2).any(|pair| pair[0] == pair[1]) {
        bail!("{op}: a parameter, its gradient and its state must not share storage");
    }
    Ok(())
}

/// Calls `inside` with the elements of `var`, whose storage stays locked meanwhile.
fn nested(op: &'static str, var: &Var, inside: impl Fn(&RefCell<&mut [f32]>) -> Result<()>) -> Result<()> {
    struct Lock<F>(&'static str, F);
    impl<F: Fn(&RefCell<&mut [f32]>) -> Result<()>> InplaceOp1 for Lock<F> {
        fn name(&self) -> &'static str {
            self.0
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            (self.1)(&RefCell::new(values_mut(storage, layout)?))
        }
    }
    var.inplace_op1(&Lock(op, inside))
}

/// Calls a function with the elements of the variable and of the other tensor.
struct Walk2<F>(&'static str, F);

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for Walk2<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        (self.1)(values_mut(s1, l1)?, values(s2, l2)?);
        Ok(())
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("a variable that is updated in place must be F32 and contiguous"),
    }
}

#[derive(Clone, Copy)]
struct AdamwConstants {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    eps: f32,
    root: f32,
    lr: f32,
    keep: f32,
}

vectorized! {
    fn ema_block<'a>(t: &'a mut [f32], s: &'a [f32], keep: f32, take: f32) {
        t.iter_mut().zip(s).for_each(|(t, s)| *t = *t * keep + s * take);
    }
}

vectorized! {
    fn sgd_block<'a>(p: &'a mut [f32], g: &'a [f32], decay: f32, scale: f32, lr: f32) {
        p.iter_mut().zip(g).for_each(|(p, g)| *p -= lr * ((g + decay * *p) * scale));
    }
}

vectorized! {
    fn momentum_block<'a>(
        p: &'a mut [f32], m: &'a mut [f32], g: &'a [f32], decay: f32, scale: f32, lr: f32, momentum: f32, nesterov: bool,
    ) {
        for ((p, m), g) in p.iter_mut().zip(m).zip(g) {
            let d = (g + decay * *p) * scale;
            *m = momentum * *m + d;
            *p -= lr * if nesterov { d + momentum * *m } else { *m };
        }
    }
}

vectorized! {
    fn adamw_block<'a>(p: &'a mut [f32], g: &'a [f32], first: &'a mut [f32], second: &'a mut [f32], c: AdamwConstants) {
        for (((p, g), first), second) in p.iter_mut().zip(g).zip(first).zip(second) {
            *first = c.beta1 * *first + c.rest1 * g;
            *second = c.beta2 * *second + c.rest2 * (g * g);
            *p = *p * c.keep - c.lr * (*first / (second.sqrt() * c.root + c.eps));
        }
    }
}

vectorized! {
    fn square_sum<'a>(x: &'a [f32]) -> f64 {
        reduce_f64(x.len(), |i| f64::from(x[i]) * f64::from(x[i]))
    }
}
