//! The backward pass.

use std::ops::Range;

use rayon::prelude::*;

use super::forward::Layer;
use super::rows::{NormBackward, add_rows, gelu_backward, norm};
use super::sums::{Scratch, Sums};
use super::{BLOCKS, Saved, Sizes};
use crate::cpu::heads::HeadWork;
use crate::cpu::memory::{SharedMut, Uninit, part};

/// Floats that one task adds over the blocks.
const CHUNK: usize = 16_384;

/// The sums of gradients to the parameters: four weights tile by tile (qkv and fc1 transposed), then everything of one axis.
struct Layout {
    qkv: Sums,
    proj: Sums,
    fc1: Sums,
    fc2: Sums,
    /// Floats of the four weights' sums, and of the others: norm1, qkv, proj, norm2, fc1, fc2.
    weights: [usize; 4],
    vectors: [usize; 8],
}

impl Layout {
    fn new(sizes: &Sizes) -> Self {
        let &Sizes { c, hidden, .. } = sizes;
        let (qkv, proj, fc1, fc2) = (Sums::new(c, 3 * c), Sums::new(c, c), Sums::new(c, hidden), Sums::new(c, hidden));
        let weights = [qkv.len(), proj.len(), fc1.len(), fc2.len()];
        Self { qkv, proj, fc1, fc2, weights, vectors: [c, c, 3 * c, c, c, c, hidden, c] }
    }

    fn len(&self) -> usize {
        self.weights.iter().chain(&self.vectors).sum()
    }

    /// Where the weights' sums begin, and last where the others do.
    fn starts(&self) -> [usize; 5] {
        let [a, b, c, d] = self.weights;
        [0, a, a + b, a + b + c, a + b + c + d]
    }

    /// The parts of the sums of one axis.
    fn split<'a>(&self, mut vectors: &'a mut [f32]) -> [&'a mut [f32]; 8] {
        self.vectors.map(|len| {
            let (now, rest) = std::mem::take(&mut vectors).split_at_mut(len);
            vectors = rest;
            now
        })
    }
}

/// Buffers that groups of one thread reuse, by rows.
struct Work {
    /// The gradient to the middle sum.
    middle: Vec<f32>,
    /// A layer norm's result, and the gradient to it or to the attention's result.
    normal: Vec<f32>,
    gradient: Vec<f32>,
    active: Vec<f32>,
    hidden: Vec<f32>,
    qkv: Vec<f32>,
    heads: HeadWork,
    scratch: Scratch,
}

/// The gradient to `x`, given that to the result; that to the parameters goes to `to`, which holds zeros.
pub(super) fn backward(sizes: &Sizes, x: &[f32], parameters: &[f32], g: &[f32], saved: &Saved, to: &mut [f32]) -> Vec<f32> {
    let &Sizes { c, hidden, .. } = sizes;
    let places = sizes.places();
    let pass = Pass {
        sizes,
        layout: Layout::new(sizes),
        parameters,
        qkv: Layer::backward(&parameters[places.qkv[0].clone()], c, 3 * c),
        proj: Layer::backward(&parameters[places.proj[0].clone()], c, c),
        fc1: Layer::backward(&parameters[places.fc1[0].clone()], c, hidden),
        fc2: Layer::backward(&parameters[places.fc2[0].clone()], hidden, c),
        x,
        g,
        saved,
    };
    let groups = sizes.groups();
    if groups == 0 {
        return Vec::new();
    }
    let blocks = BLOCKS.min(groups);
    let len = pass.layout.len();
    let mut dx = Uninit::new(x.len());
    let out = dx.shared();
    let mut partial = Uninit::new(blocks * len);
    let shared = partial.shared();
    (0..blocks).into_par_iter().for_each(|block| {
        let mut work = pass.work();
        // SAFETY: this is the part of this block, whose weights' sums the first group writes, and whose others are zeroed.
        // The rows of a group are its own.
        unsafe {
            let sums = shared.from(block * len);
            sums.at(pass.layout.starts()[4]).write_bytes(0, pass.layout.vectors.iter().sum());
            for (count, i) in part(groups, blocks, block).enumerate() {
                pass.group(sizes.group(i), sums, count > 0, out, &mut work);
            }
        }
    });
    // SAFETY: every block has one group or more.
    let mut partial = unsafe { partial.finish() };
    // SAFETY: the groups make up the rows, and `Pass::group` writes all rows of its group.
    let dx = unsafe { dx.finish() };
    pass.hand_out(&mut partial, blocks, to);
    dx
}

struct Pass<'a> {
    sizes: &'a Sizes,
    layout: Layout,
    parameters: &'a [f32],
    qkv: Layer,
    proj: Layer,
    fc1: Layer,
    fc2: Layer,
    x: &'a [f32],
    g: &'a [f32],
    saved: &'a Saved,
}

