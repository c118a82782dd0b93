//! What a kernel is launched with, apart from where it runs.

use candle_core::{DType, Result, bail};

use super::source::Source;

/// Threads of a block where a kernel does not need another number.
pub(crate) const THREADS: u32 = 256;

/// Where kernels run: a CUDA device, or the processor in tests.
pub(crate) trait Engine {
    /// Memory with elements of one type.
    type Buffer;

    /// Room for `len` elements, which hold anything.
    fn alloc(&self, kind: DType, len: usize) -> Result<Self::Buffer>;

    /// Numbers for the kernel to read.
    fn upload(&self, values: Upload<'_>) -> Result<Self::Buffer>;

    /// The address of an element, for tables of pointers. It stays valid as long as the buffer.
    fn address(&self, buffer: &Self::Buffer, offset: usize) -> Result<u64>;

    /// Starts a kernel, in order after those started before.
    ///
    /// # Safety
    /// The kernel must stay inside of the buffers that it is given, from the offsets on.
    unsafe fn start(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [u32; 3],
        block: u32,
        args: Vec<Arg<'_, Self::Buffer>>,
    ) -> Result<()>;
}

/// Numbers on their way to the device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Upload<'a> {
    /// Of tests: a program's images go to the device by [`crate::views::DeviceImages`].
    #[cfg(any(test, feature = "emulation"))]
    U8(&'a [u8]),
    U32(&'a [u32]),
    I64(&'a [i64]),
}

/// An argument of a kernel.
pub(crate) enum Arg<'a, B> {
    /// A pointer to read from: an element of a buffer.
    In(&'a B, usize),
    /// A pointer to write to: the start of a buffer.
    Out(&'a mut B),
    /// A pointer to elements that the kernel changes in place, while others may look at the buffer's address: what follows on the device
    /// must be started after it in the engine's order.
    Changed(&'a B, usize),
    /// A null pointer.
    Null,
    /// An `int`.
    Int(i32),
    /// A `long long`.
    Long(i64),
    /// A `float`.
    Float(f32),
    /// A `double`.
    Double(f64),
}

impl<'a, B> Arg<'a, B> {
    /// Some elements, or a null pointer.
    pub fn maybe(view: Option<View<'a, B>>) -> Self {
        view.map_or(Self::Null, View::arg)
    }
}

/// Elements of a buffer from `offset` on.
pub(crate) struct View<'a, B> {
    pub buffer: &'a B,
    pub offset: usize,
}

impl<B> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for View<'_, B> {}

impl<'a, B> View<'a, B> {
    /// All of a buffer.
    pub fn all(buffer: &'a B) -> Self {
        Self { buffer, offset: 0 }
    }

    /// As an argument to read from.
    pub fn arg(self) -> Arg<'a, B> {
        Arg::In(self.buffer, self.offset)
    }

    /// Whether packs of `width` elements can be read: buffers themselves are aligned for all.
    pub fn aligned(&self, width: usize) -> bool {
        self.offset.is_multiple_of(width)
    }
}

/// Starts a kernel unless its grid is empty, which means that there is nothing to do.
///
/// # Safety
/// As [`Engine::start`].
pub(crate) unsafe fn launch<E: Engine>(
    engine: &E,
    source: &'static Source,
    kernel: &str,
    grid: [u32; 3],
    block: u32,
    args: Vec<Arg<'_, E::Buffer>>,
) -> Result<()> {
    if grid[1] > 65_535 || grid[2] > 65_535 || block == 0 || block > 1024 {
        bail!("internal: {kernel} was to be launched with a grid of {grid:?} and blocks of {block}");
    }
    if grid.contains(&0) {
        return Ok(());
    }
    // SAFETY: as the caller says.
    unsafe { engine.start(source, kernel, grid, block, args) }
}

/// `base` for the element type: `base_f32` or `base_bf16`.
pub(crate) fn kernel_of(base: &str, kind: DType) -> Result<String> {
    match kind {
        DType::F32 => Ok(format!("{base}_f32")),
        DType::BF16 => Ok(format!("{base}_bf16")),
        other => bail!("internal: {base} has no CUDA kernel for {other:?}"),
    }
}

/// Blocks for `count` elements of which each thread takes some: enough to fill a large device, and never too many for a grid.
pub(crate) fn blocks_for(count: usize) -> u32 {
    count.div_ceil(THREADS as usize).min(132 * 32) as u32
}

/// A size as a kernel's `int`.
pub(crate) fn int(what: &str, size: usize) -> Result<i32> {
    i32::try_from(size).or_else(|_| bail!("{what} is {size}, more than the CUDA kernels can take"))
}
