//! What tests of several losses share.

use candle_core::{Device, Tensor, Var};
use twinsight_test_support::{Golden, assert_close};

/// The tensor `key` of a golden file.
pub(crate) fn golden_tensor(golden: &Golden, key: &str) -> anyhow::Result<Tensor> {
    let t = golden.get(key)?;
    Ok(Tensor::from_slice(&t.data, t.shape.as_slice(), &Device::Cpu)?)
}

/// Compares a loss with `loss`, and its gradients with the golden tensors that `inputs` names beside each input's key.
pub(crate) fn matches_golden(
    name: &str,
    inputs: &[(&str, &str)],
    loss: impl Fn(&[Tensor], &Golden) -> anyhow::Result<Tensor>,
) -> anyhow::Result<()> {
    let golden = Golden::load(name)?;
    let vars =
        inputs.iter().map(|(key, _)| Ok(Var::from_tensor(&golden_tensor(&golden, key)?)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let loss = loss(&tensors, &golden)?;
    assert_close("loss", &loss.flatten_all()?.to_vec1::<f32>()?, &golden.get("loss")?.data, 1e-5)?;
    let gradients = loss.backward()?;
    for ((_, key), v) in inputs.iter().zip(&vars) {
        let gradient = gradients.get(v).ok_or_else(|| anyhow::anyhow!("no {key}"))?.flatten_all()?.to_vec1::<f32>()?;
        assert_close(key, &gradient, &golden.get(key)?.data, 1e-4)?;
    }
    Ok(())
}

/// As [`matches_golden`] for a loss of `a` and `b`.
pub(crate) fn matches_golden_pair(
    name: &str,
    loss: impl Fn(&Tensor, &Tensor, &Golden) -> anyhow::Result<Tensor>,
) -> anyhow::Result<()> {
    matches_golden(name, &[("a", "grad_a"), ("b", "grad_b")], |x, golden| loss(&x[0], &x[1], golden))
}

/// Two different tables of (rows, columns).
pub(crate) fn check_pair(rows: usize, columns: usize) -> anyhow::Result<(Tensor, Tensor)> {
    let table = |k: f64| -> anyhow::Result<Tensor> {
        let x = Tensor::arange(0f32, (rows * columns) as f32, &Device::Cpu)?.affine(k, 0.3)?.sin()?;
        Ok(x.reshape((rows, columns))?)
    };
    Ok((table(1.7)?, table(2.9)?))
}
