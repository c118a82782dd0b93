//! Tables of products of queries with keys, of which contrastive losses need a number a row. A large one is never stored: it is made
//! some rows at a time, in the forward pass and again in the backward pass, as flash attention does with its table (Dao et al. 2022).

use candle_core::{Result, Tensor, Var, bail};

use crate::graph::handed2;
use crate::{check, linear, log_sum_exp, row_max};

/// The products of queries (M, D) with keys (K, D).
///
/// Up to [`Similarities::STORED`] products are computed once and kept, which is faster; of more no table is kept, and each function computes
/// the products again, some rows of them at a time: as many as make [`Similarities::TILE`] products, but [`Similarities::ROWS`] at least,
/// since every part of the rows costs a gradient of all keys. SimCLR's table for 32,768 images has 4,294,967,296 numbers, 16 GiB; 256
/// rows of it are 64 MiB. The number of rows depends on the sizes alone, and so do the bits.
#[derive(Debug, Clone)]
pub struct Similarities {
    queries: Tensor,
    keys: Tensor,
    /// Where it is kept, (M, K).
    table: Option<Tensor>,
    /// Rows that are made at a time.
    rows: usize,
}

impl Similarities {
    /// Most products that are kept: 128 MiB, and twice that again in a backward pass.
    pub const STORED: usize = 1 << 25;
    /// Products that are made at a time where they are not kept and [`Similarities::ROWS`] rows have no more: 16 MiB.
    pub const TILE: usize = 1 << 22;
    /// Fewest rows that are made at a time.
    pub const ROWS: usize = 256;

    /// The products of `queries` (M, D) with `keys` (K, D).
    ///
    /// # Errors
    /// When a tensor is not `f32` or has not two axes, or D is not the same.
    pub fn new(queries: &Tensor, keys: &Tensor) -> Result<Self> {
        let columns = keys.dims().first().copied().unwrap_or_default();
        Self::within(queries, keys, Self::STORED, (Self::TILE / columns.max(1)).max(Self::ROWS))
    }

    /// As [`Similarities::new`], with no table kept whatever its size, and `rows` rows at a time: less memory, more time.
    ///
    /// # Errors
    /// As [`Similarities::new`].
    pub fn in_parts(queries: &Tensor, keys: &Tensor, rows: usize) -> Result<Self> {
        Self::within(queries, keys, 0, rows)
    }

    fn within(queries: &Tensor, keys: &Tensor, stored: usize, rows: usize) -> Result<Self> {
        const OP: &str = "similarities";
        check::f32(OP, "queries", queries)?;
        check::f32(OP, "keys", keys)?;
        let ([m, d], [k, e]) = (queries.dims(), keys.dims()) else {
            bail!("{OP}: queries {:?} and keys {:?}, expected (M, D) and (K, D)", queries.dims(), keys.dims())
        };
        if d != e {
            bail!("{OP}: queries have {d} numbers each and keys {e}, expected the same");
        }
        let table = if m.saturating_mul(*k) <= stored { Some(linear(queries, keys, None)?) } else { None };
        Ok(Self { queries: queries.clone(), keys: keys.clone(), table, rows: rows.max(1) })
    }

    /// The number of queries and of keys.
    pub fn dims(&self) -> (usize, usize) {
        (self.queries.dims()[0], self.keys.dims()[0])
    }

    /// log Σₖ exp of each row, over the columns that `except` does not name. See [`log_sum_exp`].
    ///
    /// # Shapes
    /// `except`: an entry of two columns for each row, or none at all. The result is (M).
    ///
    /// # Errors
    /// When a row would keep no column, or `except` names a column that is not there.
    pub fn log_sum_exp(&self, except: &[[u32; 2]]) -> Result<Tensor> {
        if let Some(table) = &self.table {
            return log_sum_exp(table, except);
        }
        let (queries, keys) = (self.queries.detach(), self.keys.detach());
        let parts = self.tiles(except)?;
        let sums = parts.map(|tile| log_sum_exp(&tile.products(&queries, &keys)?, tile.except)).collect::<Result<Vec<_>>>()?;
        let (own, except): (Self, Vec<[u32; 2]>) = (Self { queries, keys, ..self.clone() }, except.to_vec());
        handed2("similarities", [&self.queries, &self.keys], &Tensor::cat(&sums, 0)?, move |[queries, keys], grad| {
            own.backward(&except, grad, [queries.track_op(), keys.track_op()])
        })
    }

    /// The largest of each row over the columns that `except` does not name, outside of any graph. See [`row_max`].
    ///
    /// # Shapes
    /// As [`Similarities::log_sum_exp`].
    ///
    /// # Errors
    /// As [`Similarities::log_sum_exp`].
    pub fn row_max(&self, except: &[[u32; 2]]) -> Result<Tensor> {
        if let Some(table) = &self.table {
            return row_max(table, except);
        }
        let (queries, keys) = (self.queries.detach(), self.keys.detach());
        let parts = self.tiles(except)?;
        let tops = parts.map(|tile| row_max(&tile.products(&queries, &keys)?, tile.except)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&tops, 0)
    }

