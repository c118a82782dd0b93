//! Parameters by name and role: the store that owns them, and the builder that layers register them through.
//!
//! Every network builds its own store; a teacher is built anew and then given the student's values, so that the two can
//! never share memory. A layer keeps [`Parameter`] handles; the store keeps the same handles in order of registration.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{Device, Tensor, Var};

use crate::{Error, Init, Mode, Result};

/// What a tensor of a network is, which decides how optimizers and EMA treat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A weight matrix or filter: decayed.
    Weight,
    /// An additive bias: not decayed, not scaled by LARS.
    Bias,
    /// Scale or shift of a normalisation layer, and other gains (layer scale): treated like a bias.
    Norm,
    /// Class, mask and register tokens and position tables: not decayed (timm's and DINO's rule).
    Token,
    /// State without a gradient: running statistics. Never touched by an optimizer.
    Buffer,
}

/// A named tensor of a network. Cloning gives another handle to the same memory.
#[derive(Debug, Clone)]
pub struct Parameter {
    name: Arc<str>,
    role: Role,
    frozen: bool,
    var: Var,
    /// The same storage without the gradient flag.
    plain: Tensor,
}

impl Parameter {
    /// The full name, parts joined by dots, as PyTorch would call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether an optimizer may change it: everything but buffers and what was frozen ([`Builder::freezing`]).
    pub fn is_trainable(&self) -> bool {
        self.role != Role::Buffer && !self.frozen
    }

    /// The tensor to compute with: part of the graph when `mode.grad` holds and it is trainable, plain otherwise.
    pub fn get(&self, mode: &Mode) -> &Tensor {
        if mode.grad && self.is_trainable() { self.var.as_tensor() } else { &self.plain }
    }

    /// The live variable: what gradients are looked up by.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The current values outside of any graph. Shares memory with the live variable and changes with it.
    pub fn value(&self) -> &Tensor {
        &self.plain
    }

    /// Sizes.
    pub fn dims(&self) -> &[usize] {
        self.plain.dims()
    }

    /// Overwrites the values in place; every handle sees it.
    ///
    /// # Errors
    /// When shape, type or device differ.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        if value.dims() != self.dims() {
            return Err(Error::ShapeMismatch {
                place: "assignment".into(),
                name: self.name.to_string(),
                found: value.dims().to_vec(),
                expected: self.dims().to_vec(),
            });
        }
        Ok(self.var.set(&value.contiguous()?)?)
    }
}

/// All parameters of one network, in order of registration.
#[derive(Debug, Clone, Default)]
pub struct ParamStore {
    params: Vec<Parameter>,
    index: HashMap<Arc<str>, usize>,
}

