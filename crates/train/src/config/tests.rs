//! Layers over layers, what is refused, and what an earlier run said.

use twinsight_ssl_methods::METHODS;

use super::*;
use crate::layers::parse_assignment;

fn layer(text: &str) -> Layer {
    Layer::new("test", toml::from_str(text).expect("valid TOML"))
}

#[test]
fn every_method_resolves_and_survives_a_round_trip() -> Result<()> {
    for spec in METHODS {
        let config = RunConfig::resolve(&[layer(&format!("method = \"{}\"\nepochs = 3", spec.name))])?;
        assert_eq!(config.epochs, 3);
        let read = RunConfig::parse(&config.to_toml()?)?;
        assert_eq!(RunConfig { free: config.free, ..read }, config);
    }
    Ok(())
}

#[test]
fn a_run_of_before_reduced_decoding_and_levels_goes_on_without_them() -> Result<()> {
    let new = RunConfig::resolve(&[layer("[data]\nlevels = \"range:0:4095\"")])?;
    assert!(new.data.reduced_decode && new.data.level_range()?.is_some());
    let text = new.to_toml()?;
    assert_eq!(RunConfig::parse(&text)?.data, new.data);
    let is_new = |line: &str| ["reduced_decode", "levels"].iter().any(|key| line.starts_with(key));
    let without: String = text.lines().filter(|l| !is_new(l)).map(|l| format!("{l}\n")).collect();
    assert_eq!(text.lines().count(), without.lines().count() + 2);
    let old = RunConfig::parse(&without)?.data;
    assert!(!old.reduced_decode && old.levels == "full" && old.level_range()?.is_none());
    Ok(())
}

#[test]
fn unknown_keys_and_values_name_the_nearest() {
    for (text, word) in [
        ("epoch = 3", "epochs"),
        ("[schedule]\nwarmup_epoch = 3", "schedule.warmup_epochs"),
        ("[options]\ntemprature = 3", "options.temperature"),
        ("[optimizer]\nkind = \"adam\"", "adamw"),
        ("method = \"simclear\"", "simclr"),
        ("encoder = \"resnet19\"", "resnet18"),
        ("[data]\nviews_on = \"devise\"", "did you mean `device`"),
        ("epochs = \"many\"", "integer"),
        ("batch = 1", "out of range"),
        ("[data]\nlevels = \"range:9:3\"", "data.levels"),
        ("[data]\nlevels = \"range:9:3\"", "LOW must be below HIGH"),
        ("[data]\nlevels = \"range:0:65536\"", "above 65535"),
        ("[data]\nlevels = \"percentile:a:3\"", "`a` is no number"),
    ] {
        let error = RunConfig::resolve(&[layer(text)]).expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_recipe_stands_alone_and_its_warmup_fits_the_run() -> Result<()> {
    let lightly = recipe::recipe("simclr-lightly-cifar10")?.layer()?;
    let config = RunConfig::resolve(&[lightly])?;
    assert_eq!(config.options["views"]["crop_scale_min"].as_float(), Some(0.08));
    assert_eq!((config.options["temperature"].as_float(), config.schedule.warmup_epochs), (Some(0.5), 0.0));
    for spec in METHODS {
        let short = layer(&format!("method = \"{}\"\nepochs = 1", spec.name));
        assert!(RunConfig::resolve(std::slice::from_ref(&short))?.schedule.warmup_epochs <= 1.0);
        let asked = layer("[schedule]\nwarmup_epochs = 3.0");
        assert!(RunConfig::resolve(&[short, asked]).is_err());
    }
    Ok(())
}

#[test]
fn a_changed_setting_is_found_by_its_key() -> Result<()> {
    let config = RunConfig::resolve(&[])?;
    let mut other = config.clone();
    other.data.path = "elsewhere".into();
    other.log.every = 7;
    other.data.views_on = "cpu".into();
    assert!(config.differences(&other.to_toml()?)?.is_empty());
    other.batch = 8;
    other.options.insert("temperature".into(), Value::Float(0.9));
    assert_eq!(config.differences(&other.to_toml()?)?, ["batch", "options.temperature"]);
    Ok(())
}

#[test]
fn assignments_take_toml_values_and_bare_words() -> Result<()> {
    let config = RunConfig::resolve(&[
        Layer::new("--set", parse_assignment("schedule.lr=1")?),
        Layer::new("--set", parse_assignment("optimizer.kind=adamw")?),
        Layer::new("--set", parse_assignment("eval.k=[5, 7]")?),
    ])?;
    assert_eq!((config.schedule.lr, config.optimizer.kind.as_str(), config.eval.k), (1.0, "adamw", vec![5, 7]));
    assert!(parse_assignment("lr").is_err());
    Ok(())
}
