//! The list of measured operations.

use candle_core::{CustomOp1, CustomOp2, CustomOp3, Device, Result, Shape, Tensor, Var};

use super::{Case, Run, Unit};
use crate::Conv2dConfig;
use crate::conv::Geometry;
use crate::cpu::attention::Attention;
use crate::cpu::batch_norm::{BatchNorm, statistics};
use crate::cpu::conv::{Pass, run_pass};
use crate::cpu::elementwise::Gelu;
use crate::cpu::layer_norm::LayerNorm;
use crate::cpu::linear::Linear;
use crate::cpu::memory::host;
use crate::cpu::pool::{GlobalAvgPool, MaxPool, MaxPoolSizes};
use crate::cpu::rows::RowOp;
use crate::cpu::transformer::{Sizes, TransformerBlocks};
use crate::update::{AdamwConfig, AdamwTensor, SgdConfig, SgdTensor, adamw, ema, sgd};

/// Every case, in order.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // ResNet-18 with the CIFAR stem, 128 images of 32 pixels; ResNet-50, 16 images of 224 pixels; ConvNeXt's depthwise 7 × 7.
    for conv in [
        Conv { n: 128, c: 3, o: 64, size: 32, k: 3, stride: 1, depthwise: false },
        Conv { n: 128, c: 64, o: 64, size: 32, k: 3, stride: 1, depthwise: false },
        Conv { n: 128, c: 64, o: 128, size: 32, k: 3, stride: 2, depthwise: false },
        Conv { n: 128, c: 64, o: 128, size: 32, k: 1, stride: 2, depthwise: false },
        Conv { n: 128, c: 128, o: 128, size: 16, k: 3, stride: 1, depthwise: false },
        Conv { n: 128, c: 256, o: 256, size: 8, k: 3, stride: 1, depthwise: false },
        Conv { n: 128, c: 512, o: 512, size: 4, k: 3, stride: 1, depthwise: false },
        Conv { n: 16, c: 3, o: 64, size: 224, k: 7, stride: 2, depthwise: false },
        Conv { n: 16, c: 64, o: 64, size: 56, k: 3, stride: 1, depthwise: false },
        Conv { n: 16, c: 64, o: 256, size: 56, k: 1, stride: 1, depthwise: false },
        Conv { n: 16, c: 256, o: 64, size: 56, k: 1, stride: 1, depthwise: false },
        Conv { n: 16, c: 128, o: 128, size: 56, k: 3, stride: 2, depthwise: false },
        Conv { n: 16, c: 1024, o: 256, size: 14, k: 1, stride: 1, depthwise: false },
        Conv { n: 16, c: 512, o: 512, size: 7, k: 3, stride: 1, depthwise: false },
        Conv { n: 32, c: 80, o: 80, size: 28, k: 7, stride: 1, depthwise: true },
    ] {
        cases.extend([Pass::Forward, Pass::ToInput, Pass::ToWeight].map(|pass| conv.case(pass)));
    }
    for (rows, inputs, outputs) in [(256, 512, 2048), (128 * 65, 192, 576), (128 * 65, 192, 768), (128 * 65, 768, 192)] {
        cases.extend(linear(rows, inputs, outputs));
    }
    for (relu, skip) in [(false, false), (true, false), (true, true)] {
        cases.extend(batch_norm([128, 32, 32, 64], relu, skip));
    }
    let [n, t, c] = [128, 65, 768];
    let tokens = format!("({n}, {t}, {c})");
    let bytes = (4 * n * t * c) as f64;
    cases.extend(of_one("gelu", tokens.clone(), [2.0 * bytes, 3.0 * bytes], Unit::Bytes, [n, t, c], |_| Gelu));
    cases.extend(of_one("softmax", tokens.clone(), [2.0 * bytes, 3.0 * bytes], Unit::Bytes, [n, t, c], |_| RowOp::Softmax));
    let l2 = |_: &Tensor| RowOp::L2Normalize { eps: 1e-12 };
    cases.extend(of_one("l2_normalize", tokens, [2.0 * bytes, 3.0 * bytes], Unit::Bytes, [n, t, c], l2));
    cases.extend(layer_norm([128, 65, 192]));
    for (n, t, heads, d) in [(128, 65, 3, 64), (384, 17, 3, 64), (16, 197, 3, 64)] {
        let flops = (4 * n * heads * t * t * d) as f64;
        let shape = format!("({n}, {t}, {heads} heads of {d})");
        let op = move |_: &Tensor| Attention { n, t, heads, d };
        cases.extend(of_one("attention", shape, [flops, 2.0 * flops], Unit::Flops, [n, t, 3 * heads * d], op));
    }
    for (n, t) in [(128, 65), (384, 17)] {
        cases.extend(transformer_block(Sizes { n, t, c: 192, heads: 3, hidden: 768, eps: 1e-6 }));
    }
    cases.extend(pools());
    cases.extend(updates());
    cases
}

