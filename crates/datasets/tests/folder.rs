//! Folders as people have them: nested, flat, labelled or not, with broken files.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use twinsight_datasets::{LabelMode, OpenOptions, Opened, open};

fn picture(seed: u32) -> RgbImage {
    RgbImage::from_fn(7, 5, |x, y| Rgb([(x * 30 + seed) as u8, (y * 50) as u8, (seed * 11) as u8]))
}

fn write(root: &Path, files: &[&str]) -> Result<()> {
    for (i, file) in files.iter().enumerate() {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        picture(i as u32).save(&path)?;
    }
    Ok(())
}

fn opened(root: &Path, options: &OpenOptions) -> Result<Opened> {
    Ok(open(root.to_str().context("utf-8")?, options)?)
}

fn message(root: &Path, options: &OpenOptions) -> Result<String> {
    match open(root.to_str().context("utf-8")?, options) {
        Ok(_) => anyhow::bail!("{} must be refused", root.display()),
        Err(e) => Ok(e.to_string()),
    }
}

#[test]
fn sub_folders_are_labels_only_where_they_look_like_it() -> Result<()> {
    let names = |format: &dyn Fn(usize) -> String| (0..12).map(format).collect::<Vec<_>>();
    for (files, labelled) in [
        (names(&|i| format!("{}/{i:02}.png", ["cat", "dog"][i % 2])), true),
        (names(&|i| format!("{i:02}.png")), false),
        (names(&|i| format!("item-{i}/picture.png")), false),
        (names(&|i| format!("2024/{:02}/{i}.png", i % 3)), false),
        (names(&|i| format!("only/{i}.png")), false),
        (names(&|i| if i == 0 { "loose.png".into() } else { format!("{}/{i}.png", ["a", "b"][i % 2]) }), false),
    ] {
        let dir = tempfile::tempdir()?;
        write(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>())?;
        let found = opened(dir.path(), &OpenOptions::default())?;
        ensure!(found.train.len() == 12, "{files:?}");
        ensure!(found.train.classes().is_some() == labelled, "{files:?}: {}", found.report.understood);
        ensure!(found.report.understood.starts_with(if labelled { "labels by" } else { "no labels" }));
        let none = opened(dir.path(), &OpenOptions { labels: LabelMode::None, ..OpenOptions::default() })?;
        ensure!(none.train.classes().is_none() && none.train.label(0).is_none());
        if labelled {
            ensure!(found.train.classes() == Some(&["cat".to_string(), "dog".to_string()][..]));
            ensure!(found.train.id(0) == "cat/00.png" && found.train.label(11) == Some(1));
        }
    }
    let dir = tempfile::tempdir()?;
    write(dir.path(), &["a/1.png", "b/2.png"])?;
    let forced = opened(dir.path(), &OpenOptions { labels: LabelMode::Folder, ..OpenOptions::default() })?;
    ensure!(forced.train.classes().map(<[_]>::len) == Some(2));
    Ok(())
}

#[test]
fn splits_order_and_pixels() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files: Vec<String> =
        ["train", "val"].iter().flat_map(|s| (0..12).map(move |i| format!("{s}/{}/{i:02}.PNG", ["x", "y"][i % 2]))).collect();
    write(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>())?;
    for keep_bytes in [0, 1 << 30] {
        let found = opened(dir.path(), &OpenOptions { keep_bytes, ..OpenOptions::default() })?;
        let test = found.test.context("a test split")?;
        ensure!(found.train.len() == 12 && test.len() == 12 && test.classes() == found.train.classes());
        ensure!(found.train.side() == Some((7, 5)) && found.train.channels() == 3);
        // x/00, x/02, …: image 1 of the list is file number 2.
        ensure!(found.train.id(1) == "x/02.PNG" && found.train.get(1)?.image.to_rgb8() == picture(2));
        ensure!(found.train.get(1)?.label == Some(0) && found.train.get(12).is_err());
    }
    Ok(())
}

#[test]
fn broken_files_are_named_and_strict_stops_at_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), &["a.png", "b.jpg", "c.jpg"])?;
    // Large enough that two thirds of it hold a whole header and some of the pixels.
    let large = RgbImage::from_fn(96, 96, |x, y| Rgb([(x * y) as u8, (x * 7) as u8, (y * 13) as u8]));
    let scratch = tempfile::tempdir()?;
    large.save(scratch.path().join("large.jpg"))?;
    let whole = std::fs::read(scratch.path().join("large.jpg"))?;
    std::fs::write(dir.path().join("cut.jpg"), &whole[..whole.len() * 2 / 3])?;
    std::fs::write(dir.path().join("empty.png"), b"")?;
    std::fs::write(dir.path().join("text.jpg"), b"not a picture")?;
    std::fs::write(dir.path().join("notes.txt"), b"no image ending: not even looked at")?;
    std::fs::write(dir.path().join(".hidden.png"), b"passed over")?;
    std::fs::copy(dir.path().join("a.png"), dir.path().join("really-a-png.jpg"))?;
    let found = opened(dir.path(), &OpenOptions::default())?;
    let mut bad: Vec<&str> = found.report.bad_files.iter().map(|b| b.id.as_str()).collect();
    bad.sort_unstable();
    ensure!(bad == ["cut.jpg", "empty.png", "text.jpg"], "{bad:?}");
    ensure!(found.train.len() == 4, "a wrong ending does no harm");
    let text = message(dir.path(), &OpenOptions { strict: true, ..OpenOptions::default() })?;
    ensure!(bad.iter().any(|b| text.contains(b)), "{text}");
    let later = opened(dir.path(), &OpenOptions { keep_bytes: 0, ..OpenOptions::default() })?;
    let errors = (0..later.train.len()).filter(|&i| later.train.get(i).is_err()).count();
    ensure!(errors == 1, "without decoding at once, the cut file is an error when it is read");
    Ok(())
}

