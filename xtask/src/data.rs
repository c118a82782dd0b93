//! `data`: the program's own `data` command; the downloader lives in `crates/datasets`.

use anyhow::Result;
use clap::Subcommand;

use crate::shell;

/// What to do with data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// The data sets that can be named.
    List,
    /// Download data sets into the cache.
    Fetch {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        /// Arguments passed on to `twinsight data fetch`.
        #[arg(last = true)]
        extra: Vec<String>,
    },
}

/// Runs it.
///
/// # Errors
/// When the program fails.
pub fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::List => shell::run(&mut shell::twinsight(&["data", "list"], &[])),
        DataCommand::Fetch { names, extra } => {
            names.iter().try_for_each(|name| shell::run(&mut shell::twinsight(&["data", "fetch", name], extra)))
        }
    }
}
