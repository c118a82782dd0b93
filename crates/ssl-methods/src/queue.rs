//! A queue of vectors of past batches, first in first out (He et al. 2020).

use candle_core::{DType, Device, Tensor, Var};
use twinsight_kernels::l2_normalize;
use twinsight_nn::{DrawKey, StateVisitor};

use crate::Result;

/// The last `size` vectors of length 1 that were put in.
pub(crate) struct Queue {
    rows: Var,
    /// Where the next vector goes.
    next: u64,
    /// How many were ever put in.
    filled: u64,
}

impl Queue {
    /// A queue of `size` random directions of `dim` elements, as the reference implementations start.
    pub fn new(size: usize, dim: usize, seed: u64, device: &Device) -> Result<Self> {
        let values = DrawKey { seed, step: 0, pass: 0 }.normals("queue", size * dim);
        let rows = l2_normalize(&Tensor::from_vec(values, (size, dim), device)?, 1e-12)?;
        Ok(Self { rows: Var::from_tensor(&rows)?, next: 0, filled: 0 })
    }

    /// (size, dim), without a graph.
    pub fn rows(&self) -> Tensor {
        self.rows.as_detached_tensor()
    }

    /// Whether nothing of its start is left.
    pub fn is_full(&self) -> bool {
        self.filled as usize >= self.size()
    }

    fn size(&self) -> usize {
        self.rows.dims()[0]
    }

    /// Puts in the rows of `new` (N, dim), each scaled to length 1, over the oldest ones.
    pub fn put(&mut self, new: &Tensor) -> Result<()> {
        let new = l2_normalize(&new.detach().to_dtype(DType::F32)?, 1e-12)?;
        let size = self.size();
        // Of more rows than fit, the last ones stay.
        let count = new.dim(0)?.min(size);
        let new = new.narrow(0, new.dim(0)? - count, count)?;
        let start = self.next as usize;
        let first = count.min(size - start);
        let mut rows = self.rows().slice_assign(&[start..start + first, 0..new.dim(1)?], &new.narrow(0, 0, first)?)?;
        if first < count {
            rows = rows.slice_assign(&[0..count - first, 0..new.dim(1)?], &new.narrow(0, first, count - first)?)?;
        }
        self.rows.set(&rows)?;
        self.next = ((start + count) % size) as u64;
        self.filled = (self.filled + count as u64).min(size as u64);
        Ok(())
    }

    /// Shows its state under `name`.
    pub fn visit(&mut self, name: &str, visitor: &mut dyn StateVisitor) -> Result<()> {
        visitor.tensor(&format!("{name}.rows"), &self.rows)?;
        visitor.counter(&format!("{name}.next"), &mut self.next)?;
        Ok(visitor.counter(&format!("{name}.filled"), &mut self.filled)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rows_give_way() -> Result<()> {
        let mut queue = Queue::new(5, 2, 0, &Device::Cpu)?;
        let rows = |q: &Queue| -> Result<Vec<f32>> { Ok(q.rows().get_on_dim(1, 0)?.to_vec1()?) };
        let start = rows(&queue)?;
        let put = |q: &mut Queue, angles: &[f32]| -> Result<()> {
            let values: Vec<f32> = angles.iter().flat_map(|a| [3.0 * a.cos(), 3.0 * a.sin()]).collect();
            q.put(&Tensor::from_vec(values, (angles.len(), 2), &Device::Cpu)?)
        };
        put(&mut queue, &[0.1, 0.2, 0.3])?;
        let close = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&rows(&queue)?, &[0.1f32.cos(), 0.2f32.cos(), 0.3f32.cos(), start[3], start[4]]));
        assert!(!queue.is_full());
        put(&mut queue, &[0.4, 0.5, 0.6])?;
        assert!(close(&rows(&queue)?, &[0.6, 0.2, 0.3, 0.4, 0.5].map(f32::cos)));
        assert!(queue.is_full());
        put(&mut queue, &[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])?;
        let mut got = rows(&queue)?;
        got.sort_by(f32::total_cmp);
        let mut want = [1.2, 1.3, 1.4, 1.5, 1.6].map(f32::cos);
        want.sort_by(f32::total_cmp);
        assert!(close(&got, &want));
        Ok(())
    }
}
