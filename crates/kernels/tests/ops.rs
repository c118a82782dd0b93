//! Every operation but convolution against the composed implementation, finite differences, edges and threads.

mod common;

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};
use common::{agree, differentiate, finite_differences, flat, near, same_bits_for_any_threads, tensor, var};
use proptest::prelude::*;
use twinsight_kernels::{
    BatchNormConfig, Similarities, attention, batch_norm_eval, batch_norm_train, composed, cross_entropy_soft, epps_pulley, gelu,
    global_avg_pool, l2_normalize, layer_norm, linear, log_softmax, log_sum_exp, max_pool2d, relu, row_max, softmax,
};
use twinsight_test_support::assert_close;

type Op = (&'static str, Vec<Var>, fn(&[Tensor]) -> candle_core::Result<Tensor>, fn(&[Tensor]) -> candle_core::Result<Tensor>);

/// Columns that rows of `x` leave out: one, or two.
fn except(x: &Tensor) -> candle_core::Result<Vec<[u32; 2]>> {
    const OF: [[u32; 2]; 9] = [[0, 0], [1, 34], [2, 2], [34, 3], [4, 5], [5, 5], [16, 17], [31, 32], [34, 34]];
    Ok(OF.into_iter().cycle().take(x.dim(0)?).collect())
}

const BN: BatchNormConfig = BatchNormConfig { eps: 1e-5, relu: false, groups: 1 };

fn composed_bn(t: &[Tensor], residual: bool, config: BatchNormConfig) -> candle_core::Result<Tensor> {
    let c = t[0].dim(D::Minus1)?;
    composed::norm::batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), residual.then(|| &t[3]), config, c).map(|o| o.y)
}

fn bn(t: &[Tensor], residual: bool, config: BatchNormConfig) -> candle_core::Result<Tensor> {
    batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), residual.then(|| &t[3]), config).map(|o| o.y)
}

