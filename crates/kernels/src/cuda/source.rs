//! The sources of the kernels, each a module for the device.

/// A source file of kernels.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its name, unique among [`SOURCES`].
    pub name: &'static str,
    /// Its text, after the prelude's.
    pub text: &'static str,
}

/// What every source starts with.
#[cfg(test)]
pub(crate) const PRELUDE: &str = include_str!("prelude.cuh");

macro_rules! sources {
    ($($name:ident $file:literal $(after $header:literal)?;)+) => {
        $(pub(crate) static $name: Source = Source {
            name: $file,
            text: concat!(include_str!("prelude.cuh"), $(include_str!($header),)? include_str!(concat!($file, ".cu"))),
        };)+

        /// All of them.
        #[cfg(any(test, feature = "emulation"))]
        pub(crate) static SOURCES: &[&Source] = &[$(&$name),+];
    };
}

sources! {
    ATTENTION "attention";
    BATCH_NORM "batch_norm";
    COLUMNS "columns";
    ELEMENTWISE "elementwise";
    EPPS_PULLEY "epps_pulley";
    FILTER "filter";
    FLASH "flash" after "mma.cuh";
    LAYER_NORM "layer_norm";
    POOL "pool";
    ROWS "rows";
    UPDATE "update";
    VIEWS "views";
}

#[cfg(any(test, feature = "emulation"))]
impl Source {
    /// Its kernels: the names after `extern "C" __global__ void`.
    pub fn kernels(&self) -> Vec<&'static str> {
        let pieces = self.text.split("extern \"C\" __global__ void ").skip(1);
        pieces.map(|rest| rest.split('(').next().unwrap_or_default()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_kernel_is_found() {
        for source in SOURCES {
            assert!(source.text.starts_with(PRELUDE) && !source.text.contains('\0'), "{}", source.name);
            let kernels = source.kernels();
            assert_eq!(
                kernels.len(),
                source.text.matches("__global__ void").count(),
                "{}: a kernel without extern \"C\"",
                source.name
            );
            let word = |k: &&str| !k.is_empty() && k.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
            assert!(!kernels.is_empty() && kernels.iter().all(word), "{}: {kernels:?}", source.name);
            assert_eq!(SOURCES.iter().filter(|s| s.name == source.name).count(), 1, "{}", source.name);
        }
    }
}
