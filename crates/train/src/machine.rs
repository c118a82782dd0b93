//! The machine and the program that a run was made with.

use serde::{Deserialize, Serialize};

/// What is kept of them in `result.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Threads that it runs at once.
    pub threads: usize,
    /// The instruction set that the kernels used.
    pub instruction_set: String,
    /// Operating system and architecture.
    pub system: String,
    /// The program's version.
    pub version: String,
    /// The commit that it was built from, where that is known.
    pub commit: Option<String>,
}

impl Machine {
    /// This machine, and a program built from `commit`.
    pub fn here(commit: Option<&str>) -> Self {
        Self {
            processor: processor(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            instruction_set: twinsight_kernels::instruction_set().to_string(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            version: env!("CARGO_PKG_VERSION").to_string(),
            commit: commit.map(String::from),
        }
    }
}

/// The name that Linux tells; elsewhere it is unknown.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    model.map_or("unknown".into(), |(_, name)| name.trim().to_string())
}
