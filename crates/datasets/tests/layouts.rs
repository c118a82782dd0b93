//! Layouts of data sets as people and the Hugging Face Hub have them, and images of other channels and bits than pictures.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::{ImageFormat, Rgb, RgbImage};
use twinsight_datasets::{BandImages, BandLevels, Dataset, OpenOptions, Opened, PackedImages, open, packed, shards};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data").join(name)
}

/// Opens `path` with a cache beside it, and nothing kept in memory.
fn opened(path: &Path) -> Result<Opened> {
    opened_in(path, &path.with_extension("cache"))
}

fn opened_in(path: &Path, cache: &Path) -> Result<Opened> {
    let options = OpenOptions { cache: cache.to_path_buf(), keep_bytes: 0, ..OpenOptions::default() };
    Ok(open(path.to_str().context("utf-8")?, &options)?)
}

fn told(path: &Path) -> Result<String> {
    match opened(path) {
        Ok(_) => anyhow::bail!("{} must be refused", path.display()),
        Err(e) => Ok(format!("{e:#}")),
    }
}

fn ids(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|i| set.id(i)).collect()
}

fn png(seed: u8) -> Result<Vec<u8>> {
    let mut out = std::io::Cursor::new(Vec::new());
    RgbImage::from_fn(6, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 40, seed])).write_to(&mut out, ImageFormat::Png)?;
    Ok(out.into_inner())
}

/// Writes a file and the folders that it lies in.
fn put(path: PathBuf, raw: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a parent")?)?;
    Ok(std::fs::write(path, raw)?)
}

fn tar(path: &Path, members: &[(&str, &[u8])]) -> Result<()> {
    let mut tar = tar::Builder::new(std::fs::File::create(path)?);
    for (name, raw) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(raw.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *raw)?;
    }
    Ok(tar.finish()?)
}

/// An npz file of arrays (name, type, axes, bytes).
fn npz(path: &Path, arrays: &[(&str, &str, &[usize], Vec<u8>)]) -> Result<()> {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path)?);
    for (name, kind, axes, raw) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default())?;
        let axes: String = axes.iter().map(|a| format!("{a}, ")).collect();
        let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({axes}), }}\n");
        zip.write_all(b"\x93NUMPY\x01\0")?;
        zip.write_all(&(text.len() as u16).to_le_bytes())?;
        zip.write_all(text.as_bytes())?;
        zip.write_all(raw)?;
    }
    zip.finish()?;
    Ok(())
}

fn words(count: usize) -> Vec<u16> {
    (0..count).map(|i| (i * 977 % 65_521) as u16).collect()
}