    /// The gradients of [`Similarities::log_sum_exp`] to queries and keys, where they are `wanted`. Those to the keys are added up tile by
    /// tile, from the first on.
    fn backward(&self, except: &[[u32; 2]], grad: &Tensor, wanted: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let keys = Var::from_tensor(&self.keys)?;
        let (mut to_queries, mut to_keys): (Vec<Tensor>, Option<Tensor>) = (Vec::new(), None);
        for tile in self.tiles(except)? {
            let queries = Var::from_tensor(&self.queries.narrow(0, tile.first, tile.rows)?)?;
            let keys = if wanted[1] { keys.as_tensor() } else { &self.keys };
            let sums = log_sum_exp(&linear(&queries, keys, None)?, tile.except)?;
            let gradients = (sums * grad.narrow(0, tile.first, tile.rows)?)?.sum_all()?.backward()?;
            let of = |t: &Tensor| {
                let Some(gradient) = gradients.get(t) else { bail!("internal: a tile of similarities has no gradient") };
                Ok(gradient.detach())
            };
            if wanted[0] {
                to_queries.push(of(&queries)?);
            }
            if wanted[1] {
                let own = of(keys)?;
                to_keys = Some(match to_keys {
                    None => own,
                    Some(before) => (before + own)?,
                });
            }
        }
        let to_queries = if wanted[0] { Some(Tensor::cat(&to_queries, 0)?) } else { None };
        Ok([to_queries, to_keys])
    }

    /// The rows from the first to the last, some at a time.
    fn tiles<'a>(&self, except: &'a [[u32; 2]]) -> Result<impl Iterator<Item = Tile<'a>> + use<'a>> {
        let ((m, _), step) = (self.dims(), self.rows);
        if !except.is_empty() && except.len() != m {
            bail!("similarities: {} entries of columns to leave out for {m} rows", except.len());
        }
        Ok((0..m).step_by(step).map(move |first| {
            let rows = step.min(m - first);
            Tile { first, rows, except: if except.is_empty() { except } else { &except[first..first + rows] } }
        }))
    }
}

/// Some rows of the table, with the columns that are left out of them.
struct Tile<'a> {
    first: usize,
    rows: usize,
    except: &'a [[u32; 2]],
}

impl Tile<'_> {
    fn products(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        linear(&queries.narrow(0, self.first, self.rows)?, keys, None)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn random(dims: [usize; 2], seed: usize) -> Result<Var> {
        let hash = |i: usize| ((i + 977 * seed + 1).wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0;
        Var::from_tensor(&Tensor::from_vec((0..dims[0] * dims[1]).map(hash).collect::<Vec<_>>(), &dims, &Device::Cpu)?)
    }

    fn numbers(t: &Tensor) -> Result<Vec<f32>> {
        t.flatten_all()?.to_vec1()
    }

    /// Values, largest and both gradients of a table that is stored and of one that is not.
    fn agree(m: usize, k: usize, d: usize, rows: usize, left_out: usize) -> Result<()> {
        let (queries, keys) = (random([m, d], 1)?, random([k, d], 2)?);
        let weights = random([1, m], 3)?.flatten_all()?.detach();
        let except: Vec<[u32; 2]> = match left_out {
            0 => Vec::new(),
            n => (0..m).map(|i| [(i % k) as u32, ((i + n - 1) % k) as u32]).collect(),
        };
        let mut found = Vec::new();
        for stored in [usize::MAX, 0] {
            let table = Similarities::within(&queries, &keys, stored, rows)?;
            assert_eq!(table.table.is_some(), stored > 0);
            let sums = table.log_sum_exp(&except)?;
            let gradients = (&sums * &weights)?.sum_all()?.backward()?;
            let mut all = vec![numbers(&sums)?, numbers(&table.row_max(&except)?)?];
            for of in [&queries, &keys] {
                all.push(numbers(gradients.get(of).expect("a gradient"))?);
            }
            found.push(all);
        }
        for (what, (kept, tiled)) in ["sums", "largest", "to queries", "to keys"].iter().zip(found[0].iter().zip(&found[1])) {
            assert_eq!(kept.len(), tiled.len());
            for (a, b) in kept.iter().zip(tiled) {
                assert!((a - b).abs() <= 2e-5 * (1.0 + a.abs()), "{what} of ({m}, {k}, {d}), {rows} rows: {a} and {b}");
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_not_stored_gives_the_same(m in 1usize..20, k in 3usize..20, d in 1usize..9, rows in 1usize..25, out in 0usize..3) {
            agree(m, k, d, rows, out)?;
        }
    }

    #[test]
    fn a_tensor_that_is_queries_and_keys_gets_both_gradients() -> Result<()> {
        let z = random([10, 4], 1)?;
        let except: Vec<[u32; 2]> = (0..10).map(|i| [i, i]).collect();
        let mut found = Vec::new();
        for stored in [usize::MAX, 0] {
            let sums = Similarities::within(&(z.as_tensor() * 2.0)?, &z, stored, 3)?.log_sum_exp(&except)?;
            found.push(numbers(sums.sum_all()?.backward()?.get(&z).expect("a gradient"))?);
        }
        for (a, b) in found[0].iter().zip(&found[1]) {
            assert!((a - b).abs() < 1e-5, "{a} and {b}");
        }
        Ok(())
    }

    #[test]
    fn keys_outside_of_the_graph_get_no_gradient_and_wrong_sizes_are_named() -> Result<()> {
        let (queries, keys) = (random([5, 4], 1)?, random([6, 4], 2)?);
        let table = Similarities::in_parts(&queries, &keys.detach(), 2)?;
        let gradients = table.log_sum_exp(&[])?.sum_all()?.backward()?;
        assert!(gradients.get(&queries).is_some() && gradients.get(&keys).is_none());
        let told = |queries: &Tensor, keys: &Tensor| Similarities::new(queries, keys).expect_err("a table").to_string();
        assert!(told(&queries, random([6, 3], 2)?.as_tensor()).contains("queries have 4 numbers each and keys 3"));
        assert!(told(&queries.flatten_all()?, &keys).contains("expected (M, D)"));
        assert!(table.log_sum_exp(&[[0, 0]]).expect_err("one entry").to_string().contains("for 5 rows"));
        assert!(table.row_max(&[[6, 6]; 5]).is_err());
        Ok(())
    }
}
