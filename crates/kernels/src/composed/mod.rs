//! The operations of this crate as chains of candle operations, for devices without an implementation of their own, and as
//! what the fast implementations are tested against.
//!
//! They take the same tensors as the functions of the same name in the crate's root, and expect them to be checked.

pub mod activation;
pub mod attention;
pub mod conv;
mod epps_pulley;
pub mod linear;
pub mod norm;
pub mod pool;
pub mod softmax;
pub mod update;
mod window;

pub use epps_pulley::epps_pulley;