impl ParamStore {
    /// Every parameter and buffer, in order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.params.iter()
    }

    /// The trainable ones, in order of registration.
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.params.iter().filter(|p| p.is_trainable())
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).map(|&i| &self.params[i])
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// How many trainable numbers there are.
    pub fn trainable_count(&self) -> usize {
        self.trainable().map(|p| p.plain.elem_count()).sum()
    }

    /// Those whose names begin with `prefix` and a dot, with names shortened by it: a part of a network by itself. The
    /// handles are shared with this store.
    pub fn sub_store(&self, prefix: &str) -> Self {
        let mut part = Self::default();
        for p in &self.params {
            if let Some(rest) = p.name.strip_prefix(prefix).and_then(|r| r.strip_prefix('.')) {
                part.push(Parameter { name: rest.into(), ..p.clone() }).expect("names stay distinct below one prefix");
            }
        }
        part
    }

    /// Deep copies of all values by name: nothing in the result changes when the network trains on.
    ///
    /// # Errors
    /// When candle fails to copy.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        // Not `copy`, whose result shares its memory on Metal.
        self.params.iter().map(|p| Ok((p.name.to_string(), p.plain.force_contiguous()?))).collect()
    }

    /// Overwrites every value from `tensors`, strictly. All names and shapes are checked before the first value changes.
    /// `place` (a file, say) is named in errors.
    ///
    /// # Errors
    /// A tensor that is missing, extra or misshapen, by name.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>, place: &str) -> Result<()> {
        for p in &self.params {
            let Some(t) = tensors.get(&*p.name) else {
                return Err(Error::MissingTensor { place: place.into(), name: p.name.to_string(), expected: p.dims().to_vec() });
            };
            if t.dims() != p.dims() {
                return Err(Error::ShapeMismatch {
                    place: place.into(),
                    name: p.name.to_string(),
                    found: t.dims().to_vec(),
                    expected: p.dims().to_vec(),
                });
            }
        }
        if let Some(name) = tensors.keys().find(|k| !self.index.contains_key(k.as_str())) {
            return Err(Error::ExtraTensor { place: place.into(), name: name.clone() });
        }
        for p in &self.params {
            let t = tensors[&*p.name].to_dtype(p.plain.dtype())?.to_device(p.plain.device())?;
            p.set(&t)?;
        }
        Ok(())
    }

    /// Gives this network the values of `other`, which must have the same names and shapes (a teacher's start).
    ///
    /// # Errors
    /// A parameter that only one side has, or of another shape.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        self.load(&other.snapshot()?, "copy of a network")
    }

    /// The current values as a source of weights for models written on candle-nn, such as those of candle-transformers. A copy:
    /// it does not change when the network trains on.
    ///
    /// # Errors
    /// When candle fails to copy.
    pub fn var_builder(&self, device: &Device) -> Result<candle_nn::VarBuilder<'static>> {
        let tensors = self.snapshot()?.into_iter().collect();
        Ok(candle_nn::VarBuilder::from_tensors(tensors, candle_core::DType::F32, device))
    }

    fn push(&mut self, parameter: Parameter) -> Result<()> {
        if self.index.insert(parameter.name.clone(), self.params.len()).is_some() {
            return Err(Error::DuplicateParameter(parameter.name.to_string()));
        }
        self.params.push(parameter);
        Ok(())
    }
}

/// Registers parameters under a prefix while a network is being built. Cloning and [`Builder::under`] share one store.
#[derive(Debug, Clone)]
pub struct Builder {
    store: Arc<Mutex<ParamStore>>,
    prefix: String,
    /// What full names begin with that patterns of [`Builder::freezing`] leave out, and the patterns.
    frozen: (usize, Arc<[String]>),
    /// `None`: everything starts at 0.
    seed: Option<u64>,
    /// Where values will come from, with its shapes by name; `None` where that is open.
    expected: Option<Arc<Expected>>,
    device: Device,
}

/// The shapes of a file's tensors by name.
#[derive(Debug)]
struct Expected {
    place: String,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Builder {
    /// A builder with an empty store. Starting values are drawn from (`seed`, name).
    pub fn new(seed: u64, device: &Device) -> Self {
        Self::with_seed(Some(seed), device)
    }

    /// A builder whose parameters all start at 0: for networks whose values come from elsewhere, or that are only looked at.
    pub fn zeros(device: &Device) -> Self {
        Self::with_seed(None, device)
    }

    /// A builder of zeros for the tensors of `place` (a file, say), whose shapes are `shapes`: a parameter that it lacks, or has in
    /// another shape, is refused before memory is taken for it. So a network takes no more than its file has, whatever its
    /// settings claim.
    pub fn expecting(place: impl Into<String>, shapes: BTreeMap<String, Vec<usize>>, device: &Device) -> Self {
        let expected = Some(Arc::new(Expected { place: place.into(), shapes }));
        Self { expected, ..Self::zeros(device) }
    }

    fn with_seed(seed: Option<u64>, device: &Device) -> Self {
        let frozen = (0, Arc::default());
        Self { store: Arc::default(), prefix: String::new(), frozen, seed, expected: None, device: device.clone() }
    }

    /// The same builder, whose parameters are frozen where their names below it match one of `patterns`: they are no part of a
    /// graph, and no optimizer changes them. `*` stands for any run of characters, dots too. Running statistics of a frozen norm go
    /// on to follow the batches, as PyTorch's do.
    pub fn freezing(&self, patterns: &[String]) -> Self {
        let place = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        Self { frozen: (place, patterns.into()), ..self.clone() }
    }

    /// The builder of the part `name`: `under("layer1").under("0")` registers below `layer1.0.`.
    pub fn under(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.full_name(&name.to_string()), ..self.clone() }
    }

