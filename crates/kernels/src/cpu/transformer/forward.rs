//! The forward pass.

use rayon::prelude::*;

use super::rows::{add, gelu, norm};
use super::{Saved, Sizes, packed_forward, wide};
use crate::cpu::dense::Product;
use crate::cpu::heads::HeadWork;
use crate::cpu::memory::{SharedMut, Uninit};
use crate::cpu::panels::Packed;

/// A linear layer, packed.
pub(super) struct Layer {
    right: Packed,
    start: Option<Vec<f32>>,
    depth: usize,
    columns: usize,
}

impl Layer {
    /// x · weightᵀ + bias.
    pub fn forward(weight: &[f32], bias: &[f32], inputs: usize) -> Self {
        let outputs = bias.len();
        Self { right: packed_forward(weight, inputs, outputs), start: Some(wide(bias)), depth: inputs, columns: outputs }
    }

    /// g · weight.
    pub fn backward(weight: &[f32], inputs: usize, outputs: usize) -> Self {
        Self { right: super::packed_backward(weight, inputs, outputs), start: None, depth: outputs, columns: inputs }
    }

    /// Writes the result for all rows of `x`.
    ///
    /// # Safety
    /// `out` must be valid for writes of these rows, and nothing else may use them meanwhile.
    pub unsafe fn run(&self, x: &[f32], out: SharedMut) {
        // SAFETY: the operand was packed for this depth and these columns, and `start` is as wide as its panels; the rest as
        // the caller says.
        unsafe {
            Product {
                rows: x.len() / self.depth,
                depth: self.depth,
                left: x.as_ptr(),
                left_stride: self.depth,
                right: self.right.as_ptr(),
                panels: &self.right.panels,
                start: self.start.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                out: out.at(0),
                out_stride: self.columns,
                whole: false,
            }
            .run();
        }
    }
}

/// Buffers that groups of one thread reuse, by rows.
struct Work {
    normal: Vec<f32>,
    active: Vec<f32>,
    /// In place of what is kept, when nothing is.
    instead: [Vec<f32>; 4],
    heads: HeadWork,
}

/// The result, and what the backward pass needs if `keep`.
pub(super) fn forward(sizes: &Sizes, x: &[f32], parameters: &[f32], keep: bool) -> (Vec<f32>, Option<Saved>) {
    let &Sizes { c, hidden, eps, .. } = sizes;
    let places = sizes.places();
    let of = |range: &std::ops::Range<usize>| &parameters[range.clone()];
    let qkv = Layer::forward(of(&places.qkv[0]), of(&places.qkv[1]), c);
    let proj = Layer::forward(of(&places.proj[0]), of(&places.proj[1]), c);
    let fc1 = Layer::forward(of(&places.fc1[0]), of(&places.fc1[1]), c);
    let fc2 = Layer::forward(of(&places.fc2[0]), of(&places.fc2[1]), hidden);
    let (norm1, norm2) = (places.norm1.each_ref().map(of), places.norm2.each_ref().map(of));

    let (rows, most) = (sizes.rows(), sizes.most_rows());
    let attention = sizes.attention();
    let widths = [3 * c, c, c, hidden];
    let mut y = Uninit::new(rows * c);
    let mut kept = widths.map(|width| Uninit::new(if keep { rows * width } else { 0 }));
    let (out, places) = (y.shared(), kept.each_mut().map(Uninit::shared));
    let work = || Work {
        normal: vec![0.0; most * c],
        active: vec![0.0; most * hidden],
        instead: widths.map(|width| vec![0.0; if keep { 0 } else { most * width }]),
        heads: attention.work(),
    };
    (0..sizes.groups()).into_par_iter().for_each_init(work, |work, i| {
        let group = sizes.group(i);
        let count = group.len();
        let x = &x[group.start * c..group.end * c];
        let at: [SharedMut; 4] = std::array::from_fn(|j| match keep {
            // SAFETY: the rows of a group are inside of the buffers that are kept.
            true => unsafe { places[j].from(group.start * widths[j]) },
            false => SharedMut::new(&mut work.instead[j]),
        });
        let normal = &mut work.normal[..count * c];
        let active = &mut work.active[..count * hidden];
        // SAFETY: every place holds the rows of this group, which this task writes before it reads them; `out` likewise.
        unsafe {
            let out = out.from(group.start * c);
            norm(x, norm1, eps, normal);
            qkv.run(normal, at[0]);
            let packed = &*at[0].slice(0..count * 3 * c);
            for sample in 0..count / sizes.t {
                let start = sample * sizes.t * c;
                attention.forward(&packed[3 * start..][..3 * sizes.t * c], at[1].from(start), &mut work.heads);
            }
            proj.run(at[1].slice(0..count * c), at[2]);
            let middle = at[2].slice(0..count * c);
            add(x, middle);
            norm(middle, norm2, eps, normal);
            fc1.run(normal, at[3]);
            gelu(at[3].slice(0..count * hidden), active);
            fc2.run(active, out);
            add(middle, out.slice(0..count * c));
        }
    });
    // SAFETY: the groups make up the rows, and every group has written all of its rows, in `y` and in what is kept.
    unsafe {
        let y = y.finish();
        let [qkv, attention, middle, hidden] = kept.map(|buffer| buffer.finish());
        (y, keep.then_some(Saved { input: None, qkv, attention, middle, hidden }))
    }
}
