//! From view batches to gradients, at any batch size: whole, or in parts that give the same gradients ("gradient caching").
//!
//! A contrastive loss looks at the whole batch, but the gradient of each image's vector is all that its encoder needs of the
//! others. So the batch goes through the backbones in parts without a graph; the loss of all vectors is taken and its
//! gradient with respect to them; then each part goes through the student again, with a graph, and backward from its slice of
//! that gradient (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"). The heads see the
//! whole batch once.
//!
//! The gradients are those of the whole batch but for rounding where images do not see each other within the backbone: layer
//! norm, group norm. Batch norm's statistics are those of each part (and view), as they would be of each device's batch where
//! many train without synchronised batch norm; its running statistics take up the first pass alone.

use std::ops::Range;

use candle_core::{Tensor, Var};
use twinsight_augment::ViewPlan;
use twinsight_nn::{BatchSlice, Gradients, Mode};

use crate::{At, Error, LossOutput, Method, Outputs, Result};

/// A step's loss and gradients.
#[derive(Debug)]
pub struct Backward {
    /// What the method made of the batch; its loss is outside of any graph.
    pub output: LossOutput,
    /// The gradients of all trainable parameters; `None` where the loss is not finite and the backward pass was not made.
    pub gradients: Option<Gradients>,
}

/// The loss of a batch and its gradients, with at most `micro_batch` images in the backbones at a time; 0: all at once. In parts, views
/// of one size go backward by themselves: large ones, then local ones.
///
/// # Errors
/// Views that do not fit the method's plan; a trainable parameter that gets no gradient.
pub fn backward(method: &mut dyn Method, views: &[Tensor], at: &At, micro_batch: usize) -> Result<Backward> {
    make(method, views, at, micro_batch, true)
}

/// As [`backward`], without a look at the loss: the backward pass is made whatever it is, and the host does not wait for the device.
///
/// # Errors
/// As [`backward`].
pub fn backward_unseen(method: &mut dyn Method, views: &[Tensor], at: &At, micro_batch: usize) -> Result<Backward> {
    make(method, views, at, micro_batch, false)
}

