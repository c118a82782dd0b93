//! `check-cuda --run`: the device's tests run on the processor, by the stand-ins for NVIDIA's driver and libraries of `tests/cuda-on-cpu`, which
//! run the kernels' own PTX.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::shell;

/// The driver's sources.
const DRIVER: &[&str] =
    &["driver.cpp", "memory.cpp", "streams.cpp", "kernels.cpp", "translate.cpp", "instructions.cpp", "ptx.cpp"];

/// A stand-in: its name, the name that programs load it by, and its sources.
struct Library {
    name: &'static str,
    loaded: &'static str,
    sources: &'static [&'static str],
}

const LIBRARIES: [Library; 4] = [
    Library { name: "cuda", loaded: "libcuda.so.1", sources: DRIVER },
    Library { name: "cublas", loaded: "libcublas.so.13", sources: &["blas.cpp"] },
    Library { name: "cudnn", loaded: "libcudnn.so.9", sources: &["dnn.cpp"] },
    Library { name: "curand", loaded: "libcurand.so.10", sources: &["rand.cpp"] },
];

/// Tests that use a device where one opens.
const TESTS: [&str; 6] = ["cuda", "golden", "device_views", "device_fine_tune", "device_runs", "device_memory"];

/// In which order what is not ordered is done.
const ORDERS: [&str; 2] = ["late", "early"];

/// Builds the stand-ins, holds them against their own test, and runs the device's tests with them, in both orders. `nvrtc` is the toolkit's
/// run-time compiler, `cargo` a command of cargo's that builds for CUDA in the folder `target`.
///
/// # Errors
/// Another system than 64-bit Linux on x86, a compiler that is missing, a test that fails or finds no device.
pub fn run(toolkit: &Path, nvrtc: &Path, target: &Path, cargo: impl Fn(&[&str]) -> Command) -> Result<()> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "--run needs 64-bit Linux on x86");
    let folder = target.join("cuda-on-cpu");
    let libraries = nvrtc.parent().context("a library without a folder")?;
    build(&folder, toolkit, libraries)?;
    let paths = |key: &str| {
        let mut all = vec![folder.clone(), libraries.to_path_buf()];
        all.extend(std::env::split_paths(&std::env::var_os(key).unwrap_or_default()).filter(|p| !p.as_os_str().is_empty()));
        std::env::join_paths(all)
    };
    let (linked, loaded) = (paths("LIBRARY_PATH")?, paths("LD_LIBRARY_PATH")?);
    let with = |command: &mut Command, order: &str| {
        command.env("LD_LIBRARY_PATH", &loaded).env("CUDA_ON_CPU_ORDER", order).env("CUDA_ON_CPU_CACHE", folder.join("kernels"));
        // Filled by a test.
        command.env("CUDA_ON_CPU_MEMORY", (2_u64 << 30).to_string());
        // Smaller products to keep the device busy with: what is late waits without.
        command.env("TWINSIGHT_TEST_DEVICE", "cuda").env("TWINSIGHT_TEST_BUSY", "256");
    };
    let packages = ["twinsight-kernels", "twinsight-encoders", "twinsight-train"].map(|name| ["--package", name]);
    let tests = TESTS.map(|name| ["--test", name]);
    let words: Vec<&str> = ["test", "--release", "--locked", "--features", "twinsight-train/cuda,twinsight-train/cudnn"]
        .into_iter()
        .chain(packages.into_iter().chain(tests).flatten())
        .chain(["--", "--nocapture"])
        .collect();
    for order in ORDERS {
        println!("the stand-in for the driver, what is not ordered done {order}");
        let mut test = Command::new(folder.join("selftest"));
        with(&mut test, order);
        shell::run(&mut test)?;
        println!("the device's tests with the stand-ins, what is not ordered done {order}");
        let mut command = cargo(&words);
        // candle's kernels are run here, so they are compiled as for a device.
        command.env_remove("NVCC_APPEND_FLAGS").env("LIBRARY_PATH", &linked);
        with(&mut command, order);
        let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        let told = String::from_utf8_lossy(&output.stdout);
        let lines = told.lines().filter(|line| line.starts_with("test ") || !output.status.success());
        lines.for_each(|line| println!("{line}"));
        ensure!(output.status.success(), "cargo test ended with {}", output.status);
        ensure!(!told.contains("skipped:"), "a test found no device:\n{told}");
    }
    Ok(())
}