/// A convolution with square kernel and image and "same" padding.
#[derive(Clone, Copy)]
struct Conv {
    n: usize,
    c: usize,
    o: usize,
    size: usize,
    k: usize,
    stride: usize,
    depthwise: bool,
}

impl Conv {
    fn case(self, pass: Pass) -> Case {
        let Self { n, c, o, size, k, stride, depthwise } = self;
        let groups = if depthwise { c } else { 1 };
        let config = Conv2dConfig { stride, padding: k / 2, groups, ..Conv2dConfig::default() };
        let side = size.div_ceil(stride);
        let kind = if depthwise { " depthwise" } else { "" };
        Case {
            operation: "conv2d",
            pass: ["forward", "to input", "to weight"][pass as usize],
            shape: format!("({n}, {size}, {size}, {c}) {k}x{k}{kind} to {o}, stride {stride}"),
            work: (2 * n * side * side * o * (c / groups) * k * k) as f64,
            unit: Unit::Flops,
            prepare: Box::new(move || {
                let (x, w) = (random([n, size, size, c])?, random([o, c / groups, k, k])?);
                let g = random([n, side, side, o])?;
                let geometry = Geometry::new(&x, &w, config)?;
                Ok(Box::new(move || run_pass(&geometry, pass, &x, &w, &g)))
            }),
        }
    }
}

fn linear(rows: usize, inputs: usize, outputs: usize) -> [Case; 3] {
    let case = |pass: &'static str, track: [bool; 2]| Case {
        operation: "linear",
        pass,
        shape: format!("{rows} x {inputs} to {outputs}"),
        work: (2 * rows * inputs * outputs) as f64,
        unit: Unit::Flops,
        prepare: Box::new(move || -> Result<Run> {
            let (x, w, g) = (random([rows, inputs])?, random([outputs, inputs])?, random([rows, outputs])?);
            let (x, w) = (tracked(x, track[0])?, tracked(w, track[1])?);
            let op = Linear { rows, inputs, outputs };
            Ok(match track {
                [false, false] => Box::new(move || x.apply_op2_no_bwd(&w, &op).map(drop)),
                _ => Box::new(move || CustomOp2::bwd(&op, &x, &w, &g, &g).map(drop)),
            })
        }),
    };
    [case("forward", [false, false]), case("to input", [true, false]), case("to weight", [false, true])]
}

