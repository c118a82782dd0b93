//! `check-cuda`: the GPU features compiled and linted where there is no GPU. A CUDA toolkit is taken where the machine has one, or put
//! together from NVIDIA's wheels: compilers and headers alone, since nothing is linked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::shell;

/// With which toolkit.
#[derive(Debug, Args)]
pub struct CheckCudaArgs {
    /// A CUDA toolkit: a folder with bin/nvcc [default: CUDA_HOME, else that of nvcc on the path, else one made in the cache folder].
    #[arg(long, value_name = "DIR")]
    toolkit: Option<PathBuf>,
    /// The compute capability that kernels are compiled for.
    #[arg(long, default_value = "90")]
    capability: String,
}

/// NVIDIA's wheels that hold compilers and headers, of one toolkit.
const WHEELS: [&str; 7] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-curand==10.4.0.35",
];

/// Runs clippy over the program with the features `cuda` and `cudnn`.
///
/// # Errors
/// A toolkit that can't be had, code that does not compile, a lint.
pub fn run(args: &CheckCudaArgs) -> Result<()> {
    let toolkit = toolkit(args.toolkit.as_deref())?;
    println!("CUDA toolkit: {}", toolkit.display());
    let mut path = vec![toolkit.join("bin"), toolkit.join("nvvm/bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let words =
        ["clippy", "--locked", "--package", "twinsight", "--features", "cuda,cudnn", "--all-targets", "--", "-D", "warnings"];
    let mut command = shell::cargo(&words);
    for key in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
        command.env(key, &toolkit);
    }
    command.env("CUDA_COMPUTE_CAP", &args.capability).env("PATH", std::env::join_paths(path)?);
    shell::run(&mut command)
}

fn has_compiler(folder: &Path) -> bool {
    folder.join("bin").join(format!("nvcc{}", std::env::consts::EXE_SUFFIX)).is_file()
}

fn toolkit(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = named {
        ensure!(has_compiler(folder), "{}: no CUDA toolkit, there is no bin/nvcc in it", folder.display());
        return Ok(folder.canonicalize()?);
    }
    if let Some(folder) = std::env::var_os("CUDA_HOME").map(PathBuf::from).filter(|f| has_compiler(f)) {
        return Ok(folder);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|bin| bin.parent().map(Path::to_path_buf)).find(|f| has_compiler(f));
    if let Some(folder) = on_path {
        return Ok(folder);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let folder =
        cache.context("neither HOME nor XDG_CACHE_HOME is set: name a toolkit by --toolkit")?.join("twinsight/cuda-13.0");
    if !has_compiler(&folder) {
        make(&folder)?;
    }
    Ok(folder)
}

/// Puts a toolkit together in `folder`, which is there as a whole or not at all.
fn make(folder: &Path) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("no CUDA toolkit was found, and one is put together on 64-bit Linux only: name one by --toolkit");
    }
    println!("putting a CUDA toolkit together in {}", folder.display());
    let parent = folder.parent().context("a folder without a parent")?;
    std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let wheels = parent.join("cuda-wheels.partial");
    let made = wheels.join("nvidia/cu13");
    if wheels.exists() {
        std::fs::remove_dir_all(&wheels).with_context(|| wheels.display().to_string())?;
    }
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--target",
    ]);
    shell::run(pip.arg(&wheels).args(WHEELS).stdin(Stdio::null())).context("NVIDIA's wheels could not be fetched by pip")?;
    ensure!(has_compiler(&made), "{}: NVIDIA's wheels hold no bin/nvcc; name a toolkit by --toolkit", made.display());
    let lib64 = made.join("lib64");
    #[cfg(unix)]
    if !lib64.exists() {
        std::os::unix::fs::symlink("lib", &lib64).with_context(|| lib64.display().to_string())?;
    }
    std::fs::rename(&made, folder).with_context(|| folder.display().to_string())?;
    std::fs::remove_dir_all(&wheels).with_context(|| wheels.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_compiler_is_refused_by_name() {
        let error = toolkit(Some(&shell::root().join("docs"))).expect_err("is no toolkit").to_string();
        assert!(error.contains("docs") && error.contains("nvcc"), "{error}");
    }
}
