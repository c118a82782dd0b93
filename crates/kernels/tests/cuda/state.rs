//! What is changed in place, clipped, or empty.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use twinsight_kernels::update::{self, AdamwConfig, AdamwTensor, LarsConfig, SgdConfig, SgdTensor};
use twinsight_kernels::{Conv2dConfig, conv2d};

use crate::common::{flat, near, tensor};
use crate::device;

#[test]
fn updates_give_what_the_cpu_gives() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let state = |on: &Device| -> Result<Vec<Vec<Var>>> {
        let lengths = [1, 300, 7, 20_000];
        let var = |len: usize, seed: u64| Ok(Var::from_tensor(&tensor(&[len], seed)?.abs()?.to_device(on)?)?);
        lengths.iter().enumerate().map(|(i, &len)| (0..4).map(|j| var(len, (10 * i + j) as u64)).collect()).collect()
    };
    let run = |on: &Device| -> Result<Vec<Vec<f32>>> {
        let vars = state(on)?;
        let config = SgdConfig { momentum: 0.9, nesterov: true };
        let step = |v: &'_ Vec<Var>| (v[0].clone(), v[1].as_tensor().clone(), v[2].clone());
        let owned: Vec<_> = vars.iter().map(step).collect();
        let tensors: Vec<_> = owned
            .iter()
            .map(|(param, grad, momentum)| SgdTensor { param, grad, momentum, lr: 0.1, weight_decay: 0.01, scale: 1.0 })
            .collect();
        update::sgd(&tensors, config)?;
        update::lars(&tensors, config, LarsConfig { trust_coefficient: 0.01, eps: 1e-8, clip: false })?;
        let tensors: Vec<_> = vars
            .iter()
            .map(|v| AdamwTensor { param: &v[0], grad: &v[1], first: &v[2], second: &v[3], lr: 0.01, weight_decay: 0.1 })
            .collect();
        update::adamw(&tensors, AdamwConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, step: 2 })?;
        let pairs: Vec<_> = vars.iter().map(|v| (&v[2], v[0].as_tensor())).collect();
        update::ema(&pairs, 0.9)?;
        update::running_statistics(
            [&tensor(&[2, 300], 5)?.to_device(on)?, &tensor(&[2, 300], 6)?.to_device(on)?],
            [&vars[1][0], &vars[1][3]],
            0.1,
            20,
        )?;
        let squares = update::square_sums(&vars.iter().map(|v| v[1].as_tensor()).collect::<Vec<_>>())?;
        let mut found: Vec<Vec<f32>> = vars.iter().flatten().map(|v| flat(v)).collect::<Result<_>>()?;
        found.push(squares.into_iter().map(|s| s as f32).collect());
        Ok(found)
    };
    for (i, (got, want)) in run(&device)?.iter().zip(&run(&Device::Cpu)?).enumerate() {
        near(&format!("tensor {i}"), got, want, 1e-5)?;
    }
    Ok(())
}

#[test]
fn clipping_gives_what_the_cpu_gives_and_touches_no_other_tensor() -> Result<()> {
    use twinsight_kernels::update::{Clip, clip};
    let Some(device) = device() else { return Ok(()) };
    let lengths = [1, 300, 5, 16_384, 70_001];
    let before = lengths.iter().zip(1..).map(|(&len, seed)| tensor(&[len], seed)).collect::<Result<Vec<_>, _>>()?;
    for (of, max) in [Clip::Together, Clip::Each].into_iter().flat_map(|of| [0.0, 0.5, 30.0, 1e6].map(|max| (of, max))) {
        let mut want = before.clone();
        clip(&mut want.iter_mut().collect::<Vec<_>>(), max, of)?;
        let there = before.iter().map(|t| Ok(t.to_device(&device)?)).collect::<Result<Vec<Tensor>>>()?;
        let run = || -> Result<Vec<Vec<f32>>> {
            let mut found = there.clone();
            clip(&mut found.iter_mut().collect::<Vec<_>>(), max, of)?;
            found.iter().map(flat).collect()
        };
        let (found, again) = (run()?, run()?);
        ensure!(found == again, "{of:?} by {max}: a second run gives other bits");
        for (i, (got, want)) in found.iter().zip(&want).enumerate() {
            near(&format!("{of:?} by {max}, tensor {i}"), got, &flat(want)?, 1e-6)?;
        }
        for (i, (there, before)) in there.iter().zip(&before).enumerate() {
            ensure!(flat(there)? == flat(before)?, "{of:?} by {max}: gradient {i} was changed in place");
        }
    }
    // A norm that `f32` has no sum of squares for.
    let mut large = Tensor::full(1e25f32, 20, &device)?;
    clip(&mut [&mut large], 1.0, Clip::Together)?;
    near("large numbers", &flat(&large)?, &[0.05f32.sqrt(); 20], 1e-6)
}

/// By themselves: what candle and the driver make of no elements is theirs.
#[test]
fn empty_tensors_are_no_trouble() -> Result<()> {
    use twinsight_kernels::update::{Clip, clip};
    let Some(device) = device() else { return Ok(()) };
    let none = Tensor::zeros((1, 9, 8, 5), DType::F32, &device)?.narrow(0, 0, 0)?;
    let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
    let empty = conv2d(&none, &Tensor::zeros((7, 5, 3, 3), DType::F32, &device)?, config)?;
    ensure!(empty.dims() == [0, 9, 8, 7]);
    let ones = Tensor::ones(3, DType::F32, &device)?;
    let mut tensors = [ones.narrow(0, 1, 0)?, ones];
    clip(&mut tensors.iter_mut().collect::<Vec<_>>(), 1.0, Clip::Together)?;
    near("clipped beside nothing", &flat(&tensors[1])?, &[1.0 / 3f32.sqrt(); 3], 1e-5)
}
