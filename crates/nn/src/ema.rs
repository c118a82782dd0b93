//! The teacher's update: an exponential moving average of the student.

use candle_core::{Tensor, Var};

use crate::{Error, ParamStore, Parameter, Result, Role};

/// What happens to a teacher's buffers (running statistics), which have no gradient to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferRule {
    /// They become the student's.
    Copy,
    /// They are averaged like parameters.
    Average,
    /// They are left alone: the teacher's own passes in training mode update them (as in lightly, DINO and BYOL).
    Own,
}

/// teacher ← momentum · teacher + (1 − momentum) · student, for all parameters in one pass; buffers by their rule. Names
/// and shapes are checked before the first value changes.
///
/// # Errors
/// A parameter that only one side has or that differs in shape, by name; a momentum outside 0 to 1.
pub fn ema_update(teacher: &ParamStore, student: &ParamStore, momentum: f64, buffers: BufferRule) -> Result<()> {
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::BadSetting(format!("EMA momentum {momentum} is not in 0 to 1")));
    }
    if let Some(extra) = student.iter().find(|s| teacher.get(s.name()).is_none()) {
        return Err(Error::ExtraTensor { place: "EMA: the student".into(), name: extra.name().into() });
    }
    let mut averaged: Vec<(&Var, &Tensor)> = Vec::with_capacity(teacher.len());
    let mut copied: Vec<(&Parameter, &Tensor)> = Vec::new();
    for t in teacher.iter() {
        let Some(s) = student.get(t.name()) else {
            return Err(Error::MissingTensor {
                place: "EMA: the student".into(),
                name: t.name().into(),
                expected: t.dims().to_vec(),
            });
        };
        if s.dims() != t.dims() {
            return Err(Error::ShapeMismatch {
                place: "EMA: the student".into(),
                name: t.name().into(),
                found: s.dims().to_vec(),
                expected: t.dims().to_vec(),
            });
        }
        match (t.role() == Role::Buffer, buffers) {
            (false, _) | (true, BufferRule::Average) => averaged.push((t.var(), s.value())),
            (true, BufferRule::Copy) => copied.push((t, s.value())),
            (true, BufferRule::Own) => {}
        }
    }
    copied.into_iter().try_for_each(|(t, value)| t.set(value))?;
    Ok(twinsight_kernels::ema(&averaged, momentum)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchNorm, Builder};
    use candle_core::{DType, Device};

    #[test]
    fn parameters_are_averaged_and_buffers_follow_their_rule() -> Result<()> {
        for (rule, want) in [(BufferRule::Copy, 3.0), (BufferRule::Average, 0.75), (BufferRule::Own, 0.0)] {
            let make = || -> Result<ParamStore> {
                let b = Builder::new(0, &Device::Cpu);
                BatchNorm::new(&b, 2, true)?;
                Ok(b.finish())
            };
            let (teacher, student) = (make()?, make()?);
            for p in student.iter() {
                p.set(&(Tensor::ones(2, DType::F32, &Device::Cpu)? * 3.0)?)?;
            }
            ema_update(&teacher, &student, 0.75, rule)?;
            let value =
                |s: &ParamStore, name: &str| -> Result<f32> { Ok(s.get(name).expect("registered").value().to_vec1::<f32>()?[0]) };
            assert_eq!(value(&teacher, "weight")?, 1.5);
            assert_eq!(value(&teacher, "running_mean")?, want);
            assert_eq!(value(&student, "weight")?, 3.0);
        }
        Ok(())
    }

    #[test]
    fn networks_that_differ_are_refused_by_name_and_nothing_changes() -> Result<()> {
        let make = |shapes: &[(&str, usize, Role)]| -> Result<ParamStore> {
            let b = Builder::new(0, &Device::Cpu);
            for &(name, size, role) in shapes {
                b.parameter(name, &[size], role, crate::Init::Constant(size as f32))?;
            }
            Ok(b.finish())
        };
        let teacher = make(&[("running", 2, Role::Buffer), ("w", 2, Role::Weight)])?;
        teacher.get("running").expect("registered").set(&Tensor::zeros(2, DType::F32, &Device::Cpu)?)?;
        for (student, word) in [
            (make(&[("running", 2, Role::Buffer)])?, "`w`"),
            (make(&[("running", 2, Role::Buffer), ("w", 2, Role::Weight), ("more", 2, Role::Weight)])?, "`more`"),
            (make(&[("running", 2, Role::Buffer), ("w", 3, Role::Weight)])?, "`w`"),
        ] {
            let text = ema_update(&teacher, &student, 0.5, BufferRule::Copy).expect_err("must be refused").to_string();
            assert!(text.contains(word), "{text}");
            assert_eq!(teacher.get("running").expect("registered").value().to_vec1::<f32>()?, [0.0, 0.0]);
        }
        assert!(ema_update(&teacher, &teacher, f64::NAN, BufferRule::Own).is_err());
        Ok(())
    }
}
