//! What `info` says an encoder costs. In a process of its own: multiply-adds are counted in the whole process.

use anyhow::{Result, ensure};
use twinsight_encoders::{EncoderConfig, encoder};
use twinsight_train::inspect::inspect;

#[test]
fn figures_are_those_of_the_networks() -> Result<()> {
    // Multiply-adds in 10⁹ at 224 pixels; a transformer's include the products of queries and keys, and of weights and values.
    for (name, parameters, billions) in
        [("resnet18", 11_176_512, 1.81), ("vit_tiny", 5_524_416, 1.25), ("convnext_atto", 3_374_520, 0.55)]
    {
        let found = inspect(encoder(name)?, &EncoderConfig::default(), 8)?;
        ensure!(found.parameters == parameters, "{name}: {} parameters", found.parameters);
        let counted = found.multiply_adds as f64 * 1e-9;
        ensure!((counted - billions).abs() < 0.01, "{name}: {counted} G, expected {billions} G");
    }
    Ok(())
}
