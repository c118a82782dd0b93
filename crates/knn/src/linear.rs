//! A linear probe: multinomial logistic regression on frozen features, by L-BFGS.
//!
//! The objective is scikit-learn's: the summed cross-entropy times `c`, plus half the squared norm of the weights; intercepts are not
//! penalised. `argmin` searches; this file computes value and gradient, in `f64`, in blocks that do not depend on the number of
//! threads.

use std::sync::Mutex;

use argmin::core::{CostFunction, Executor, Gradient, State, TerminationReason};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use rayon::prelude::*;

use crate::vote::check_labels;
use crate::{Error, Matrix, Predictions, Result, product, top1};

/// A fitted classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct Logistic {
    /// Number of classes.
    pub classes: usize,
    /// Numbers a row.
    pub dim: usize,
    /// Weights, a class after the other, `dim` numbers each.
    pub weight: Vec<f64>,
    /// Intercepts, one a class.
    pub bias: Vec<f64>,
    /// Whether the search ended by itself; `false` where its iterations did not suffice.
    pub converged: bool,
}

/// A penalty, and how often the classifier fitted with it was right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalty {
    /// The inverse of the penalty's strength (scikit-learn's `C`).
    pub c: f64,
    /// Top-1 accuracy on the rows that it was tried on, as a fraction.
    pub accuracy: f64,
    /// Whether the fit's iterations sufficed.
    pub converged: bool,
}

/// Rows that are multiplied at a time.
const BLOCK: usize = 256;
/// Tasks at most, each with a gradient of its own: so many are added up in the end, however many rows there are.
const GROUPS: usize = 64;
/// Past steps that L-BFGS remembers (scikit-learn's number).
const MEMORY: usize = 10;
/// The search ends when the norm of the mean loss's gradient is below this.
const TOLERANCE: f64 = 1e-5;

impl Logistic {
    /// Fits `rows` to `labels`; `c` is the inverse of the penalty (scikit-learn's `C`), `max_iter` the most iterations. `start` is a
    /// classifier to begin from, such as that of the neighbouring penalty.
    ///
    /// # Errors
    /// Labels that do not fit, rows of one class only, a `c` that is not finite and above 0, wrong lengths, NaN and infinities.
    pub fn fit(rows: Matrix, labels: &[u32], classes: usize, c: f64, max_iter: u64, start: Option<&Self>) -> Result<Self> {
        rows.check("rows to fit", 1)?;
        check_labels("rows to fit", labels, rows.rows, classes)?;
        if !(c.is_finite() && c > 0.0) {
            return Err(Error::Penalty(c));
        }
        if labels.iter().all(|&l| l == labels[0]) {
            return Err(Error::OneClass { what: "rows to fit", rows: rows.rows });
        }
        let dim = rows.dim;
        // Features of any size: the search sees them with a mean square of 1, and the penalty is scaled to mean the same.
        let square = rows.data.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / rows.data.len() as f64;
        let scale = if square > 0.0 { square.sqrt() } else { 1.0 };
        let mut first = vec![0.0; classes * (dim + 1)];
        if let Some(start) = start.filter(|s| s.classes == classes && s.dim == dim) {
            for class in 0..classes {
                let to = &mut first[class * (dim + 1)..(class + 1) * (dim + 1)];
                to.iter_mut().zip(&start.weight[class * dim..]).take(dim).for_each(|(t, w)| *t = w * scale);
                to[dim] = start.bias[class];
            }
        }
        let n = rows.rows as f64;
        let problem = Problem {
            rows,
            labels,
            classes,
            factor: 1.0 / scale,
            penalty: 1.0 / (c * n * scale * scale),
            last: Mutex::new(None),
        };
        let search = MoreThuenteLineSearch::new().with_c(1e-4, 0.9).map_err(solver)?;
        let method = LBFGS::new(search, MEMORY).with_tolerance_grad(TOLERANCE).map_err(solver)?;
        let method = method.with_tolerance_cost(1e-10).map_err(solver)?;
        let outcome = Executor::new(problem, method).configure(|s| s.param(first).max_iters(max_iter)).run().map_err(solver)?;
        let converged = outcome.state().get_termination_reason() != Some(&TerminationReason::MaxItersReached);
        let found = outcome.state().get_best_param().ok_or_else(|| Error::Solver("logistic regression found nothing".into()))?;
        let parts = || found.chunks_exact(dim + 1);
        Ok(Self {
            classes,
            dim,
            weight: parts().flat_map(|w| w[..dim].iter().map(|v| v / scale)).collect(),
            bias: parts().map(|w| w[dim]).collect(),
            converged,
        })
    }