#[test]
fn nothing_to_open_is_one_clear_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = OpenOptions { cache: dir.path().join("cache"), ..OpenOptions::default() };
    ensure!(message(&dir.path().join("nowhere"), &options)?.contains("nowhere"));
    ensure!(message(dir.path(), &options)?.contains("no image"));
    std::fs::write(dir.path().join("x.png"), b"")?;
    ensure!(message(dir.path(), &options)?.contains("x.png"));
    ensure!(message(&dir.path().join("x.png"), &options)?.contains("is a file"));
    let text = message(Path::new("fashion-mnist-minni"), &options)?;
    ensure!(text.contains("`fashion-mnist-mini`"), "{text}");
    let text = message(Path::new("cifar10"), &options)?;
    ensure!(text.contains("data fetch cifar10"), "{text}");
    Ok(())
}

#[test]
fn gray_folders_are_gray_and_mixed_ones_are_not() -> Result<()> {
    let dir = tempfile::tempdir()?;
    DynamicImage::from(GrayImage::from_pixel(4, 6, Luma([9]))).save(dir.path().join("a.png"))?;
    ensure!(opened(dir.path(), &OpenOptions::default())?.train.channels() == 1);
    picture(1).save(dir.path().join("b.png"))?;
    let mixed = opened(dir.path(), &OpenOptions::default())?.train;
    ensure!(mixed.channels() == 3 && mixed.side().is_none());
    Ok(())
}

#[cfg(feature = "fashion-mnist-mini")]
#[test]
fn limits_and_held_out_parts_keep_the_balance_and_repeat_themselves() -> Result<()> {
    use twinsight_datasets::{Dataset, hold_out};
    let count = |d: &dyn Dataset| {
        let mut found = [0; 10];
        (0..d.len()).filter_map(|i| d.label(i)).for_each(|l| found[l as usize] += 1);
        found
    };
    let options = OpenOptions { limit: Some(1000), ..OpenOptions::default() };
    let found = open("fashion-mnist-mini", &options)?;
    ensure!(count(&*found.train) == [100; 10] && found.test.context("test")?.len() == 200);
    let (rest, held) = hold_out(found.train.clone(), 0.1, 7)?;
    ensure!(count(&*held) == [10; 10] && count(&*rest) == [90; 10]);
    let (_, again) = hold_out(found.train.clone(), 0.1, 7)?;
    let (_, other) = hold_out(found.train, 0.1, 8)?;
    let ids = |d: &dyn Dataset| (0..d.len()).map(|i| d.id(i)).collect::<Vec<_>>();
    ensure!(ids(&*held) == ids(&*again) && ids(&*held) != ids(&*other));
    ensure!(ids(&*held).iter().all(|h| !ids(&*rest).contains(h)));
    Ok(())
}

#[test]
fn a_test_split_takes_its_labels_from_the_training_split() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let train: Vec<String> = (0..20).map(|i| format!("train/{}/{i:02}.png", ["cat", "cow", "dog"][i % 3])).collect();
    write(dir.path(), &train.iter().map(String::as_str).collect::<Vec<_>>())?;
    // Too few to be understood on their own, and no cow among them.
    write(dir.path(), &["test/dog/1.png", "test/cat/2.png", "notes/plan.png"])?;
    std::fs::write(dir.path().join("test/dog/bad.jpg"), b"")?;
    let found = opened(dir.path(), &OpenOptions::default())?;
    let test = found.test.context("a test split")?;
    ensure!(test.classes() == found.train.classes() && test.label(0) == Some(0) && test.label(1) == Some(2));
    ensure!(found.report.bad_files.len() == 1 && found.report.bad_files[0].id == "test/dog/bad.jpg");
    ensure!(found.report.understood.contains("notes"), "{}", found.report.understood);
    // A class that training does not have keeps the others' labels and gets a number behind them.
    write(dir.path(), &["test/horse/1.png"])?;
    for labels in [LabelMode::Auto, LabelMode::Folder] {
        let found = opened(dir.path(), &OpenOptions { labels, ..OpenOptions::default() })?;
        let test = found.test.context("a test split")?;
        ensure!(test.classes().map(<[String]>::to_vec) == Some(["cat", "cow", "dog", "horse"].map(String::from).to_vec()));
        ensure!((0..3).map(|i| test.label(i)).collect::<Vec<_>>() == [Some(0), Some(2), Some(3)]);
        ensure!(found.train.classes().map(<[String]>::len) == Some(3));
    }
    // An image in no folder can't be labelled, and then none is.
    write(dir.path(), &["test/loose.png"])?;
    let found = opened(dir.path(), &OpenOptions::default())?;
    ensure!(found.train.classes().is_some() && found.test.context("a test split")?.classes().is_none());
    ensure!(found.report.understood.contains("loose.png"), "{}", found.report.understood);
    let forced = OpenOptions { labels: LabelMode::Folder, ..OpenOptions::default() };
    ensure!(message(dir.path(), &forced)?.contains("loose.png"));
    Ok(())
}

