//! Pickles made by hand: what is read, what is passed over, and what must not be read.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

/// A file as torch.save writes it: a pickle and one storage.
fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", storage)] {
        zip.start_file(name, plain).expect("a name");
        zip.write_all(bytes).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}

/// {"model": {"w": a tensor of `shape` by `strides` from `offset` in a storage of floats}}.
fn tensor(offset: u8, shape: [i32; 2], strides: [i32; 2]) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let pair = |p: [i32; 2]| [b"J", &p[0].to_le_bytes()[..], b"J", &p[1].to_le_bytes()[..], b"\x86"].concat();
    [
        b"\x80\x02}q\x00".to_vec(),
        text("model"),
        b"}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x01((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        b"K\x06tQ".to_vec(),
        vec![b'K', offset],
        pair(shape),
        pair(strides),
        b"\x89ccollections\nOrderedDict\n)RtRq\x02ss.".to_vec(),
    ]
    .concat()
}

fn open_bytes(dir: &Path, bytes: &[u8]) -> Result<Weights> {
    let path: PathBuf = dir.join("w.pth");
    std::fs::write(&path, bytes).expect("a temporary folder");
    Weights::open(&path)
}

fn floats() -> Vec<u8> {
    (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

#[test]
fn tensors_in_nested_dictionaries_are_read() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for (pickle, want) in [
        (tensor(0, [2, 3], [3, 1]), vec![vec![0., 1., 2.], vec![3., 4., 5.]]),
        (tensor(0, [2, 3], [1, 2]), vec![vec![0., 2., 4.], vec![1., 3., 5.]]),
        (tensor(2, [1, 2], [9, 1]), vec![vec![2., 3.]]),
    ] {
        let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
        assert_eq!(weights.read("model.w")?.to_vec2::<f32>()?, want);
    }
    Ok(())
}

#[test]
fn what_could_run_or_grow_is_refused_before_it_is_read() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let laughs: Vec<u8> = (0..60).fold(b"\x80\x02]q\x00".to_vec(), |mut all, i| {
        all.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
        all
    });
    let deep = [&b"\x80\x02)"[..], &[0x85; 100_000], b"."].concat();
    // A megabyte of text, and one of name, remembered and taken out again and again.
    let text = |length: usize| [&b"\x80\x02]X"[..], &(length as u32).to_le_bytes()[..], &vec![b'a'; length], b"q\x01a"].concat();
    let often = |start: &[u8]| [start, &b"h\x01a".repeat(3000), b"."].concat();
    let name = [&b"\x80\x02]c"[..], &vec![b'a'; 1 << 20], b"\nb\nq\x01"].concat();
    for (pickle, words) in [
        (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00echo\x85R.".to_vec(), "`posix.system`"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.".to_vec(), "`os.system`"),
        (b"\x80\x02cbuiltins\neval\n)R.".to_vec(), "`builtins.eval`"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.".to_vec(), "operation 0x8c"),
        (b"\x80\x02ios\nsystem\n.".to_vec(), "operation 0x69"),
        (deep, "nested"),
        (laughs, "grows"),
        (often(&text(1 << 20)), "text of 1048576 bytes"),
        (often(&text(60 << 10)), "as much text"),
        (often(&name), "a name of 1048577 bytes"),
        (b"\x80\x02}X\x01\x00\x00\x00acsubprocess\nPopen\n)Rs.".to_vec(), "`subprocess.Popen`"),
        (b"\x80\x02cmy.models\nNet\n)\x81}b.".to_vec(), "`my.models.Net`"),
        (wrapped(b"cmy.models\nNet\n", &tensor(0, [2, 3], [3, 1])), "`my.models.Net`"),
        (below(&"k".repeat(5000), &tensor(0, [2, 3], [3, 1])), "whose name, `kkk"),
        (b"\x80\x02X\xff\xff\xff\xffa.".to_vec(), "cut short"),
        (b"\x80\x02\x8a\xff.".to_vec(), "255 bytes"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.".to_vec(), "not known"),
        (b"\x80\x02t.".to_vec(), "mark"),
        (b"\x80\x02.".to_vec(), "empty"),
        (b"\x80\x02h\x07.".to_vec(), "never was"),
        (b"\x80\x02R.".to_vec(), "too few"),
        (tensor(0, [2, 4], [4, 1]), "reach beyond"),
        (tensor(0, [1_000_000_000, 1_000_000_000], [0, 0]), "reach beyond"),
        (tensor(1, [2, 3], [3, 1]), "reach beyond"),
        (tensor(0, [-1, 3], [3, 1]), "not known"),
    ] {
        let told = open_bytes(dir.path(), &archive(&pickle, &floats())).expect_err(words).to_string();
        assert!(told.contains(words) && told.contains("w.pth") && !told.contains('\n'), "{words}: {told}");
    }
    Ok(())
}

/// {`key`: the root of `pickle`}.
fn below(key: &str, pickle: &[u8]) -> Vec<u8> {
    let length = (key.len() as u32).to_le_bytes();
    [&b"\x80\x02}X"[..], &length, key.as_bytes(), &pickle[2..pickle.len() - 1], b"s."].concat()
}

/// {"weights": the root of `pickle` as the only argument of `class`}.
fn wrapped(class: &[u8], pickle: &[u8]) -> Vec<u8> {
    [&b"\x80\x02}X\x07\x00\x00\x00weights"[..], class, &pickle[2..pickle.len() - 1], b"\x85Rs."].concat()
}

#[test]
fn what_lies_beside_the_tensors_is_passed_over_unmade() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = tensor(0, [2, 3], [3, 1]);
    // {"model": …, "hyper_parameters": DictConfig with a state}, as Lightning writes it for omegaconf, and a mask of booleans.
    let settings =
        b"X\x10\x00\x00\x00hyper_parameterscomegaconf.dictconfig\nDictConfig\n)\x81q\x05}X\x08\x00\x00\x00_contenth\x05sX\x04\x00\x00\x00kindc__builtin__\nlong\nsbs.";
    let mask = tensor(0, [2, 3], [3, 1]);
    let at = mask.windows(12).position(|w| w == b"FloatStorage").expect("a storage");
    let mask = [&mask[..at], b"BoolStorage", &mask[at + 12..]].concat();
    let settings = [&b"X\x04\x00\x00\x00mask"[..], &mask[2..mask.len() - 1], b"s", settings].concat();
    let pickle = [&whole[..whole.len() - 1], &settings].concat();
    let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
    assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
    assert_eq!(weights.passed_over(), ["omegaconf.dictconfig.DictConfig", "torch.BoolStorage"]);
    Ok(())
}

#[test]
fn what_holds_tensors_beside_the_weights_stays_closed_and_is_named() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = tensor(0, [2, 3], [3, 1]);
    let net = wrapped(b"cmy.models\nNet\n", &whole);
    // A dictionary of a class of its own, a deque in it, a class within a class, and a sparse tensor.
    let settings = b"X\x01\x00\x00\x00scmy\nSettings\n)\x81(X\x01\x00\x00\x00qccollections\ndeque\n)RK\x01aX\x01\x00\x00\x00i\
        c__builtin__\ngetattr\ncmy\nOuter\nX\x05\x00\x00\x00Inner\x86R)\x81us";
    let inner = b"X\x01\x00\x00\x00ic__builtin__\ngetattr\ncmy\nOuter\nX\x05\x00\x00\x00Inner\x86R)\x81s.";
    let sparse = wrapped(b"ctorch._utils\n_rebuild_sparse_tensor\n", &whole);
    for (more, closed, kinds) in [
        (&net[3..], Some(("weights", "my.models.Net")), vec!["my.models.Net"]),
        (&[&settings[..], b"."].concat(), None, vec!["my.Settings"]),
        (inner, None, vec!["my.Outer.Inner"]),
        (&sparse[3..], Some(("weights", "torch._utils._rebuild_sparse_tensor")), vec!["torch._utils._rebuild_sparse_tensor"]),
    ] {
        let pickle = [&whole[..whole.len() - 1], more].concat();
        let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
        assert_eq!(weights.closed().collect::<Vec<_>>(), closed.into_iter().collect::<Vec<_>>());
        assert_eq!(weights.passed_over(), kinds);
    }
    Ok(())
}

