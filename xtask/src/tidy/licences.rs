//! Rule: every dependency, optional ones and those of other platforms included, is under a licence that lets a program be
//! passed on under MIT or Apache-2.0.

use spdx::{Expression, Licensee, ParseMode};

/// Licences that ask for no more than attribution, and two that ask for the source of their own files only.
const ALLOWED: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "0BSD",
    "Unlicense",
    "Unicode-3.0",
    "Zlib",
    // Data: the root certificates of webpki-roots (`download` feature).
    "CDLA-Permissive-2.0",
    // By file: crates that candle-datasets' hub client uses, unchanged (`candle-datasets` feature of twinsight-datasets).
    "MPL-2.0",
];

/// A package and its licence expression.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name and version.
    pub name: String,
    /// The SPDX expression of its manifest.
    pub expression: Option<String>,
}

/// Findings, one for each package whose licence is missing, unreadable or not allowed.
pub fn check(packages: &[Package]) -> Vec<String> {
    let allowed: Vec<Licensee> = ALLOWED.iter().map(|l| Licensee::parse(l).expect("the list is of SPDX names")).collect();
    packages.iter().filter_map(|p| refuse(p, &allowed)).collect()
}

fn refuse(package: &Package, allowed: &[Licensee]) -> Option<String> {
    let name = &package.name;
    let Some(text) = &package.expression else {
        return Some(format!("{name} states no licence in its manifest; read what it has, or use another crate"));
    };
    // Old manifests separate alternatives by a slash.
    let expression = match Expression::parse_mode(text, ParseMode::LAX) {
        Ok(expression) => expression,
        Err(e) => return Some(format!("{name}: licence `{text}` cannot be read: {}", e.reason)),
    };
    let satisfied = expression.evaluate(|needed| allowed.iter().any(|l| l.satisfies(needed)));
    (!satisfied).then(|| format!("{name} is under `{text}`, which xtask/src/tidy/licences.rs does not allow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(expression: Option<&str>) -> Vec<String> {
        check(&[Package { name: "some-crate 1.0.0".into(), expression: expression.map(String::from) }])
    }

    #[test]
    fn expressions_are_evaluated_not_matched() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
        ] {
            assert!(found(Some(good)).is_empty(), "{good}: {:?}", found(Some(good)));
        }
    }

    #[test]
    fn other_licences_are_found() {
        for bad in ["GPL-3.0-only", "MIT AND AGPL-3.0-or-later", "LGPL-2.1-or-later", "(GPL-2.0-only OR SSPL-1.0) AND MIT"] {
            assert_eq!(
                found(Some(bad)),
                [format!("some-crate 1.0.0 is under `{bad}`, which xtask/src/tidy/licences.rs does not allow")]
            );
        }
        assert!(found(Some("Custom words"))[0].contains("cannot be read"));
        assert!(found(None)[0].contains("states no licence"));
    }
}
