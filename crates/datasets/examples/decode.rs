//! Microseconds an image on one thread to decode the JPEGs of a folder, all of each and the part that two random crops need, beside
//! zune-jpeg: `cargo run --release -p twinsight-datasets --example decode -- FOLDER [ROUNDS]`. Of each image the fastest round counts.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use twinsight_datasets::{Rect, decode};
use zune_core::bytestream::ZCursor;
use zune_jpeg::JpegDecoder;

/// Two crops of about seven tenths of each side, elsewhere for each image.
fn crops(i: usize, width: u32, height: u32) -> Vec<Rect> {
    let crop = |n: usize| {
        let part = |side: u32, n: usize| (side * 7 / 10, (side - side * 7 / 10) * (n * 37 % 11) as u32 / 10);
        let ((width, left), (height, top)) = (part(width, n), part(height, n * 3 + 1));
        Rect { left, top, width, height }
    };
    vec![crop(2 * i), crop(2 * i + 1)]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().context("the folder of JPEGs is missing")?;
    let rounds: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    let mut paths: Vec<_> = std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.sort();
    let files: Vec<Vec<u8>> = paths.iter().map(std::fs::read).collect::<std::io::Result<_>>()?;
    let name = Path::new("image");
    type Decode<'a> = &'a dyn Fn(usize, &[u8]) -> Result<usize>;
    let ways: [(&str, Decode<'_>); 3] = [
        ("whole", &|_, raw| Ok(decode::decode_bytes(raw, name)?.width() as usize)),
        ("two crops", &|i, raw| Ok(decode::decode_part(raw, name, &mut |w, h| crops(i, w, h).into())?.image.width() as usize)),
        ("zune-jpeg", &|_, raw| Ok(JpegDecoder::new(ZCursor::new(raw)).decode()?.len())),
    ];
    let mut best = vec![[f64::INFINITY; 3]; files.len()];
    for _ in 0..rounds {
        for (i, raw) in files.iter().enumerate() {
            for (way, best) in ways.iter().zip(&mut best[i]) {
                let start = Instant::now();
                way.1(i, raw)?;
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    for (w, (what, _)) in ways.iter().enumerate() {
        println!("{what:<10} {:>8.1} µs an image", best.iter().map(|b| b[w]).sum::<f64>() / files.len() as f64 * 1e6);
    }
    Ok(())
}