#[test]
fn an_object_with_many_items_is_passed_over_like_another() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let whole = tensor(0, [2, 3], [3, 1]);
    let key = b"X\x01\x00\x00\x00x";
    for items in [&b"Na"[..], b"NNs", b"NaNNs", b"(NNe(NNu"] {
        let times = 900_000 / items.len();
        let object = [&b"cmy\nN\n)R"[..], &items.repeat(times), b"s."].concat();
        let pickle = [&whole[..whole.len() - 1], key, &object].concat();
        let weights = open_bytes(dir.path(), &archive(&pickle, &floats()))?;
        assert_eq!(weights.names().collect::<Vec<_>>(), ["model.w"]);
        assert_eq!(weights.passed_over(), ["my.N"]);
        let told = open_bytes(dir.path(), &archive(&[&object[..object.len() - 2], b"."].concat(), &floats()));
        let told = told.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(told.contains("`my.N`"), "{told}");
    }
    Ok(())
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for value in [f32::NAN, f32::INFINITY] {
        let numbers: Vec<u8> = [0., 1., 2., value, 4., 5.].into_iter().flat_map(f32::to_le_bytes).collect();
        let weights = open_bytes(dir.path(), &archive(&tensor(0, [2, 3], [3, 1]), &numbers))?;
        let told = weights.read("model.w").expect_err("not finite").to_string();
        assert!(told.contains("`model.w` holds") && told.contains("must be finite"), "{told}");
    }
    Ok(())
}

#[test]
fn a_compressed_entry_is_refused_unread() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut bytes = archive(&tensor(0, [2, 3], [3, 1]), &floats());
    // Every entry claims to be deflated, and to be four gigabytes inside.
    for at in 0..bytes.len() - 4 {
        let (method, size) = match &bytes[at..at + 4] {
            b"PK\x03\x04" => (8, 22),
            b"PK\x01\x02" => (10, 24),
            _ => continue,
        };
        bytes[at + method] = 8;
        bytes[at + size..at + size + 4].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    }
    let told = open_bytes(dir.path(), &bytes).expect_err("compressed").to_string();
    assert!(told.contains("w.pth") && told.to_lowercase().contains("compress"), "{told}");
    Ok(())
}

#[test]
fn no_change_of_bytes_ends_the_program() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut state = 1_u64;
    let mut draw = |below: usize| {
        // Knuth's generator: the same bytes each time.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..800 {
        let mut pickle = tensor(0, [2, 3], [3, 1]);
        let mut whole = archive(&pickle, &floats());
        for _ in 0..1 + draw(5) {
            let (at, byte) = (draw(pickle.len()), draw(256) as u8);
            pickle[at] = byte;
            let at = draw(whole.len());
            whole[at] = byte;
        }
        pickle.truncate(pickle.len() - draw(40));
        for bytes in [archive(&pickle, &floats()), whole] {
            if let Ok(weights) = open_bytes(dir.path(), &bytes) {
                for name in weights.names() {
                    let _ = weights.read(name);
                }
            }
        }
    }
}
