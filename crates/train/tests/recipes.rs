//! Every recipe trains: a run of it, made small in encoder, batch and widths and left alone in all else, does its steps.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};
use twinsight_encoders::{Kind, encoder};
use twinsight_train::observe::Silent;
use twinsight_train::{Layer, Outcome, RECIPES, RecipeSpec, RunConfig, Trainer};

/// Widths and lengths of a method's settings are cut to this.
const WIDTH: i64 = 64;

#[test]
fn every_recipe_runs_its_steps() -> Result<()> {
    let place = tempfile::tempdir()?;
    let images = place.path().join("images");
    pictures(&images)?;
    for recipe in RECIPES {
        let out = place.path().join(recipe.name);
        steps(recipe, &images, &out).with_context(|| recipe.name.to_string())?;
        std::fs::remove_dir_all(&out)?;
    }
    Ok(())
}

/// Two epochs of two steps, so that what a method does only after its first epoch is done too.
fn steps(recipe: &RecipeSpec, images: &Path, out: &Path) -> Result<()> {
    let config = RunConfig::resolve(&[recipe.layer()?])?;
    let mini = match encoder(&config.encoder)?.kind {
        Kind::Cnn => "resnet_mini",
        Kind::Vit => "vit_mini",
    };
    let widths = config.options.iter().filter_map(|(key, value)| {
        let wide = ["_dim", "_size"].iter().any(|end| key.ends_with(end)) || key == "prototypes";
        let cut = value.as_integer()?.min(WIDTH);
        (wide && key != "local_size").then(|| (key.clone(), Value::Integer(cut)))
    });
    let data = Table::from_iter([
        ("path".to_string(), Value::from(images.display().to_string())),
        ("labels".to_string(), Value::from("none")),
        ("limit".to_string(), Value::from(0)),
    ]);
    let small = Table::from_iter([
        ("encoder".to_string(), Value::from(mini)),
        ("batch".to_string(), Value::from(4)),
        ("epochs".to_string(), Value::from(2)),
        ("data".to_string(), Value::from(data)),
        ("options".to_string(), Value::Table(widths.collect())),
    ]);
    let config = RunConfig::resolve(&[recipe.layer()?, Layer::new("test", small)])?;
    let mut trainer = Trainer::create(config, out)?;
    let Outcome::Finished(result) = trainer.run(&mut Silent, &AtomicBool::new(false))? else {
        anyhow::bail!("it was not finished")
    };
    ensure!(result.steps == 4 && result.loss.is_finite(), "{result:?}");
    Ok(())
}

/// Eight pictures of colour gradients, unlike each other.
fn pictures(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for i in 0..8_u32 {
        let picture = image::RgbImage::from_fn(40, 36, |x, y| {
            let value = |a: u32, b: u32| ((x * a + y * b + i * 31) % 256) as u8;
            image::Rgb([value(5 + i, 1), value(1, 7), value(3, 2 + 2 * i)])
        });
        picture.save(folder.join(format!("{i}.png")))?;
    }
    Ok(())
}
