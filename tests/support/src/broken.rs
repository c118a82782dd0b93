//! Files that should be images and are none, in more than twenty ways.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{ImageFormat, Rgb, RgbImage};

/// A picture of `side` × `side` pixels that differs from seed to seed.
pub fn picture(side: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| Rgb([(x * 9 + seed) as u8, (y * 7 + seed / 3) as u8, (x * y) as u8]))
}

fn encoded(format: ImageFormat) -> Result<Vec<u8>> {
    let mut out = std::io::Cursor::new(Vec::new());
    picture(64, 5).write_to(&mut out, format)?;
    Ok(out.into_inner())
}

/// A chunk of a PNG, with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let sum = crc32fast::hash(&[&kind[..], data].concat());
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &sum.to_be_bytes()].concat()
}

/// A PNG that says to be of a size, whose pixels are `raw` bytes of zeros.
fn png(width: u32, height: u32, raw: usize) -> Result<Vec<u8>> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut data = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let zeros = vec![0; 1 << 20];
    let mut left = raw;
    while left > 0 {
        let part = left.min(zeros.len());
        data.write_all(&zeros[..part])?;
        left -= part;
    }
    let data = data.finish()?;
    Ok([b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &head), chunk(b"IDAT", &data), chunk(b"IEND", b"")].concat())
}

/// The broken files: what they are called and what is in them.
///
/// # Errors
/// An image that can't be encoded.
pub fn kinds() -> Result<Vec<(String, Vec<u8>)>> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    let half = |format, share: f64| -> Result<Vec<u8>> {
        let whole = encoded(format)?;
        Ok(whole[..(whole.len() as f64 * share) as usize].to_vec())
    };
    let (whole_png, whole_jpeg) = (encoded(Png)?, encoded(Jpeg)?);
    let changed = |whole: &[u8], at: usize, to: u8| {
        let mut raw = whole.to_vec();
        raw[at] ^= to;
        raw
    };
    let middle = whole_png.len() / 2;
    let mut tall = whole_jpeg.clone();
    let frame = tall.windows(2).position(|w| w == [0xff, 0xc0]).context("a frame header")?;
    tall[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut bmp_huge = encoded(Bmp)?;
    bmp_huge[18..26].copy_from_slice(&[0, 0, 0, 0x40, 0, 0, 0, 0x40]);
    let scan = whole_jpeg.windows(2).position(|w| w == [0xff, 0xda]).context("a scan")?;
    let mut webp_huge = encoded(WebP)?;
    let signature = webp_huge.windows(4).position(|w| w == b"VP8L").context("a frame")?;
    webp_huge[signature + 9..signature + 13].copy_from_slice(&[0xff, 0xff, 0xff, 0x0f]);
    Ok([
        ("zero-length.png", Vec::new()),
        ("text.jpg", b"this is not a picture".to_vec()),
        ("page.png", b"<!doctype html><html><body>404 Not Found</body></html>".to_vec()),
        ("archive.jpg", b"PK\x03\x04\x14\0\0\0\x08\0".to_vec()),
        ("document.jpeg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3".to_vec()),
        ("zeros.png", vec![0; 4096]),
        ("cut-early.jpg", whole_jpeg[..whole_jpeg.len() / 3].to_vec()),
        ("cut-late.jpg", whole_jpeg[..whole_jpeg.len() - 2].to_vec()),
        ("no-scan.jpg", [&whole_jpeg[..scan], &[0xff, 0xd9]].concat()),
        ("tall.jpg", tall),
        ("only-magic.jpg", vec![0xff, 0xd8, 0xff]),
        ("cut.png", half(Png, 0.6)?),
        ("only-header.png", whole_png[..33].to_vec()),
        ("wrong-sum.png", changed(&whole_png, 29, 0x55)),
        ("damaged.png", changed(&whole_png, middle, 0xff)),
        ("no-width.png", png(0, 8, 8)?),
        ("huge.png", png(60_000, 60_000, 10)?),
        ("bomb.png", png(20_000, 20_000, 20_001 * 20_000)?),
        ("cut.gif", half(Gif, 0.5)?),
        ("cut.webp", half(WebP, 0.5)?),
        ("huge.webp", webp_huge),
        ("cut.tiff", half(Tiff, 0.5)?),
        ("cut.bmp", half(Bmp, 0.5)?),
        ("huge.bmp", bmp_huge),
        ("huge.pgm", b"P5 4000000000 4000000000 255\n".to_vec()),
        ("letters.ppm", b"P6 eight eight 255\n".to_vec()),
    ]
    .into_iter()
    .map(|(name, raw)| (name.to_string(), raw))
    .collect())
}

/// Writes `kinds` into a folder, and what a file system has to offer beside: links to nothing, a socket, a file that is closed. Returns
/// the names of those that can't be read.
///
/// # Errors
/// A folder that can't be written to.
pub fn write(root: &Path, kinds: &[(String, Vec<u8>)]) -> Result<BTreeSet<String>> {
    std::fs::create_dir_all(root)?;
    let mut broken = BTreeSet::new();
    for (name, raw) in kinds {
        std::fs::write(root.join(name), raw)?;
        broken.insert(name.clone());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        symlink(root.join("nowhere.png"), root.join("dangling.png"))?;
        symlink(root.join("circle.png"), root.join("circle.png"))?;
        broken.extend(["dangling.png".to_string(), "circle.png".to_string()]);
        drop(std::os::unix::net::UnixListener::bind(root.join("socket.jpg"))?);
        broken.insert("socket.jpg".into());
        let closed = root.join("closed.png");
        picture(8, 1).save(&closed)?;
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000))?;
        // Nothing is closed to the system's administrator.
        if std::fs::File::open(&closed).is_err() {
            broken.insert("closed.png".into());
        }
    }
    Ok(broken)
}

/// Writes a folder of `total` files of which `count` are broken, the kinds one after the other; returns the names of the broken ones.
///
/// # Errors
/// As [`write()`]; fewer broken files wanted than there are kinds.
pub fn write_folder(root: &Path, count: usize, total: u32) -> Result<BTreeSet<String>> {
    let kinds = kinds()?;
    let mut broken = write(root, &kinds)?;
    // The rest once more under other names.
    for (name, raw) in kinds.iter().take(count.saturating_sub(broken.len())) {
        let name = format!("again-{name}");
        std::fs::write(root.join(&name), raw)?;
        broken.insert(name);
    }
    ensure!(broken.len() == count, "{} broken files, expected {count}", broken.len());
    let there = std::fs::read_dir(root)?.count();
    for i in 0..total - there as u32 {
        picture(8, i).save(root.join(format!("good-{i:04}.png")))?;
    }
    Ok(broken)
}
