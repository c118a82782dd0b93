//! What cuDNN is asked for, apart from its calls: where its inputs may lie, and which of its algorithms is taken.

use candle_core::{Error, Result, Tensor};

/// Addresses that cuDNN's vector instructions take are multiples of so many bytes.
const ALIGNMENT: usize = 16;

/// Why an algorithm did not run.
#[derive(Debug)]
pub(super) enum Attempt {
    /// It can't, for these sizes, or needs too much room.
    Unfit(String),
    /// The device had no memory for it, or failed.
    Failed(Error),
}

impl Attempt {
    /// As an error, whatever the reason.
    pub fn into_error(self) -> Error {
        match self {
            Self::Unfit(words) => Error::Msg(format!("conv2d: {words}")),
            Self::Failed(error) => error,
        }
    }

    /// What cuDNN's status means, by its name: a memory that is full, which says nothing about the algorithm, or that the algorithm can't serve
    /// the sizes, types or device. For the latter cuDNN has many words beside `NOT_SUPPORTED`: some combinations of layout and type end as
    /// `INTERNAL_ERROR` or `EXECUTION_FAILED` (reported of other programs: pytorch#34736, jax#8506). A device that is broken says so when it is
    /// waited for, which [`choose`] does before it goes on without an algorithm that repeats its bits.
    pub fn of_status(name: &str) -> Self {
        match ["ALLOC_FAILED", "ALLOCATION_FAILED", "OUT_OF_MEMORY"].iter().any(|words| name.contains(words)) {
            true => Self::Failed(Error::Msg(format!("conv2d: cuDNN: {name}"))),
            false => Self::Unfit(format!("cuDNN: {name}")),
        }
    }
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The algorithm with the shortest time among the first group of which any runs; none where all are unfit. `time` runs one and times it;
/// `settle` waits for the device where none of a group ran, and fails if that is the device's fault.
///
/// One that fails is passed over while others of its group run.
///
/// # Errors
/// The first failure, where nothing of its group ran: what then is known is not that there is no algorithm.
pub(super) fn choose(
    groups: [&[u32]; 2],
    mut time: impl FnMut(u32) -> std::result::Result<f32, Attempt>,
    mut settle: impl FnMut() -> Result<()>,
) -> Result<Option<u32>> {
    for group in groups {
        let (mut best, mut failure): (Option<(f32, u32)>, Option<Error>) = (None, None);
        for &algorithm in group {
            match time(algorithm) {
                Ok(time) if best.is_none_or(|(shortest, _)| time < shortest) => best = Some((time, algorithm)),
                Ok(_) | Err(Attempt::Unfit(_)) => {}
                Err(Attempt::Failed(error)) => failure = failure.or(Some(error)),
            }
        }
        match (best, failure) {
            (Some((_, algorithm)), _) => return Ok(Some(algorithm)),
            (None, Some(error)) => return Err(error),
            (None, None) => settle()?,
        }
    }
    Ok(None)
}

/// The contiguous tensor itself where its first element lies at a multiple of 16 bytes of its storage, a copy otherwise.
pub(super) fn aligned(t: &Tensor) -> Result<Tensor> {
    match (t.layout().start_offset() * t.dtype().size_in_bytes()).is_multiple_of(ALIGNMENT) {
        true => Ok(t.clone()),
        false => t.force_contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, IndexOp};

    use super::*;

    fn full() -> Attempt {
        Attempt::Failed(Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()))
    }

    #[test]
    fn the_fastest_of_the_first_group_that_runs_is_taken() -> Result<()> {
        let unfit = || Err(Attempt::Unfit("no".into()));
        let times = |a| match a {
            1 => unfit(),
            2 => Ok(3.0),
            3 => Ok(2.0),
            _ => Ok(1.0),
        };
        assert_eq!(choose([&[1, 2, 3], &[4]], times, || Ok(()))?, Some(3));
        assert_eq!(choose([&[1], &[4]], times, || Ok(()))?, Some(4));
        assert_eq!(choose([&[1], &[]], times, || Ok(()))?, None);
        let broken = choose([&[1], &[4]], times, || Err(Error::Msg("the device is gone".into())));
        assert!(broken.expect_err("no algorithm of the second group on a broken device").to_string().contains("gone"));
        Ok(())
    }

    #[test]
    fn a_failure_is_not_the_lack_of_an_algorithm() -> Result<()> {
        let first_fails = |a| if a == 1 { Err(full()) } else { Ok(1.0) };
        assert_eq!(choose([&[1, 2], &[]], first_fails, || Ok(()))?, Some(2), "others of the group run");
        let error = choose([&[1], &[2]], first_fails, || Ok(())).expect_err("no other bits because of a full memory");
        assert!(error.to_string().contains("OUT_OF_MEMORY"), "{error}");
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_NOT_SUPPORTED_SHAPE"), Attempt::Unfit(_)));
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_BAD_PARAM"), Attempt::Unfit(_)));
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_ALLOC_FAILED"), Attempt::Failed(_)));
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), Attempt::Failed(_)));
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_EXECUTION_FAILED_CUDART"), Attempt::Unfit(_)));
        assert!(matches!(Attempt::of_status("CUDNN_STATUS_INTERNAL_ERROR"), Attempt::Unfit(_)));
        Ok(())
    }

    #[test]
    fn images_that_start_within_a_vector_are_copied() -> Result<()> {
        let x = Tensor::arange(0f32, 3.0 * 27.0 * 27.0, &Device::Cpu)?.reshape((3, 27, 27, 1))?;
        for (first, copied) in [(0, false), (1, true), (2, true)] {
            let part = x.narrow(0, first, 1)?;
            let got = aligned(&part)?;
            assert_eq!(got.layout().start_offset() == 0 && first > 0, copied, "image {first}");
            assert_eq!(got.flatten_all()?.to_vec1::<f32>()?, x.i(first)?.flatten_all()?.to_vec1::<f32>()?);
        }
        let whole = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
        assert_eq!(aligned(&whole.narrow(0, 1, 1)?)?.layout().start_offset(), 4, "16 bytes in");
        Ok(())
    }
}
