//! A walk over a pickle that makes none of its objects, to find what must not be read.
//!
//! candle takes lengths as they are given, copies what is remembered each time it is used, drops nested objects by recursion and
//! shifts long numbers as far as they say. So unknown operations, kinds of objects that are no tensors or plain containers, lengths
//! beyond the end, deep nesting and growth are refused first.

use std::collections::HashMap;

use super::pickle::dtype;

/// The deepest nesting.
const DEEPEST: u32 = 64;
/// Objects, each copy counted.
const MOST_OBJECTS: u64 = 2_000_000;

/// Whether objects of a kind are read (tensors, plain containers) or passed over (settings and numbers beside them).
fn is_known(module: &str, name: &str) -> bool {
    match (module, name) {
        ("collections", "OrderedDict" | "defaultdict") => true,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") | ("torch._tensor", "_rebuild_from_type_v2") => true,
        ("torch.nn.parameter", "Parameter") | ("torch", "Tensor" | "Size" | "device" | "BoolStorage") => true,
        ("torch", storage) if dtype(storage).is_some() => true,
        // Inert: nothing in them is asked for.
        ("torch", "float32" | "float64" | "float16" | "bfloat16" | "int64" | "int32" | "uint8" | "bool") => true,
        ("argparse", "Namespace") | ("_codecs", "encode") | ("__builtin__" | "builtins", "set") => true,
        ("numpy", "dtype" | "ndarray") => true,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct") => true,
        _ => false,
    }
}

/// Nesting and number of the parts of an object.
#[derive(Clone, Copy)]
struct Size {
    depth: u32,
    count: u64,
    mark: bool,
}

const LEAF: Size = Size { depth: 1, count: 1, mark: false };

/// Walks a pickle without making its objects. The error says what it holds that it must not.
pub(super) fn check(pickle: &[u8]) -> Result<(), String> {
    let mut rest = pickle;
    let mut stack: Vec<Size> = Vec::new();
    let mut memo: HashMap<u32, Size> = HashMap::new();
    let mut copies = 0_u64;
    loop {
        let op = take(&mut rest, 1)?[0];
        match op {
            0x80 => drop(take(&mut rest, 1)?),
            b'c' => {
                let (module, name) = (line(&mut rest)?, line(&mut rest)?);
                if !is_known(&module, &name) {
                    return Err(format!(
                        "holds an object of kind `{module}.{name}`; only tensors in plain containers are read, and nothing is ever \
                         run. Save the weights alone: torch.save(model.state_dict(), FILE)"
                    ));
                }
                stack.push(LEAF);
            }
            b')' | b'}' | b']' | b'N' | 0x88 | 0x89 => stack.push(LEAF),
            b'(' => stack.push(Size { mark: true, ..LEAF }),
            b'X' => {
                let length = number(&mut rest, 4)?;
                take(&mut rest, length as usize)?;
                stack.push(LEAF);
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
                memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key = number(&mut rest, if op == b'h' { 1 } else { 4 })?;
                let size = *memo.get(&key).ok_or("holds a damaged pickle: it remembers what never was")?;
                copies += size.count;
                stack.push(size);
            }
            b'Q' => wrap(&mut stack, 1)?,
            0x85 => wrap(&mut stack, 1)?,
            0x86 | b'R' | b'b' | 0x81 => wrap(&mut stack, 2)?,
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
            b'.' => return if stack.is_empty() { Err("holds an empty pickle".into()) } else { Ok(()) },
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
    }
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
    let at = stack.iter().rposition(|s| s.mark).ok_or("holds a damaged pickle: a mark is missing")?;
    let size = holding(stack.drain(at..).skip(1));
    Ok(size)
}

/// The top `count` objects go into the one below them.
fn into_last(stack: &mut Vec<Size>, count: usize) -> Result<(), String> {
    wrap(stack, count + 1)
}

fn holding(parts: impl Iterator<Item = Size>) -> Size {
    parts.fold(LEAF, |all, part| Size {
        depth: all.depth.max(part.depth.saturating_add(1)),
        count: all.count.saturating_add(part.count),
        mark: false,
    })
}
