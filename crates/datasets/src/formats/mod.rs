//! Files of known formats, read strictly: every length is checked before anything is believed.

pub mod cifar;
pub mod idx;