    /// Classes of each row, most probable first, with their probabilities.
    ///
    /// # Errors
    /// Rows of another length than those fitted, NaN and infinities.
    pub fn predict(&self, rows: Matrix) -> Result<Predictions> {
        rows.check("rows to classify", 1)?;
        if rows.dim != self.dim {
            return Err(Error::Shape { what: "rows to classify", got: (rows.rows, rows.dim), expected: (rows.rows, self.dim) });
        }
        let classes = self.classes;
        let mut ranked = vec![0u32; rows.rows * classes];
        let mut share = vec![0.0f32; rows.rows * classes];
        let dim = self.dim;
        ranked
            .par_chunks_mut(BLOCK * classes)
            .zip(share.par_chunks_mut(BLOCK * classes))
            .zip(rows.data.par_chunks(BLOCK * dim))
            .for_each(|((ranked, share), block)| {
                let wide: Vec<f64> = block.iter().map(|&v| f64::from(v)).collect();
                let mut logits = vec![0.0; block.len() / dim * classes];
                product::products(&wide, &self.weight, dim, &mut logits);
                let rows =
                    ranked.chunks_exact_mut(classes).zip(share.chunks_exact_mut(classes)).zip(logits.chunks_exact_mut(classes));
                for ((ranked, share), logits) in rows {
                    logits.iter_mut().zip(&self.bias).for_each(|(l, b)| *l += b);
                    softmax(logits);
                    ranked.iter_mut().zip(0..).for_each(|(r, c)| *r = c);
                    ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
                    share.iter_mut().zip(ranked).for_each(|(s, c)| *s = logits[*c as usize] as f32);
                }
            });
        Ok(Predictions { classes, ranked, share })
    }
}

/// The accuracy on `queries` of classifiers fitted to `rows` with each of `cs`, in rising order; each starts where the one before
/// ended. The queries must be rows held out for this choice.
///
/// # Errors
/// An empty list, and all that [`Logistic::fit`] refuses.
pub fn sweep_penalty(
    rows: Matrix,
    labels: &[u32],
    queries: Matrix,
    query_labels: &[u32],
    classes: usize,
    cs: &[f64],
    max_iter: u64,
) -> Result<Vec<Penalty>> {
    check_labels("queries", query_labels, queries.rows, classes)?;
    let mut cs = cs.to_vec();
    cs.sort_unstable_by(f64::total_cmp);
    if cs.is_empty() {
        return Err(Error::NoSettings("penalty"));
    }
    let mut last: Option<Logistic> = None;
    let mut tried = Vec::new();
    for c in cs {
        let fitted = Logistic::fit(rows, labels, classes, c, max_iter, last.as_ref())?;
        tried.push(Penalty { c, accuracy: top1(&fitted.predict(queries)?, query_labels), converged: fitted.converged });
        last = Some(fitted);
    }
    Ok(tried)
}

/// The best of `tried`; of equally good ones the strongest penalty.
pub fn best_penalty(tried: &[Penalty]) -> Option<Penalty> {
    tried.iter().copied().reduce(|a, b| if b.accuracy > a.accuracy || (b.accuracy == a.accuracy && b.c < a.c) { b } else { a })
}

/// Value and gradient of the mean objective, for parameters (weights and intercept of a class, then of the next).
struct Problem<'a> {
    rows: Matrix<'a>,
    labels: &'a [u32],
    classes: usize,
    /// Features are multiplied by it.
    factor: f64,
    /// Half of the squared norm of the weights is multiplied by it.
    penalty: f64,
    /// What was computed last: the search asks for value and gradient one after the other.
    last: Mutex<Option<Evaluated>>,
}

