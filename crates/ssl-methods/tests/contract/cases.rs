//! Methods with small networks and settings, and batches for them.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use toml::Table;
use twinsight_augment::Normalize;
use twinsight_encoders::{EncoderConfig, encoder};
use twinsight_nn::{Gradients, NormKind, Optimizer, OptimizerConfig, ParamStore, Precision};
use twinsight_ssl_methods::{At, EncoderNeed, LossOutput, METHODS, Method, MethodContext, MethodSpec};
use twinsight_test_support::procedural;

/// Images a batch.
pub const BATCH: usize = 6;

/// A method with a small network and small settings.
pub struct Case {
    pub spec: &'static MethodSpec,
    pub encoder: &'static str,
    pub settings: Table,
}

impl Case {
    pub fn build(&self, seed: u64) -> Result<Box<dyn Method>> {
        self.build_with(seed, NormKind::Batch, 0.0)
    }

    /// Whether the method cannot train this encoder.
    pub fn unfit(&self) -> bool {
        self.spec.encoder == EncoderNeed::Vit && !self.encoder.starts_with("vit")
    }

    pub fn build_with(&self, seed: u64, norm: NormKind, drop_path: f64) -> Result<Box<dyn Method>> {
        let context = MethodContext {
            encoder: encoder(self.encoder)?,
            encoder_config: EncoderConfig { channels: 1, image_size: 16, norm, drop_path, ..EncoderConfig::default() },
            normalize: Normalize { mean: vec![0.5], std: vec![0.25] },
            batch_size: BATCH,
            epochs: 4,
            steps_per_epoch: 5,
            seed,
            device: Device::Cpu,
        };
        Ok((self.spec.build)(&self.settings, &context)?)
    }

    pub fn start(&self, seed: u64) -> Result<(Box<dyn Method>, Optimizer)> {
        let method = self.build(seed)?;
        let config = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let optimizer = Optimizer::new(&config, method.student())?;
        Ok((method, optimizer))
    }

    /// One whole step on batch number `batch`.
    pub fn step(&self, method: &mut dyn Method, optimizer: &mut Optimizer, step: u64, batch: u32) -> Result<LossOutput> {
        let at = at(step);
        let views = batches(method, batch)?;
        let out = method.loss(&views, &at)?;
        let store = out.loss.backward()?;
        let mut gradients = Gradients::collect(&store, method.student())?;
        method.adjust_gradients(&mut gradients, &at)?;
        optimizer.step(&gradients, 0.05, 0.0)?;
        method.after_step(&at)?;
        Ok(out)
    }
}

pub fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for spec in METHODS {
        let small: Table = match spec.name {
            "simclr" => "projection_dim = 16".parse()?,
            "dcl" | "dclw" => "projection_dim = 16\ntemperature = 0.3".parse()?,
            "moco_v2" => "projection_dim = 16\nqueue_size = 4096\nnorm_groups = 3\nmomentum = 0.9\nmomentum_end = -1.0".parse()?,
            "nnclr" => {
                "hidden_dim = 32\nprojection_dim = 16\npredictor_hidden_dim = 32\nqueue_size = 16\ntemperature = 0.5".parse()?
            }
            "simsiam" => "hidden_dim = 32\nprojection_dim = 32\npredictor_hidden_dim = 8".parse()?,
            "barlow_twins" | "byol" | "moco_v3" | "vicreg" => "hidden_dim = 32\nprojection_dim = 16".parse()?,
            "swav" => {
                "hidden_dim = 32\nprojection_dim = 16\nprototypes = 24\nlocal_views = 2\nqueue_size = 12\nqueue_start_epoch = 0\n\
                 freeze_prototypes_steps = 0\nviews = { local_scale_min = 0.2 }"
                    .parse()?
            }
            "lejepa" => "hidden_dim = 32\nprojection_dim = 16\nslices = 32\nlocal_views = 2\nlambda = 0.2".parse()?,
            "mae" => "decoder_dim = 32\ndecoder_depth = 1\ndecoder_heads = 2\nmask_ratio = 0.5".parse()?,
            "ibot" | "dinov2" => {
                "hidden_dim = 32\nbottleneck_dim = 16\nout_dim = 24\nlocal_views = 2\nmask_ratio_min = 0.3\nfreeze_last_layer_epochs = 0"
                    .parse()?
            }
            "dino" => "hidden_dim = 32\nbottleneck_dim = 16\nout_dim = 24\nlocal_views = 2".parse()?,
            _ => Table::new(),
        };
        if spec.encoder == EncoderNeed::Any {
            cases.push(Case { spec, encoder: "resnet_mini", settings: small.clone() });
        }
        if matches!(spec.name, "dino" | "moco_v3" | "mae" | "ibot" | "dinov2") {
            cases.push(Case { spec, encoder: "vit_mini", settings: small });
        }
    }
    Ok(cases)
}

pub fn for_every_case(mut check: impl FnMut(&Case) -> Result<()>) -> Result<()> {
    for case in cases()? {
        check(&case).with_context(|| format!("{} with {}", case.spec.name, case.encoder))?;
    }
    Ok(())
}

/// Step `step` of 20; the first epoch, in which DINO's last layer is frozen, has 5.
pub fn at(step: u64) -> At {
    At { step, epoch: step / 5, steps_per_epoch: 5, epochs: 4, seed: 0, precision: Precision::F32 }
}

/// One batch a view of the plan: different blobs for different images, the same for one image's views up to noise.
pub fn batches(method: &dyn Method, number: u32) -> Result<Vec<Tensor>> {
    let plan = method.views();
    let mut views = Vec::new();
    for v in 0..plan.view_count() {
        let size = plan.view(v).size;
        let noise = procedural("cls_token", &[BATCH * size * size], 1000 * number + v as u32);
        let mut values = Vec::with_capacity(noise.len());
        for (i, n) in noise.into_iter().enumerate() {
            let (image, y, x) = (i / (size * size), i / size % size, i % size);
            let wave = ((image + 1) as f32 * x as f32 / size as f32 * 3.0).sin() + (image as f32 - y as f32 / size as f32).cos();
            values.push(wave + 5.0 * n + number as f32 * 0.1);
        }
        views.push(Tensor::from_vec(values, (BATCH, plan.channels, size, size), &Device::Cpu)?);
    }
    Ok(views)
}

pub fn bits(out: &LossOutput) -> Result<u32> {
    Ok(out.loss.to_scalar::<f32>()?.to_bits())
}

pub fn values(store: &ParamStore) -> Result<Vec<(String, Vec<u32>)>> {
    store.iter().map(|p| Ok((p.name().to_string(), flat(p.value())?.into_iter().map(f32::to_bits).collect()))).collect()
}

pub fn flat(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1::<f32>()?)
}

pub fn finite(t: &Tensor) -> Result<bool> {
    Ok(flat(t)?.iter().all(|v| v.is_finite()))
}
