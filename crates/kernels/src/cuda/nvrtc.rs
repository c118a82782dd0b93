//! The sources compiled for a device where there is none: by NVRTC to PTX, and by the toolkit's `ptxas`, which the driver has in itself, to machine code.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::process::Command;

use libloading::Library;

use super::source::{SOURCES, Source};

/// NVIDIA's run-time compiler.
struct Nvrtc(Library);

impl Nvrtc {
    fn open() -> Option<Self> {
        let path = PathBuf::from(std::env::var_os("TWINSIGHT_NVRTC")?);
        // SAFETY: the library is NVIDIA's, named by who runs the test; it runs nothing of ours when it is loaded.
        Some(Self(unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))))
    }

    fn symbol<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the callers name the types of NVRTC's documented functions.
        *unsafe { self.0.get::<T>(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The PTX of a source, or the compiler's words.
    fn compile(&self, source: &Source, capability: &str) -> std::result::Result<String, String> {
        type Program = *mut c_void;
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let text = |size: &str, get: &str, program: Program| {
            let mut length = 0;
            // SAFETY: the program is one that was created, and the buffer has the length that was asked for.
            unsafe {
                assert_eq!(self.symbol::<Size>(size)(program, &raw mut length), 0);
                let mut room = vec![0 as c_char; length.max(1)];
                assert_eq!(self.symbol::<Get>(get)(program, room.as_mut_ptr()), 0);
                CStr::from_ptr(room.as_ptr()).to_string_lossy().into_owned()
            }
        };
        let (name, body) = (CString::new(source.name).expect("a name"), CString::new(source.text).expect("a text"));
        let option = CString::new(format!("--gpu-architecture=compute_{capability}")).expect("an option");
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the arguments are those of NVRTC's documentation, and outlive the calls.
        let status = unsafe {
            let create = self.symbol::<Create>("nvrtcCreateProgram");
            assert_eq!(create(&raw mut program, body.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null()), 0);
            self.symbol::<Compile>("nvrtcCompileProgram")(program, 1, [option.as_ptr()].as_ptr())
        };
        match status {
            0 => Ok(text("nvrtcGetPTXSize", "nvrtcGetPTX", program)),
            _ => Err(text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)),
        }
    }
}

#[test]
#[ignore = "needs NVRTC (TWINSIGHT_NVRTC); `cargo xtask check-cuda` runs it"]
fn nvrtc_compiles_every_source() {
    let nvrtc = Nvrtc::open().expect("TWINSIGHT_NVRTC names libnvrtc.so");
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".into());
    for source in SOURCES {
        let ptx = nvrtc.compile(source, &capability).unwrap_or_else(|log| panic!("{}: {log}", source.name));
        let entries: Vec<&str> =
            ptx.split(".visible .entry ").skip(1).map(|rest| rest.split('(').next().unwrap_or_default()).collect();
        for kernel in source.kernels() {
            assert!(entries.contains(&kernel), "{}: no entry {kernel} in the PTX, which has {entries:?}", source.name);
        }
        assert_eq!(entries.len(), source.kernels().len(), "{}: {entries:?}", source.name);
        let doubles = ptx.split(".visible .entry ").skip(1).filter(|rest| rest.contains(".f64"));
        for entry in doubles.map(|rest| rest.split('(').next().unwrap_or_default()) {
            let meant = ["batch_norm", "epps_pulley", "views"].contains(&source.name) || entry.starts_with("clip");
            assert!(meant, "{}: double precision where none was meant, in {entry}", source.name);
        }
    }
    let wrong = Source { name: "wrong", text: "__global__ void f() { nothing(); }" };
    assert!(nvrtc.compile(&wrong, &capability).expect_err("does not compile").contains("nothing"));
}

/// What `ptxas` says of a source's PTX: registers, memory and spilled numbers of every kernel.
fn assembled(name: &str, ptx: &str, capability: &str) -> String {
    let file = std::env::temp_dir().join(format!("twinsight-{name}-{capability}-{}.ptx", std::process::id()));
    std::fs::write(&file, ptx).expect("the PTX is written");
    let binary = file.with_extension("cubin");
    let mut ptxas = Command::new("ptxas");
    ptxas.args(["-v", &format!("-arch=sm_{capability}"), "-o"]).arg(&binary).arg(&file);
    let output = ptxas.output().unwrap_or_else(|e| panic!("ptxas: {e}; it is among a CUDA toolkit's programs"));
    let _ = (std::fs::remove_file(&file), std::fs::remove_file(&binary));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {words}");
    words
}

#[test]
#[ignore = "needs NVRTC (TWINSIGHT_NVRTC) and ptxas; `cargo xtask check-cuda` runs it"]
fn inline_ptx_assembles_and_attention_keeps_to_its_registers() {
    let nvrtc = Nvrtc::open().expect("TWINSIGHT_NVRTC names libnvrtc.so");
    let source = SOURCES.iter().find(|source| source.name == "flash").expect("attention without a table");
    for capability in ["80", "90"] {
        let ptx = nvrtc.compile(source, capability).unwrap_or_else(|log| panic!("{log}"));
        let words = assembled(source.name, &ptx, capability);
        assert_eq!(words.matches("0 bytes spill stores, 0 bytes spill loads").count(), source.kernels().len(), "{words}");
    }
}
