//! Plain objects of a pickle that [`check`](super::opcodes::check) has walked: containers, texts, numbers, and for everything else the
//! name of its kind with the arguments and the state that it would be made of. Nothing is ever run.
//!
//! candle's own reader ends at an object of an unknown kind that is a list or a dictionary too (Python's `deque`, a dictionary of a
//! class of its own, as settings often are); here its items become a state like any other.

use std::collections::HashMap;

use candle_core::pickle::Object;

use super::opcodes::is_dictionary;

/// The object that the pickle at the start of `bytes` describes.
///
/// # Errors
/// A pickle that does not describe one; the lengths in it must have been checked.
pub(super) fn make(bytes: &[u8]) -> Result<Object, String> {
    let mut machine = Machine { rest: bytes, stack: Vec::new(), memo: HashMap::new() };
    while machine.step().ok_or("holds a damaged pickle: its operations do not fit together")? {}
    machine.stack.pop().ok_or_else(|| "holds an empty pickle".into())
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Object>,
    memo: HashMap<u32, Object>,
}

impl Machine<'_> {
    /// Does one operation; `false` after the last, `None` where it can't be done.
    fn step(&mut self) -> Option<bool> {
        let op = self.take(1)?[0];
        let made = match op {
            b'.' => return Some(false),
            0x80 => {
                self.take(1)?;
                return Some(true);
            }
            b'q' | b'r' => {
                let key = self.number(if op == b'q' { 1 } else { 4 })? as u32;
                self.memo.insert(key, self.stack.last()?.clone());
                return Some(true);
            }
            b'a' | b'e' | b's' | b'u' => {
                let items = match op {
                    b'a' => self.top(1)?,
                    b's' => self.top(2)?,
                    _ => self.marked()?,
                };
                self.add(items, matches!(op, b's' | b'u'))?;
                return Some(true);
            }
            b'c' => Object::Class { module_name: self.line()?, class_name: self.line()? },
            b')' => Object::Tuple(Vec::new()),
            b'}' => Object::Dict(Vec::new()),
            b']' => Object::List(Vec::new()),
            b'N' => Object::None,
            0x88 | 0x89 => Object::Bool(op == 0x88),
            b'(' => Object::Mark,
            b'X' => {
                let length = self.number(4)?;
                Object::Unicode(String::from_utf8(self.take(usize::try_from(length).ok()?)?.to_vec()).ok()?)
            }
            b'J' => Object::Int(self.number(4)? as u32 as i32),
            b'K' => Object::Int(self.number(1)? as i32),
            b'M' => Object::Int(self.number(2)? as i32),
            b'G' => Object::Float(f64::from_be_bytes(self.take(8)?.try_into().ok()?)),
            0x8a => {
                let length = self.take(1)?[0] as usize;
                Object::Long(long(self.take(length)?)?)
            }
            b'h' | b'j' => {
                let key = self.number(if op == b'h' { 1 } else { 4 })? as u32;
                self.memo.get(&key)?.clone()
            }
            b'Q' => Object::PersistentLoad(Box::new(self.stack.pop()?)),
            0x85..=0x87 => Object::Tuple(self.top(usize::from(op - 0x84))?),
            b't' => Object::Tuple(self.marked()?),
            b'R' | 0x81 => {
                let (args, callable) = (self.stack.pop()?, self.stack.pop()?);
                match &callable {
                    Object::Class { module_name, class_name } if is_dictionary(module_name, class_name) => {
                        Object::Dict(Vec::new())
                    }
                    _ => Object::Reduce { callable: Box::new(callable), args: Box::new(args) },
                }
            }
            b'b' => {
                let (state, made) = (self.stack.pop()?, self.stack.pop()?);
                match (made, state) {
                    (Object::Dict(mut pairs), Object::Dict(more)) => {
                        pairs.extend(more);
                        Object::Dict(pairs)
                    }
                    (made, state) => Object::Build { callable: Box::new(made), args: Box::new(state) },
                }
            }
            _ => return None,
        };
        self.stack.push(made);
        Some(true)
    }

    /// Adds items to the object on top: keys and values where `pairs`. Those of an object of another kind than a list or a dictionary
    /// are a state of it, one for all of its keys and values and one for its other items.
    fn add(&mut self, items: Vec<Object>, pairs: bool) -> Option<()> {
        if pairs && !items.len().is_multiple_of(2) {
            return None;
        }
        let made = self.stack.last_mut()?;
        let state = if pairs { Object::Dict(Vec::new()) } else { Object::List(Vec::new()) };
        if matches!(made, Object::Reduce { .. } | Object::Build { .. }) && held(made, pairs).is_none() {
            *made = Object::Build { callable: Box::new(std::mem::replace(made, Object::None)), args: Box::new(state) };
        }
        let mut items = items.into_iter();
        match held(made, pairs)? {
            Object::Dict(held) => held.extend(std::iter::from_fn(|| Some((items.next()?, items.next()?)))),
            Object::List(held) => held.extend(items),
            _ => return None,
        }
        Some(())
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (head, tail) = self.rest.split_at_checked(count)?;
        self.rest = tail;
        Some(head)
    }

    /// A little-endian number of `bytes` bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn line(&mut self) -> Option<String> {
        let end = self.rest.iter().position(|&b| b == b'\n')?;
        let text = self.take(end)?;
        let text = String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned();
        self.take(1)?;
        Some(text)
    }

    fn top(&mut self, count: usize) -> Option<Vec<Object>> {
        let at = self.stack.len().checked_sub(count)?;
        Some(self.stack.split_off(at))
    }

    /// Everything above the last mark, which goes.
    fn marked(&mut self) -> Option<Vec<Object>> {
        let at = self.stack.iter().rposition(|o| matches!(o, Object::Mark))?;
        let above = self.stack.split_off(at + 1);
        self.stack.pop();
        Some(above)
    }
}

