//! Parameters of operations that have more than candle's three inputs.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

pub(crate) use crate::graph::handed2;
use crate::graph::unread3;

/// Gradients of parameters, in the order in which [`parameters`] took them, once a backward pass has put them there.
pub(crate) type Given = Arc<Mutex<Vec<Option<Tensor>>>>;

/// One tensor of the graph that stands for all parameters, since an operation has three inputs at most. Its value is never read; the gradients come
/// from `given`, which the operation behind it fills before candle walks on to the parameters.
pub(crate) fn parameters(all: &[&Tensor], given: &Given) -> Result<Tensor> {
    let (Some(first), count) = (all.first(), all.len()) else { bail!("internal: an operation without parameters") };
    let nothing = Tensor::zeros(1, DType::F32, first.device())?;
    let mut token: Option<Tensor> = None;
    let mut next = 0;
    while next < count {
        // The first stands for three, each further one for the one before it and two.
        let (start, room) = (next, if token.is_some() { 2 } else { 3 });
        next = count.min(start + room);
        let at = |i: usize| all.get(start + i).copied().filter(|_| i < room).unwrap_or(&nothing);
        let (before, inputs) = match &token {
            None => (0, [at(0), at(1), at(2)]),
            Some(token) => (1, [token, at(0), at(1)]),
        };
        let given = Arc::clone(given);
        let taken = next - start;
        token = Some(unread3("parameters", inputs, move |tensors, grad| {
            let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
            let mut out = [const { None }; 3];
            if before == 1 && tensors[0].track_op() {
                out[0] = Some(grad.clone());
            }
            for (i, (out, t)) in out.iter_mut().zip(tensors).skip(before).enumerate().take(taken) {
                let Some(gradient) = given.get_mut(start + i).and_then(Option::take) else {
                    bail!("the gradients of an operation's parameters were used up")
                };
                *out = t.track_op().then_some(gradient);
            }
            Ok(out)
        })?);
    }
    Ok(token.unwrap_or(nothing))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn every_parameter_gets_its_own_gradient() -> Result<()> {
        let number = |v: f32| Tensor::new(&[v], &Device::Cpu);
        for count in 1..=9_usize {
            // The second of every three, or of the first group all, are not trained.
            for untracked in [None, Some([1, 4, 7]), Some([0, 1, 2])] {
                let vars = (0..count).map(|i| Var::from_tensor(&number(i as f32)?)).collect::<Result<Vec<_>>>()?;
                let frozen = |i: usize| untracked.is_some_and(|places| places.contains(&i));
                let tensors: Vec<Tensor> = vars
                    .iter()
                    .enumerate()
                    .map(|(i, v)| if frozen(i) { v.as_detached_tensor() } else { v.as_tensor().clone() })
                    .collect();
                let given = Given::default();
                let token = parameters(&tensors.iter().collect::<Vec<_>>(), &given)?;
                let x = Var::from_tensor(&number(1.0)?)?;
                let gradients = (0..count).map(|i| number(10.0 + i as f32)).collect::<Result<Vec<_>>>()?;
                let y = handed2("block", [&x, &token], &number(5.0)?, move |[_, token], grad| {
                    *given.lock().unwrap_or_else(PoisonError::into_inner) = gradients.iter().cloned().map(Some).collect();
                    Ok([Some(grad.clone()), token.track_op().then(|| token.zeros_like()).transpose()?])
                })?;
                let grads = y.sum_all()?.backward()?;
                assert!(grads.get(&x).is_some());
                for (i, var) in vars.iter().enumerate() {
                    let found = grads.get(var).map(Tensor::to_vec1::<f32>).transpose()?;
                    let want = (!frozen(i)).then(|| vec![10.0 + i as f32]);
                    assert_eq!(found, want, "parameter {i} of {count}, untracked {untracked:?}");
                }
            }
        }
        Ok(())
    }
}
