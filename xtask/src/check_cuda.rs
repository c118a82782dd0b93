//! `check-cuda`: the GPU features compiled and linted where there is no GPU, the sources of the CUDA kernels compiled by NVRTC, and the
//! kernels run on the processor against the crate's own operations; with `--run` the whole device's side with stand-ins for NVIDIA's driver
//! and libraries. A CUDA toolkit is taken where the machine has one, or put together from NVIDIA's wheels: compilers, headers and the
//! libraries that come with them.

mod stand_in;

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
    /// Also build for CUDA as for a device and run the device's tests on the processor, by stand-ins for NVIDIA's driver and libraries: takes a
    /// C++ compiler, and half an hour at first.
    #[arg(long)]
    run: bool,
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

/// Runs clippy over the workspace with the features `cuda` and `cudnn`, then the tests of the kernels' sources.
///
/// # Errors
/// A toolkit that can't be had, code that does not compile, a lint, a kernel that gives other values than the operation on the CPU.
pub fn run(args: &CheckCudaArgs) -> Result<()> {
    let toolkit = toolkit(args.toolkit.as_deref())?;
    println!("CUDA toolkit: {}", toolkit.display());
    let mut path = vec![toolkit.join("bin"), toolkit.join("nvvm/bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path)?;
    // A folder of its own: what is compiled without optimisation below must not be taken by a build that runs.
    let target = Path::new(shell::metadata()?.target_directory.as_str()).join("check-cuda");
    let cargo = |words: &[&str]| {
        let mut command = shell::cargo(words);
        command.env("CARGO_TARGET_DIR", &target);
        for key in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
            command.env(key, &toolkit);
        }
        // candle's kernels are compiled to be there, not to be run: without optimisation that takes a fraction of the time.
        command.env("NVCC_APPEND_FLAGS", "-Xcicc -O0 -Xptxas -O0");
        command.env("CUDA_COMPUTE_CAP", &args.capability).env("PATH", &path);
        command
    };
    println!("the sources of the kernels, by NVRTC and on the processor");
    let nvrtc = nvrtc(&toolkit)?;
    let mut libraries = nvrtc.parent().map(Path::to_path_buf).into_iter().collect::<Vec<_>>();
    libraries.extend(std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let mut tests = cargo(&["test", "--locked", "--package", "twinsight-kernels", "--lib", "--", "--include-ignored", "cuda::"]);
    // NVRTC looks for a second library of its own.
    tests.env("TWINSIGHT_NVRTC", &nvrtc).env("LD_LIBRARY_PATH", std::env::join_paths(libraries)?);
    shell::run(&mut tests)?;
    println!("the kernels' views against the processor's");
    let words = ["test", "--locked", "--package", "twinsight-train", "--test", "device_views", "--", "--include-ignored"];
    shell::run(&mut cargo(&words))?;
    println!("the workspace with the features cuda and cudnn");
    let features = ["--features", "twinsight/cuda,twinsight/cudnn"];
    let words = [&["clippy", "--locked", "--workspace", "--all-targets"], &features[..], &["--", "-D", "warnings"]].concat();
    shell::run(&mut cargo(&words))?;
    if args.run {
        stand_in::run(&toolkit, &nvrtc, &target, cargo)?;
    }
    Ok(())
}

/// The toolkit's run-time compiler.
fn nvrtc(toolkit: &Path) -> Result<PathBuf> {
    for folder in ["lib64", "lib", "targets/x86_64-linux/lib", "bin", "bin/x64"].map(|f| toolkit.join(f)) {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|p| is_nvrtc(p)).collect();
        found.sort();
        if let Some(library) = found.into_iter().next() {
            return Ok(library);
        }
    }
    bail!("{}: there is no libnvrtc.so in it (nor nvrtc64_*.dll); it comes with NVIDIA's package `cuda-nvrtc`", toolkit.display())
}

/// Whether it is NVRTC itself, not the part that it loads or another build of it.
fn is_nvrtc(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let linux = stand_in::is_version_of(path, "libnvrtc.so");
    let windows = name.starts_with("nvrtc64_") && name.ends_with("_0.dll");
    linux || windows
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
    #[cfg(unix)]
    {
        let lib64 = made.join("lib64");
        if !lib64.exists() {
            std::os::unix::fs::symlink("lib", &lib64).with_context(|| lib64.display().to_string())?;
        }
    }
    std::fs::rename(&made, folder).with_context(|| folder.display().to_string())?;
    std::fs::remove_dir_all(&wheels).with_context(|| wheels.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvrtc_is_told_from_its_parts() {
        for (name, expected) in [
            ("libnvrtc.so", true),
            ("libnvrtc.so.13", true),
            ("libnvrtc.alt.so.13", false),
            ("libnvrtc-builtins.so.13.0", false),
            ("nvrtc64_130_0.dll", true),
            ("nvrtc64_130_0.alt.dll", false),
        ] {
            assert_eq!(is_nvrtc(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_folder_without_a_compiler_is_refused_by_name() {
        let error = toolkit(Some(&shell::root().join("docs"))).expect_err("is no toolkit").to_string();
        assert!(error.contains("docs") && error.contains("nvcc"), "{error}");
    }
}