#[test]
fn a_class_called_train_is_no_split() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files: Vec<String> = (0..18).map(|i| format!("{}/{i:02}.png", ["bus", "train", "truck"][i % 3])).collect();
    write(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>())?;
    let found = opened(dir.path(), &OpenOptions::default())?;
    ensure!(found.train.len() == 18 && found.train.classes().map(<[_]>::len) == Some(3) && found.test.is_none());
    Ok(())
}

#[test]
fn a_limit_is_even_over_classes_before_anything_is_decoded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let files: Vec<String> = (0..30).map(|i| format!("{}/{i:02}.png", ["a", "b"][usize::from(i > 9)])).collect();
    write(dir.path(), &files.iter().map(String::as_str).collect::<Vec<_>>())?;
    for keep_bytes in [0, 1 << 30] {
        let found = opened(dir.path(), &OpenOptions { limit: Some(8), keep_bytes, ..OpenOptions::default() })?.train;
        let ids: Vec<String> = (0..found.len()).map(|i| found.id(i)).collect();
        ensure!(
            ids == ["a/00.png", "a/02.png", "a/05.png", "a/07.png", "b/10.png", "b/15.png", "b/20.png", "b/25.png"],
            "{ids:?}"
        );
        ensure!(found.get(3)?.image.to_rgb8() == picture(7) && found.get(7)?.label == Some(1));
    }
    Ok(())
}

#[test]
fn every_form_of_file_is_read_and_alpha_is_dropped() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let clear = image::RgbaImage::from_pixel(7, 5, image::Rgba([10, 20, 30, 0]));
    DynamicImage::from(clear).save(dir.path().join("clear.png"))?;
    for name in ["a.bmp", "b.tiff", "c.ppm", "d.webp", "e.PNG"] {
        picture(3).save(dir.path().join(name))?;
    }
    picture(3).save(dir.path().join("f.gif"))?;
    for keep_bytes in [0, 1 << 30] {
        let found = opened(dir.path(), &OpenOptions { keep_bytes, ..OpenOptions::default() })?.train;
        ensure!(found.len() == 7 && found.side() == Some((7, 5)));
        for i in 0..7 {
            let image = found.get(i)?.image;
            ensure!(image.color() == image::ColorType::Rgb8, "{}", found.id(i));
            let exact = match found.id(i).as_str() {
                "clear.png" => image.to_rgb8().pixels().all(|p| p.0 == [10, 20, 30]),
                "f.gif" => true,
                _ => image.to_rgb8() == picture(3),
            };
            ensure!(exact, "{}", found.id(i));
        }
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_never_in_a_circle() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let elsewhere = tempfile::tempdir()?;
    write(dir.path(), &["a/1.png"])?;
    write(elsewhere.path(), &["2.png"])?;
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/up"))?;
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("b"))?;
    std::os::unix::fs::symlink(dir.path().join("nowhere.png"), dir.path().join("broken.png"))?;
    let found = opened(dir.path(), &OpenOptions::default())?;
    let ids: Vec<String> = (0..found.train.len()).map(|i| found.train.id(i)).collect();
    ensure!(ids == ["a/1.png", "b/2.png"], "{ids:?}");
    ensure!(found.report.bad_files.len() == 1 && found.report.bad_files[0].id == "broken.png");
    Ok(())
}

#[test]
fn a_training_run_among_the_images_is_no_data() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), &["a/1.png", "a/2.png", "runs/one/views.png", "runs/two/views.png"])?;
    ensure!(opened(dir.path(), &OpenOptions::default())?.train.len() == 4);
    for name in ["config.toml", "metrics.jsonl"] {
        std::fs::write(dir.path().join("runs/one").join(name), "")?;
    }
    let found = opened(dir.path(), &OpenOptions::default())?;
    ensure!(found.train.len() == 3 && (0..3).all(|i| !found.train.id(i).starts_with("runs/one")));
    Ok(())
}
