//! From a file's tensors to an encoder: which part of the file it is and whose names it has, what the shapes say about its
//! settings, and then every parameter, strictly.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use twinsight_nn::{Builder, NormKind, ParamStore, matches_pattern};

use super::opcodes::refusal;
use super::positions::{Table, adapt};
use super::{Layout, Source, Weights, bad, layouts_of};
use crate::{Arch, Encoder, EncoderConfig, EncoderSpec, Error, Ffn, Result, Stem, ViTShape};

/// What may be said about a file before it is read.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What the names of the encoder's tensors begin with, where the file holds several (`teacher.backbone.`).
    pub prefix: Option<String>,
    /// The side of the images that the encoder is built for; `None`: as the file's positions say, else 224 (32 with a small stem).
    pub image_size: Option<usize>,
    /// Attention heads of a transformer, which no shape tells; 0: as many as its paper has, but 12 for MoCo v3's small one.
    pub heads: usize,
    /// Tensors that are no part of the encoder, beside those known as heads': names, below the prefix or whole, in which `*` stands
    /// for any run of characters.
    pub skip: Vec<String>,
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
    /// Kinds of objects that are no tensors and were passed over, with the tensors in them.
    pub passed_over: Vec<String>,
    /// Patches along a side, in the file and in the encoder, where positions were resampled.
    pub resampled: Option<(usize, usize)>,
}

impl ImportReport {
    /// One line: whose layout, how many tensors went where, the first of those that were skipped, the first kinds that were passed over.
    pub fn summary(&self) -> String {
        const TOLD: usize = 3;
        let below = if self.prefix.is_empty() { String::new() } else { format!(" below `{}`", self.prefix) };
        let some: Vec<&str> = self.skipped.iter().take(TOLD).map(String::as_str).collect();
        let some = match self.skipped.len() {
            0 => String::new(),
            1..=TOLD => format!(" ({})", some.join(", ")),
            more => format!(" ({} and {} more)", some.join(", "), more - TOLD),
        };
        let moved = self
            .resampled
            .map_or(String::new(), |(from, to)| format!("; positions resampled from {from} × {from} to {to} × {to} patches"));
        let kinds: Vec<&str> = self.passed_over.iter().take(TOLD).map(String::as_str).collect();
        let kinds = if kinds.is_empty() { String::new() } else { format!("; objects passed over: {}", kinds.join(", ")) };
        let (mapped, skipped) = (self.mapped.len(), self.skipped.len());
        format!("{}'s layout{below}, {mapped} tensors mapped, {skipped} skipped{some}, none missing{moved}{kinds}", self.layout)
    }
}

/// Turns a file's tensors into an encoder of kind `spec`, whatever home's names they have and whatever stands before them.
/// Channels, stem, patches, registers, factors of branches and gated layers are read off the shapes.
///
/// # Errors
/// A missing tensor, one of a wrong shape, or one that this kind of encoder does not have, by name; a kind that has no home
/// elsewhere.
pub fn import(weights: &Weights, spec: &'static EncoderSpec, options: &ImportOptions) -> Result<Adopted> {
    let found = recognise(weights, spec, &names_of(spec)?, options)?;
    let config = found.settings(options)?;
    let builder = Builder::zeros(&Device::Cpu);
    let encoder = (spec.build)(&config, &builder)?;
    let params = builder.finish();
    let report = found.load(&config, &params)?;
    Ok(Adopted { encoder, params, report })
}

/// What the shapes of a file's tensors say about the encoder of kind `spec` that it holds. Only the file's names and shapes are
/// looked at.
///
/// # Errors
/// No such encoder in the file, or tensors of shapes that it can't have.
pub fn settings(weights: &Weights, spec: &'static EncoderSpec, options: &ImportOptions) -> Result<EncoderConfig> {
    recognise(weights, spec, &names_of(spec)?, options)?.settings(options)
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

/// The names of an encoder's parameters in its plainest form.
fn names_of(spec: &EncoderSpec) -> Result<Vec<String>> {
    if matches!(spec.arch, Arch::ViT(shape) if shape.backbone.is_some()) {
        return Err(Error::Unsupported(format!(
            "{} has no home elsewhere: only files that twinsight wrote hold one, which need no import",
            spec.name
        )));
    }
    let small = EncoderConfig { image_size: 32, patch: Some(4), ..EncoderConfig::default() };
    let plain = Builder::zeros(&Device::Cpu);
    (spec.build)(&small, &plain)?;
    Ok(plain.registered().iter().map(|p| p.name().to_string()).collect())
}

/// A part of a file that looks like an encoder.
struct Candidate<'a> {
    weights: &'a Weights,
    spec: &'a EncoderSpec,
    layout: &'static Layout,
    prefix: String,
    /// Names below the prefix, those of blocks in chunks made plain, with their names in the file.
    local: BTreeMap<String, &'a str>,
    score: usize,
    skip: &'a [String],
}