/// Compiles the stand-ins and their test into `folder`.
fn build(folder: &Path, toolkit: &Path, libraries: &Path) -> Result<()> {
    println!("the stand-ins for NVIDIA's driver and libraries");
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let sources = shell::root().join("tests/cuda-on-cpu");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let compile = || {
        let mut command = Command::new(&compiler);
        command.args(["-std=c++17", "-O3", "-march=native", "-Wall", "-Wextra", "-Werror"]);
        command.arg("-I").arg(toolkit.join("include"));
        command
    };
    for Library { name, loaded, sources: files } in LIBRARIES {
        // Programs that were linked with NVIDIA's own look for symbols of this version.
        let versions = folder.join(format!("{name}.map"));
        std::fs::write(&versions, format!("{loaded} {{ global: *; }};\n")).with_context(|| versions.display().to_string())?;
        let mut command = compile();
        command.args(["-shared", "-fPIC"]).arg(format!("-Wl,-soname,{loaded}")).arg("-o").arg(folder.join(loaded));
        command.arg(format!("-DCUDA_ON_CPU_SOURCES=\"{}\"", sources.display()));
        if name != "cuda" {
            command.arg(format!("-Wl,--version-script,{}", versions.display()));
        }
        shell::run(command.args(files.iter().map(|file| sources.join(file))))?;
        link(&folder.join(loaded), &folder.join(format!("lib{name}.so")))?;
    }
    // Linked by name, used by nothing.
    let empty = folder.join("empty.cpp");
    std::fs::write(&empty, "").with_context(|| empty.display().to_string())?;
    shell::run(compile().args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcublasLt.so")).arg(&empty))?;
    for name in ["nvrtc", "cudart"] {
        let library = versioned(libraries, name)?;
        link(&library, &folder.join(format!("lib{name}.so")))?;
    }
    let mut command = compile();
    command.arg(sources.join("selftest.cpp")).arg("-o").arg(folder.join("selftest"));
    shell::run(command.arg(folder.join("libcuda.so.1")))
}

/// The toolkit's library, under the name with its version, which NVIDIA's wheels have alone.
fn versioned(folder: &Path, name: &str) -> Result<PathBuf> {
    let start = format!("lib{name}.so");
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|p| is_version_of(p, &start)).collect();
    found.sort();
    found.into_iter().next().with_context(|| format!("{}: there is no {start} in it", folder.display()))
}

/// Whether a file is the library `start`, followed by numbers and dots.
pub(super) fn is_version_of(path: &Path, start: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(start).is_some_and(|rest| rest.bytes().all(|b| b == b'.' || b.is_ascii_digit()))
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        std::fs::remove_file(at).with_context(|| at.display().to_string())?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| at.display().to_string())
}

#[cfg(not(unix))]
fn link(_: &Path, at: &Path) -> Result<()> {
    anyhow::bail!("{}: links are made on Unix only", at.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_by_its_version() -> Result<()> {
        let place = tempfile::tempdir()?;
        for name in ["libnvrtc.alt.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            std::fs::write(place.path().join(name), "")?;
        }
        assert_eq!(versioned(place.path(), "nvrtc")?, place.path().join("libnvrtc.so.13"));
        assert!(versioned(place.path(), "cudart").is_err_and(|e| e.to_string().contains("libcudart.so")));
        Ok(())
    }

    #[test]
    fn the_sources_of_the_stand_ins_are_there() {
        let folder = shell::root().join("tests/cuda-on-cpu");
        for library in LIBRARIES {
            assert!(library.sources.iter().all(|file| folder.join(file).is_file()), "{}", library.name);
        }
    }
}
