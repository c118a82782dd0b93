//! Levels of 16 bits that fill a part of their range: percentiles are measured once, when a run begins, on any number of threads alike, and
//! are a range of its configuration from then on.

use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageBuffer, Luma};
use twinsight_augment::{DrawKey, ViewPlan};
use twinsight_datasets::Dataset;
use twinsight_train::data::{RunData, eval_plan};
use twinsight_train::few::ImageFiles;
use twinsight_train::layers::parse_assignment;
use twinsight_train::picture::Picture;
use twinsight_train::{Layer, RunConfig};

/// Gray files of 16 bits whose levels go up to `most`, or TIFFs of five such bands.
fn write(folder: &Path, bands: bool, count: u32, most: u32) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for seed in 0..count {
        let levels = |count: u32| -> Vec<u16> { (0..count).map(|i| ((i * 83 + seed * 1301) % (most + 1)) as u16).collect() };
        let path = folder.join(format!("{seed:02}.{}", if bands { "tif" } else { "png" }));
        match bands {
            true => std::fs::write(path, twinsight_test_support::tiff::bands((14, 12), 5, &levels(14 * 12 * 5))?)?,
            false => ImageBuffer::<Luma<u16>, _>::from_raw(14, 12, levels(14 * 12)).context("a picture")?.save(path)?,
        }
    }
    Ok(())
}

fn config(folder: &Path, levels: &str) -> Result<RunConfig> {
    let set = |key: &str, value: &str| anyhow::Ok(Layer::new("test", parse_assignment(&format!("{key}={value}"))?));
    let path = set("data.path", &folder.display().to_string())?;
    Ok(RunConfig::resolve(&[path, set("data.levels", levels)?, set("data.image_size", "12")?])?)
}

fn view(plan: &ViewPlan, images: &dyn Dataset, index: usize) -> Result<Vec<f32>> {
    let mut out = vec![0.0; plan.view_len(0)];
    let key = DrawKey { seed: 0, epoch: 0, sample: 0, view: 0 };
    Picture::load(images, index)?.render(plan, 0, key, &mut out)?;
    Ok(out)
}

#[test]
fn percentiles_are_measured_once_and_loose_files_follow_the_run() -> Result<()> {
    for bands in [false, true] {
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("images");
        write(&folder, bands, 6, 4095)?;
        let open = |threads: usize| -> Result<(RunConfig, RunData)> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            let mut config = config(&folder, "percentile:1:99")?;
            let data = pool.install(|| RunData::open(&mut config))?;
            Ok((config, data))
        };
        let (config_of_run, data) = open(1)?;
        assert_eq!(open(4)?.0, config_of_run, "threads change nothing");
        let levels = config_of_run.data.levels.strip_prefix("range:").context("a range")?;
        let (low, high) = levels.split_once(':').context("two levels")?;
        let (low, high): (u32, u32) = (low.parse()?, high.parse()?);
        assert!(low < 200 && (3900..4096).contains(&high), "{low} {high}");
        assert!(config_of_run.data.mean.iter().all(|mean| (0.35..0.65).contains(mean)), "{:?}", config_of_run.data.mean);
        assert!(data.report.understood.contains("range:"), "{}", data.report.understood);
        // As they were: nearly black.
        let mut full = config(&folder, "full")?;
        RunData::open(&mut full)?;
        assert!(full.data.mean.iter().all(|&mean| mean < 0.05), "{:?}", full.data.mean);
        // Kept and read when wanted, and as loose files, images are the same.
        let plan = eval_plan(&config_of_run, data.channels);
        let mut read = RunConfig::parse(&config_of_run.to_toml()?)?;
        read.data.keep_bytes = 0;
        let read = RunData::open(&mut read)?.train;
        for i in 0..data.train.len() {
            let file = folder.join(data.train.id(i));
            let loose = ImageFiles::new("loose", vec![file], data.channels).with_levels(config_of_run.data.level_range()?);
            let want = view(&plan, &*data.train, i)?;
            assert_eq!(view(&plan, &*read, i)?, want);
            // A picture that keeps its 16 bits until it is resized may differ in the rounding to 8.
            let far = view(&plan, &loose, 0)?.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far <= 3.0 / 255.0 / config_of_run.data.std[0], "{far}");
        }
        // A run that goes on does not measure again, whatever lies there now.
        write(&folder, bands, 6, 60_000)?;
        let mut resumed = RunConfig::parse(&config_of_run.to_toml()?)?;
        RunData::open(&mut resumed)?;
        assert_eq!(resumed.data, config_of_run.data);
        assert_ne!(open(2)?.0.data.levels, resumed.data.levels);
    }
    Ok(())
}

#[test]
fn images_of_eight_bits_have_no_percentiles_and_no_range() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for i in 0..4 {
        let image = image::GrayImage::from_fn(14, 12, |x, y| Luma([(x * 9 + y * 5 + i) as u8]));
        image.save(dir.path().join(format!("{i}.png")))?;
    }
    let mut percentiles = config(dir.path(), "percentile:1:99")?;
    let told = RunData::open(&mut percentiles).err().context("nothing to measure")?.to_string();
    assert!(told.contains("data.levels = \"percentile:1:99\"") && told.contains("no image with levels of 16 bits"), "{told}");
    let (mut full, mut range) = (config(dir.path(), "full")?, config(dir.path(), "range:10:20")?);
    let (a, b) = (RunData::open(&mut full)?.train, RunData::open(&mut range)?.train);
    for i in 0..a.len() {
        assert_eq!(a.get(i)?.image, b.get(i)?.image);
    }
    Ok(())
}
