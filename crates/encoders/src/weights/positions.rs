//! Tokens and position tables between homes: with or without rows for class and registers, and at another number of patches.

use candle_core::Tensor;

use crate::{Result, bicubic_matrix};

/// How a table of positions is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Rows before those of the patches: none, the class token's, or the class token's and the registers'.
    pub prefix: usize,
    /// Patches along a side.
    pub side: usize,
}

impl Table {
    /// Understands a table of `rows` rows of a transformer with `registers` registers. `None` where the patches are no square.
    pub fn of(rows: usize, registers: usize) -> Option<Self> {
        let likely: &[usize] = if registers == 0 { &[1, 0] } else { &[0, 1, 1 + registers] };
        likely.iter().find_map(|&prefix| {
            let side = rows.checked_sub(prefix)?.isqrt();
            (side > 0 && side * side + prefix == rows).then_some(Self { prefix, side })
        })
    }
}

/// Class token, registers and positions in our form.
pub(crate) struct Tokens {
    /// (1, 1, D)
    pub class: Tensor,
    /// (1, R, D)
    pub registers: Option<Tensor>,
    /// (1, patches, D) with registers, else (1, 1 + patches, D).
    pub positions: Tensor,
}

/// Puts tokens of another home into our form for `side` patches a side: rows of class and registers are added to the tokens
/// where ours have none, and the patches' rows are resampled as timm's `resample_abs_pos_embed` does.
pub(crate) fn adapt(class: Tensor, registers: Option<Tensor>, positions: &Tensor, table: Table, side: usize) -> Result<Tokens> {
    let (_, _, dim) = positions.dims3()?;
    let grid = positions.narrow(1, table.prefix, table.side * table.side)?;
    let grid = if side == table.side {
        grid
    } else {
        let matrix = Tensor::from_vec(
            bicubic_matrix(table.side, (side, side)),
            (side * side, table.side * table.side),
            positions.device(),
        )?;
        matrix.matmul(&grid.squeeze(0)?.contiguous()?)?.unsqueeze(0)?
    };
    let row = if table.prefix > 0 { positions.narrow(1, 0, 1)? } else { class.zeros_like()? };
    Ok(match registers {
        None => Tokens { class, registers: None, positions: Tensor::cat(&[&row.reshape((1, 1, dim))?, &grid], 1)? },
        Some(registers) => {
            let own = if table.prefix > 1 { (&registers + positions.narrow(1, 1, table.prefix - 1)?)? } else { registers };
            Tokens { class: (class + row)?, registers: Some(own), positions: grid.contiguous()? }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn tables_are_understood() {
        assert_eq!(Table::of(197, 0), Some(Table { prefix: 1, side: 14 }));
        assert_eq!(Table::of(196, 0), Some(Table { prefix: 0, side: 14 }));
        assert_eq!(Table::of(1370, 4), Some(Table { prefix: 1, side: 37 }));
        assert_eq!(Table::of(16, 4), Some(Table { prefix: 0, side: 4 }));
        assert_eq!(Table::of(21, 4), Some(Table { prefix: 5, side: 4 }));
        assert_eq!((Table::of(195, 0), Table::of(0, 0), Table::of(1, 0)), (None, None, Some(Table { prefix: 0, side: 1 })));
    }

    #[test]
    fn rows_of_class_and_registers_go_into_the_tokens() -> Result<()> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, (1, values.len(), 1), &Device::Cpu);
        let table = tensor(&[10., 20., 1., 2., 3., 4.])?;
        let tokens = adapt(tensor(&[100.])?, Some(tensor(&[200.])?), &table, Table { prefix: 2, side: 2 }, 2)?;
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        assert_eq!(flat(&tokens.class)?, [110.]);
        assert_eq!(flat(&tokens.registers.expect("registers"))?, [220.]);
        assert_eq!(flat(&tokens.positions)?, [1., 2., 3., 4.]);
        let tokens = adapt(tensor(&[100.])?, None, &tensor(&[5., 6.])?, Table { prefix: 1, side: 1 }, 2)?;
        assert_eq!(flat(&tokens.positions)?, [5., 6., 6., 6., 6.]);
        Ok(())
    }
}