    /// The name that `name` gets here.
    pub fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// The prefix without its last dot: the layer's own name.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The seed of the starting values; 0 for a builder of zeros.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Registers a parameter of `shape` (PyTorch's layout) with starting values by `init`.
    ///
    /// # Errors
    /// A name that is taken; a tensor that is expected ([`Builder::expecting`]) and missing or misshapen.
    pub fn parameter(&self, name: &str, shape: &[usize], role: Role, init: Init) -> Result<Parameter> {
        let full = self.full_name(name);
        if let Some(Expected { place, shapes }) = self.expected.as_deref() {
            let (place, expected) = (place.clone(), shape.to_vec());
            match shapes.get(&full) {
                None => return Err(Error::MissingTensor { place, name: full, expected }),
                Some(found) if found != shape => {
                    return Err(Error::ShapeMismatch { place, name: full, found: found.clone(), expected });
                }
                Some(_) => {}
            }
        }
        let values = match self.seed {
            Some(seed) => init.values(&full, shape, seed),
            None => vec![0.0; shape.iter().product()],
        };
        let var = Var::from_vec(values, shape, &self.device)?;
        let (place, patterns) = &self.frozen;
        let frozen = patterns.iter().any(|pattern| matches_pattern(pattern, &full[*place..]));
        let parameter = Parameter { name: full.into(), role, frozen, plain: var.as_detached_tensor(), var };
        self.lock().push(parameter.clone())?;
        Ok(parameter)
    }

