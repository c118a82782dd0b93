//! Parameters of operations that have more than candle's three inputs.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

pub(crate) use crate::graph::{handed2, handed3};

/// Gradients of parameters, in the order in which [`parameters`] took them, once a backward pass has put them there.
pub(crate) type Given = Arc<Mutex<Vec<Option<Tensor>>>>;

/// One tensor of the graph that stands for all parameters, since an operation has three inputs at most. Its value is a zero; the gradients come from
/// `given`, which the operation behind it fills before candle walks on to the parameters.
pub(crate) fn parameters(all: &[&Tensor], given: &Given) -> Result<Tensor> {
    let Some(first) = all.first() else { bail!("internal: an operation without parameters") };
    let zero = Tensor::zeros(1, DType::F32, first.device())?;
    let mut token: Option<Tensor> = None;
    for (i, three) in all.chunks(3).enumerate() {
        let at = |j: usize| three.get(j).copied().unwrap_or(&zero);
        let (given, count) = (Arc::clone(given), three.len());
        let own = handed3("parameters", [at(0), at(1), at(2)], &zero, move |tensors, _| {
            let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
            let mut out = [const { None }; 3];
            for (j, (out, t)) in out.iter_mut().zip(tensors).enumerate().take(count) {
                let Some(gradient) = given.get_mut(3 * i + j).and_then(Option::take) else {
                    bail!("the gradients of an operation's parameters were used up")
                };
                *out = t.track_op().then_some(gradient);
            }
            Ok(out)
        })?;
        token = Some(match token {
            None => own,
            Some(before) => handed2("parameters", [&before, &own], &zero, |[a, b], grad| {
                let of = |t: &Tensor| t.track_op().then(|| grad.clone());
                Ok([of(a), of(b)])
            })?,
        });
    }
    Ok(token.unwrap_or(zero))
}