fn batch_norm(shape: [usize; 4], relu: bool, skip: bool) -> Vec<Case> {
    let c = shape[3];
    let bytes = (4 * shape.iter().product::<usize>()) as f64;
    let more = if skip { 1.0 } else { 0.0 };
    let case = |pass: &'static str, work: f64| Case {
        operation: "batch_norm",
        pass,
        shape: format!("{shape:?}{}{}", if skip { " + residual" } else { "" }, if relu { " + ReLU" } else { "" }),
        work,
        unit: Unit::Bytes,
        prepare: Box::new(move || -> Result<Run> {
            let (x, r, g) = (tracked(random(shape)?, true)?, tracked(random(shape)?, true)?, random(shape)?);
            let parameters = tracked(Tensor::stack(&[random([c])?, random([c])?], 0)?, true)?;
            let made = {
                let (x, c) = (x.clone(), c);
                move || -> Result<BatchNorm> {
                    let (storage, layout) = x.storage_and_layout();
                    Ok(BatchNorm::from_statistics(c, 1, relu, statistics(host(&storage, layout)?, c, 1), 1e-5))
                }
            };
            let forward = {
                let (x, r, parameters) = (x.clone(), r.clone(), parameters.clone());
                move |op: &BatchNorm| match skip {
                    true => x.apply_op3_no_bwd(&parameters, &r, op),
                    false => x.apply_op2_no_bwd(&parameters, op),
                }
            };
            if pass == "forward" {
                return Ok(Box::new(move || forward(&made()?).map(drop)));
            }
            let op = made()?;
            let y = forward(&op)?;
            Ok(Box::new(move || match skip {
                true => CustomOp3::bwd(&op, &x, &parameters, &r, &y, &g).map(drop),
                false => CustomOp2::bwd(&op, &x, &parameters, &y, &g).map(drop),
            }))
        }),
    };
    // Forward: x for the statistics, x, y. Backward: x and g for the sums, both again, dx; the gate or the masked gradient.
    vec![case("forward", (3.0 + more) * bytes), case("backward", (5.0 + if relu { 1.0 } else { 0.0 } + more) * bytes)]
}

fn layer_norm(shape: [usize; 3]) -> [Case; 2] {
    let c = shape[2];
    let bytes = (4 * shape.iter().product::<usize>()) as f64;
    let case = |pass: &'static str, work: f64| Case {
        operation: "layer_norm",
        pass,
        shape: format!("{shape:?}"),
        work,
        unit: Unit::Bytes,
        prepare: Box::new(move || -> Result<Run> {
            let (x, w, b) = (tracked(random(shape)?, true)?, tracked(random([c])?, true)?, tracked(random([c])?, true)?);
            let g = random(shape)?;
            let op = LayerNorm { c, eps: 1e-6 };
            Ok(match pass {
                "forward" => Box::new(move || x.apply_op3_no_bwd(&w, &b, &op).map(drop)),
                _ => Box::new(move || op.bwd(&x, &w, &b, &g, &g).map(drop)),
            })
        }),
    };
    [case("forward", 2.0 * bytes), case("backward", 3.0 * bytes)]
}

fn transformer_block(sizes: Sizes) -> [Case; 2] {
    let Sizes { n, t, c, heads, hidden, .. } = sizes;
    let case = |pass: &'static str, work: usize| Case {
        operation: "transformer_block",
        pass,
        shape: format!("({n}, {t}, {c}), {heads} heads, hidden {hidden}"),
        work: (2 * work) as f64,
        unit: Unit::Flops,
        prepare: Box::new(move || -> Result<Run> {
            let (x, packed) = (random([n, t, c])?, (random([sizes.parameters()])? * 0.1)?);
            let op = TransformerBlocks::new(sizes, 1, true);
            if pass == "forward" {
                return Ok(Box::new(move || x.apply_op2_no_bwd(&packed, &op).map(drop)));
            }
            let g = x.apply_op2_no_bwd(&packed, &op)?;
            Ok(Box::new(move || op.backward_again(&x, &packed, &g).map(drop)))
        }),
    };
    [case("forward", sizes.multiply_adds()), case("backward", 2 * sizes.multiply_adds())]
}