    /// What was registered so far below this builder's prefix, in order.
    pub fn registered(&self) -> Vec<Parameter> {
        let below = |p: &&Parameter| {
            self.prefix.is_empty() || p.name.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with('.'))
        };
        self.lock().params.iter().filter(below).cloned().collect()
    }

    /// The store with everything registered so far, through this builder and those made from it.
    pub fn finish(&self) -> ParamStore {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ParamStore> {
        self.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether `name` is `pattern`, in which `*` stands for any run of characters.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            let Some(at) = rest.find(middle) else { return false };
            rest = &rest[at + middle.len()..];
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DrawKey;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, want) in [
            ("layer1.*", "layer1.0.conv1.weight", true),
            ("layer1.*", "layer10.0.conv1.weight", false),
            ("*.bn?.weight", "layer1.0.bn1.weight", false),
            ("*.norm*.weight", "blocks.3.norm1.weight", true),
            ("conv1.weight", "conv1.weight", true),
            ("conv1", "conv1.weight", false),
            ("*", "anything", true),
            ("a*a", "a", false),
            ("", "", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn frozen_parameters_are_no_part_of_a_graph() -> Result<()> {
        let b = Builder::new(0, &Device::Cpu).under("backbone").freezing(&["conv*".to_string()]);
        let frozen = b.under("conv1").parameter("weight", &[2], Role::Weight, Init::Constant(1.0))?;
        let free = b.under("fc").parameter("weight", &[2], Role::Weight, Init::Constant(1.0))?;
        let mode = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 });
        let gradients = (frozen.get(&mode) * free.get(&mode))?.sum_all()?.backward()?;
        assert!(gradients.get(frozen.var()).is_none() && gradients.get(free.var()).is_some());
        assert_eq!(b.finish().trainable().map(Parameter::name).collect::<Vec<_>>(), ["backbone.fc.weight"]);
        Ok(())
    }

    fn two() -> Result<(ParamStore, Parameter)> {
        let b = Builder::new(3, &Device::Cpu);
        let w = b.under("head").parameter("weight", &[2, 3], Role::Weight, Init::TorchDefault)?;
        b.under("norm").parameter("running_mean", &[3], Role::Buffer, Init::Constant(0.0))?;
        Ok((b.finish(), w))
    }

    #[test]
    fn loading_is_strict_and_changes_nothing_on_error() -> Result<()> {
        let (store, w) = two()?;
        let before = w.value().to_vec2::<f32>()?;
        let good = store.snapshot()?;
        let mut missing = good.clone();
        missing.remove("norm.running_mean");
        let mut extra = good.clone();
        extra.insert("head.bias".into(), Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu)?);
        let mut shape = good.clone();
        shape.insert("norm.running_mean".into(), Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu)?);
        for (bad, word) in [(missing, "norm.running_mean"), (extra, "head.bias"), (shape, "[4]")] {
            let mut bad = bad;
            bad.insert("head.weight".into(), Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?);
            let text = store.load(&bad, "file").expect_err("must be refused").to_string();
            assert!(text.contains(word), "{text}");
            assert_eq!(before, w.value().to_vec2::<f32>()?);
        }
        store.load(&good, "file")
    }

    #[test]
    fn a_snapshot_and_a_copy_share_nothing_with_the_network() -> Result<()> {
        let (student, w) = two()?;
        let (teacher, tw) = two()?;
        teacher.copy_from(&student)?;
        let kept = student.snapshot()?;
        w.set(&Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?)?;
        assert_eq!(w.value().to_vec2::<f32>()?, vec![vec![1.0; 3]; 2]);
        assert_ne!(tw.value().to_vec2::<f32>()?, vec![vec![1.0; 3]; 2]);
        assert_ne!(kept["head.weight"].to_vec2::<f32>()?, vec![vec![1.0; 3]; 2]);
        Ok(())
    }

    #[test]
    fn the_graph_is_entered_only_on_request() -> Result<()> {
        let (_, w) = two()?;
        let train = Mode::train(DrawKey { seed: 0, step: 0, pass: 0 });
        assert!(w.get(&train).sum_all()?.backward()?.get(w.var()).is_some());
        assert!(w.get(&Mode::EVAL).sum_all()?.backward()?.get(w.var()).is_none());
        assert!(w.get(&train.without_grad()).sum_all()?.backward()?.get(w.var()).is_none());
        Ok(())
    }

    #[test]
    fn a_model_of_candle_nn_takes_the_weights() -> Result<()> {
        let (store, w) = two()?;
        let theirs = candle_nn::linear_no_bias(3, 2, store.var_builder(&Device::Cpu)?.pp("head"))?;
        let x = Tensor::new(&[[1.0_f32, -2.0, 0.5]], &Device::Cpu)?;
        let want = x.matmul(&w.value().t()?)?.to_vec2::<f32>()?;
        assert_eq!(candle_nn::Module::forward(&theirs, &x)?.to_vec2::<f32>()?, want);
        w.set(&Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?)?;
        assert_eq!(candle_nn::Module::forward(&theirs, &x)?.to_vec2::<f32>()?, want);
        Ok(())
    }

    #[test]
    fn what_a_file_lacks_takes_no_memory() -> Result<()> {
        let shapes = BTreeMap::from([("w".to_string(), vec![2, 3])]);
        let b = Builder::expecting("file", shapes, &Device::Cpu);
        b.parameter("w", &[2, 3], Role::Weight, Init::Constant(1.0))?;
        // Both would be more than any machine has.
        for (name, word) in [("w", "[2, 3]"), ("v", "missing")] {
            let told =
                b.parameter(name, &[1 << 40, 1 << 20], Role::Weight, Init::Constant(1.0)).expect_err("refused").to_string();
            assert!(told.contains("file") && told.contains(word), "{told}");
        }
        Ok(())
    }

    #[test]
    fn a_name_can_be_taken_once() -> Result<()> {
        let b = Builder::new(0, &Device::Cpu);
        b.parameter("w", &[1], Role::Weight, Init::Constant(0.0))?;
        assert!(matches!(b.parameter("w", &[1], Role::Weight, Init::Constant(0.0)), Err(Error::DuplicateParameter(_))));
        Ok(())
    }
}
