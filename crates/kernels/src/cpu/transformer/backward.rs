//! The backward pass.

use std::ops::Range;

use rayon::prelude::*;

use super::forward::Layer;
use super::rows::{add_rows, gelu_backward, norm, norm_backward};
use super::sums::{Scratch, Sums};
use super::{BLOCKS, Saved, Sizes};
use crate::cpu::heads::HeadWork;
use crate::cpu::memory::{SharedMut, Uninit, part};

/// Floats that one task adds over the blocks.
const CHUNK: usize = 16_384;

/// The sums of gradients to the parameters: four weights tile by tile, then everything of one axis.
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
        let (qkv, proj) = (Sums::new(3 * c, c), Sums::new(c, c));
        let (fc1, fc2) = (Sums::new(hidden, c), Sums::new(c, hidden));
        let weights = [qkv.len(), proj.len(), fc1.len(), fc2.len()];
        Self { qkv, proj, fc1, fc2, weights, vectors: [c, c, 3 * c, c, c, c, hidden, c] }
    }

    fn len(&self) -> usize {
        self.weights.iter().chain(&self.vectors).sum()
    }

    /// The sums' parts in one buffer.
    fn split<'a>(&self, mut buffer: &'a mut [f32]) -> ([&'a mut [f32]; 4], [&'a mut [f32]; 8]) {
        let mut next = |len: usize| {
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(len);
            buffer = rest;
            now
        };
        (self.weights.map(&mut next), self.vectors.map(&mut next))
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
    row: Vec<f32>,
    heads: HeadWork,
    scratch: Scratch,
}

/// The gradients to `x` and to the parameters, given that to the result.
pub(super) fn backward(sizes: &Sizes, x: &[f32], parameters: &[f32], g: &[f32], saved: Saved) -> (Vec<f32>, Vec<f32>) {
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
    let blocks = BLOCKS.min(groups).max(1);
    let len = pass.layout.len();
    let mut dx = Uninit::new(x.len());
    let out = dx.shared();
    let mut partial = vec![0.0f32; blocks * len];
    partial.par_chunks_exact_mut(len).enumerate().for_each(|(block, sums)| {
        let mut work = pass.work();
        for i in part(groups, blocks, block) {
            // SAFETY: the group's rows of the gradient are its own.
            unsafe { pass.group(sizes.group(i), sums, out, &mut work) };
        }
    });
    // SAFETY: the groups make up the rows, and `Pass::group` writes all rows of its group.
    let dx = unsafe { dx.finish() };
    (dx, pass.hand_out(&mut partial, blocks))
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
    saved: Saved,
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
            row: vec![0.0; 2 * c],
            heads: self.sizes.attention().work(),
            scratch: Scratch::default(),
        }
    }

    /// The gradient to the rows of one group, and what they add to the gradients to the parameters.
    ///
    /// # Safety
    /// `out` must be valid for writes of the group's rows, which nothing else may use meanwhile.
    unsafe fn group(&self, group: Range<usize>, sums: &mut [f32], out: SharedMut, work: &mut Work) {
        let &Sizes { t, c, hidden, eps, .. } = self.sizes;
        let (places, attention) = (self.sizes.places(), self.sizes.attention());
        let [norm1, norm2] = [&places.norm1, &places.norm2].map(|p| p.each_ref().map(|r| &self.parameters[r.clone()]));
        let ([w_qkv, w_proj, w_fc1, w_fc2], [n1w, n1b, b_qkv, b_proj, n2w, n2b, b_fc1, b_fc2]) = self.layout.split(sums);
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
        self.layout.fc2.add(g, active, count, w_fc2, &mut work.scratch);
        add_rows(g, b_fc2);
        norm(middle, norm2[0], norm2[1], eps, normal);
        self.layout.fc1.add(d_hidden, normal, count, w_fc1, &mut work.scratch);
        add_rows(d_hidden, b_fc1);
        // SAFETY: as above.
        unsafe { self.fc1.run(d_hidden, SharedMut::new(gradient)) };
        norm_backward(middle, norm2[0], eps, gradient, g, d_middle, n2w, n2b, &mut work.row);

        // The attention.
        self.layout.proj.add(d_middle, &self.saved.attention[rows(c)], count, w_proj, &mut work.scratch);
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
        norm(x, norm1[0], norm1[1], eps, normal);
        self.layout.qkv.add(d_qkv, normal, count, w_qkv, &mut work.scratch);
        add_rows(d_qkv, b_qkv);
        // SAFETY: as above.
        unsafe { self.qkv.run(d_qkv, SharedMut::new(gradient)) };
        // SAFETY: as the caller says; every row is written here before anything reads it.
        let out = unsafe {
            out.at(group.start * c).write_bytes(0, count * c);
            out.slice(rows(c))
        };
        norm_backward(x, norm1[0], eps, gradient, d_middle, out, n1w, n1b, &mut work.row);
    }

    /// Adds the blocks in order, and gives the gradient to the packed parameters.
    fn hand_out(&self, partial: &mut [f32], blocks: usize) -> Vec<f32> {
        let (total, others) = partial.split_at_mut(self.layout.len());
        let others = &*others;
        let len = total.len();
        total.par_chunks_mut(CHUNK).enumerate().for_each(|(i, total)| {
            for block in 0..blocks - 1 {
                super::rows::add(&others[block * len + i * CHUNK..][..total.len()], total);
            }
        });
        let places = self.sizes.places();
        let mut to = vec![0.0f32; places.len];
        let ([w_qkv, w_proj, w_fc1, w_fc2], [n1w, n1b, b_qkv, b_proj, n2w, n2b, b_fc1, b_fc2]) = self.layout.split(total);
        let layout = &self.layout;
        for (sums, from, to_range) in [
            (&layout.qkv, w_qkv, &places.qkv[0]),
            (&layout.proj, w_proj, &places.proj[0]),
            (&layout.fc1, w_fc1, &places.fc1[0]),
            (&layout.fc2, w_fc2, &places.fc2[0]),
        ] {
            sums.hand_out(from, &mut to[to_range.clone()]);
        }
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
        to
    }
}
