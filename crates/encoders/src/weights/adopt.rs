//! From a file's tensors to an encoder: which part of the file it is and whose names it has, what the shapes say about its
//! settings, and then every parameter, strictly.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use twinsight_nn::{Builder, NormKind, ParamStore};

use super::positions::{Table, adapt};
use super::{Layout, Source, Weights, bad, layouts_of};
use crate::{Arch, Encoder, EncoderConfig, EncoderSpec, Error, Ffn, Result, Stem};

/// What may be said about a file before it is read.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What the names of the encoder's tensors begin with, where the file holds several (`teacher.backbone.`).
    pub prefix: Option<String>,
    /// The side of the images that the encoder is built for; `None`: as the file's positions say, else 224 (32 with a small stem).
    pub image_size: Option<usize>,
}

/// An encoder with a file's weights.
pub struct Adopted {
    /// The network.
    pub encoder: Box<dyn Encoder>,
    /// Its parameters.
    pub params: ParamStore,
    /// What was done.
    pub report: ImportReport,
}

/// What of a file went where.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ImportReport {
    /// Whose names the file has.
    pub layout: String,
    /// What they begin with.
    pub prefix: String,
    /// Tensors that became parameters: our name and theirs.
    pub mapped: BTreeMap<String, String>,
    /// Tensors of the file that are no part of the encoder: heads, other networks, counters, optimizer state.
    pub skipped: Vec<String>,
    /// Kinds of objects that are no tensors and were passed over.
    pub passed_over: Vec<String>,
    /// Patches along a side, in the file and in the encoder, where positions were resampled.
    pub resampled: Option<(usize, usize)>,
}

/// Turns a file's tensors into an encoder of kind `spec`, whatever home's names they have and whatever stands before them.
/// Channels, stem, patches, registers, factors of branches and gated layers are read off the shapes.
///
/// # Errors
/// A missing tensor, one of a wrong shape, or one that this kind of encoder does not have, by name.
pub fn import(weights: &Weights, spec: &'static EncoderSpec, options: &ImportOptions) -> Result<Adopted> {
    let small = EncoderConfig { image_size: 32, patch: Some(4), ..EncoderConfig::default() };
    let plain = Builder::zeros(&Device::Cpu);
    (spec.build)(&small, &plain)?;
    let names: Vec<String> = plain.registered().iter().map(|p| p.name().to_string()).collect();
    let found = recognise(weights, spec, &names, options)?;
    let config = found.settings(spec, options)?;
    let builder = Builder::zeros(&Device::Cpu);
    let encoder = (spec.build)(&config, &builder)?;
    let params = builder.finish();
    let report = found.load(&config, &params)?;
    Ok(Adopted { encoder, params, report })
}

/// Fills the parameters of an encoder that was built with `config` from a file's tensors, as [`import`] does; positions are
/// resampled to the encoder's own.
///
/// # Errors
/// As [`import`]. Nothing is changed then.
pub fn initialise(
    weights: &Weights,
    spec: &'static EncoderSpec,
    config: &EncoderConfig,
    params: &ParamStore,
    options: &ImportOptions,
) -> Result<ImportReport> {
    let names: Vec<String> = params.iter().map(|p| p.name().to_string()).collect();
    recognise(weights, spec, &names, options)?.load(config, params)
}

/// A part of a file that looks like an encoder.
struct Candidate<'a> {
    weights: &'a Weights,
    layout: &'static Layout,
    prefix: String,
    /// Names below the prefix, those of blocks in chunks made plain, with their names in the file.
    local: BTreeMap<String, &'a str>,
    score: usize,
}

/// Names that heads and what belongs to training have.
const HEADS: [&str; 19] = [
    "fc.",
    "head.",
    "heads.",
    "head_dist.",
    "classifier.",
    "projector.",
    "projection_head.",
    "predictor.",
    "prediction_head.",
    "mask_token",
    "embeddings.mask_token",
    "decoder",
    "pooler.",
    "dino_head.",
    "ibot_head.",
    "online_linear",
    "prototypes",
    "queue",
    "dist_token",
];

