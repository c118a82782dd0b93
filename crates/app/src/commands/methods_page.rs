//! The page about the methods, `docs/methods.md`, made of the registries: what each is, needs and can be told.

use std::fmt::Write;

use toml::{Table, Value};
use twinsight_ssl_methods::{EncoderNeed, METHODS, MethodSpec};
use twinsight_train::RECIPES;

/// The page, in Markdown.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    page.push_str("| method | encoders | needs | choose it |\n| --- | --- | --- | --- |\n");
    for spec in METHODS {
        let row = [format!("[{}](#{})", spec.name, anchor(spec)), encoders(spec).into(), spec.needs.into(), spec.choose.into()];
        let cells: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
    page.push_str(GUIDE);
    for spec in METHODS {
        section(&mut page, spec);
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

const HEAD: &str = "<!-- Written by `cargo xtask docs` from the registries; a test holds the two together. -->
# Methods

Every method learns from views of images without labels. All are trained by `twinsight train --data FOLDER --method NAME`, which takes
the method's `small` recipe where no other is named, and `--set options.KEY=VALUE` changes a setting.

## Which one

";

const GUIDE: &str = "
Roughly: begin with `simclr`, or `dcl` where the batch must be small. Where no batch of hundreds fits, `--micro-batch` gives the
gradient of the large batch for more computation, and `moco_v2` keeps a queue instead. (The gradient is exact where images do not see
each other within the encoder. A ResNet's batch norm takes its statistics from each part; `--set network.norm=group` has none to take.)
Where images are much alike, so that others in
the batch are no true negatives, take a method without them: `byol`, `vicreg`, `barlow_twins`. For transformers take `dino`, or `ibot`
where the patches matter. `lejepa` has the least to tune. `mae` gives a start for fine-tuning rather than features for k-NN.
`docs/benchmarks.md` has what each reaches in minutes on two cores.

";

fn section(page: &mut String, spec: &MethodSpec) {
    let _ = writeln!(page, "## {}\n\n`{}`: {}.\n", spec.title, spec.name, spec.summary.trim_end_matches('.'));
    let _ = writeln!(page, "- Paper: {}", spec.paper);
    let _ = writeln!(page, "- Encoders: {}", encoders(spec));
    let _ = writeln!(page, "- Needs: {}", spec.needs);
    let _ = writeln!(page, "- Choose it: {}", spec.choose);
    let recipes: Vec<String> = RECIPES.iter().filter(|r| is_of(r.toml, spec.name)).map(|r| format!("`{}`", r.name)).collect();
    let _ = writeln!(page, "- Recipes: {}\n", recipes.join(", "));
    page.push_str("| option | default | meaning |\n| --- | --- | --- |\n");
    let defaults = (spec.defaults)();
    for key in spec.keys.iter() {
        let default = at(&defaults, &key.key).map_or(String::new(), |v| format!("`{v}`"));
        let _ = writeln!(page, "| `{}` | {default} | {} |", key.key, escape(&key.meaning));
    }
    page.push('\n');
}

fn encoders(spec: &MethodSpec) -> &'static str {
    match spec.encoder {
        EncoderNeed::Any => "any",
        EncoderNeed::Vit => "vision transformers",
    }
}

/// Whether the recipe is one for `method`.
fn is_of(recipe: &str, method: &str) -> bool {
    recipe.parse::<Table>().is_ok_and(|t| t.get("method").and_then(Value::as_str) == Some(method))
}

/// The value under a dotted key.
fn at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let mut parts = key.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

/// The heading's anchor as hosts of Markdown make it: lower case, spaces to hyphens, all else but letters and digits left out.
fn anchor(spec: &MethodSpec) -> String {
    let kept = spec.title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

/// A table's cell: no bar may end it early.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_section_row_and_recipe() {
        let page = page();
        for spec in METHODS {
            assert!(page.contains(&format!("\n## {}\n", spec.title)), "{}", spec.name);
            assert!(page.contains(&format!("\n| [{}](#", spec.name)), "{}", spec.name);
            assert!(page.contains(&format!("`{}-small`", spec.name)), "{}", spec.name);
            for key in spec.keys.iter() {
                assert!(at(&(spec.defaults)(), &key.key).is_some(), "{} {}", spec.name, key.key);
            }
        }
    }

    #[test]
    fn the_page_in_the_repository_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/methods.md");
        let kept = std::fs::read_to_string(path).expect("docs/methods.md");
        assert!(kept == page(), "docs/methods.md is out of date: run `cargo xtask docs`");
    }
}