fn pools() -> Vec<Case> {
    let [n, h, c] = [32, 112, 64];
    let (whole, quarter) = ((4 * n * h * h * c) as f64, (n * h * h * c) as f64);
    let sizes = MaxPoolSizes { n, h, w: h, c, kernel: 3, stride: 2, padding: 1, oh: h / 2, ow: h / 2 };
    let max = move |x: &Tensor| MaxPool { sizes, track: x.track_op(), winners: std::sync::OnceLock::new() };
    let mut cases =
        of_one("max_pool2d", format!("({n}, {h}, {h}, {c}) 3/2/1"), [whole + quarter; 2], Unit::Bytes, [n, h, h, c], max);
    let [n, h, c] = [128, 4, 512];
    let bytes = (4 * n * h * h * c) as f64;
    let mean = move |_: &Tensor| GlobalAvgPool { pixels: h * h, c };
    cases.extend(of_one("global_avg_pool", format!("({n}, {h}, {h}, {c})"), [bytes; 2], Unit::Bytes, [n, h, h, c], mean));
    cases
}

fn updates() -> Vec<Case> {
    const SHAPE: [usize; 2] = [4096, 2048];
    let bytes = (4 * SHAPE[0] * SHAPE[1]) as f64;
    let case = |operation: &'static str, transfers: f64, prepare: fn() -> Result<Run>| Case {
        operation,
        pass: "update",
        shape: format!("{SHAPE:?}"),
        work: transfers * bytes,
        unit: Unit::Bytes,
        prepare: Box::new(prepare),
    };
    vec![
        case("ema", 3.0, || {
            let (p, g) = (Var::from_tensor(&random(SHAPE)?)?, random(SHAPE)?);
            Ok(Box::new(move || ema(&[(&p, &g)], 0.99)))
        }),
        case("sgd", 5.0, || {
            let (p, m, g) = (Var::from_tensor(&random(SHAPE)?)?, Var::from_tensor(&random(SHAPE)?)?, random(SHAPE)?);
            let config = SgdConfig { momentum: 0.9, nesterov: false };
            Ok(Box::new(move || {
                sgd(&[SgdTensor { param: &p, grad: &g, momentum: &m, lr: 1e-9, weight_decay: 0.0, scale: 1.0 }], config)
            }))
        }),
        case("adamw", 7.0, || {
            let [p, m, v] = [random(SHAPE)?, random(SHAPE)?, random(SHAPE)?].map(|t| Var::from_tensor(&t));
            let (p, m, v, g) = (p?, m?, v?, random(SHAPE)?);
            let config = AdamwConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 3 };
            Ok(Box::new(move || {
                adamw(&[AdamwTensor { param: &p, grad: &g, first: &m, second: &v, lr: 1e-9, weight_decay: 0.0 }], config)
            }))
        }),
    ]
}

/// Forward and backward of an operation of one input; `work` of both.
fn of_one<O: CustomOp1 + Send + Sync + 'static, const R: usize>(
    operation: &'static str,
    shape: String,
    work: [f64; 2],
    unit: Unit,
    input: [usize; R],
    op: impl Fn(&Tensor) -> O + Copy + 'static,
) -> Vec<Case> {
    let case = |pass: &'static str, work: f64| Case {
        operation,
        pass,
        shape: shape.clone(),
        work,
        unit,
        prepare: Box::new(move || -> Result<Run> {
            let x = tracked(random(input)?, true)?;
            let op = op(&x);
            if pass == "forward" {
                return Ok(Box::new(move || x.apply_op1_no_bwd(&op).map(drop)));
            }
            let y = x.apply_op1_no_bwd(&op)?;
            let g = y.ones_like()?;
            Ok(Box::new(move || op.bwd(&x, &y, &g).map(drop)))
        }),
    };
    vec![case("forward", work[0]), case("backward", work[1])]
}

fn random<const R: usize>(shape: [usize; R]) -> Result<Tensor> {
    Tensor::rand(-1f32, 1f32, Shape::from(shape.to_vec()), &Device::Cpu)
}

/// The tensor as one that a gradient is asked for, or as it is.
fn tracked(t: Tensor, track: bool) -> Result<Tensor> {
    Ok(if track { Var::from_tensor(&t)?.as_tensor().clone() } else { t })
}