#[derive(Clone)]
struct Evaluated {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

impl Problem<'_> {
    fn evaluate(&self, at: &[f64]) -> Evaluated {
        if let Ok(last) = self.last.lock()
            && let Some(known) = last.as_ref().filter(|k| k.at == at)
        {
            return known.clone();
        }
        let (dim, classes) = (self.rows.dim, self.classes);
        let weight: Vec<f64> = at.chunks_exact(dim + 1).flat_map(|w| &w[..dim]).copied().collect();
        let bias: Vec<f64> = at.chunks_exact(dim + 1).map(|w| w[dim]).collect();
        let block = |data: &[f32], labels: &[u32], sum: &mut (f64, Vec<f64>)| {
            let rows = labels.len();
            let wide: Vec<f64> = data.iter().map(|&v| f64::from(v) * self.factor).collect();
            let mut logits = vec![0.0; rows * classes];
            product::products(&wide, &weight, dim, &mut logits);
            let mut loss = 0.0;
            // The gradient with respect to the logits, a class after the other.
            let mut residual = vec![0.0; classes * rows];
            for (i, (logits, &label)) in logits.chunks_exact_mut(classes).zip(labels).enumerate() {
                logits.iter_mut().zip(&bias).for_each(|(l, b)| *l += b);
                let own = logits[label as usize];
                loss += softmax(logits) - own;
                for (c, p) in logits.iter().enumerate() {
                    residual[c * rows + i] = p - f64::from(u8::from(c == label as usize));
                }
            }
            let mut gradient = vec![0.0; classes * dim];
            product::weighted_sums(&residual, &wide, dim, &mut gradient);
            let sums = residual.chunks_exact(rows).map(|r| r.iter().sum::<f64>());
            sum.0 += loss;
            for ((to, g), s) in sum.1.chunks_exact_mut(dim + 1).zip(gradient.chunks_exact(dim)).zip(sums) {
                to.iter_mut().zip(g).for_each(|(to, g)| *to += g);
                to[dim] += s;
            }
        };
        let group = group_rows(self.labels.len());
        let parts: Vec<(f64, Vec<f64>)> = self
            .rows
            .data
            .par_chunks(group * dim)
            .zip(self.labels.par_chunks(group))
            .map(|(data, labels)| {
                let mut sum = (0.0, vec![0.0; at.len()]);
                data.chunks(BLOCK * dim).zip(labels.chunks(BLOCK)).for_each(|(d, l)| block(d, l, &mut sum));
                sum
            })
            .collect();
        let n = self.labels.len() as f64;
        let (mut value, mut gradient) = (0.0, vec![0.0; at.len()]);
        for (loss, part) in parts {
            value += loss / n;
            gradient.iter_mut().zip(part).for_each(|(g, p)| *g += p / n);
        }
        for (g, w) in gradient.chunks_exact_mut(dim + 1).zip(at.chunks_exact(dim + 1)) {
            for (g, w) in g.iter_mut().zip(w).take(dim) {
                value += 0.5 * self.penalty * w * w;
                *g += self.penalty * w;
            }
        }
        let found = Evaluated { at: at.to_vec(), value, gradient };
        if let Ok(mut last) = self.last.lock() {
            *last = Some(found.clone());
        }
        found
    }
}

impl CostFunction for Problem<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, at: &Vec<f64>) -> std::result::Result<f64, argmin::core::Error> {
        Ok(self.evaluate(at).value)
    }
}

impl Gradient for Problem<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, at: &Vec<f64>) -> std::result::Result<Vec<f64>, argmin::core::Error> {
        Ok(self.evaluate(at).gradient)
    }
}

/// Rows of one task: whole blocks, so many that there are [`GROUPS`] tasks at most.
fn group_rows(rows: usize) -> usize {
    rows.div_ceil(BLOCK).div_ceil(GROUPS).max(1) * BLOCK
}

/// Turns logits into probabilities and returns the logarithm of the sum of their exponentials.
fn softmax(logits: &mut [f64]) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for l in logits.iter_mut() {
        *l = (*l - largest).exp();
        sum += *l;
    }
    logits.iter_mut().for_each(|l| *l /= sum);
    largest + sum.ln()
}