/// One case of every operation, in a size that fills no vector or block evenly.
fn operations() -> Result<Vec<Op>> {
    let image = || var(&[4, 5, 7, 19], 1);
    let row = |seed| var(&[19], seed);
    Ok(vec![
        ("relu", vec![var(&[7, 33], 1)?], |t| relu(&t[0]), |t| composed::activation::relu(&t[0])),
        ("gelu", vec![var(&[7, 33], 1)?], |t| gelu(&(&t[0] * 4.0)?), |t| composed::activation::gelu(&(&t[0] * 4.0)?)),
        ("softmax", vec![var(&[3, 5, 37], 1)?], |t| softmax(&(&t[0] * 5.0)?), |t| composed::softmax::softmax(&(&t[0] * 5.0)?)),
        (
            "log_softmax",
            vec![var(&[11, 67], 1)?],
            |t| log_softmax(&(&t[0] * 5.0)?),
            |t| composed::softmax::log_softmax(&(&t[0] * 5.0)?),
        ),
        (
            "l2_normalize",
            vec![var(&[11, 67], 1)?],
            |t| l2_normalize(&t[0], 1e-12),
            |t| composed::softmax::l2_normalize(&t[0], 1e-12),
        ),
        (
            "cross_entropy_soft",
            vec![var(&[9, 35], 1)?],
            |t| cross_entropy_soft(&t[0], &tensor(&[9, 35], 3).expect("targets").abs()?),
            |t| composed::softmax::cross_entropy_soft(&t[0], &tensor(&[9, 35], 3).expect("targets").abs()?),
        ),
        (
            "log_sum_exp",
            vec![var(&[9, 35], 1)?],
            |t| log_sum_exp(&(&t[0] * 5.0)?, &except(&t[0])?),
            |t| composed::softmax::log_sum_exp(&(&t[0] * 5.0)?, &except(&t[0])?),
        ),
        (
            "log_sum_exp of whole rows",
            vec![var(&[300, 67], 1)?],
            |t| log_sum_exp(&(&t[0] * 5.0)?, &[]),
            |t| composed::softmax::log_sum_exp(&(&t[0] * 5.0)?, &[]),
        ),
        (
            "similarities in parts",
            vec![var(&[9, 16], 1)?, var(&[35, 16], 2)?],
            |t| Similarities::in_parts(&t[0], &t[1], 4)?.log_sum_exp(&except(&t[0])?),
            |t| composed::softmax::log_sum_exp(&t[0].matmul(&t[1].t()?)?, &except(&t[0])?),
        ),
        (
            "epps_pulley",
            vec![var(&[2, 9, 35], 1)?],
            |t| epps_pulley(&(&t[0] * 2.0)?, 17, 3.0),
            |t| composed::epps_pulley(&(&t[0] * 2.0)?, 17, 3.0),
        ),
        (
            "layer_norm",
            vec![var(&[3, 5, 67], 1)?, var(&[67], 2)?, var(&[67], 3)?],
            |t| layer_norm(&t[0], &t[1], &t[2], 1e-6),
            |t| composed::norm::layer_norm(&t[0], &t[1], &t[2], 1e-6),
        ),
        (
            "linear",
            vec![var(&[3, 7, 21], 1)?, var(&[50, 21], 2)?, var(&[50], 3)?],
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| composed::linear::linear(&t[0], &t[1], Some(&t[2])),
        ),
        (
            "linear without bias",
            vec![var(&[130, 5], 1)?, var(&[3, 5], 2)?],
            |t| linear(&t[0], &t[1], None),
            |t| composed::linear::linear(&t[0], &t[1], None),
        ),
        (
            "attention",
            vec![var(&[2, 13, 3 * 4 * 5], 1)?],
            |t| attention(&(&t[0] * 2.0)?, 4),
            |t| composed::attention::attention(&(&t[0] * 2.0)?, 4),
        ),
        (
            "attention of one head",
            vec![var(&[1, 65, 3 * 64], 1)?],
            |t| attention(&(&t[0] * 2.0)?, 1),
            |t| composed::attention::attention(&(&t[0] * 2.0)?, 1),
        ),
        ("max_pool2d", vec![image()?], |t| max_pool2d(&t[0], 3, 2, 1), |t| composed::pool::max_pool2d(&t[0], 3, 2, 1, (3, 4))),
        (
            "max_pool2d by 2",
            vec![image()?],
            |t| max_pool2d(&t[0], 2, 2, 0),
            |t| composed::pool::max_pool2d(&t[0], 2, 2, 0, (2, 3)),
        ),
        ("global_avg_pool", vec![image()?], |t| global_avg_pool(&t[0]), |t| composed::pool::global_avg_pool(&t[0])),
        ("batch_norm", vec![image()?, row(2)?, row(3)?], |t| bn(t, false, BN), |t| composed_bn(t, false, BN)),
        (
            "batch_norm with everything",
            vec![image()?, row(2)?, row(3)?, image()?],
            |t| bn(t, true, BatchNormConfig { relu: true, groups: 2, ..BN }),
            |t| composed_bn(t, true, BatchNormConfig { relu: true, groups: 2, ..BN }),
        ),
        (
            "batch_norm with a residual",
            vec![image()?, row(2)?, row(3)?, var(&[4, 5, 7, 19], 9)?],
            |t| bn(t, true, BatchNormConfig { groups: 4, ..BN }),
            |t| composed_bn(t, true, BatchNormConfig { groups: 4, ..BN }),
        ),
        (
            "batch_norm of vectors with relu",
            vec![var(&[10, 19], 1)?, row(2)?, row(3)?],
            |t| bn(t, false, BatchNormConfig { relu: true, ..BN }),
            |t| composed_bn(t, false, BatchNormConfig { relu: true, ..BN }),
        ),
        (
            "batch_norm without affine part",
            vec![image()?],
            |t| batch_norm_train(&t[0], None, None, None, BN).map(|o| o.y),
            |t| composed::norm::batch_norm_train(&t[0], None, None, None, BN, 19).map(|o| o.y),
        ),
        (
            "batch_norm_eval",
            vec![image()?, row(2)?, row(3)?, var(&[4, 5, 7, 19], 9)?],
            |t| eval(t, batch_norm_eval),
            |t| eval(t, composed::norm::batch_norm_eval),
        ),
    ])
}

type Eval = fn(
    &Tensor,
    &Tensor,
    &Tensor,
    Option<&Tensor>,
    Option<&Tensor>,
    Option<&Tensor>,
    BatchNormConfig,
) -> candle_core::Result<Tensor>;

