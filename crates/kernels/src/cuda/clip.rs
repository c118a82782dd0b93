//! The clipping of many gradients by two launches, into new memory. Nothing waits for the device.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, THREADS, launch};
use super::source::UPDATE;
use super::update::{Row, Table};
use crate::update::Clip;

/// Numbers between two tensors' first ones in the memory of [`clip`], at least: a tensor's begins where one of its own would be aligned.
const APART: usize = 64;

/// Copies of the gradients at address 0, clipped, one behind the other, and where each begins. Their address 1 is not read.
///
/// # Safety
/// The addresses must be those of `len` floats each, which stay until the device has run the kernels, and which nothing writes until then.
pub(crate) unsafe fn clip<E: Engine>(e: &E, rows: &[Row], max: f64, of: Clip) -> Result<(E::Buffer, Vec<usize>)> {
    let (mut rows, mut starts, mut end) = (rows.to_vec(), Vec::with_capacity(rows.len()), 0);
    for row in &mut rows {
        starts.push(end);
        row.at[1] = end as u64;
        end += row.len.next_multiple_of(APART);
    }
    let table = Table::upload(e, &rows)?;
    let mut parts = e.alloc(DType::F64, table.chunks)?;
    let args = vec![Arg::In(&table.buffer, 0), Arg::Out(&mut parts), Arg::Int(table.tensors)];
    // SAFETY: blocks take chunks of the tensors' lengths, each with a part of its own; the rest is the caller's word.
    unsafe { launch(e, &UPDATE, "clip_squares", table.grid(), THREADS, args)? };
    let mut out = e.alloc(DType::F32, end)?;
    let args = vec![
        Arg::In(&table.buffer, 0),
        Arg::In(&parts, 0),
        Arg::Out(&mut out),
        Arg::Int(table.tensors),
        Arg::Long(table.chunks as i64),
        Arg::Double(max),
        Arg::Int((of == Clip::Together).into()),
    ];
    // SAFETY: there is a part for each chunk, and room for every tensor from its start on.
    unsafe { launch(e, &UPDATE, "clip", table.grid(), THREADS, args)? };
    Ok((out, starts))
}

/// As [`crate::update::clip`], of checked tensors on a CUDA device.
#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::{Result, Tensor};

    use super::super::tensor::{gpu, tensor};
    use super::super::update::on_device::with_rows;
    use crate::update::Clip;

    /// The clipped tensors lie in one allocation, which goes when the last of them does. The old ones are left as they are: two gradients may
    /// share their memory, with each other and with a tensor of the graph.
    pub(crate) fn clip(tensors: &mut [&mut Tensor], max: f64, of: Clip) -> Result<()> {
        let groups = tensors.iter().map(|t| Ok((vec![t.detach().contiguous()?], 0.0, 0.0))).collect::<Result<Vec<_>>>()?;
        let Some(first) = groups.first().and_then(|(group, ..)| group.first()) else { return Ok(()) };
        // SAFETY: the rows have the tensors' lengths; what is read is held and not written.
        let (all, starts) = with_rows(&groups, |rows| unsafe { super::clip(&gpu(first)?, rows, max, of) })?;
        let end = starts.last().copied().unwrap_or(0) + tensors.last().map_or(0, |t| t.elem_count());
        let all = tensor(all, end);
        for (t, start) in tensors.iter_mut().zip(starts) {
            **t = all.narrow(0, start, t.elem_count())?.reshape(t.shape())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::super::emulated::{Host, HostBuffer, values};
    use super::super::update::CHUNK;
    use super::*;

    /// Lengths with empty tensors in all places, whole chunks, and parts of them.
    const LENGTHS: [usize; 8] = [0, 1, 300, 0, CHUNK, CHUNK + 1, 2 * CHUNK - 5, 0];

    /// What [`clip`] makes of gradients on the emulated device, tensor by tensor.
    fn clipped(host: &Host, gradients: &[Vec<f32>], max: f64, of: Clip) -> Result<Vec<Vec<f32>>> {
        let buffers: Vec<HostBuffer> = gradients.iter().map(|g| host.floats(DType::F32, g, 3)).collect();
        let row = |(g, buffer): (&Vec<f32>, &HostBuffer)| {
            Ok(Row { len: g.len(), at: [host.address(buffer, 3)?, 0, 0, 0], a: 0.0, b: 0.0 })
        };
        let rows = gradients.iter().zip(&buffers).map(row).collect::<Result<Vec<_>>>()?;
        // SAFETY: the addresses are those of buffers of the rows' lengths, which outlive the call.
        let (all, starts) = unsafe { clip(host, &rows, max, of)? };
        for (buffer, gradient) in buffers.iter().zip(gradients) {
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&buffer.read()[3..]), bits(gradient), "a gradient was written");
        }
        let all = all.read();
        assert!(starts.iter().all(|start| start.is_multiple_of(APART)));
        Ok(starts.iter().zip(gradients).map(|(&start, g)| all[start..start + g.len()].to_vec()).collect())
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn clipping_is_that_of_the_cpu() -> Result<()> {
        let host = Host::new();
        let plain: Vec<Vec<f32>> = LENGTHS.iter().enumerate().map(|(i, &len)| values(len, i as u64)).collect();
        let with = |at: usize, value: f32| {
            let mut all = plain.clone();
            all[at][0] = value;
            all
        };
        let cases: [(&str, Vec<Vec<f32>>); 8] = [
            ("plain", plain.clone()),
            ("zeros", LENGTHS.iter().map(|&len| vec![0.0; len]).collect()),
            ("a tensor of zeros", with(1, 0.0)),
            ("infinity", with(2, f32::INFINITY)),
            ("NaN", with(4, f32::NAN)),
            // In `f32` the sum of squares would not be finite.
            ("a large number", with(5, 1e30)),
            ("small numbers", plain.iter().map(|t| t.iter().map(|v| v * 1e-25).collect()).collect()),
            ("nothing", vec![Vec::new(); 3]),
        ];
        for (what, gradients) in &cases {
            for (of, max) in
                [Clip::Together, Clip::Each].into_iter().flat_map(|of| [0.0, 0.3, 3.0, 60.0, 1e9].map(|max| (of, max)))
            {
                let mut want = gradients.iter().map(|g| Tensor::new(&g[..], &Device::Cpu)).collect::<Result<Vec<_>>>()?;
                crate::update::clip(&mut want.iter_mut().collect::<Vec<_>>(), max, of)?;
                for (i, (got, want)) in clipped(&host, gradients, max, of)?.iter().zip(want).enumerate() {
                    let want = want.to_vec1::<f32>()?;
                    for (got, want) in got.iter().zip(&want) {
                        // The sums' order differs, and with it at most the last bit of the factor.
                        let near = (got - want).abs() <= 1.3e-7 * want.abs() || got.is_nan() && want.is_nan() || got == want;
                        assert!(near, "{what}, {of:?} by {max}, tensor {i}: {got:e} for {want:e}");
                    }
                    assert_eq!(got.len(), want.len());
                }
            }
        }
        assert!(clipped(&host, &[], 1.0, Clip::Together)?.is_empty());
        Ok(())
    }
}
