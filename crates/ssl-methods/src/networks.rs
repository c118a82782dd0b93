//! What methods' networks share: a backbone with a head, alone or beside a teacher that follows it.

use candle_core::Tensor;
use twinsight_encoders::{Encoder, EncoderConfig};
use twinsight_nn::{BufferRule, Builder, Mode, ParamStore, ema_update};

use crate::{MethodContext, Networks, Result};

/// The parts of a student that its teacher has too. Predictors are the student's alone.
const SHARED: [&str; 2] = ["backbone", "projector"];

/// A backbone and the head behind it.
pub(crate) struct Branch<H> {
    pub backbone: Box<dyn Encoder>,
    pub head: H,
}

impl<H> Branch<H> {
    /// Builds the backbone under `backbone`, then what `head` makes of the builder and the backbone's dimension.
    fn new(
        b: &Builder,
        context: &MethodContext,
        config: &EncoderConfig,
        head: impl FnOnce(&Builder, usize) -> Result<H>,
    ) -> Result<Self> {
        let backbone = (context.encoder.build)(config, &b.under("backbone"))?;
        let head = head(b, backbone.dim())?;
        Ok(Self { backbone, head })
    }

    /// The backbone's vectors of some views as one tensor (V, N, D).
    pub fn vectors(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        Ok(vec![vectors(&*self.backbone, views, mode)?])
    }

    /// The same, batch norm's statistics being those of all views of one size together, as in the programs of DINO's and SwAV's authors.
    pub fn joint_vectors(&self, views: &[Tensor], mode: &Mode) -> Result<Vec<Tensor>> {
        Ok(vec![grouped(&*self.backbone, views, mode, true)?])
    }
}

/// A student without a teacher.
pub(crate) struct Single<H> {
    pub branch: Branch<H>,
    pub params: ParamStore,
}

impl<H> Single<H> {
    /// Builds backbone and head(s), all under their names.
    ///
    /// # Errors
    /// Settings that the encoder refuses.
    pub fn new(context: &MethodContext, head: impl FnOnce(&Builder, usize) -> Result<H>) -> Result<Self> {
        let b = Builder::new(context.seed, &context.device);
        let branch = Branch::new(&b, context, &context.encoder_config, head)?;
        Ok(Self { branch, params: b.finish() })
    }

    /// For [`crate::Method::networks`].
    pub fn networks(&self) -> Networks<'_> {
        let encoder = &*self.branch.backbone;
        Networks { student: &self.params, teacher: None, encoder, teacher_is_evaluated: false }
    }
}

/// A student and the teacher that follows it; `P` is what the student alone has, its predictor.
pub(crate) struct Pair<H, P = ()> {
    pub student: Branch<H>,
    pub predictor: P,
    pub params: ParamStore,
    pub teacher: Branch<H>,
    pub teacher_params: ParamStore,
}

impl<H, P> Pair<H, P> {
    /// Builds student and teacher, which start alike. The teacher drops no paths.
    ///
    /// # Errors
    /// Settings that the encoder refuses.
    pub fn new(
        context: &MethodContext,
        head: impl Fn(&Builder, usize) -> Result<H>,
        predictor: impl FnOnce(&Builder) -> Result<P>,
    ) -> Result<Self> {
        let b = Builder::new(context.seed, &context.device);
        let student = Branch::new(&b, context, &context.encoder_config, &head)?;
        let predictor = predictor(&b)?;
        let params = b.finish();
        let b = Builder::new(context.seed, &context.device);
        let config = EncoderConfig { drop_path: 0.0, ..context.encoder_config.clone() };
        let teacher = Branch::new(&b, context, &config, &head)?;
        let teacher_params = b.finish();
        for part in SHARED {
            teacher_params.sub_store(part).copy_from(&params.sub_store(part))?;
        }
        Ok(Self { student, predictor, params, teacher, teacher_params })
    }

    /// Moves the teacher towards the student. Running statistics are the teacher's own: its forward passes run in training
    /// mode, on batch statistics, and keep them.
    pub fn follow(&self, momentum: f64) -> Result<()> {
        for part in SHARED {
            ema_update(&self.teacher_params.sub_store(part), &self.params.sub_store(part), momentum, BufferRule::Own)?;
        }
        Ok(())
    }

    /// For [`crate::Method::networks`].
    pub fn networks(&self, teacher_is_evaluated: bool) -> Networks<'_> {
        let evaluated = if teacher_is_evaluated { &self.teacher } else { &self.student };
        Networks {
            student: &self.params,
            teacher: Some(&self.teacher_params),
            encoder: &*evaluated.backbone,
            teacher_is_evaluated,
        }
    }
}

/// The vectors (V, N, D) of V views of N images.
///
/// Neighbouring views of one size go through the encoder in one batch, with batch-norm statistics of their own for each
/// view, as if they went one by one.
///
/// # Errors
/// Input that the encoder refuses.
pub fn vectors(encoder: &dyn Encoder, views: &[Tensor], mode: &Mode) -> Result<Tensor> {
    grouped(encoder, views, mode, false)
}

fn grouped(encoder: &dyn Encoder, views: &[Tensor], mode: &Mode, joint: bool) -> Result<Tensor> {
    let mut parts = Vec::new();
    for (pass, group) in views.chunk_by(|a, b| a.dims() == b.dims()).enumerate() {
        let mode = mode.with_views(group.len()).with_pass(mode.key.pass + pass as u64);
        let mode = if joint { mode.with_stat_groups(1) } else { mode };
        let pooled = encoder.forward(&joined(group)?, &mode)?.pooled;
        parts.push(pooled.reshape((group.len(), (), pooled.dim(1)?))?);
    }
    Ok(if let [one] = &parts[..] { one.clone() } else { Tensor::cat(&parts, 0)? })
}

/// Views of one size, one after the other along the batch axis.
pub(crate) fn joined(views: &[Tensor]) -> Result<Tensor> {
    Ok(if let [one] = views { one.clone() } else { Tensor::cat(views, 0)? })
}

/// (V, N, D) as (V N, D), view after view.
pub(crate) fn rows(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten(0, 1)?)
}

/// A value that moves from `start` to `end` along half a cosine while `progress` goes from 0 to 1: the momentum of a teacher, which ends
/// at 1 in Grill et al. 2020.
pub fn momentum_at([start, end]: [f64; 2], progress: f64) -> f64 {
    end - (end - start) * ((std::f64::consts::PI * progress).cos() + 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use twinsight_encoders::encoder;
    use twinsight_nn::DrawKey;

    #[test]
    fn momentum_goes_from_start_to_end() {
        for (progress, want) in [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)] {
            assert!((momentum_at([0.99, 1.0], progress) - want).abs() < 1e-12);
            assert!((momentum_at([0.99, 0.99], progress) - 0.99).abs() < 1e-12);
        }
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
        let got = vectors(&*together, &views, &mode)?;
        let want: Vec<Tensor> = views.iter().map(|v| Ok(alone.forward(v, &mode)?.pooled)).collect::<Result<_>>()?;
        let want = Tensor::stack(&want, 0)?;
        assert_eq!(got.dims(), &[3, 3, together.dim()]);
        assert!((got - want)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
        for (a, b) in p.iter().zip(q.iter()) {
            let difference = (a.value() - b.value())?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-5, "{} differs by {difference}", a.name());
        }
        Ok(())
    }
}
