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
