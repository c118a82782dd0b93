//! The lowest layer: what holds where nothing else is said.

use toml::{Table, Value};
use twinsight_encoders::{Ffn, Stem};
use twinsight_nn::{NormKind, Precision};
use twinsight_ssl_methods::{METHODS, method};

use super::{
    DataConfig, EvalConfig, LogConfig, NetworkConfig, OptimizerSettings, RunConfig, ScheduleConfig, auto, cpu, full_levels,
    keep_bytes,
};
use crate::Result;
use crate::fit::Free;
use crate::layers::dotted_keys;

/// Every key of the configuration with the method's own, dotted.
pub fn all_keys(method_name: &str) -> Result<Vec<String>> {
    let mut table = defaults();
    table.insert("options".into(), Value::Table((method(method_name)?.defaults)()));
    Ok(dotted_keys(&table))
}

/// The defaults as a layer.
pub(super) fn defaults() -> Table {
    let defaults = RunConfig {
        method: METHODS[0].name.to_string(),
        encoder: "resnet_mini".into(),
        epochs: 20,
        batch: 256,
        micro_batch: 0,
        seed: 0,
        device: cpu(),
        data: DataConfig {
            path: String::new(),
            limit: 0,
            strict: false,
            labels: "auto".into(),
            held_out: 0.1,
            image_size: 0,
            mean: Vec::new(),
            std: Vec::new(),
            workers: 0,
            views_on: auto(),
            keep_bytes: keep_bytes(),
            reduced_decode: true,
            levels: full_levels(),
        },
        network: NetworkConfig {
            stem: Stem::Auto,
            patch: 0,
            registers: 0,
            layer_scale: 0.0,
            ffn: Ffn::Mlp,
            heads: 0,
            drop_path: 0.0,
            zero_init_residual: false,
            norm: NormKind::Batch,
            precision: Precision::F32,
            checkpoint_activations: false,
            freeze: Vec::new(),
            init: String::new(),
        },
        optimizer: OptimizerSettings {
            kind: "sgd".into(),
            momentum: 0.9,
            nesterov: false,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            trust_coefficient: 0.001,
            clip_lr: false,
            clip_norm: 0.0,
        },
        schedule: ScheduleConfig {
            lr: 0.06,
            lr_batch: 128,
            warmup_epochs: 1.0,
            lr_end: 0.0,
            by_epoch: false,
            weight_decay: 5e-4,
            weight_decay_end: 5e-4,
        },
        eval: EvalConfig {
            every: 1,
            k: vec![5, 10, 20, 50, 200],
            temperature: vec![0.03, 0.07, 0.1, 0.2],
            batch: 256,
            baselines: true,
            probe_images: 0,
            published: false,
        },
        log: LogConfig { every: 10, checkpoint_seconds: 60, on_collapse: "stop".into() },
        options: Table::new(),
        free: Free::default(),
    };
    Table::try_from(defaults).expect("the defaults are plain numbers and words")
}