/// The part of the file that fits best. Among equals: a teacher before what is neither, that before a student, a momentum network
/// last.
fn recognise<'a>(weights: &'a Weights, spec: &EncoderSpec, names: &[String], options: &ImportOptions) -> Result<Candidate<'a>> {
    let anchor = match spec.arch {
        Arch::ResNet(_) => "conv1.weight",
        Arch::ConvNext(_) => "stem.0.weight",
        Arch::ViT(_) => "patch_embed.proj.weight",
    };
    let mut best: Option<(usize, i32, Candidate<'a>)> = None;
    for layout in layouts_of(&spec.arch) {
        let mut prefixes = BTreeSet::new();
        for source in (layout.sources)(anchor, Ffn::Mlp) {
            let ends = weights.names().filter_map(|name| name.strip_suffix(&source.parts[0]));
            prefixes.extend(ends.filter(|p| p.is_empty() || p.ends_with('.')));
        }
        if let Some(asked) = &options.prefix {
            let dotted = if asked.is_empty() || asked.ends_with('.') { asked.clone() } else { format!("{asked}.") };
            prefixes.retain(|p| *p == dotted);
        }
        for prefix in prefixes {
            let local: BTreeMap<String, &str> =
                weights.names().filter_map(|n| Some((unchunked(n.strip_prefix(prefix)?), n))).collect();
            let has = |s: &Source| s.parts.iter().all(|p| local.contains_key(p));
            let score = names.iter().filter(|n| (layout.sources)(n, Ffn::Mlp).iter().any(&has)).count();
            let rank = match () {
                _ if prefix.contains("teacher") => 3,
                _ if prefix.contains("momentum") || prefix.contains("encoder_k") => 0,
                _ if prefix.contains("student") => 1,
                _ => 2,
            };
            if best.as_ref().is_none_or(|(s, r, _)| (score, rank) > (*s, *r)) {
                let candidate = Candidate { weights, layout, prefix: prefix.to_string(), local, score };
                best = Some((score, rank, candidate));
            }
        }
    }
    match best {
        Some((score, _, candidate)) if 2 * score > names.len() => Ok(candidate),
        _ => {
            let some: Vec<&str> = weights.names().take(3).collect();
            Err(bad(
                weights.path(),
                format!(
                    "holds no {} in a layout that is known{}; its {} tensors begin with {}",
                    spec.name,
                    options.prefix.as_ref().map_or(String::new(), |p| format!(" below `{p}`")),
                    weights.names().count(),
                    some.join(", ")
                ),
            ))
        }
    }
}

