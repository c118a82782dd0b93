//! What methods share: views through a backbone in few batches, and teachers that follow their student.

use candle_core::Tensor;
use twinsight_augment::ViewPlan;
use twinsight_encoders::Encoder;
use twinsight_nn::{BufferRule, Mode, ParamStore, ema_update};

use crate::{Error, Result};

/// The parts of a student that its teacher has too. Predictors are the student's alone.
const SHARED: [&str; 2] = ["backbone", "projector"];

/// The vectors (V N, D) of V views of N images, view after view.
///
/// Neighbouring views of one size go through the encoder in one batch, with batch-norm statistics of their own for each
/// view, as if they went one by one.
///
/// # Errors
/// Input that the encoder refuses.
pub fn encode_views(encoder: &dyn Encoder, views: &[Tensor], mode: &Mode) -> Result<Tensor> {
    let mut vectors = Vec::new();
    for (pass, group) in views.chunk_by(|a, b| a.dims() == b.dims()).enumerate() {
        let mode = mode.with_stat_groups(group.len()).with_pass(mode.key.pass + pass as u64);
        let batch = if let [one] = group { one.clone() } else { Tensor::cat(group, 0)? };
        vectors.push(encoder.forward(&batch, &mode)?.pooled);
    }
    Ok(if let [one] = &vectors[..] { one.clone() } else { Tensor::cat(&vectors, 0)? })
}

/// A value that moves from `base` to 1 along half a cosine while `progress` goes from 0 to 1: the momentum of a teacher
/// (Grill et al. 2020).
pub fn momentum_at(base: f64, progress: f64) -> f64 {
    1.0 - (1.0 - base) * ((std::f64::consts::PI * progress).cos() + 1.0) / 2.0
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

/// Gives `teacher` the student's values.
pub(crate) fn start_teacher(teacher: &ParamStore, student: &ParamStore) -> Result<()> {
    for part in SHARED {
        teacher.sub_store(part).copy_from(&student.sub_store(part))?;
    }
    Ok(())
}

/// Moves `teacher` towards the student. Running statistics are the teacher's own: its forward passes run in training mode,
/// on batch statistics, and keep them.
pub(crate) fn follow(teacher: &ParamStore, student: &ParamStore, momentum: f64) -> Result<()> {
    for part in SHARED {
        ema_update(&teacher.sub_store(part), &student.sub_store(part), momentum, BufferRule::Own)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use twinsight_encoders::{EncoderConfig, encoder};
    use twinsight_nn::{Builder, DrawKey};

    #[test]
    fn momentum_grows_to_one() {
        assert!((momentum_at(0.99, 0.0) - 0.99).abs() < 1e-12);
        assert!((momentum_at(0.99, 0.5) - 0.995).abs() < 1e-12);
        assert!((momentum_at(0.99, 1.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn views_of_one_batch_count_as_if_they_went_one_by_one() -> Result<()> {
        let config = EncoderConfig { image_size: 16, channels: 1, ..EncoderConfig::default() };
        let build = || -> Result<_> {
            let b = Builder::new(0, &Device::Cpu);
            Ok(((encoder("resnet_mini")?.build)(&config, &b)?, b.finish()))
        };
        let view = |k: f64, side: usize| -> Result<Tensor> {
            let x = Tensor::arange(0f32, (3 * side * side) as f32, &Device::Cpu)?.affine(k, 0.3)?.sin()?;
            Ok(x.reshape((3, 1, side, side))?)
        };
        let views = [view(0.1, 16)?, view(0.7, 16)?, view(0.4, 8)?];
        let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 });
        let ((together, p), (alone, q)) = (build()?, build()?);
        let got = encode_views(&*together, &views, &mode)?;
        let want: Vec<Tensor> = views.iter().map(|v| Ok(alone.forward(v, &mode)?.pooled)).collect::<Result<_>>()?;
        let want = Tensor::cat(&want, 0)?;
        assert_eq!(got.dims(), &[9, together.dim()]);
        assert!((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
        for (a, b) in p.iter().zip(q.iter()) {
            let difference = (a.value() - b.value())?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-5, "{} differs by {difference}", a.name());
        }
        Ok(())
    }
}
