//! `tidy`: the rules of the repository that no compiler checks. One rule a file; a rule is a pure function from small inputs to
//! a list of findings, and every finding says where, what, and what to do.

mod arrows;
mod candle_free;
mod licences;
mod manifests;
mod sources;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::shell;

/// Checks all rules and prints what they find.
///
/// # Errors
/// When there is a finding (warnings are printed, and are none), or the workspace cannot be read.
pub fn run() -> Result<()> {
    let root = shell::root();
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .other_options(["--locked".to_string()])
        .exec()
        .context("cargo metadata --locked --all-features")?;
    let mut findings = arrows::check(&members(&metadata));
    findings.extend(candle_free::check(&graph(&metadata)?));
    findings.extend(licences::check(&licences(&metadata)));
    for package in metadata.workspace_packages() {
        let path = package.manifest_path.as_std_path();
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        findings.extend(manifests::check(&relative(&root, path), &text));
    }
    let mut warnings = Vec::new();
    for (path, text) in sources::read(&root)? {
        findings.extend(sources::check(&path, &text));
        warnings.extend(sources::check_length(&path, &text));
    }
    for warning in &warnings {
        println!("warning: {warning}");
    }
    for finding in &findings {
        println!("error: {finding}");
    }
    if findings.is_empty() { Ok(()) } else { bail!("{} finding(s) of tidy", findings.len()) }
}

/// Dependencies of each package of the workspace on others of it.
fn members(metadata: &Metadata) -> Vec<arrows::Member> {
    let packages = metadata.workspace_packages();
    let inside = |name: &str| packages.iter().any(|p| p.name == name);
    packages
        .iter()
        .map(|package| {
            let of = |dev: bool| {
                let chosen = package.dependencies.iter().filter(|d| (d.kind == DependencyKind::Development) == dev);
                chosen.filter(|d| inside(&d.name)).map(|d| d.name.clone()).collect()
            };
            arrows::Member { name: package.name.to_string(), normal: of(false), dev: of(true) }
        })
        .collect()
}

/// Names of packages by the names of those that depend on them, development dependencies left out.
fn graph(metadata: &Metadata) -> Result<BTreeMap<String, Vec<String>>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
    let names: BTreeMap<&PackageId, &str> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &resolve.nodes {
        let used = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind != DependencyKind::Development));
        // Two versions of a package share a name: their dependencies are put together, which can only find more.
        let to = graph.entry(names[&node.id].to_string()).or_default();
        to.extend(used.map(|d| names[&d.pkg].to_string()));
    }
    Ok(graph)
}

/// Licence expressions of all packages, of every feature and platform.
fn licences(metadata: &Metadata) -> Vec<licences::Package> {
    let of = |p: &cargo_metadata::Package| licences::Package {
        name: format!("{} {}", p.name, p.version),
        expression: p.license.clone(),
    };
    metadata.packages.iter().map(of).collect()
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}
