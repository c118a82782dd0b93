//! The sources of the kernels, each a module for the device.

/// A source file and the kernels that it defines.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its name, unique among [`SOURCES`].
    pub name: &'static str,
    /// Its text, after the prelude's.
    pub text: &'static str,
    /// Its kernels: the names after `extern "C" __global__ void`.
    pub kernels: &'static [&'static str],
}

/// What every source starts with.
pub(crate) const PRELUDE: &str = include_str!("prelude.cuh");

macro_rules! source {
    ($name:ident, $file:literal, $($kernel:literal),+ $(,)?) => {
        pub(crate) static $name: Source = Source {
            name: $file,
            text: concat!(include_str!("prelude.cuh"), include_str!(concat!($file, ".cu"))),
            kernels: &[$($kernel),+],
        };
    };
}

source!(
    ELEMENTWISE,
    "elementwise",
    "relu_f32",
    "relu_bf16",
    "relu_backward_f32",
    "relu_backward_bf16",
    "gelu_f32",
    "gelu_bf16",
    "gelu_backward_f32",
    "gelu_backward_bf16",
);

source!(
    BATCH_NORM,
    "batch_norm",
    "bn_partial_f32_v1",
    "bn_partial_f32_v4",
    "bn_partial_bf16_v1",
    "bn_partial_bf16_v4",
    "bn_statistics",
    "bn_scale",
    "bn_apply_f32_v1",
    "bn_apply_f32_v4",
    "bn_apply_bf16_v1",
    "bn_apply_bf16_v4",
    "bn_sums_f32_v1",
    "bn_sums_f32_v4",
    "bn_sums_bf16_v1",
    "bn_sums_bf16_v4",
    "bn_backward",
    "bn_input_f32_v1",
    "bn_input_f32_v4",
    "bn_input_bf16_v1",
    "bn_input_bf16_v4",
    "bn_running",
);

source!(VIEWS, "views", "view_weights", "render_views_f32", "render_views_bf16");

/// All of them.
pub(crate) static SOURCES: &[&Source] = &[&ELEMENTWISE, &BATCH_NORM, &VIEWS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_those_of_the_files() {
        for source in SOURCES {
            let body = source.text.strip_prefix(PRELUDE).expect("starts with the prelude");
            let defined: Vec<&str> = body
                .split("extern \"C\" __global__ void ")
                .skip(1)
                .map(|rest| rest.split('(').next().unwrap_or_default())
                .collect();
            assert_eq!(defined, source.kernels, "{}", source.name);
            assert_eq!(SOURCES.iter().filter(|s| s.name == source.name).count(), 1, "{}", source.name);
        }
    }
}
