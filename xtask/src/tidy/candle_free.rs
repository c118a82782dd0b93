//! Rule: crates that others take without a tensor library do not reach candle, under any feature.

use std::collections::{BTreeMap, VecDeque};

/// Packages that must not reach [`CANDLE`] through normal or build dependencies.
const FREE: &[&str] = &["twinsight-augment", "twinsight-knn", "twinsight-test-support", "xtask"];

const CANDLE: &str = "candle-core";

/// The program: it reaches candle, but through the libraries alone.
const THIN: &str = "twinsight";

/// Findings, one for each of the packages that reaches candle, with the way there. `graph` maps a package to those that it uses.
pub fn check(graph: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let found = FREE.iter().filter_map(|&from| way(graph, from, CANDLE));
    let mut findings: Vec<String> =
        found.map(|way| format!("{} must not reach {CANDLE}, and does: {}", way[0], way.join(" → "))).collect();
    if let Some(direct) = graph.get(THIN).and_then(|uses| uses.iter().find(|u| u.starts_with("candle-"))) {
        findings.push(format!("{THIN} must not use {direct} itself; what does belongs in twinsight-train"));
    }
    findings
}

/// A shortest way from one package to another.
fn way(graph: &BTreeMap<String, Vec<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        if at == to {
            let mut way = vec![at.to_string()];
            let mut at = at;
            while at != from {
                at = came_from[at];
                way.push(at.to_string());
            }
            way.reverse();
            return Some(way);
        }
        for next in graph.get(at).into_iter().flatten() {
            if next != from && !came_from.contains_key(next.as_str()) {
                came_from.insert(next, at);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        edges.iter().map(|(from, to)| (from.to_string(), to.iter().map(|t| t.to_string()).collect())).collect()
    }

    #[test]
    fn the_program_uses_no_tensors_itself() {
        assert!(check(&graph(&[("twinsight", &["twinsight-nn"]), ("twinsight-nn", &["candle-core"])])).is_empty());
        assert_eq!(check(&graph(&[("twinsight", &["candle-nn"])])).len(), 1);
    }

    #[test]
    fn a_way_to_candle_is_shown() {
        let graph = graph(&[
            ("twinsight-knn", &["gemm", "a", "twinsight-knn"]),
            ("a", &["b"]),
            ("b", &["a", "candle-core"]),
            ("twinsight-nn", &["candle-core"]),
        ]);
        let found = check(&graph);
        assert_eq!(found, ["twinsight-knn must not reach candle-core, and does: twinsight-knn → a → b → candle-core"]);
    }

    #[test]
    fn cycles_end_and_free_crates_pass() {
        assert!(check(&graph(&[("twinsight-augment", &["a"]), ("a", &["b"]), ("b", &["a"])])).is_empty());
    }
}
