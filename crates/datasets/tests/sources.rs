//! Every source against files that its own ecosystem's writers made (`tests/fixtures/data/make.py`), pixel by pixel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use twinsight_datasets::{Dataset, LabelMode, OpenOptions, Opened, decode, open, packed};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data").join(name)
}

/// The arrays of `expected.safetensors`, all of bytes: shapes and values.
/// Shape and values of an image.
type Pixels = (Vec<usize>, Vec<u8>);

fn expected() -> Result<BTreeMap<String, Pixels>> {
    let raw = std::fs::read(fixture("expected.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&raw)?;
    Ok(tensors.iter().map(|(name, t)| (name.to_string(), (t.shape().to_vec(), t.data().to_vec()))).collect())
}

fn opened(name: &str) -> Result<Opened> {
    opened_with(name, &OpenOptions::default())
}

fn opened_with(name: &str, options: &OpenOptions) -> Result<Opened> {
    Ok(open(fixture(name).to_str().context("utf-8")?, options)?)
}

/// Fails unless a data set is the images `which` of the expected ones, with their labels.
fn same(what: &str, found: &dyn Dataset, which: &[usize], labelled: bool) -> Result<()> {
    let all = expected()?;
    let (shape, pixels) = &all["images"];
    let (_, labels) = &all["labels"];
    let size = shape[1] * shape[2] * 3;
    ensure!(found.len() == which.len(), "{what}: {} images", found.len());
    for (i, &w) in which.iter().enumerate() {
        let sample = found.get(i)?;
        let image = sample.image.to_rgb8();
        ensure!((image.width(), image.height()) == (9, 7), "{what}: {} × {}", image.width(), image.height());
        let wanted = &pixels[w * size..(w + 1) * size];
        if found.channels() == 3 {
            ensure!(image.as_raw() == wanted, "{what}: image {i} has other pixels");
        } else {
            ensure!(sample.image.to_luma8().as_raw().iter().eq(wanted.iter().step_by(3)), "{what}: image {i} has other levels");
        }
        let label = labelled.then(|| u32::from(labels[w]));
        ensure!(sample.label == label && found.label(i) == label, "{what}: image {i} has label {:?}", sample.label);
    }
    Ok(())
}

#[test]
fn every_source_returns_the_pixels_that_pillow_reads() -> Result<()> {
    let mut sources = vec![
        ("manifest/all.csv", "cat"),
        ("manifest/all.jsonl", "cat"),
        ("webdataset", "0"),
        ("npz/colour.npz", "0"),
        ("npz/gray.npz", "0"),
        ("idx", "0"),
    ];
    if cfg!(feature = "parquet") {
        sources.push(("parquet/data", "cat"));
    }
    for (name, first) in sources {
        for keep_bytes in [0, 1 << 30] {
            let found = opened_with(name, &OpenOptions { keep_bytes, ..OpenOptions::default() })?;
            let train: &[usize] = if name.starts_with("npz") { &[0, 1, 2] } else { &[0, 1, 2, 3] };
            same(name, &*found.train, train, true)?;
            same(name, &*found.test.with_context(|| format!("{name}: no test images"))?, &[4, 5], true)?;
            let classes = found.train.classes().context("classes")?;
            ensure!(classes.len() == 2 && classes[0] == first, "{name}: {classes:?}");
            ensure!(found.report.bad_files.is_empty(), "{name}: {:?}", found.report.bad_files);
        }
        let none = opened_with(name, &OpenOptions { labels: LabelMode::None, limit: Some(2), ..OpenOptions::default() })?;
        ensure!(none.train.len() == 2, "{name}: a limit of 2 gives {}", none.train.len());
    }
    Ok(())
}

#[test]
fn manifests_need_neither_labels_nor_splits_and_name_what_is_missing() -> Result<()> {
    same("paths.csv", &*opened("manifest/paths.csv")?.train, &[0, 1, 2, 3, 4, 5], false)?;
    let dir = tempfile::tempdir()?;
    let pictures = fixture("manifest/pictures").canonicalize()?;
    let line = |i: usize, label: &str| format!("{label}\t{}\n", pictures.join(format!("{i}.png")).display());
    let path = dir.path().join("m.tsv");
    let text = format!("Class\tFile\n{}{}b\tgone.png\nc\t\n", line(1, "a"), line(0, "b"));
    std::fs::write(&path, text)?;
    let found = open(path.to_str().context("utf-8")?, &OpenOptions::default())?;
    ensure!(found.train.len() == 2 && found.train.label(0) == Some(0) && found.train.label(1) == Some(1));
    let bad: Vec<&str> = found.report.bad_files.iter().map(|b| b.id.as_str()).collect();
    ensure!(bad == ["line 5", "gone.png"], "{bad:?}");
    let strict = OpenOptions { strict: true, ..OpenOptions::default() };
    ensure!(open(path.to_str().context("utf-8")?, &strict).is_err());
    // Half of the labels are no labels.
    std::fs::write(&path, format!("Class\tFile\n{}{}", line(1, "a"), line(0, "")))?;
    let found = open(path.to_str().context("utf-8")?, &OpenOptions::default())?;
    ensure!(found.train.classes().is_none() && found.report.understood.contains("1 of 2"), "{}", found.report.understood);
    for (name, text, word) in [
        ("x.csv", "name,label\na,b\n", "name, label"),
        ("x.jsonl", "{\"path\": \"a.png\"}\nnonsense\n", "line 2"),
        ("x.csv", "path\n", "no readable image"),
        ("x.txt", "path\n", "no known kind"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        let told = open(path.to_str().context("utf-8")?, &OpenOptions::default()).err().map(|e| e.to_string());
        ensure!(told.as_ref().is_some_and(|t| t.contains(word) && t.contains(name)), "{name}: {told:?}");
    }
    Ok(())
}

#[test]
fn archives_are_read_gzipped_too_and_damage_costs_only_what_it_hits() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = std::fs::read(fixture("webdataset/train-000000.tar"))?;
    let open_at = |path: &Path| open(path.to_str().context("utf-8")?, &OpenOptions::default()).map_err(anyhow::Error::from);
    let zipped = dir.path().join("a.tar.gz");
    let mut out = flate2::write::GzEncoder::new(std::fs::File::create(&zipped)?, flate2::Compression::fast());
    std::io::Write::write_all(&mut out, &whole)?;
    out.finish()?;
    same("a.tar.gz", &*open_at(&zipped)?.train, &[0, 1], true)?;
    ensure!(open_at(&zipped)?.train.id(0) == "sample0000.png");
    // The second sample begins in the middle.
    let cut = dir.path().join("cut.tar");
    let second = whole.windows(14).position(|w| w == b"sample0001.png").context("the second sample")?;
    std::fs::write(&cut, &whole[..second + 600])?;
    let found = open_at(&cut)?;
    same("cut.tar", &*found.train, &[0], true)?;
    ensure!(!found.report.bad_files.is_empty(), "the damage is not told");
    for (name, raw) in [("text.tar", b"no archive at all".as_slice()), ("empty.tar", b""), ("text.tar.gz", b"nonsense")] {
        let path = dir.path().join(name);
        std::fs::write(&path, raw)?;
        ensure!(open_at(&path).is_err(), "{name}");
    }
    Ok(())
}

#[test]
fn shards_are_no_classes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for shard in 0..3 {
        let mut tar = tar::Builder::new(std::fs::File::create(dir.path().join(format!("{shard}.tar")))?);
        for i in 0..10 {
            tar.append_path_with_name(fixture("manifest/pictures/2.png"), format!("{i}.png"))?;
        }
        tar.finish()?;
    }
    let found = open(dir.path().to_str().context("utf-8")?, &OpenOptions::default())?;
    ensure!(found.train.len() == 30 && found.train.classes().is_none(), "{}", found.report.understood);
    Ok(())
}

#[test]
fn a_plain_archive_of_folders_has_their_labels() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("folders.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path)?);
    for i in 0..12 {
        tar.append_path_with_name(fixture("manifest/pictures/2.png"), format!("{}/{i}.png", ["a", "b"][i % 2]))?;
    }
    tar.append_path_with_name(fixture("manifest/pictures/2.png"), "._a/hidden.png")?;
    tar.finish()?;
    let found = open(path.to_str().context("utf-8")?, &OpenOptions::default())?.train;
    ensure!(found.len() == 12 && found.classes().map(<[String]>::len) == Some(2) && found.label(1) == Some(1));
    Ok(())
}

#[cfg(feature = "parquet")]
#[test]
fn plain_parquet_columns_are_read_and_empty_rows_are_named() -> Result<()> {
    let found = opened("parquet/plain.parquet")?;
    same("plain.parquet", &*found.train, &[0, 2, 3, 4, 5], true)?;
    ensure!(found.report.bad_files.len() == 1 && found.report.bad_files[0].id == "plain:#1", "{:?}", found.report.bad_files);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("x.parquet");
    let whole = std::fs::read(fixture("parquet/plain.parquet"))?;
    for raw in [&whole[..whole.len() / 2], &whole[1..], b"PAR1PAR1", b""] {
        std::fs::write(&path, raw)?;
        let told = open(path.to_str().context("utf-8")?, &OpenOptions::default()).err().map(|e| e.to_string());
        ensure!(told.as_ref().is_some_and(|t| t.contains("x.parquet")), "{told:?}");
    }
    Ok(())
}

#[test]
fn several_labels_an_image_are_none() -> Result<()> {
    let found = opened("npz/many.npz")?;
    same("many.npz", &*found.train, &[0, 1, 2, 3, 4, 5], false)?;
    ensure!(found.report.understood.contains("every image has 3"), "{}", found.report.understood);
    let dir = tempfile::tempdir()?;
    let whole = std::fs::read(fixture("npz/colour.npz"))?;
    for raw in [&whole[..whole.len() / 2], b"PK", b""] {
        let path = dir.path().join("x.npz");
        std::fs::write(&path, raw)?;
        ensure!(open(path.to_str().context("utf-8")?, &OpenOptions::default()).is_err());
    }
    Ok(())
}

#[test]
fn binaries_of_stl10_and_cifar100() -> Result<()> {
    let all = expected()?;
    let pixels = |name: &str, i: usize| {
        let (shape, pixels) = &all[name];
        let size: usize = shape[1..].iter().product();
        pixels[i * size..(i + 1) * size].to_vec()
    };
    let cache = tempfile::tempdir()?;
    let place = |name: &str, file: &str| -> Result<()> {
        std::fs::create_dir_all(cache.path().join(name))?;
        std::fs::copy(fixture(name).join(file), cache.path().join(name).join(file))?;
        Ok(())
    };
    place("stl10", "stl10_binary.tar.gz")?;
    place("cifar100", "cifar-100-binary.tar.gz")?;
    let options = OpenOptions { cache: cache.path().to_path_buf(), ..OpenOptions::default() };
    let stl = open("stl10", &options)?;
    let test = stl.test.context("test images")?;
    ensure!((stl.train.len(), test.len(), stl.train.side()) == (2, 1, Some((96, 96))));
    for (i, label) in [(0, 0), (1, 9)] {
        ensure!(stl.train.get(i)?.image.as_bytes() == pixels("stl10", i) && stl.train.label(i) == Some(label));
    }
    ensure!(test.get(0)?.image.as_bytes() == pixels("stl10", 2) && test.label(0) == Some(2));
    let more = open("stl10-unlabelled", &options)?.train;
    ensure!(more.len() == 1 && more.get(0)?.image.as_bytes() == pixels("stl10", 3) && more.classes().is_none());
    ensure!(more.get(1).is_err());
    let cifar = open("cifar100", &options)?;
    ensure!(cifar.train.len() == 2 && cifar.train.classes().map(|c| c[7].as_str()) == Some("class_7"));
    for i in 0..2 {
        ensure!(cifar.train.get(i)?.image.as_bytes() == pixels("cifar100", i));
    }
    ensure!((cifar.train.label(0), cifar.train.label(1)) == (Some(7), Some(99)));
    // Unpacked, the same.
    let folder = tempfile::tempdir()?;
    let file = flate2::read::GzDecoder::new(std::fs::File::open(fixture("stl10/stl10_binary.tar.gz"))?);
    tar::Archive::new(file).unpack(folder.path())?;
    let unpacked = open(folder.path().join("stl10_binary").to_str().context("utf-8")?, &options)?;
    ensure!(unpacked.train.get(1)?.image.as_bytes() == pixels("stl10", 1));
    Ok(())
}

#[test]
fn every_kind_of_image_file_is_what_pillow_makes_of_it() -> Result<()> {
    let all = expected()?;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(fixture("kinds"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).context("a name")?.to_string();
        let (shape, pixels) = &all[&name];
        let image = decode::decode(&path)?.into_rgb8();
        if (image.height() as usize, image.width() as usize) != (shape[0], shape[1]) {
            wrong.push(format!("{name}: {} × {}", image.width(), image.height()));
            continue;
        }
        let apart = image.as_raw().iter().zip(pixels).map(|(&a, &b)| a.abs_diff(b)).max();
        // JPEG decoders differ by rounding; everything else is exact.
        let most = if name.ends_with(".jpg") { 3 } else { 0 };
        if apart > Some(most) {
            wrong.push(format!("{name}: levels differ by {apart:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

#[test]
fn a_packed_file_gives_back_what_was_packed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("packed.safetensors");
    let source = opened("manifest/all.csv")?;
    let test = source.test.context("test images")?;
    let packed = packed::pack(&[("train", &*source.train), ("test", &*test)], 7, &path, false)?;
    ensure!(packed.images == 6 && packed.bad.is_empty());
    let found = open(path.to_str().context("utf-8")?, &OpenOptions::default())?;
    ensure!(found.train.len() == 4 && found.train.side() == Some((7, 7)) && found.train.classes() == source.train.classes());
    for i in 0..4 {
        let (before, after) = (source.train.get(i)?, found.train.get(i)?);
        // 9 × 7 to 7 × 7: the middle of each row, as it is.
        ensure!(before.label == after.label && after.image.as_bytes() == before.image.crop_imm(1, 0, 7, 7).as_bytes(), "{i}");
    }
    ensure!(found.test.context("test images")?.label(1) == test.label(1));
    let limited = OpenOptions { limit: Some(2), ..OpenOptions::default() };
    ensure!(open(path.to_str().context("utf-8")?, &limited)?.train.len() == 2);
    // It is a safetensors file that others read.
    let raw = std::fs::read(&path)?;
    let tensors = safetensors::SafeTensors::deserialize(&raw)?;
    ensure!(tensors.tensor("train_images")?.shape() == [4, 7, 7, 3] && tensors.tensor("test_labels")?.shape() == [2]);
    for end in [0, 7, 100, raw.len() / 2, raw.len() - 1] {
        std::fs::write(&path, &raw[..end])?;
        ensure!(open(path.to_str().context("utf-8")?, &OpenOptions::default()).is_err(), "cut at {end}");
    }
    ensure!(packed::pack(&[("train", &*source.train)], 0, &path, false).is_err());
    Ok(())
}