fn solver(error: argmin::core::Error) -> Error {
    Error::Solver(format!("logistic regression: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups on a line that overlap a little, and a third off it.
    fn groups() -> (Vec<f32>, Vec<u32>) {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 65_535.0 - 0.5;
        let labels: Vec<u32> = (0..600).map(|i| i % 3).collect();
        let rows = labels.iter().zip(0..).flat_map(|(&l, i)| {
            let centre = [[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]][l as usize];
            [centre[0] + 2.5 * noise(i), centre[1] + 2.5 * noise(i + 7919)]
        });
        (rows.collect(), labels)
    }

    #[test]
    fn the_gradient_is_that_of_the_value() -> Result<()> {
        let (data, labels) = groups();
        let rows = Matrix::new(&data, 600, 2)?;
        let problem = Problem { rows, labels: &labels, classes: 3, factor: 0.7, penalty: 0.3, last: Mutex::new(None) };
        let at: Vec<f64> = (0..9).map(|i| (i as f64 * 0.7).sin()).collect();
        let gradient = problem.evaluate(&at).gradient;
        for i in 0..9 {
            let moved = |by: f64| {
                let mut to = at.clone();
                to[i] += by;
                problem.evaluate(&to).value
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - gradient[i]).abs() < 1e-8, "{i}: {slope} {}", gradient[i]);
        }
        Ok(())
    }

    #[test]
    fn the_number_of_partial_gradients_is_bounded_and_whole_blocks_make_a_task() {
        for rows in [1, 256, 257, 16_384, 16_385, 1_281_167] {
            let group = group_rows(rows);
            assert!(group.is_multiple_of(BLOCK) && rows.div_ceil(group) <= GROUPS, "{rows}: {group}");
        }
        assert_eq!((group_rows(16_384), group_rows(16_385)), (256, 512));
    }

    #[test]
    fn a_fit_that_had_too_few_iterations_says_so() -> Result<()> {
        let (data, labels) = groups();
        let rows = Matrix::new(&data, 600, 2)?;
        assert!(!Logistic::fit(rows, &labels, 3, 1.0, 1, None)?.converged);
        assert!(Logistic::fit(rows, &labels, 3, 1.0, 200, None)?.converged);
        Ok(())
    }

    #[test]
    fn groups_are_told_apart_whatever_the_scale() -> Result<()> {
        let (data, labels) = groups();
        let mut seen = Vec::new();
        for unit in [1e-6f32, 1.0, 1e6] {
            let scaled: Vec<f32> = data.iter().map(|v| v * unit).collect();
            let rows = Matrix::new(&scaled, 600, 2)?;
            // The penalty's meaning follows the scale of the features.
            let c = 1.0 / f64::from(unit).powi(2);
            let fitted = Logistic::fit(rows, &labels, 3, c, 200, None)?;
            let predicted = fitted.predict(rows)?;
            seen.push(top1(&predicted, &labels));
            let (ranked, share) = predicted.row(0);
            assert!(ranked.len() == 3 && (share.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        assert!(seen[1] > 0.9 && seen.iter().all(|s| (s - seen[1]).abs() < 0.01), "{seen:?}");
        Ok(())
    }

    #[test]
    fn a_sweep_finds_the_better_penalty_and_bad_input_is_told() -> Result<()> {
        let (data, labels) = groups();
        let (rows, held) = (Matrix::new(&data[..800], 400, 2)?, Matrix::new(&data[800..], 200, 2)?);
        let tried = sweep_penalty(rows, &labels[..400], held, &labels[400..], 3, &[1.0, 1e-6], 100)?;
        assert_eq!(tried.iter().map(|t| t.c).collect::<Vec<_>>(), [1e-6, 1.0]);
        assert!(tried[1].accuracy >= tried[0].accuracy);
        assert_eq!(best_penalty(&tried).map(|b| b.accuracy), Some(tried[1].accuracy));
        let text = |r: Result<Logistic>| r.expect_err("refused").to_string();
        assert!(text(Logistic::fit(rows, &[1; 400], 3, 1.0, 9, None)).contains("all 400 rows are of one class"));
        assert!(text(Logistic::fit(rows, &labels[..400], 3, 0.0, 9, None)).contains("C = 0"));
        assert!(text(Logistic::fit(rows, &labels[..399], 3, 1.0, 9, None)).contains("399 labels"));
        Ok(())
    }
}
