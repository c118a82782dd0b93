//! The `twinsight` program: arguments in, the library crates called, words out.
//!
//! Exit codes: 0 done, 1 `data check` found files that can't be read, 2 bad input or a failure of the system (one clear line on
//! standard error), 3 training diverged or collapsed, 130 interrupted after saving.

mod cli;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use twinsight_datasets::remote::Network;
use twinsight_kernels::CachingAllocator;

/// A caching allocator: a training step allocates and frees hundreds of megabytes in large blocks, and handing each back
/// to the system (and clearing it page by page when it comes again) costs more than the arithmetic of small layers.
#[global_allocator]
static ALLOCATOR: CachingAllocator<MiMalloc> = CachingAllocator::new(MiMalloc, 4 << 30);

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TWINSIGHT_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let output = output::Output::new(arguments.json);
    // Decided here alone, before anything is opened.
    Network { offline: arguments.offline, note: |text| output::Output::warn(text) }.set_for_process();
    match commands::run(arguments.command, &output).and_then(|code| output::Output::close().map(|()| code)) {
        Ok(code) => code,
        Err(error) => {
            // One line, whatever the chain of causes holds.
            let text = one_line(&error);
            output::Output::warn(format!("twinsight: {text}"));
            let diverged = matches!(error.downcast_ref::<twinsight_train::Error>(), Some(twinsight_train::Error::Diverged(_)));
            ExitCode::from(if diverged { 3 } else { 2 })
        }
    }
}

/// An error and its causes on one line, each unless the words before hold it already.
fn one_line(error: &anyhow::Error) -> String {
    let join = |text: String, cause: String| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") };
    let text = error.chain().map(ToString::to_string).reduce(join).unwrap_or_default();
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = std::io::Error::other("no space");
        let told = anyhow::Error::new(cause).context("file: no space").context("saving\nit");
        assert_eq!(one_line(&told), "saving it: file: no space");
    }
}