fn bytes_of(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn splits_are_known_by_any_of_their_names_in_capitals_or_not() -> Result<()> {
    for (train, test, others) in [
        ("Train", "Test", None),
        ("training", "testing", None),
        ("TRAIN", "Validation", None),
        ("train", "test", Some("val")),
        ("train", "dev", None),
    ] {
        let dir = tempfile::tempdir()?;
        for split in [train, test].into_iter().chain(others) {
            for i in 0..12 {
                put(dir.path().join(format!("{split}/{}/{i}.png", ["a", "b"][i % 2])), &png(i as u8)?)?;
            }
        }
        let found = opened(dir.path())?;
        let tested = found.test.with_context(|| format!("{train}, {test}: no test images"))?;
        ensure!(found.train.len() == 12 && tested.len() == 12, "{train}, {test}");
        ensure!(found.train.classes().map(<[_]>::len) == Some(2) && tested.label(1).is_some(), "{train}, {test}");
        ensure!(others.is_none_or(|o| found.report.understood.contains(o)), "{}", found.report.understood);
    }
    // One of them alone beside other folders of images is a class.
    let dir = tempfile::tempdir()?;
    for i in 0..12 {
        put(dir.path().join(format!("{}/{i}.png", ["Training", "other"][i % 2])), &png(i as u8)?)?;
    }
    let found = opened(dir.path())?;
    ensure!(found.train.len() == 12 && found.test.is_none());
    Ok(())
}

#[test]
fn an_unknown_word_in_a_column_of_splits_is_an_error() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for i in 0..4 {
        put(dir.path().join(format!("{i}.png")), &png(i)?)?;
    }
    let path = dir.path().join("m.csv");
    std::fs::write(&path, "path,split\n0.png,Training\n1.png,\n2.png,T10K\n3.png,Valid\n")?;
    let found = opened(&path)?;
    ensure!(ids(&*found.train) == ["0.png", "1.png"] && ids(&*found.test.context("test")?) == ["2.png"]);
    for (name, text) in [
        ("m.csv", "path,split\n0.png,train\n1.png,holdout\n"),
        ("m.jsonl", "{\"path\": \"0.png\"}\n{\"path\": \"1.png\", \"split\": \"holdout\"}\n"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        let told = told(&path)?;
        ensure!(["`holdout`", "testing", "validation", name].iter().all(|w| told.contains(w)), "{told}");
    }
    Ok(())
}

#[test]
fn a_line_that_can_not_be_read_costs_only_itself() -> Result<()> {
    let dir = tempfile::tempdir()?;
    put(dir.path().join("0.png"), &png(0)?)?;
    for (name, text, bad) in [
        ("m.jsonl", &b"{\"path\": \"0.png\"}\nnonsense\n\xff\xfe\n{\"path\": \"0.png\"}\n"[..], vec!["line 2", "line 3"]),
        ("m.csv", b"path\n0.png\n\xff\xfe.png\n0.png\n", vec!["line 3"]),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        let found = opened(&path)?;
        let named: Vec<&str> = found.report.bad_files.iter().map(|b| b.id.as_str()).collect();
        ensure!(found.train.len() == 2 && named == bad, "{name}: {named:?}");
        let strict = OpenOptions { strict: true, ..OpenOptions::default() };
        ensure!(open(path.to_str().context("utf-8")?, &strict).is_err(), "{name}");
    }
    Ok(())
}

#[test]
fn a_sample_of_an_archive_gives_one_image() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("x.tar");
    let (a, b) = (png(1)?, png(2)?);
    tar(
        &path,
        &[
            ("0.seg.png", &b),
            ("0.png", &a),
            ("0.cls", b"1"),
            ("1.left.png", &a),
            ("1.right.png", &b),
            ("1.cls", b"0"),
            ("2.jpg", &a),
            ("2.png", &b),
            ("2.txt", b"a picture"),
            ("2.cls", b"0"),
        ],
    )?;
    let found = opened(&path)?;
    ensure!(ids(&*found.train) == ["0.png", "1.left.png", "2.jpg"], "{:?}", ids(&*found.train));
    ensure!(found.report.understood.contains("3 further images"), "{}", found.report.understood);
    // Names with dots in a plain archive are no samples.
    let path = dir.path().join("y.tar");
    tar(&path, &[("a.2024.png", &a), ("a.2025.png", &b), ("c.png", &a)])?;
    ensure!(ids(&*opened(&path)?.train).len() == 3);
    Ok(())
}

#[test]
fn the_hubs_folders_are_splits_and_a_damaged_shard_is_one_bad_file() -> Result<()> {
    let parquet = |split: &str| std::fs::read(fixture(&format!("parquet/data/{split}-00000-of-00001.parquet")));
    let shard = |name: &str| std::fs::read(fixture(&format!("webdataset/{name}.tar")));
    for (ending, train, test) in
        [("parquet", parquet("train")?, parquet("test")?), ("tar", shard("train-000000")?, shard("test-000000")?)]
    {
        if ending == "parquet" && !cfg!(feature = "parquet") {
            continue;
        }
        let count = if ending == "parquet" { 4 } else { 2 };
        for (a, b) in [("train/0000", "test/0000"), ("default/train/0", "default/validation/0"), ("Train/x", "valid/y")] {
            let dir = tempfile::tempdir()?;
            put(dir.path().join(format!("{a}.{ending}")), &train)?;
            put(dir.path().join(format!("{b}.{ending}")), &test)?;
            put(dir.path().join("README.md"), b"about")?;
            // The second time from the copy.
            for _ in 0..2 {
                let found = opened_in(dir.path(), &dir.path().join(".cache"))?;
                let tested = found.test.with_context(|| format!("{a}.{ending}: no test images"))?;
                ensure!(found.train.len() == count && tested.len() == 2, "{a}.{ending}");
                ensure!(found.train.label(1) == Some(1) && found.train.get(count - 1).is_ok(), "{a}.{ending}");
                let all: BTreeSet<String> = ids(&*found.train).into_iter().chain(ids(&*tested)).collect();
                ensure!(all.len() == count + 2 && all.iter().all(|id| !id.contains('/')), "{all:?}");
            }
            put(dir.path().join(format!("train/broken.{ending}")), &train[..train.len() / 3])?;
            let found = opened_in(dir.path(), &dir.path().join(".cache"))?;
            let bad = &found.report.bad_files;
            ensure!(found.train.len() >= count && bad.iter().any(|b| b.id.contains("broken")), "{a}.{ending}: {bad:?}");
            let path = dir.path().to_str().context("utf-8")?;
            let strict = OpenOptions { strict: true, cache: dir.path().join(".cache"), ..OpenOptions::default() };
            ensure!(open(path, &strict).err().is_some_and(|e| e.to_string().contains("broken")), "{a}.{ending}: strict");
        }
    }
    Ok(())
}