fn eval(t: &[Tensor], f: Eval) -> candle_core::Result<Tensor> {
    let statistic = |seed| tensor(&[19], seed).expect("statistics");
    let (mean, var) = (statistic(5), (statistic(6).abs()? + 0.5)?);
    f(&t[0], &mean, &var, Some(&t[1]), Some(&t[2]), Some(&t[3]), BatchNormConfig { relu: true, ..BN })
}

#[test]
fn every_instruction_set_holds() -> Result<()> {
    common::rerun_on_other_instruction_sets()
}

#[test]
fn fast_and_composed_agree() -> Result<()> {
    for (name, inputs, fast, reference) in operations()? {
        agree(name, &inputs, 2e-6, fast, reference)?;
    }
    Ok(())
}

#[test]
fn gradients_follow_finite_differences() -> Result<()> {
    for (name, inputs, fast, _) in operations()? {
        // Steps of a difference quotient cross the kinks of these at some elements.
        if name.contains("relu") || name.contains("max_pool") || name.contains("everything") || name.contains("eval") {
            continue;
        }
        finite_differences(name, &inputs, 5e-3, fast)?;
    }
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    for (name, inputs, fast, _) in operations()? {
        // Large enough for several blocks.
        let inputs: Vec<Var> = inputs
            .iter()
            .map(|v| {
                let mut shape = v.dims().to_vec();
                if shape.len() > 2 || (shape.len() == 2 && !name.contains("linear") && name != "cross_entropy_soft") {
                    shape[0] *= 60;
                }
                var(&shape, 4)
            })
            .collect::<Result<_>>()?;
        same_bits_for_any_threads(name, || {
            let (mut y, grads) = differentiate(&inputs, fast)?;
            grads.into_iter().for_each(|g| y.extend(g));
            Ok(y)
        })?;
    }
    Ok(())
}

#[test]
fn batch_norm_gives_the_statistics_of_every_group() -> Result<()> {
    let x = (tensor(&[6, 3, 3, 5], 1)? + 100.0)?;
    let out = batch_norm_train(&x, None, None, None, BatchNormConfig { groups: 3, ..BN })?;
    let want = composed::norm::batch_norm_train(&x, None, None, None, BatchNormConfig { groups: 3, ..BN }, 5)?;
    assert_eq!(out.mean.dims(), [3, 5]);
    assert_close("mean", &flat(&out.mean)?, &flat(&want.mean)?, 1e-6)?;
    // The composed variance itself loses digits so far from zero.
    assert_close("var", &flat(&out.var)?, &flat(&want.var)?, 1e-4)?;
    for group in 0..3 {
        let alone = batch_norm_train(&x.narrow(0, group * 2, 2)?, None, None, None, BN)?;
        assert_eq!(flat(&alone.y)?, flat(&out.y.narrow(0, group * 2, 2)?)?);
    }
    Ok(())
}

#[test]
fn relu_has_no_gradient_at_zero_and_keeps_nan() -> Result<()> {
    let x = Var::new(&[-1f32, 0.0, 2.0, f32::NAN], &Device::Cpu)?;
    let y = relu(&x)?;
    let grads = y.sum_all()?.backward()?;
    assert_eq!(flat(grads.get(&x).expect("a gradient"))?[..3], [0.0, 0.0, 1.0]);
    let y = flat(&y)?;
    assert_eq!(y[..3], [0.0, 0.0, 2.0]);
    assert!(y[3].is_nan());
    Ok(())
}

#[test]
fn gelu_is_right_to_a_millionth() -> Result<()> {
    // x · Φ(x) by SciPy.
    let x = Tensor::new(&[-5f32, -3.0, -1.0, -0.1, 0.0, 0.5, 1.0, 2.0, 6.0], &Device::Cpu)?;
    let want =
        [-1.433_257_7e-6f64, -0.004_049_694, -0.158_655_25, -0.046_017_216, 0.0, 0.345_731_23, 0.841_344_77, 1.954_499_7, 6.0];
    for (got, want) in flat(&gelu(&x)?)?.into_iter().zip(want) {
        assert!((f64::from(got) - want).abs() < 1e-6, "{got} is not {want}");
    }
    Ok(())
}

#[test]
fn softmax_keeps_infinities_and_large_values_finite() -> Result<()> {
    let x = Tensor::new(&[[1e4f32, f32::NEG_INFINITY, 1e4], [-1e4, -1e4, -1e4 - 200.0]], &Device::Cpu)?;
    assert_eq!(flat(&softmax(&x)?)?, [0.5, 0.0, 0.5, 0.5, 0.5, 0.0]);
    let log = flat(&log_softmax(&x)?)?;
    near("log_softmax", &[log[0], log[3]], &[-std::f32::consts::LN_2; 2], 1e-6)?;
    Ok(())
}

