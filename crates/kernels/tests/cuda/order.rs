//! What runs beside other work: copies, tables, threads.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use twinsight_kernels::relu;

use crate::common::flat;
use crate::device;

/// Rows and columns of the matrices of [`busy`]; fewer by `TWINSIGHT_TEST_BUSY`, where a device is slow.
fn side() -> usize {
    std::env::var("TWINSIGHT_TEST_BUSY").map_or(4096, |side| side.parse().expect("TWINSIGHT_TEST_BUSY is a number"))
}

/// Work that keeps the device from what follows for a while.
fn busy(device: &Device) -> Result<Tensor> {
    let x = Tensor::full(1e-4f32, (side(), side()), device)?;
    let mut y = x.clone();
    for _ in 0..200 {
        y = y.matmul(&x)?;
    }
    Ok(y)
}

#[test]
fn tables_of_views_are_not_rewritten_before_they_are_read() -> Result<()> {
    use twinsight_kernels::views::{DeviceImages, ViewChannel, ViewCrop, ViewTable};
    let Some(device) = device() else { return Ok(()) };
    // An image of 16 pixels for each table, all of one level.
    let bytes: Vec<u8> = (0..20 * 16).map(|i| (i / 16 * 7) as u8).collect();
    // In parts, of which the second has not come yet.
    let mut images = DeviceImages::with_room(&device, bytes.len())?;
    images.append(&bytes[..100])?;
    let mut late = ViewTable::new(4, false, &[ViewChannel { factor: 1.0, offset: 0.0, nothing: 0 }])?;
    late.push(&ViewCrop { place: 96, image: (4, 4), crop: (0, 0, 4, 4), flip: false })?;
    ensure!(images.render(&late).is_err(), "an image is not whole yet");
    images.append(&bytes[100..])?;
    ensure!(images.len() == bytes.len() && images.append(&[0]).is_err());
    let busy = busy(&device)?;
    let mut views = Vec::new();
    for i in 0..20_u64 {
        let mut table = ViewTable::new(4, false, &[ViewChannel { factor: 1.0, offset: 0.0, nothing: 0 }])?;
        table.push(&ViewCrop { place: 16 * i, image: (4, 4), crop: (0, 0, 4, 4), flip: false })?;
        views.push(images.render(&table)?);
    }
    for (i, view) in views.iter().enumerate() {
        let found = flat(view)?;
        ensure!(found.iter().all(|&v| v == (7 * i) as f32), "view {i} is made of another's table: {found:?}");
    }
    ensure!(flat(&busy)?.iter().all(|v| v.is_finite()));
    Ok(())
}

#[test]
fn tensors_pass_between_threads() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    for i in 0..20 {
        let slow = busy(&device)?.affine(0.0, f64::from(i))?;
        // Another thread's work comes after this one's.
        let there = std::thread::scope(|scope| scope.spawn(|| relu(&slow).and_then(|y| y.sum_all())).join());
        let sum = there.map_err(|_| anyhow::anyhow!("a thread panicked"))??.to_scalar::<f32>()?;
        let want = i as f32 * (side() * side()) as f32;
        ensure!((sum - want).abs() <= 1e-3 * want, "{sum} for {want}");
    }
    Ok(())
}

#[test]
fn copies_beside_the_work_bring_every_value() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let transfers = twinsight_kernels::transfer::Transfers::new(&device)?;
    ensure!(transfers.are_apart(), "copies to a CUDA device run on a stream of their own");
    // Copies come after what the device was told before, so that the host is ahead of all of them from here on.
    let busy = busy(&device)?;
    // More batches than rooms, of two lengths, with work in between; and one that nobody takes.
    let mut sums = Vec::new();
    for i in 0..20_usize {
        let len = if i % 3 == 0 { 70_000 } else { 1 << 20 };
        let mut buffer = transfers.buffer(len)?;
        buffer.as_mut_slice()?.iter_mut().enumerate().for_each(|(k, v)| *v = ((k * 7 + i) % 13) as f32);
        let upload = transfers.begin(buffer, len.into())?;
        if i == 11 {
            drop(upload);
            continue;
        }
        let tensor = transfers.finish(upload)?;
        sums.push((i, len, tensor.clone(), tensor.sum_all()?));
    }
    for (i, len, tensor, sum) in sums {
        let want: Vec<f32> = (0..len).map(|k| ((k * 7 + i) % 13) as f32).collect();
        ensure!(tensor.to_vec1::<f32>()? == want, "batch {i} was changed on its way");
        let (got, want) = (sum.to_scalar::<f32>()?, want.iter().sum::<f32>());
        ensure!((got - want).abs() <= 1e-4 * want, "the sum of batch {i}, taken while others were copied, is {got}, not {want}");
    }
    ensure!(flat(&busy)?.iter().all(|v| v.is_finite()));
    Ok(())
}

#[test]
fn numbers_of_a_step_arrive_as_they_were_sent() -> Result<()> {
    let Some(device) = device() else { return Ok(()) };
    let busy = busy(&device)?;
    let numbers = |i: usize| (0..5_000).map(|k| ((k * 5 + i) % 17) as f32).collect::<Vec<_>>();
    let sent = (0..20)
        .map(|i| twinsight_kernels::transfer::send(numbers(i), (50, 100), &device))
        .collect::<candle_core::Result<Vec<_>>>()?;
    for (i, sent) in sent.iter().enumerate() {
        ensure!(flat(sent)? == numbers(i), "the numbers of step {i} were changed on their way");
    }
    ensure!(flat(&busy)?.iter().all(|v| v.is_finite()));
    Ok(())
}
