//! Rule: a crate depends only on the crates of the workspace that the architecture allows.

/// Allowed dependencies inside the workspace, by package; docs/ARCHITECTURE.md explains the layers.
const ALLOWED: &[(&str, &[&str])] = &[
    ("twinsight-kernels", &[]),
    ("twinsight-augment", &[]),
    ("twinsight-knn", &[]),
    ("twinsight-datasets", &[]),
    ("twinsight-nn", &["twinsight-kernels"]),
    ("twinsight-encoders", &["twinsight-nn", "twinsight-kernels"]),
    ("twinsight-ssl-methods", &["twinsight-encoders", "twinsight-nn", "twinsight-kernels", "twinsight-augment"]),
    ("twinsight-train", BELOW_TRAIN),
    ("twinsight", APP),
    (TEST_SUPPORT, &[]),
    ("xtask", &[]),
];

const BELOW_TRAIN: &[&str] = &[
    "twinsight-kernels",
    "twinsight-augment",
    "twinsight-knn",
    "twinsight-datasets",
    "twinsight-nn",
    "twinsight-encoders",
    "twinsight-ssl-methods",
];

const APP: &[&str] = &[
    "twinsight-kernels",
    "twinsight-augment",
    "twinsight-knn",
    "twinsight-datasets",
    "twinsight-nn",
    "twinsight-encoders",
    "twinsight-ssl-methods",
    "twinsight-train",
];

/// Tests of any crate but xtask may use it.
const TEST_SUPPORT: &str = "twinsight-test-support";

/// A package of the workspace and what it uses of the workspace.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Normal and build dependencies.
    pub normal: Vec<String>,
    /// Development dependencies.
    pub dev: Vec<String>,
}

/// Findings, one for each arrow that is not allowed.
pub fn check(members: &[Member]) -> Vec<String> {
    let mut findings = Vec::new();
    for Member { name, normal, dev } in members {
        let Some((_, allowed)) = ALLOWED.iter().find(|(n, _)| n == name) else {
            findings.push(format!("{name}: an unknown package; say what it may use in xtask/src/tidy/arrows.rs"));
            continue;
        };
        let list = || if allowed.is_empty() { "nothing".to_string() } else { allowed.join(", ") };
        for to in normal.iter().filter(|to| !allowed.contains(&to.as_str())) {
            findings.push(format!("{name} uses {to}, an arrow that the architecture does not have; it may use {}", list()));
        }
        let test = |to: &str| to == TEST_SUPPORT && name != "xtask";
        for to in dev.iter().filter(|to| !allowed.contains(&to.as_str()) && !test(to)) {
            findings.push(format!("tests of {name} use {to}; they may use {} and {TEST_SUPPORT}", list()));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, normal: &[&str], dev: &[&str]) -> Member {
        let own = |v: &[&str]| v.iter().map(|s| s.to_string()).collect();
        Member { name: name.into(), normal: own(normal), dev: own(dev) }
    }

    #[test]
    fn the_layers_are_allowed() {
        let members = [
            member("twinsight-knn", &[], &[TEST_SUPPORT]),
            member("twinsight-nn", &["twinsight-kernels"], &[TEST_SUPPORT, "twinsight-kernels"]),
            member("twinsight", &["twinsight-train", "twinsight-knn"], &[]),
        ];
        assert_eq!(check(&members), Vec::<String>::new());
    }

    #[test]
    fn every_other_arrow_is_found() {
        let one = |m: Member| {
            let found = check(&[m]);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        assert!(one(member("twinsight-kernels", &["twinsight-nn"], &[])).contains("it may use nothing"));
        assert!(one(member("twinsight-encoders", &["twinsight-train"], &[])).contains("twinsight-nn, twinsight-kernels"));
        assert!(one(member("twinsight-augment", &[], &["twinsight-knn"])).starts_with("tests of twinsight-augment"));
        assert!(one(member("twinsight-nn", &[TEST_SUPPORT], &[])).contains("uses twinsight-test-support"));
        assert!(one(member("xtask", &[], &[TEST_SUPPORT])).contains("xtask"));
        assert!(one(member("twinsight-new", &[], &[])).contains("unknown package"));
    }

    #[test]
    fn the_table_has_no_cycles() {
        // Each package may use only those before it.
        for (i, (name, allowed)) in ALLOWED.iter().enumerate() {
            assert!(allowed.iter().all(|a| ALLOWED[..i].iter().any(|(n, _)| n == a)), "{name}");
        }
    }
}
