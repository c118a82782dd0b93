//! `report`: a run's page again, or several runs on one page.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use twinsight_train::report;

use crate::cli::ReportArgs;
use crate::output::Output;

/// Runs it.
///
/// # Errors
/// A run that is not finished, images that are gone, a place that can't be written.
pub fn run(args: &ReportArgs, output: &Output) -> Result<ExitCode> {
    let out = match args.runs.as_slice() {
        [run] => {
            if args.out.is_some() {
                bail!("--out is for a comparison of several runs; the report of one lies in its folder");
            }
            report::rewrite(run, args.data.as_deref())?
        }
        runs => {
            if args.data.is_some() {
                bail!("--data is for the report of one run; a comparison reads figures only");
            }
            let out = args.out.clone().unwrap_or_else(|| "comparison.html".into());
            if out.exists() && !args.force {
                bail!("{}: exists already; --out names another file, --force writes over it", out.display());
            }
            report::compare(runs, &out)?;
            out
        }
    };
    output.say(format!("look at {}", out.display()));
    output.finish(&json!({"out": out}))?;
    Ok(ExitCode::SUCCESS)
}
