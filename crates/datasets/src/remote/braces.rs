//! Several addresses in one, as WebDataset's users write them: `shard-{000000..000009}.tar`, `{train,val}-{0..3}.tar`.

/// Most addresses that one stands for.
const MOST: usize = 100_000;

/// The addresses that `text` stands for, in order: the last brace counts fastest. Numbers have as many digits as the first of them is
/// written with.
///
/// # Errors
/// Braces that do not close or are nested, a range that does not rise, more than 100,000 addresses: what is wrong, in words.
pub(super) fn expand(text: &str) -> Result<Vec<String>, String> {
    let mut found = vec![String::new()];
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let close = rest[open..].find('}').filter(|&at| at > 0).map(|at| open + at);
        let close = close.ok_or("has a brace that has no other; expected {000..009} or {a,b}")?;
        let inside = &rest[open + 1..close];
        let words = words(inside)?;
        if found.len().saturating_mul(words.len()) > MOST {
            return Err(format!("stands for more than {MOST} addresses"));
        }
        let before = &rest[..open];
        found = found.iter().flat_map(|f| words.iter().map(move |w| format!("{f}{before}{w}"))).collect();
        rest = &rest[close + 1..];
    }
    found.iter_mut().for_each(|f| f.push_str(rest));
    Ok(found)
}

/// What stands for a pair of braces.
fn words(inside: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("has the braces {{{inside}}}; expected {{000..009}} or {{a,b}}");
    let Some((first, last)) = inside.split_once("..") else {
        let words: Vec<String> = inside.split(',').map(String::from).collect();
        return if words.len() > 1 && !inside.contains('{') { Ok(words) } else { Err(wrong()) };
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten();
    let (from, to) = number(first).zip(number(last)).ok_or_else(wrong)?;
    if from > to {
        return Err(format!("has the braces {{{inside}}}, whose numbers do not rise"));
    }
    if to - from >= MOST {
        return Err(format!("stands for more than {MOST} addresses"));
    }
    let digits = first.len();
    Ok((from..=to).map(|n| format!("{n:0digits$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_lists_stand_for_several() {
        let of = |text: &str| expand(text).map(|all| all.join(" "));
        let good = |text: &str, want: &str| assert_eq!(of(text).as_deref(), Ok(want), "{text}");
        good("s3://b/x.tar", "s3://b/x.tar");
        good("x-{08..11}.tar", "x-08.tar x-09.tar x-10.tar x-11.tar");
        good("x-{9..11}.tar", "x-9.tar x-10.tar x-11.tar");
        good("{train,val}-{0..1}", "train-0 train-1 val-0 val-1");
        for text in [
            "x-{0..3.tar",
            "x-0}.tar",
            "x-{}.tar",
            "x-{a}.tar",
            "x-{3..1}.tar",
            "x-{a..c}.tar",
            "{a,{b,c}}",
            "}{",
            "{0..}",
            "{1..2..3}",
        ] {
            let told = of(text).expect_err(text);
            assert!(told.contains("brace"), "{text}: {told}");
        }
        for text in ["{0..100000}", "{0..999}{0..999}", "{0..18446744073709551615}"] {
            assert!(of(text).expect_err(text).contains("more than"), "{text}");
        }
    }
}