/// The dictionary, if `pairs`, or else the list that takes further items of an object: itself, its state, or the state below, so that no
/// object lies deeper for having many items, in whatever order they come. `None` where there is none yet.
fn held(made: &mut Object, pairs: bool) -> Option<&mut Object> {
    let takes = |object: &Object| matches!((object, pairs), (Object::Dict(_), true) | (Object::List(_), false));
    if takes(made) {
        return Some(made);
    }
    let Object::Build { callable, args } = made else { return None };
    if takes(args) {
        return Some(args);
    }
    match &mut **callable {
        Object::Build { args, .. } if takes(args) => Some(args),
        _ => None,
    }
}

/// A number of up to 8 bytes, the lowest first, whose highest bit is its sign.
fn long(bytes: &[u8]) -> Option<i64> {
    let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut whole = [sign; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_numbers_and_texts_are_what_they_say() {
        let list = |items: Vec<Object>| Object::List(items);
        assert_eq!(
            make(b"\x80\x02](K\x01M\x00\x02J\xff\xff\xff\xffe.").as_ref(),
            Ok(&list(vec![Object::Int(1), Object::Int(512), Object::Int(-1),]))
        );
        assert_eq!(make(b"\x8a\x00."), Ok(Object::Long(0)));
        assert_eq!(make(b"\x8a\x01\xff."), Ok(Object::Long(-1)));
        assert_eq!(make(b"\x8a\x05\x00\x00\x00\x00\x01."), Ok(Object::Long(1 << 32)));
        assert_eq!(make(b"G?\xf8\x00\x00\x00\x00\x00\x00."), Ok(Object::Float(1.5)));
        let pair = Object::Dict(vec![(Object::Unicode("a".into()), Object::Bool(true))]);
        assert_eq!(make(b"}X\x01\x00\x00\x00a\x88s.").as_ref(), Ok(&pair));
        assert_eq!(make(b"ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00a\x88u."), Ok(pair));
    }

    #[test]
    fn items_of_an_unknown_kind_are_its_state() {
        let kind = |name: &str| Object::Class { module_name: "my".into(), class_name: name.into() };
        let made = |name: &str| Object::Reduce { callable: Box::new(kind(name)), args: Box::new(Object::Tuple(Vec::new())) };
        let with = |name: &str, state: Object| Object::Build { callable: Box::new(made(name)), args: Box::new(state) };
        assert_eq!(make(b"cmy\nList\n)\x81K\x01a."), Ok(with("List", Object::List(vec![Object::Int(1)]))));
        assert_eq!(
            make(b"cmy\nDict\n)\x81(K\x01K\x02u."),
            Ok(with("Dict", Object::Dict(vec![(Object::Int(1), Object::Int(2))])))
        );
    }

    #[test]
    fn no_object_lies_deeper_for_having_many_items() {
        fn depth(object: &Object) -> usize {
            match object {
                Object::Build { callable, args } => 1 + depth(callable).max(depth(args)),
                _ => 1,
            }
        }
        let one = |op: u8| if op == b'a' { b"Na".to_vec() } else { b"NNs".to_vec() };
        let many = |op: u8| if op == b'e' { b"(NNe".to_vec() } else { b"(NNu".to_vec() };
        for (items, most) in [
            (one(b'a'), 2),
            (one(b's'), 2),
            (many(b'e'), 2),
            (many(b'u'), 2),
            ([one(b'a'), one(b's')].concat(), 3),
            ([many(b'u'), many(b'e'), one(b's')].concat(), 3),
        ] {
            let pickle = [&b"cmy\nN\n)R"[..], &items.repeat(100_000), b"."].concat();
            assert_eq!(crate::weights::opcodes::check(&pickle), Ok(pickle.len()));
            let made = make(&pickle).expect("a pickle");
            assert_eq!(depth(&made), most, "{}", String::from_utf8_lossy(&items));
            assert_eq!(made.clone(), made);
        }
        // A state between the items makes it deeper, which counts.
        let pickle = [&b"cmy\nN\n)R"[..], &b"NaNNsNb".repeat(100), b"."].concat();
        assert!(crate::weights::opcodes::check(&pickle).expect_err("deep").contains("nested"));
    }

    #[test]
    fn operations_that_do_not_fit_end_the_reading() {
        for bytes in
            [&b"."[..], b"", b"a.", b"K\x01K\x02a.", b"}(K\x01u.", b"]K\x01K\x02s.", b"h\x01.", b"R.", b"t.", b"\x8a\x09.", b"?."]
        {
            assert!(make(bytes).is_err(), "{bytes:?}");
        }
    }
}