/// `blocks.1.7.norm1.weight`, as DINOv2 calls the blocks of a chunk while training, is `blocks.7.norm1.weight`.
fn unchunked(name: &str) -> String {
    let plain = || {
        let (chunk, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        let (number, _) = rest.split_once('.')?;
        (chunk.parse::<usize>().is_ok() && number.parse::<usize>().is_ok()).then(|| format!("blocks.{rest}"))
    };
    plain().unwrap_or_else(|| name.to_string())
}

impl Candidate<'_> {
    /// Where the parameter `name` is in the file.
    fn source(&self, name: &str, ffn: Ffn) -> Option<Source> {
        let mut all = (self.layout.sources)(name, ffn).into_iter();
        all.find(|s| s.parts.iter().all(|p| self.local.contains_key(p)))
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let source = self.source(name, Ffn::Mlp)?;
        self.weights.shape(self.local[&source.parts[0]])
    }

    /// What the shapes say.
    fn settings(&self, spec: &EncoderSpec, options: &ImportOptions) -> Result<EncoderConfig> {
        let wrong = |name: &str, shape: &[usize], expected: &str| {
            bad(self.weights.path(), format!("tensor `{}{name}` has shape {shape:?}, expected {expected}", self.prefix))
        };
        let first = |name: &str| match self.shape(name) {
            Some(&[_, channels, side, other]) if side == other && channels > 0 && side > 0 => Ok((channels, side)),
            Some(shape) => Err(wrong(name, shape, "(outputs, channels, side, side)")),
            None => Err(bad(self.weights.path(), format!("tensor `{}{name}` is missing", self.prefix))),
        };
        let plain = EncoderConfig::default();
        Ok(match spec.arch {
            Arch::ResNet(_) => {
                let (channels, side) = first("conv1.weight")?;
                let stem = if side == 3 { Stem::Cifar } else { Stem::Imagenet };
                let image_size = options.image_size.unwrap_or(if side == 3 { 32 } else { 224 });
                let norm = if self.shape("bn1.running_mean").is_some() { NormKind::Batch } else { NormKind::Group };
                EncoderConfig { channels, stem, image_size, norm, ..plain }
            }
            Arch::ConvNext(_) => {
                let (channels, side) = first("stem.0.weight")?;
                let image_size = options.image_size.unwrap_or(if side < 4 { 32 } else { 224 });
                EncoderConfig { channels, patch: Some(side), stem: Stem::Imagenet, image_size, ..plain }
            }
            Arch::ViT(shape) => {
                let (channels, patch) = first("patch_embed.proj.weight")?;
                let registers = match self.shape("reg_token") {
                    Some(&[_, count, _]) => count,
                    _ => 0,
                };
                let table = self.table(registers)?;
                let wide = self.shape("blocks.0.mlp.fc1.weight").and_then(|s| s.first()).copied();
                let gated = self.shape("blocks.0.mlp.fc2.weight").and_then(|s| s.last()).copied()
                    == Some(crate::vit::swiglu_width(shape.dim));
                let ffn = if gated && wide != Some(4 * shape.dim) { Ffn::SwiGlu } else { Ffn::Mlp };
                let layer_scale = if self.shape("blocks.0.ls1.gamma").is_some() { 1e-5 } else { 0.0 };
                let image_size = options.image_size.unwrap_or(table.side * patch);
                EncoderConfig { channels, patch: Some(patch), image_size, registers, layer_scale, ffn, ..plain }
            }
        })
    }

    /// The form of a transformer's positions.
    fn table(&self, registers: usize) -> Result<Table> {
        let shape = self.shape("pos_embed").unwrap_or_default();
        let understood = if let &[1, rows, _] = shape { Table::of(rows, registers) } else { None };
        understood.ok_or_else(|| {
            bad(
                self.weights.path(),
                format!("tensor `{}pos_embed` (or what it is called there) has shape {shape:?}, expected (1, rows, D) for a square of patches", self.prefix),
            )
        })
    }

    /// Fills `params`, all of them.
    fn load(&self, config: &EncoderConfig, params: &ParamStore) -> Result<ImportReport> {
        let place = self.weights.path().display().to_string();
        let mut values: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut mapped = BTreeMap::new();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for p in params.iter() {
            let Some(source) = self.source(p.name(), config.ffn) else {
                return Err(Error::Nn(twinsight_nn::Error::MissingTensor {
                    place,
                    name: format!("{}{}", self.prefix, self.first_name(p.name(), config.ffn)),
                    expected: p.dims().to_vec(),
                }));
            };
            let names: Vec<&str> = source.parts.iter().map(|part| self.local[part]).collect();
            let parts = names.iter().map(|name| self.weights.read(name)).collect::<Result<Vec<_>>>()?;
            let value = if let [one] = &parts[..] { one.clone() } else { Tensor::cat(&parts, 0)? };
            mapped.insert(p.name().to_string(), names.join(" + "));
            used.extend(names);
            values.insert(p.name().to_string(), value);
        }
        let mut resampled = None;
        if let (Some(class), Some(positions)) = (values.remove("cls_token"), values.remove("pos_embed")) {
            let (table, side) = (self.table(config.registers)?, config.image_size / config.resolved_patch());
            let dim = positions.dim(2)?;
            if class.elem_count() != dim {
                return Err(bad(
                    self.weights.path(),
                    format!("the class token has shape {:?}, expected (1, 1, {dim})", class.dims()),
                ));
            }
            let tokens = adapt(class.reshape((1, 1, dim))?, values.remove("reg_token"), &positions, table, side)?;
            values.insert("cls_token".into(), tokens.class);
            values.insert("pos_embed".into(), tokens.positions);
            values.extend(tokens.registers.map(|t| ("reg_token".to_string(), t)));
            resampled = (table.side != side).then_some((table.side, side));
        }
        for p in params.iter() {
            let value = &values[p.name()];
            if without_ones(value.dims()) != without_ones(p.dims()) {
                return Err(Error::Nn(twinsight_nn::Error::ShapeMismatch {
                    place,
                    name: mapped[p.name()].clone(),
                    found: value.dims().to_vec(),
                    expected: p.dims().to_vec(),
                }));
            }
        }
        self.check_rest(&used, params)?;
        for p in params.iter() {
            p.set(&values[p.name()].reshape(p.dims())?)?;
        }
        Ok(ImportReport {
            layout: self.layout.name.to_string(),
            prefix: self.prefix.clone(),
            mapped,
            skipped: self.weights.names().filter(|n| !used.contains(n)).map(String::from).collect(),
            passed_over: self.weights.passed_over().to_vec(),
            resampled,
        })
    }

    fn first_name(&self, name: &str, ffn: Ffn) -> String {
        (self.layout.sources)(name, ffn).first().map_or_else(|| name.to_string(), |s| s.parts[0].clone())
    }

    /// A tensor beside the encoder's that is no head's means that the file holds another encoder: more blocks, say.
    fn check_rest(&self, used: &BTreeSet<&str>, params: &ParamStore) -> Result<()> {
        let known = |name: &str| {
            name.ends_with("num_batches_tracked")
                || HEADS.iter().any(|h| name.starts_with(h) || name.split('.').any(|part| part == h.trim_end_matches('.')))
        };
        // What other networks of the same file have is theirs: only names whose first part the encoder has too count, whatever
        // number stands at its end.
        let first = |name: &str| {
            let part = name.split('.').next().unwrap_or_default();
            let word = part.trim_end_matches(|c: char| c.is_ascii_digit());
            if word.is_empty() { part.to_string() } else { word.to_string() }
        };
        let sources = params.iter().flat_map(|p| (self.layout.sources)(p.name(), Ffn::Mlp));
        let own: BTreeSet<String> = sources.flat_map(|s| s.parts).map(|name| first(&name)).collect();
        let stranger =
            self.local.iter().find(|(local, full)| !used.contains(**full) && !known(local) && own.contains(&first(local)));
        match stranger {
            None => Ok(()),
            Some((_, full)) => Err(bad(
                self.weights.path(),
                format!(
                    "holds a tensor `{full}` that the encoder does not have ({} of its own were found): it is another encoder's file, \
                     see `twinsight list encoders`",
                    self.score
                ),
            )),
        }
    }
}

fn without_ones(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&n| n != 1).collect()
}
