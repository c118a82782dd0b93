//! A walk over a pickle that makes none of its objects, to find what must not be read.
//!
//! What makes the objects copies what is remembered each time it is used, and nested objects are dropped by recursion. So unknown
//! operations, kinds of objects that run things, lengths beyond the end, deep nesting and growth are refused first. Objects of kinds that are not known pass here: they are made as names and arguments
//! alone, and what is done with them is for the reader of the tensors to say.

use std::collections::HashMap;

/// The deepest nesting.
const DEEPEST: u32 = 64;
/// Objects, each copy counted.
const MOST_OBJECTS: u64 = 2_000_000;
/// The longest text.
const LONGEST_TEXT: u32 = 64 << 10;
/// Module and name of a kind of objects, together.
const LONGEST_NAME: usize = 512;
/// Bytes of text, each copy counted, for each byte of the pickle; files of torch.save have 2 to 3, those of parameters by themselves 5.
const MOST_COPIES: u64 = 4;
/// Bytes of text that any pickle may grow to.
const FREE_BYTES: u64 = 16 << 20;

/// Modules whose functions act on the system or run code. Nothing of a pickle is ever run; one that asks for this is malicious.
const RUNNING: [&str; 16] = [
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "pty",
    "shutil",
    "socket",
    "runpy",
    "importlib",
    "ctypes",
    "commands",
    "webbrowser",
    "code",
    "pickle",
    "timeit",
];
/// Of Python's own names, the types of plain values; the others are functions. One of these is no type: `getattr`, by which protocol 2
/// names a class within a class.
const TYPES: &[&str] = &[
    "getattr",
    "int",
    "long",
    "float",
    "complex",
    "bool",
    "str",
    "unicode",
    "basestring",
    "bytes",
    "bytearray",
    "list",
    "tuple",
    "dict",
    "set",
    "frozenset",
    "object",
    "slice",
    "range",
    "xrange",
];

/// Whether a kind of objects is one that exists to run something.
fn runs(module: &str, name: &str) -> bool {
    match module {
        "builtins" | "__builtin__" => !TYPES.contains(&name),
        _ => RUNNING.contains(&module.split('.').next().unwrap_or(module)),
    }
}

/// Whether a class is one of Python's dictionaries, which are made as such.
pub(super) fn is_dictionary(module: &str, name: &str) -> bool {
    module == "collections" && matches!(name, "OrderedDict" | "defaultdict")
}

/// Nesting, number and text of the parts of an object.
#[derive(Clone, Copy)]
struct Size {
    depth: u32,
    count: u64,
    bytes: u64,
    sort: Sort,
}

/// What more items do to an object.
#[derive(Clone, Copy, PartialEq)]
enum Sort {
    /// It is where a tuple or a list of items begins.
    Mark,
    /// A list or a dictionary: they go into it.
    Container,
    /// The class of a dictionary.
    Ordered,
    /// They go into a list or a dictionary that is laid around it.
    Other,
    /// There are a list and a dictionary around it already.
    Around,
}

/// Objects that one comes to lie in where items are added to it that is no container: [`make`](super::objects::make) lays a list and a
/// dictionary around it.
const AROUND: u32 = 2;
const LEAF: Size = Size { depth: 1, count: 1, bytes: 0, sort: Sort::Other };

