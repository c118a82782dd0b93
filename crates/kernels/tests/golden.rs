//! Layers against values computed by PyTorch, which keeps images as (N, C, H, W). On the processor, or on the device that
//! `TWINSIGHT_TEST_DEVICE` names.

mod common;

use std::sync::OnceLock;

use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use common::flat;
use twinsight_kernels::{BatchNormConfig, Conv2dConfig, batch_norm_train, composed, conv2d, max_pool2d, open_cuda};
use twinsight_test_support::{Golden, GoldenTensor, assert_close, procedural, test_device};

const TOLERANCE: f64 = 1e-4;

/// The processor, or the CUDA device that `TWINSIGHT_TEST_DEVICE` names (`cuda` or `cuda:N`).
fn device() -> Result<Device> {
    static OPENED: OnceLock<Device> = OnceLock::new();
    let Some(number) = test_device()? else { return Ok(Device::Cpu) };
    if let Some(device) = OPENED.get() {
        return Ok(device.clone());
    }
    let device = open_cuda(number)?;
    Ok(OPENED.get_or_init(|| device).clone())
}

fn nhwc(t: &GoldenTensor) -> Result<Var> {
    let t = Tensor::from_slice(&t.data, t.shape.as_slice(), &device()?)?;
    Ok(Var::from_tensor(&t.permute((0, 2, 3, 1))?.contiguous()?)?)
}

fn check(what: &str, got: &Tensor, want: &GoldenTensor) -> Result<()> {
    let got = if got.rank() == 4 && got.dims() != want.shape { got.permute((0, 3, 1, 2))? } else { got.clone() };
    assert_eq!(got.dims(), want.shape, "{what}");
    assert_close(what, &flat(&got)?, &want.data, TOLERANCE)
}

#[test]
fn convolutions() -> Result<()> {
    for name in ["k1_s2_d1_g1", "k3_s1_d1_g1", "k3_s1_d2_g1", "k3_s2_d1_g1", "k7_s1_d1_g8", "k7_s2_d1_g1"] {
        let golden = Golden::load(&format!("layer_conv_{name}"))?;
        let setting = |key: &str| golden.number(key).map(|v| v as usize);
        let config = Conv2dConfig {
            stride: setting("stride")?,
            padding: setting("padding")?,
            dilation: setting("dilation")?,
            groups: setting("groups")?,
        };
        let x = nhwc(golden.get("x")?)?;
        let weight = golden.get("weight")?;
        let weight = Var::from_slice(&weight.data, weight.shape.as_slice(), &device()?)?;
        for (kind, f) in [("fast", conv2d as fn(&Tensor, &Tensor, Conv2dConfig) -> _), ("composed", composed::conv::conv2d)] {
            let y = f(&x, &weight, config)?;
            check(&format!("{kind} {name} y"), &y, golden.get("y")?)?;
            let grads = (&y * nhwc(golden.get("probe")?)?.as_tensor())?.sum_all()?.backward()?;
            let grad = |v: &Var| grads.get(v).cloned().expect("a gradient");
            check(&format!("{kind} {name} grad_x"), &grad(&x), golden.get("grad_x")?)?;
            check(&format!("{kind} {name} grad_weight"), &grad(&weight), golden.get("grad_weight")?)?;
        }
    }
    Ok(())
}

#[test]
fn batch_norm() -> Result<()> {
    let golden = Golden::load("layer_batch_norm")?;
    let x = nhwc(golden.get("x")?)?;
    let features = x.dims()[3];
    let parameter =
        |name: &str| -> Result<Var> { Ok(Var::from_vec(procedural(name, &[features], golden.seed()?), features, &device()?)?) };
    let (weight, bias) = (parameter("weight")?, parameter("bias")?);
    let config = BatchNormConfig { eps: golden.number("eps")?, ..Default::default() };
    let out = batch_norm_train(&x, Some(&weight), Some(&bias), None, config)?;
    check("y", &out.y, golden.get("y")?)?;
    let grads = (&out.y * nhwc(golden.get("probe")?)?.as_tensor())?.sum_all()?.backward()?;
    let grad = |v: &Var| grads.get(v).cloned().expect("a gradient");
    check("grad_x", &grad(&x), golden.get("grad_x")?)?;
    check("grad_weight", &grad(&weight), golden.get("grad_weight")?)?;
    check("grad_bias", &grad(&bias), golden.get("grad_bias")?)?;
    // PyTorch moves the running statistics by the momentum, and takes the unbiased variance.
    let (momentum, count) = (golden.number("momentum")? as f32, (x.elem_count() / features) as f32);
    let moved = |name: &str, batch: &Tensor, scale: f32| -> Result<Vec<f32>> {
        let start = procedural(name, &[features], golden.seed()?);
        Ok(start.iter().zip(flat(batch)?).map(|(s, b)| s * (1.0 - momentum) + momentum * b * scale).collect())
    };
    let mean = moved("running_mean", &out.mean, 1.0)?;
    assert_close("running_mean", &mean, &golden.get("running_mean")?.data, TOLERANCE)?;
    let var = moved("running_var", &out.var, count / (count - 1.0))?;
    assert_close("running_var", &var, &golden.get("running_var")?.data, TOLERANCE)
}

#[test]
fn max_pool() -> Result<()> {
    let golden = Golden::load("layer_max_pool_k3_s2_p1")?;
    let x = nhwc(golden.get("x")?)?;
    let y = max_pool2d(&x, 3, 2, 1)?;
    check("y", &y, golden.get("y")?)?;
    let grads = (&y * nhwc(golden.get("probe")?)?.as_tensor())?.sum_all()?.backward()?;
    check("grad_x", grads.get(&x).expect("a gradient"), golden.get("grad_x")?)
}
