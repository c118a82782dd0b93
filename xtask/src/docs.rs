//! `docs`: the pages that are made of the program's registries.

use anyhow::{Context, Result};

use crate::shell;

/// Writes them.
///
/// # Errors
/// When the program cannot be built, or a file not be written.
pub fn run() -> Result<()> {
    let page =
        shell::output(&mut shell::cargo(&["run", "--quiet", "--package", "twinsight", "--", "list", "methods", "--markdown"]))?;
    let path = shell::root().join("docs/methods.md");
    std::fs::write(&path, page).with_context(|| path.display().to_string())?;
    println!("written {}", path.display());
    Ok(())
}