#[test]
fn idx_files_have_their_authors_names_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let zipped = |name: &str| std::fs::read(fixture(&format!("idx/{name}-ubyte.gz")));
    let plain = |name: &str| -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&zipped(name)?[..]), &mut raw)?;
        Ok(raw)
    };
    let all = dir.path().join("all");
    for name in ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"] {
        put(all.join(format!("{}-ubyte", name.replace("-idx", ".idx"))), &plain(name)?)?;
    }
    let found = opened(&all)?;
    ensure!(found.train.len() == 4 && found.test.context("test")?.len() == 2 && found.train.label(1) == Some(1));
    for name in ["train-images-idx3-ubyte.gz", "some.idx3-ubyte.gz"] {
        let path = dir.path().join("one").join(name);
        put(path.clone(), &zipped("train-images-idx3")?)?;
        let found = opened(&path)?;
        ensure!(found.train.len() == 4 && found.train.label(0).is_none() && found.test.is_none(), "{name}");
    }
    put(dir.path().join("one/train-labels-idx1-ubyte.gz"), &zipped("train-labels-idx1")?)?;
    ensure!(opened(&dir.path().join("one/train-images-idx3-ubyte.gz"))?.train.label(1) == Some(1));
    Ok(())
}

#[test]
fn arrays_of_several_files_and_of_any_channels() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let levels = words(6 * 5 * 4 * 4);
    let (first, second) = levels.split_at(levels.len() / 2);
    let label = |l: u8| vec![l, 1, 0];
    npz(
        &dir.path().join("train-0.npz"),
        &[("images", "<u2", &[3, 5, 4, 4], bytes_of(first)), ("labels", "|u1", &[3], label(0))],
    )?;
    npz(&dir.path().join("train-1.npz"), &[("x", "<u2", &[3, 5, 4, 4], bytes_of(second)), ("y", "|u1", &[3], label(1))])?;
    let big: Vec<u8> = first.iter().flat_map(|w| w.to_be_bytes()).collect();
    npz(&dir.path().join("test.npz"), &[("images", ">u2", &[3, 5, 4, 4], big)])?;
    let found = opened(dir.path())?;
    let test = found.test.context("test images")?;
    ensure!((found.train.len(), test.len(), found.train.channels(), found.train.side()) == (6, 3, 4, Some((4, 5))));
    ensure!(found.train.label(3) == Some(1) && test.label(0).is_none());
    for i in 0..6 {
        let bands = found.train.bands(i).context("bands")??;
        ensure!(bands.levels() == &BandLevels::Words(levels[i * 80..(i + 1) * 80].to_vec()), "image {i}");
    }
    ensure!(test.bands(1).context("bands")??.levels() == &BandLevels::Words(first[80..160].to_vec()));
    npz(&dir.path().join("train-2.npz"), &[("images", "<u2", &[1, 5, 5, 4], bytes_of(&words(100)))])?;
    let told = told(dir.path())?;
    ensure!(told.contains("train-2.npz") && told.contains("5 × 5 × 4") && told.contains("4 × 5 × 4"), "{told}");
    // MedMNIST's validation images are told of.
    ensure!(opened(&fixture("npz/colour.npz"))?.report.understood.contains("1 validation images are left out"));
    Ok(())
}