/// What the names of heads, and of what belongs to training, begin with below an encoder's own prefix.
const HEADS: [&str; 25] = [
    "fc.",
    "head.",
    "heads.",
    "head_dist.",
    "mlp_head.",
    "proj_head.",
    "last_linear.",
    "classifier.",
    "projector.",
    "projection.",
    "projection_head.",
    "predictor.",
    "prediction_head.",
    "mask_token",
    "masked_embed",
    "embeddings.mask_token",
    "decoder",
    "pooler.",
    "dino_head.",
    "ibot_head.",
    "online_linear",
    "online_head",
    "prototypes",
    "queue",
    "dist_token",
];

/// What the names of a training's state begin with, where the encoder's own have no prefix.
const TRAINING: [&str; 9] = ["optim", "lr_sched", "sched", "scaler", "amp.", "ema", "loss", "criterion", "rng"];

/// Most places of a file that are looked at for an encoder; checkpoints have two or three.
const MOST_PREFIXES: usize = 64;

/// The part of the file that fits best. Among equals: a teacher before what is neither, that before a student, a momentum network
/// last.
fn recognise<'a>(
    weights: &'a Weights,
    spec: &'a EncoderSpec,
    names: &[String],
    options: &'a ImportOptions,
) -> Result<Candidate<'a>> {
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
        if prefixes.len() > MOST_PREFIXES {
            let count = prefixes.len();
            return Err(bad(weights.path(), format!("holds {count} networks; name the one that is meant by its prefix")));
        }
        for prefix in prefixes {
            let local: BTreeMap<String, &str> =
                weights.names_below(prefix).filter_map(|n| Some((unchunked(n.strip_prefix(prefix)?), n))).collect();
            let has = |s: &Source| s.parts.iter().all(|p| local.contains_key(p));
            let score = names.iter().filter(|n| (layout.sources)(n, Ffn::Mlp).iter().any(&has)).count();
            let rank = match () {
                _ if prefix.contains("teacher") => 3,
                _ if prefix.contains("momentum") || prefix.contains("encoder_k") => 0,
                _ if prefix.contains("student") => 1,
                _ => 2,
            };
            if best.as_ref().is_none_or(|(s, r, _)| (score, rank) > (*s, *r)) {
                let prefix = prefix.to_string();
                let candidate = Candidate { weights, spec, layout, prefix, local, score, skip: &options.skip };
                best = Some((score, rank, candidate));
            }
        }
    }
    match best {
        Some((score, _, candidate)) if 2 * score > names.len() => Ok(candidate),
        _ => {
            let some: Vec<&str> = weights.names().take(3).collect();
            let below = options.prefix.as_ref().map_or(String::new(), |p| format!(" below `{p}`"));
            let begin = match weights.names().count() {
                0 => "it has no tensors".to_string(),
                count => format!("its {count} tensors begin with {}", some.join(", ")),
            };
            let closed = weights.closed().next().map_or(String::new(), |(name, kind)| {
                format!("; the tensors in `{name}`, an object of kind `{kind}`, are not read")
            });
            Err(bad(weights.path(), format!("holds no {} in a layout that is known{below}; {begin}{closed}", spec.name)))
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
    fn settings(&self, options: &ImportOptions) -> Result<EncoderConfig> {
        let wrong = |name: &str, shape: &[usize], expected: &str| {
            bad(self.weights.path(), format!("tensor `{}{name}` has shape {shape:?}, expected {expected}", self.prefix))
        };
        let first = |name: &str| match self.shape(name) {
            Some(&[count, channels, side, other]) if side == other && count > 0 && channels > 0 && side > 0 => {
                Ok((channels, side))
            }
            Some(shape) => Err(wrong(name, shape, "(outputs, channels, side, side)")),
            None => Err(bad(self.weights.path(), format!("tensor `{}{name}` is missing", self.prefix))),
        };
        let plain = EncoderConfig::default();
        let config = match self.spec.arch {
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
                let of_moco_v3 = ["base_encoder.", "momentum_encoder."].iter().any(|p| self.prefix.ends_with(p));
                let heads = match options.heads {
                    0 if of_moco_v3 && shape.dim == 384 => 12,
                    heads => heads,
                };
                let wide = self.shape("blocks.0.mlp.fc1.weight").and_then(|s| s.first()).copied();
                let gated = self.shape("blocks.0.mlp.fc2.weight").and_then(|s| s.last()).copied()
                    == Some(crate::vit::swiglu_width(shape.dim));
                let ffn = if gated && wide != Some(4 * shape.dim) { Ffn::SwiGlu } else { Ffn::Mlp };
                let layer_scale = if self.shape("blocks.0.ls1.gamma").is_some() { 1e-5 } else { 0.0 };
                let image_size = options.image_size.unwrap_or(table.side * patch);
                EncoderConfig { channels, patch: Some(patch), image_size, registers, layer_scale, ffn, heads, ..plain }
            }
        };
        config.check().map_err(|e| bad(self.weights.path(), e))?;
        Ok(config)
    }

    /// The form of a transformer's positions.
    fn table(&self, registers: usize) -> Result<Table> {
        let shape = self.shape("pos_embed").unwrap_or_default();
        let Arch::ViT(ViTShape { dim, .. }) = self.spec.arch else {
            return Err(bad(self.weights.path(), format!("{} has no positions", self.spec.name)));
        };
        let understood = match shape {
            &[1, rows, found] if found == dim => Table::of(rows, registers),
            _ => None,
        };
        understood.ok_or_else(|| {
            let name = self.first_name("pos_embed", Ffn::Mlp);
            let expected = format!("expected (1, rows, {dim}) for a square of patches");
            bad(self.weights.path(), format!("tensor `{}{name}` has shape {shape:?}, {expected}", self.prefix))
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
                let name = format!("{}{}", self.prefix, self.first_name(p.name(), config.ffn));
                let above = |closed: &str| name.strip_prefix(closed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
                if let Some((_, kind)) = self.weights.closed().find(|(closed, _)| above(closed)) {
                    return Err(bad(self.weights.path(), refusal(kind)));
                }
                return Err(Error::Nn(twinsight_nn::Error::MissingTensor { place, name, expected: p.dims().to_vec() }));
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
        self.check_rest(&used, config, params)?;
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

    /// A tensor beside the encoder's that is no head's means that the file holds another encoder, whose features would be others: one
    /// with more blocks, with registers, with layers that this one does not have.
    fn check_rest(&self, used: &BTreeSet<&str>, config: &EncoderConfig, params: &ParamStore) -> Result<()> {
        let beside = self.local.iter().filter(|(_, full)| !used.contains(**full) && !self.weights.is_whole(full));
        let last = self.last_child(params);
        let closed = self.weights.closed().filter_map(|(full, kind)| Some((full, full.strip_prefix(&self.prefix)?, kind)));
        if let Some((full, _, kind)) = closed.into_iter().find(|(full, local, _)| !self.is_no_part(&unchunked(local), full, last))
        {
            let advice = "where it is no part of the encoder, `twinsight import --skip PATTERN` leaves it out";
            return Err(bad(self.weights.path(), format!("`{full}` {}; {advice}", refusal(kind))));
        }
        let stranger = beside.into_iter().find(|(local, full)| !self.is_no_part(local, full, last));
        let Some((local, full)) = stranger else { return Ok(()) };
        let registers = (self.layout.sources)("reg_token", config.ffn).iter().any(|s| s.parts.contains(local));
        let reason = match self.weights.shape(full) {
            Some(&[_, count, _]) if registers => format!(
                "holds {count} registers, `{full}`, and the encoder has {}: network.registers = {count} takes them",
                config.registers
            ),
            _ => format!(
                "holds a tensor `{full}` that a {} does not have and that no known head has, beside {} of its own: either it is another \
                 encoder's file (see `twinsight list encoders`), or a part of the training's that `twinsight import --skip PATTERN` \
                 leaves out",
                self.spec.name, self.score
            ),
        };
        Err(bad(self.weights.path(), reason))
    }

    /// Whether a tensor below the prefix is known to be none of the encoder's. Of children by number, `last` is the encoder's last.
    fn is_no_part(&self, local: &str, full: &str, last: Option<usize>) -> bool {
        let begins = |words: &[&str]| words.iter().any(|word| local.starts_with(word));
        let behind = || local.split('.').next().and_then(|n| n.parse::<usize>().ok()).zip(last).is_some_and(|(n, last)| n > last);
        begins(&HEADS)
            || self.prefix.is_empty() && begins(&TRAINING)
            || self.layout.name.starts_with("children") && behind()
            || self.skip.iter().any(|pattern| matches_pattern(pattern, local) || matches_pattern(pattern, full))
    }

    /// The largest number that a name of the encoder begins with.
    fn last_child(&self, params: &ParamStore) -> Option<usize> {
        let sources = params.iter().flat_map(|p| (self.layout.sources)(p.name(), Ffn::Mlp));
        sources.flat_map(|s| s.parts).filter_map(|part| part.split('.').next()?.parse().ok()).max()
    }
}

fn without_ones(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&n| n != 1).collect()
}