#[test]
fn a_zero_vector_is_normalised_to_zeros_with_a_finite_gradient() -> Result<()> {
    let x = Var::new(&[[0f32, 0.0, 0.0], [3e-20, 0.0, 4e-20]], &Device::Cpu)?;
    for f in [l2_normalize, composed::softmax::l2_normalize] {
        let y = f(&x, 1e-12)?;
        assert!(flat(&y)?.iter().all(|v| v.abs() < 1e-7));
        let grads = y.sum_all()?.backward()?;
        assert!(flat(grads.get(&x).expect("a gradient"))?.iter().all(|v| v.is_finite() && *v > 0.0));
    }
    Ok(())
}

#[test]
fn the_first_of_equal_values_wins_a_pool() -> Result<()> {
    let x = Var::from_tensor(&Tensor::ones((1, 3, 3, 1), DType::F32, &Device::Cpu)?)?;
    let grads = max_pool2d(&x, 3, 2, 1)?.sum_all()?.backward()?;
    // Windows start outside of the image; their first pixel inside wins.
    assert_eq!(flat(grads.get(&x).expect("a gradient"))?, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    Ok(())
}

#[test]
fn empty_batches_give_empty_results_or_say_what_is_missing() -> Result<()> {
    let empty = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let weight = tensor(&[4, 8], 1)?;
    let row = tensor(&[8], 1)?;
    assert_eq!(relu(&empty(&[0, 8])?)?.dims(), [0, 8]);
    assert_eq!(softmax(&empty(&[0, 8])?)?.dims(), [0, 8]);
    assert_eq!(linear(&empty(&[0, 8])?, &weight, None)?.dims(), [0, 4]);
    let inputs = [var(&[0, 70], 1)?, var(&[70, 70], 2)?, var(&[70], 3)?];
    let (_, grads) = differentiate(&inputs, |t| linear(&t[0], &t[1], Some(&t[2])))?;
    assert!(grads.concat().iter().all(|&g| g == 0.0));
    assert_eq!(layer_norm(&empty(&[0, 8])?, &row, &row, 1e-5)?.dims(), [0, 8]);
    assert_eq!(attention(&empty(&[0, 5, 24])?, 2)?.dims(), [0, 5, 8]);
    assert_eq!(max_pool2d(&empty(&[0, 4, 4, 8])?, 2, 2, 0)?.dims(), [0, 2, 2, 8]);
    assert_eq!(global_avg_pool(&empty(&[0, 4, 4, 8])?)?.dims(), [0, 8]);
    assert_eq!(batch_norm_eval(&empty(&[0, 4, 4, 8])?, &row, &row, None, None, None, BN)?.dims(), [0, 4, 4, 8]);
    let message = batch_norm_train(&empty(&[0, 8])?, None, None, None, BN).expect_err("must be refused").to_string();
    assert!(message.contains("at least one value a channel"), "{message}");
    let message = cross_entropy_soft(&empty(&[0, 8])?, &empty(&[0, 8])?).expect_err("must be refused").to_string();
    assert!(message.contains("at least one row"), "{message}");
    Ok(())
}

#[test]
fn wrong_inputs_are_named() -> Result<()> {
    let x = tensor(&[4, 8], 1)?;
    let row = tensor(&[7], 1)?;
    let refused = |r: candle_core::Result<Tensor>| r.expect_err("must be refused").to_string();
    assert!(refused(relu(&x.to_dtype(DType::F64)?)).contains("F64, expected F32"));
    assert!(refused(layer_norm(&x, &row, &row, 1e-5)).contains("weight has shape [7], expected [8]"));
    assert!(refused(linear(&x, &tensor(&[3, 7], 1)?, None)).contains("expected (outputs, 8)"));
    assert!(refused(attention(&tensor(&[1, 2, 10], 1)?, 2)).contains("multiple of 3 · heads"));
    assert!(refused(max_pool2d(&tensor(&[1, 2, 2, 1], 1)?, 3, 1, 2)).contains("at most half"));
    assert!(
        refused(batch_norm_train(&x, None, None, None, BatchNormConfig { groups: 3, ..BN }).map(|o| o.y)).contains("groups is 3")
    );
    Ok(())
}

#[test]
fn the_set_that_is_asked_for_is_in_use() {
    let used = twinsight_kernels::instruction_set();
    assert_ne!(used, "unknown");
    if let Ok(asked) = std::env::var("TWINSIGHT_SIMD") {
        // A machine without AVX2 has nothing to narrow to.
        assert!(used == asked || (asked == "avx2" && used == "scalar"), "{used} instead of {asked}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..Default::default() })]

    #[test]
    fn batch_norm_of_any_shape(n in 1usize..5, h in 1usize..6, c in 1usize..40, groups in 1usize..4, relu: bool, residual: bool) {
        let config = BatchNormConfig { relu, groups, ..BN };
        prop_assume!(n * h * h > 1);
        let shape = [n * groups, h, h, c];
        let run = || -> Result<()> {
            let inputs = [var(&shape, 1)?, var(&[c], 2)?, var(&[c], 3)?, var(&shape, 4)?];
            let inputs = &inputs[..if residual { 4 } else { 3 }];
            agree("batch_norm", inputs, 1e-4, |t| bn(t, residual, config), |t| composed_bn(t, residual, config))
        };
        run().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }

    #[test]
    fn linear_of_any_shape(rows in 1usize..40, inputs in 1usize..70, outputs in 1usize..70) {
        let run = || -> Result<()> {
            let tensors = [var(&[rows, inputs], 1)?, var(&[outputs, inputs], 2)?, var(&[outputs], 3)?];
            agree("linear", &tensors, 1e-5, |t| linear(&t[0], &t[1], Some(&t[2])), |t| composed::linear::linear(&t[0], &t[1], Some(&t[2])))
        };
        run().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }

    #[test]
    fn attention_of_any_shape(n in 1usize..3, t in 1usize..40, heads in 1usize..4, d in 1usize..40) {
        let run = || -> Result<()> {
            let qkv = [var(&[n, t, 3 * heads * d], 1)?];
            agree("attention", &qkv, 1e-5, |x| attention(&x[0], heads), |x| composed::attention::attention(&x[0], heads))
        };
        run().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }

    #[test]
    fn max_pool_of_any_shape(h in 1usize..9, w in 1usize..9, c in 1usize..20, kernel in 1usize..4, stride in 1usize..4, pad: bool) {
        let padding = if pad { kernel / 2 } else { 0 };
        prop_assume!(h + 2 * padding >= kernel && w + 2 * padding >= kernel);
        let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let run = || -> Result<()> {
            let x = [var(&[2, h, w, c], 1)?];
            let output = (out(h), out(w));
            agree("max_pool2d", &x, 1e-6, |t| max_pool2d(&t[0], kernel, stride, padding), |t| composed::pool::max_pool2d(&t[0], kernel, stride, padding, output))
        };
        run().map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}

#[test]
fn columns_left_out_count_for_nothing() -> Result<()> {
    let x = Tensor::new(&[[1e4f32, 0.0, 1.0, 2.0], [-3.0, -1e4, f32::MAX, -4.0]], &Device::Cpu)?;
    let except = [[0, 0], [2, 1]];
    assert_eq!(row_max(&x, &except)?.to_vec1::<f32>()?, [2.0, -3.0]);
    let want = [(0f64.exp() + 1f64.exp() + 2f64.exp()).ln() as f32, ((-3f64).exp() + (-4f64).exp()).ln() as f32];
    assert_close("log_sum_exp", &log_sum_exp(&x, &except)?.to_vec1::<f32>()?, &want, 1e-6)?;
    let x = Var::from_tensor(&x)?;
    let gradient = log_sum_exp(&x, &except)?.sum_all()?.backward()?.get(&x).expect("a gradient").to_vec2::<f32>()?;
    assert_eq!((gradient[0][0], gradient[1][1], gradient[1][2]), (0.0, 0.0, 0.0));
    assert!((gradient[0].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    for (bad, word) in [(vec![[0, 0]], "1 entries"), (vec![[0, 4], [0, 0]], "of 4")] {
        let text = log_sum_exp(&x, &bad).expect_err("refused").to_string();
        assert!(text.contains(word), "{text}");
    }
    assert!(log_sum_exp(&Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?, &[[0, 1], [0, 1]]).is_err());
    Ok(())
}