impl Pass<'_> {
    fn work(&self) -> Work {
        let (&Sizes { c, hidden, .. }, most) = (self.sizes, self.sizes.most_rows());
        let rows = |width: usize| vec![0.0; most * width];
        Work {
            middle: rows(c),
            normal: rows(c),
            gradient: rows(c),
            active: rows(hidden),
            hidden: rows(hidden),
            qkv: rows(3 * c),
            heads: self.sizes.attention().work(),
            scratch: Scratch::default(),
        }
    }

    /// The gradient to the rows of one group, and what they give of the gradients to the parameters: to weights in place of
    /// what `sums` hold unless `add`, to the others always added.
    ///
    /// # Safety
    /// `sums` must be valid for one block's sums, the weights' initialised if `add`, the others' always; `out` must be valid for writes of the group's rows, which nothing else may use meanwhile.
    unsafe fn group(&self, group: Range<usize>, sums: SharedMut, add: bool, out: SharedMut, work: &mut Work) {
        let &Sizes { t, c, hidden, eps, .. } = self.sizes;
        let (places, attention) = (self.sizes.places(), self.sizes.attention());
        let [norm1, norm2] = [&places.norm1, &places.norm2].map(|p| p.each_ref().map(|r| &self.parameters[r.clone()]));
        let layout = &self.layout;
        let [qkv_at, proj_at, fc1_at, fc2_at, vectors_at] = layout.starts();
        // SAFETY: as the caller says.
        let (vectors, [w_qkv, w_proj, w_fc1, w_fc2]) =
            unsafe { (sums.slice(vectors_at..layout.len()), [qkv_at, proj_at, fc1_at, fc2_at].map(|at| sums.from(at))) };
        let [n1w, n1b, b_qkv, b_proj, n2w, n2b, b_fc1, b_fc2] = layout.split(vectors);
        let count = group.len();
        let rows = |width: usize| group.start * width..group.end * width;
        let (x, g, middle) = (&self.x[rows(c)], &self.g[rows(c)], &self.saved.middle[rows(c)]);
        let (d_middle, normal) = (&mut work.middle[..count * c], &mut work.normal[..count * c]);
        let gradient = &mut work.gradient[..count * c];
        let (active, d_hidden) = (&mut work.active[..count * hidden], &mut work.hidden[..count * hidden]);
        let d_qkv = &mut work.qkv[..count * 3 * c];

        // The MLP.
        // SAFETY: the buffer holds the rows of this group.
        unsafe { self.fc2.run(g, SharedMut::new(d_hidden)) };
        gelu_backward(&self.saved.hidden[rows(hidden)], d_hidden, active);
        // SAFETY: as the caller says.
        unsafe { layout.fc2.run(g, active, count, w_fc2, add, &mut work.scratch) };
        add_rows(g, b_fc2);
        norm(middle, norm2, eps, normal);
        // SAFETY: as the caller says.
        unsafe { layout.fc1.run(normal, d_hidden, count, w_fc1, add, &mut work.scratch) };
        add_rows(d_hidden, b_fc1);
        // SAFETY: as above.
        unsafe { self.fc1.run(d_hidden, SharedMut::new(gradient)) };
        NormBackward { x: middle, weight: norm2[0], eps, g: gradient, skip: g, out: d_middle, to_weight: n2w, to_bias: n2b }
            .run();

        // The attention.
        // SAFETY: as the caller says.
        unsafe { layout.proj.run(d_middle, &self.saved.attention[rows(c)], count, w_proj, add, &mut work.scratch) };
        add_rows(d_middle, b_proj);
        // SAFETY: as above.
        unsafe { self.proj.run(d_middle, SharedMut::new(gradient)) };
        let qkv = &self.saved.qkv[rows(3 * c)];
        let shared = SharedMut::new(d_qkv);
        for start in (0..count * c).step_by(t * c) {
            let (qkv, g) = (&qkv[3 * start..][..3 * t * c], &gradient[start..][..t * c]);
            // SAFETY: the buffer holds all samples of this group, and this is where this one lies.
            unsafe { attention.backward(qkv, g, shared.from(3 * start), &mut work.heads) };
        }
        norm(x, norm1, eps, normal);
        // SAFETY: as the caller says.
        unsafe { layout.qkv.run(normal, d_qkv, count, w_qkv, add, &mut work.scratch) };
        add_rows(d_qkv, b_qkv);
        // SAFETY: as above.
        unsafe { self.qkv.run(d_qkv, SharedMut::new(gradient)) };
        // SAFETY: as the caller says; every row is written here before anything reads it.
        let out = unsafe {
            out.at(group.start * c).write_bytes(0, count * c);
            out.slice(rows(c))
        };
        NormBackward { x, weight: norm1[0], eps, g: gradient, skip: d_middle, out, to_weight: n1w, to_bias: n1b }.run();
    }

    /// Adds the blocks in order, and writes the gradient to the packed parameters.
    fn hand_out(&self, partial: &mut [f32], blocks: usize, to: &mut [f32]) {
        let (total, others) = partial.split_at_mut(self.layout.len());
        let others = &*others;
        let len = total.len();
        total.par_chunks_mut(CHUNK).enumerate().for_each(|(i, total)| {
            for block in 0..blocks - 1 {
                super::rows::add(&others[block * len + i * CHUNK..][..total.len()], total);
            }
        });
        let places = self.sizes.places();
        let layout = &self.layout;
        let starts = layout.starts();
        for (i, (sums, transposed, range)) in [
            (&layout.qkv, true, &places.qkv[0]),
            (&layout.proj, false, &places.proj[0]),
            (&layout.fc1, true, &places.fc1[0]),
            (&layout.fc2, false, &places.fc2[0]),
        ]
        .into_iter()
        .enumerate()
        {
            sums.hand_out(&total[starts[i]..starts[i + 1]], transposed, &mut to[range.clone()]);
        }
        let [n1w, n1b, b_qkv, b_proj, n2w, n2b, b_fc1, b_fc2] = layout.split(&mut total[starts[4]..]);
        for (from, range) in [
            (n1w, &places.norm1[0]),
            (n1b, &places.norm1[1]),
            (b_qkv, &places.qkv[1]),
            (b_proj, &places.proj[1]),
            (n2w, &places.norm2[0]),
            (n2b, &places.norm2[1]),
            (b_fc1, &places.fc1[1]),
            (b_fc2, &places.fc2[1]),
        ] {
            to[range.clone()].copy_from_slice(from);
        }
    }
}