#[test]
fn tiff_files_of_several_bands_are_a_data_set_and_pictures_among_them_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let levels = words(7 * 6 * 5);
    for i in 0..3 {
        let raw = twinsight_test_support::tiff::bands((7, 6), 5, &levels)?;
        put(dir.path().join(format!("{i}.tif")), &raw)?;
    }
    put(dir.path().join("picture.png"), &png(0)?)?;
    let cut = twinsight_test_support::tiff::bands((7, 6), 5, &levels)?;
    // The directory comes first, and then the pixels break off.
    put(dir.path().join("cut.tif"), &cut[..cut.len() - 40])?;
    for keep_bytes in [0, 1 << 30] {
        let options = OpenOptions { keep_bytes, ..OpenOptions::default() };
        let found = open(dir.path().to_str().context("utf-8")?, &options)?;
        let whole: Vec<usize> = (0..found.train.len()).filter(|&i| found.train.get(i).is_ok()).collect();
        ensure!(whole.len() == 3 && found.train.channels() == 5 && found.train.side() == Some((7, 6)), "{:?}", found.report);
        ensure!(found.train.bands(0).context("bands")??.levels() == &BandLevels::Words(levels.clone()));
        ensure!(found.train.file(0).is_some_and(|f| f.ends_with("0.tif")));
        let bad: Vec<&str> = found.report.bad_files.iter().map(|b| b.id.as_str()).collect();
        ensure!(bad.contains(&"picture.png") && (keep_bytes == 0 || bad.contains(&"cut.tif")), "{bad:?}");
    }
    Ok(())
}

#[test]
fn packed_files_keep_names_and_bands_and_overwrite_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = opened(&fixture("manifest/all.csv"))?;
    let path = dir.path().join("p.safetensors");
    packed::pack(&[("train", &*source.train)], 7, &path, false)?;
    ensure!(ids(&*opened(&path)?.train) == ids(&*source.train));
    let before = std::fs::read(&path)?;
    let told = packed::pack(&[("train", &*source.train)], 5, &path, false).err().map(|e| e.to_string());
    ensure!(told.is_some_and(|t| t.contains("p.safetensors") && t.contains("there already")));
    ensure!(std::fs::read(&path)? == before);
    let levels = words(2 * 4 * 4 * 6);
    let set = BandImages::new("x", BandLevels::Words(levels.clone()), (4, 4, 6), None, Vec::new())?;
    let path = dir.path().join("bands.safetensors");
    packed::pack(&[("train", &set)], 4, &path, false)?;
    let found = opened(&path)?.train;
    ensure!((found.len(), found.channels()) == (2, 6));
    ensure!(found.bands(1).context("bands")??.levels() == &BandLevels::Words(levels[96..].to_vec()));
    let told = shards::write(&set, "train", 10, &dir.path().join("shards"), true).err().map(|e| e.to_string());
    ensure!(told.as_ref().is_some_and(|t| t.contains("packed")), "{told:?}");
    Ok(())
}

#[test]
fn shards_have_the_same_bytes_on_any_number_of_threads() -> Result<()> {
    let pixels: Vec<u8> = (0..300 * 8 * 6 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let set = PackedImages::new("x", pixels, (8, 6, 3), None, Vec::new())?;
    let written = |threads: usize| -> Result<Vec<Vec<u8>>> {
        let dir = tempfile::tempdir()?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let shards = pool.install(|| shards::write(&set, "train", 130, dir.path(), false))?;
        ensure!(shards.images == 300 && shards.files.len() == 3);
        Ok(shards.files.iter().map(std::fs::read).collect::<std::io::Result<_>>()?)
    };
    ensure!(written(1)? == written(4)?);
    Ok(())
}

#[test]
fn other_forms_of_images_are_counted_and_long_headers_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let jpeg = {
        let mut out = std::io::Cursor::new(Vec::new());
        image::DynamicImage::from(RgbImage::new(30, 20)).write_to(&mut out, ImageFormat::Jpeg)?;
        out.into_inner()
    };
    put(dir.path().join("a.jfif"), &jpeg)?;
    // Two megabytes of descriptions before the frame, as cameras' previews are.
    let segment = [&[0xff, 0xe5, 0xff, 0xff][..], &[7; 65_533]].concat();
    let long = [&jpeg[..2], &segment.repeat(32), &jpeg[2..]].concat();
    put(dir.path().join("long.jpg"), &long)?;
    // A TIFF file's directory stands at its end.
    RgbImage::new(200, 150).save(dir.path().join("b.tiff"))?;
    for name in ["1.heic", "2.HEIC", "3.dng", "notes.txt"] {
        put(dir.path().join(name), b"")?;
    }
    let found = opened(dir.path())?;
    ensure!(ids(&*found.train) == ["a.jfif", "b.tiff", "long.jpg"], "{:?}", found.report.bad_files);
    ensure!(
        found.report.understood.contains("3 files of forms that are not read (.dng: 1, .heic: 2)"),
        "{}",
        found.report.understood
    );
    let dir = tempfile::tempdir()?;
    put(dir.path().join("1.avif"), b"")?;
    ensure!(told(dir.path())?.contains(".avif: 1"));
    Ok(())
}