/// Walks a pickle without making its objects; what follows its end is left alone. Gives its length. The error says what it holds
/// that it must not.
pub(super) fn check(pickle: &[u8]) -> Result<usize, String> {
    let mut rest = pickle;
    let mut stack: Vec<Size> = Vec::new();
    let mut memo: HashMap<u32, Size> = HashMap::new();
    let (mut copies, mut bytes) = (0_u64, 0_u64);
    loop {
        let op = take(&mut rest, 1)?[0];
        match op {
            0x80 => drop(take(&mut rest, 1)?),
            b'c' => {
                let (module, name) = (line(&mut rest)?, line(&mut rest)?);
                if module.len() + name.len() > LONGEST_NAME {
                    return Err(format!("holds an object whose kind has a name of {} bytes", module.len() + name.len()));
                }
                if runs(&module, &name) {
                    return Err(refusal(&format!("{module}.{name}")));
                }
                let sort = if is_dictionary(&module, &name) { Sort::Ordered } else { Sort::Other };
                let text = Size { bytes: (module.len() + name.len()) as u64, sort, ..LEAF };
                bytes += text.bytes;
                stack.push(text);
            }
            b'}' | b']' => stack.push(Size { sort: Sort::Container, ..LEAF }),
            b')' | b'N' | 0x88 | 0x89 => stack.push(LEAF),
            b'(' => stack.push(Size { sort: Sort::Mark, ..LEAF }),
            b'X' => {
                let length = number(&mut rest, 4)?;
                take(&mut rest, length as usize)?;
                if length > LONGEST_TEXT {
                    return Err(format!("holds a text of {length} bytes, expected at most {LONGEST_TEXT}"));
                }
                bytes += u64::from(length);
                stack.push(Size { bytes: u64::from(length), ..LEAF });
            }
            b'J' | b'G' | b'K' | b'M' => {
                let length = match op {
                    b'J' => 4,
                    b'G' => 8,
                    b'K' => 1,
                    _ => 2,
                };
                take(&mut rest, length)?;
                stack.push(LEAF);
            }
            0x8a => {
                let length = number(&mut rest, 1)?;
                if length > 8 {
                    return Err(format!("holds a number of {length} bytes"));
                }
                take(&mut rest, length as usize)?;
                stack.push(LEAF);
            }
            b'q' | b'r' => {
                let key = number(&mut rest, if op == b'q' { 1 } else { 4 })?;
                let top = *stack.last().ok_or("holds a damaged pickle: nothing to remember")?;
                copies += top.count;
                bytes += top.bytes;
                memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key = number(&mut rest, if op == b'h' { 1 } else { 4 })?;
                let size = *memo.get(&key).ok_or("holds a damaged pickle: it remembers what never was")?;
                copies += size.count;
                bytes += size.bytes;
                stack.push(size);
            }
            b'Q' => wrap(&mut stack, 1)?,
            0x85 => wrap(&mut stack, 1)?,
            b'R' | 0x81 => {
                let ordered = stack.iter().nth_back(1).is_some_and(|callable| callable.sort == Sort::Ordered);
                wrap(&mut stack, 2)?;
                if let (Some(made), true) = (stack.last_mut(), ordered) {
                    made.sort = Sort::Container;
                }
            }
            0x86 | b'b' => wrap(&mut stack, 2)?,
            0x87 => wrap(&mut stack, 3)?,
            b't' => {
                let size = marked(&mut stack)?;
                stack.push(size);
            }
            b'a' => into_last(&mut stack, 1)?,
            b's' => into_last(&mut stack, 2)?,
            b'e' | b'u' => {
                let parts = marked(&mut stack)?;
                stack.push(parts);
                into_last(&mut stack, 1)?;
            }
            b'.' if stack.is_empty() => return Err("holds an empty pickle".into()),
            b'.' => return Ok(pickle.len() - rest.len()),
            other => {
                return Err(format!(
                    "holds a pickle with the operation {other:#04x}, which PyTorch's torch.save does not write (protocol 2); save it \
                     again with its defaults"
                ));
            }
        }
        let top = stack.last().copied().unwrap_or(LEAF);
        if top.depth > DEEPEST {
            return Err(format!("holds objects nested more than {DEEPEST} deep"));
        }
        if copies + stack.len() as u64 > MOST_OBJECTS || top.count > MOST_OBJECTS {
            return Err(format!("holds a pickle that grows to more than {MOST_OBJECTS} objects"));
        }
        if bytes > FREE_BYTES + MOST_COPIES * pickle.len() as u64 {
            return Err(format!(
                "holds a pickle of {} bytes that grows to more than {MOST_COPIES} times as much text",
                pickle.len()
            ));
        }
    }
}

/// The line about a kind of objects that is not read.
pub(super) fn refusal(kind: &str) -> String {
    format!(
        "holds an object of kind `{kind}`; only tensors in plain containers are read, and nothing is ever run. Save the \
         weights alone: torch.save(model.state_dict(), FILE)"
    )
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    if count > rest.len() {
        return Err("holds a pickle that is cut short".into());
    }
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    Ok(head)
}

/// A little-endian number of `bytes` bytes.
fn number(rest: &mut &[u8], bytes: usize) -> Result<u32, String> {
    Ok(take(rest, bytes)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b)))
}

fn line(rest: &mut &[u8]) -> Result<String, String> {
    let end = rest.iter().position(|&b| b == b'\n').ok_or("holds a pickle that is cut short")?;
    let text = take(rest, end)?;
    take(rest, 1)?;
    Ok(String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned())
}

/// The top `count` objects become one that holds them.
fn wrap(stack: &mut Vec<Size>, count: usize) -> Result<(), String> {
    let at = stack.len().checked_sub(count).ok_or("holds a damaged pickle: too few objects")?;
    let size = holding(stack.drain(at..));
    stack.push(size);
    Ok(())
}

/// Everything above the last mark becomes one object.
fn marked(stack: &mut Vec<Size>) -> Result<Size, String> {
    let at = stack.iter().rposition(|s| s.sort == Sort::Mark).ok_or("holds a damaged pickle: a mark is missing")?;
    let size = holding(stack.drain(at..).skip(1));
    Ok(size)
}

/// The top `count` objects go into the one below them.
fn into_last(stack: &mut Vec<Size>, count: usize) -> Result<(), String> {
    let parts = stack.len().checked_sub(count).filter(|&rest| rest > 0).ok_or("holds a damaged pickle: too few objects")?;
    let added = holding(stack.split_off(parts).into_iter());
    if let Some(last) = stack.last_mut() {
        // It does not lie deeper for being longer.
        let around = if last.sort == Sort::Container { 0 } else { AROUND };
        let within = if last.sort == Sort::Around { last.depth } else { last.depth.saturating_add(around) };
        last.depth = within.max(added.depth.saturating_add(around));
        if last.sort != Sort::Container {
            last.sort = Sort::Around;
        }
        last.count = last.count.saturating_add(added.count);
        last.bytes = last.bytes.saturating_add(added.bytes);
    }
    Ok(())
}

fn holding(parts: impl Iterator<Item = Size>) -> Size {
    parts.fold(LEAF, |all, part| Size {
        depth: all.depth.max(part.depth.saturating_add(1)),
        count: all.count.saturating_add(part.count),
        bytes: all.bytes.saturating_add(part.bytes),
        sort: Sort::Other,
    })
}
