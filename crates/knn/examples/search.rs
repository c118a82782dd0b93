//! Seconds for an exact search: `cargo run --release -p twinsight-knn --example search -- [bank=50000] [queries=10000] [dim=512]
//! [k=200] [threads=2] [metric=cosine] [rounds=3] [bank_file=F queries_file=F found_file=F]`.
//!
//! Files hold little-endian numbers, row after row: `f32` features, and the found rows as `u32`. Without files the features are
//! ten noisy groups of unit rows. The last line is JSON with the seconds of the best round.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use twinsight_knn::{Matrix, Metric, search};

fn main() -> Result<()> {
    let mut words: BTreeMap<String, String> = BTreeMap::new();
    for argument in std::env::args().skip(1) {
        let (key, value) = argument.split_once('=').with_context(|| format!("`{argument}` is not key=value"))?;
        words.insert(key.to_string(), value.to_string());
    }
    let mut number = |key: &str, usual: usize| -> Result<usize> {
        words.remove(key).map_or(Ok(usual), |v| v.parse().with_context(|| format!("{key}={v} is no whole number")))
    };
    let (bank_rows, query_rows) = (number("bank", 50_000)?, number("queries", 10_000)?);
    let (dim, k, threads, rounds) = (number("dim", 512)?, number("k", 200)?, number("threads", 2)?, number("rounds", 3)?);
    let metric = match words.remove("metric").as_deref() {
        None | Some("cosine") => Metric::Cosine,
        Some("euclidean") => Metric::Euclidean,
        Some(other) => bail!("metric={other} is neither cosine nor euclidean"),
    };
    let (bank_file, queries_file, found_file) =
        (words.remove("bank_file"), words.remove("queries_file"), words.remove("found_file"));
    ensure!(words.is_empty(), "unknown: {:?}", words.keys());
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let table = |file: Option<String>, seed: u64, rows: usize| file.map_or_else(|| Ok(groups(seed, rows, dim)), |f| read(&f));
    let (bank, queries) = (table(bank_file, 1, bank_rows)?, table(queries_file, 2, query_rows)?);
    let (bank, queries) = (Matrix::new(&bank, bank.len() / dim, dim)?, Matrix::new(&queries, queries.len() / dim, dim)?);

    let mut best = f64::INFINITY;
    let mut found = None;
    for _ in 0..rounds.max(1) {
        let begun = Instant::now();
        found = Some(search(bank, queries, k, metric, false)?);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let found = found.context("no round was made")?;
    if let Some(file) = found_file {
        std::fs::write(&file, found.index.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>()).context(file)?;
    }
    println!("{{\"peer\": \"twinsight\", \"seconds\": {best:.4}, \"rounds\": {rounds}, \"threads\": {threads}}}");
    Ok(())
}

fn read(file: &str) -> Result<Vec<f32>> {
    let bytes = std::fs::read(file).with_context(|| file.to_string())?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    ensure!(rest.is_empty(), "{file}: {} bytes are no whole number of f32", bytes.len());
    Ok(numbers.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

/// Unit rows around ten centres, with noise six times as wide.
fn groups(seed: u64, rows: usize, dim: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let centres: Vec<f32> = (0..10 * dim).map(|_| normal(&mut rng)).collect();
    let mut data = vec![0.0; rows * dim];
    data.par_chunks_mut(dim).enumerate().for_each(|(i, row)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed << 40 | i as u64);
        let centre = rng.random_range(0..10);
        row.iter_mut().zip(&centres[centre * dim..]).for_each(|(v, c)| *v = c + 6.0 * normal(&mut rng));
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    });
    data
}

/// A draw from the normal distribution (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