fn make(method: &mut dyn Method, views: &[Tensor], at: &At, micro_batch: usize, look: bool) -> Result<Backward> {
    let n = check_views(method.views(), views)?;
    if micro_batch == 0 || micro_batch >= n {
        let output = method.loss(views, at)?;
        let gradients = match !look || finite(&output)? {
            true => Some(Gradients::collect(&output.loss.backward()?, method.student())?),
            false => None,
        };
        return Ok(Backward { output: detached(output), gradients });
    }
    let parts = parts(n, micro_batch);
    let mode = at.mode();
    let mut student = Vec::with_capacity(parts.len());
    let mut teacher = Vec::with_capacity(parts.len());
    for part in &parts {
        let (views, mode) = (cut(views, part)?, of_part(mode, part, n).without_grad());
        student.push(self::student(method, &views, &mode)?);
        teacher.push(method.teacher_outputs(&views, &mode)?);
    }
    let student = join(&student, 1)?.iter().map(|t| Ok(Var::from_tensor(t)?)).collect::<Result<Vec<_>>>()?;
    let outputs = Outputs { student: student.iter().map(|v| v.as_tensor().clone()).collect(), teacher: join(&teacher, 1)? };
    drop(teacher);
    let output = method.objective(&outputs, at)?;
    if look && !finite(&output)? {
        return Ok(Backward { output: detached(output), gradients: None });
    }
    let store = output.loss.backward()?;
    let output = detached(output);
    let mut gradients = Gradients::collect_present(&store, method.student())?;
    let sensitivities = student
        .iter()
        .map(|v| {
            Ok(match store.get(v) {
                Some(gradient) => gradient.detach(),
                None => v.zeros_like()?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    drop((store, student, outputs));
    for part in &parts {
        let (views, mode) = (cut(views, part)?, of_part(mode, part, n).without_observing());
        // Of each output, the views that are behind.
        let mut first = vec![0; sensitivities.len()];
        for (pass, group) in same_size(&views, method.student_views()).into_iter().enumerate() {
            let mode = mode.with_pass(mode.key.pass + pass as u64);
            let outputs = method.student_outputs(&views[group.clone()], group.start, &mode)?;
            let mut surrogate: Option<Tensor> = None;
            for ((output, whole), first) in outputs.iter().zip(&sensitivities).zip(&mut first) {
                let count = output.dim(0)?;
                let slice = whole.narrow(0, *first, count)?.narrow(1, part.start, part.len())?;
                *first += count;
                let term = (output * slice)?.sum_all()?;
                surrogate = Some(if let Some(sum) = surrogate { (sum + term)? } else { term });
            }
            if let Some(surrogate) = surrogate {
                gradients.add(&Gradients::collect_present(&surrogate.backward()?, method.student())?)?;
            }
        }
    }
    gradients.check_complete(method.student())?;
    Ok(Backward { output, gradients: Some(gradients) })
}

/// What the student's backbone makes of the views that it sees.
pub(crate) fn student<M: Method + ?Sized>(method: &M, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
    let mut groups = Vec::new();
    for (pass, group) in same_size(views, method.student_views()).into_iter().enumerate() {
        let mode = mode.with_pass(mode.key.pass + pass as u64);
        groups.push(method.student_outputs(&views[group.clone()], group.start, &mode)?);
    }
    join(&groups, 0)
}

/// Refuses view batches that do not fit `plan`. Gives the number of images.
pub(crate) fn check_views(plan: &ViewPlan, views: &[Tensor]) -> Result<usize> {
    let count = plan.view_count();
    let n = views.first().and_then(|v| v.dims().first()).copied().unwrap_or(0);
    if views.len() != count || n == 0 {
        return Err(Error::BadViews(format!("{} batches (the first of {n} images), expected {count}", views.len())));
    }
    for (i, view) in views.iter().enumerate() {
        let size = plan.view(i).size;
        let want = [n, plan.channels, size, size];
        if view.dims() != want {
            return Err(Error::BadViews(format!("view {i} has shape {:?}, expected {want:?}", view.dims())));
        }
    }
    Ok(n)
}

/// Neighbours of one size among the views of `range`.
fn same_size(views: &[Tensor], range: Range<usize>) -> Vec<Range<usize>> {
    let mut start = range.start;
    let groups = views[range].chunk_by(|a, b| a.dims() == b.dims());
    groups
        .map(|group| {
            let found = start..start + group.len();
            start = found.end;
            found
        })
        .collect()
}

/// `n` images in as few parts of at most `most` as will do, whose sizes differ by one at most.
fn parts(n: usize, most: usize) -> Vec<Range<usize>> {
    let count = n.div_ceil(most);
    (0..count).map(|i| i * n / count..(i + 1) * n / count).collect()
}

fn cut(views: &[Tensor], part: &Range<usize>) -> Result<Vec<Tensor>> {
    views.iter().map(|v| Ok(v.narrow(0, part.start, part.len())?)).collect()
}

fn of_part(mode: Mode, part: &Range<usize>, of: usize) -> Mode {
    mode.with_slice(BatchSlice { first: part.start, of })
}

/// Joins the tensors of several lists, the first of each with the first, the second with the second, along `axis`.
fn join(lists: &[Vec<Tensor>], axis: usize) -> Result<Vec<Tensor>> {
    if let [one] = lists {
        return Ok(one.clone());
    }
    let slots = lists.iter().map(Vec::len).max().unwrap_or(0);
    (0..slots)
        .map(|slot| {
            let tensors: Vec<&Tensor> = lists.iter().filter_map(|list| list.get(slot)).collect();
            Ok(if let [one] = tensors[..] { one.clone() } else { Tensor::cat(&tensors, axis)? })
        })
        .collect()
}

fn finite(output: &LossOutput) -> Result<bool> {
    Ok(output.loss.detach().to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?.is_finite())
}

fn detached(output: LossOutput) -> LossOutput {
    LossOutput { loss: output.loss.detach(), ..output }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_batch_and_are_alike() {
        assert_eq!(parts(10, 4), [0..3, 3..6, 6..10]);
        assert_eq!(parts(4096, 64).len(), 64);
        assert_eq!(parts(5, 5), std::iter::once(0..5).collect::<Vec<_>>());
        for (n, most) in [(1, 1), (7, 3), (65, 64), (129, 64)] {
            let parts = parts(n, most);
            assert_eq!(parts.iter().map(|p| p.len()).sum::<usize>(), n);
            assert!(parts.iter().all(|p| !p.is_empty() && p.len() <= most), "{parts:?}");
        }
    }
}
