//! The launches of `views.cu`: weights of the crops, then the views.

use candle_core::{DType, Result};

use super::launch::{Arg, Engine, View, int, launch};
use super::source::VIEWS;
use crate::views::ViewTable;

/// Threads of a block.
const THREADS: u32 = 256;
/// Views that are in the making at a time: each block has memory for one.
const MOST_BLOCKS: usize = 1024;

/// The views of `table`, (count, channels, size, size) of `kind` (`f32` or bfloat16), of images whose `len` bytes are `images`; `tables` are
/// the table's words on the device.
pub(crate) fn render<E: Engine>(
    engine: &E,
    images: &E::Buffer,
    len: usize,
    table: &ViewTable,
    tables: View<'_, E::Buffer>,
    kind: DType,
) -> Result<E::Buffer> {
    table.check_within(len)?;
    let (count, channels, size, window) = (table.len(), table.channels(), table.size(), table.window());
    let area = size * size;
    let mut out = engine.alloc(kind, count * channels * area)?;
    let blocks = count.min(MOST_BLOCKS);
    let at = |place: usize| Arg::In(tables.buffer, tables.offset + place);
    let [steps, taps, normal] = table.places();
    let mut weights = engine.alloc(DType::U32, 2 * count * size * window)?;
    let mut spans = engine.alloc(DType::U32, 2 * count * size * 2)?;
    let mut places = engine.alloc(DType::U32, 2 * count)?;
    let mut levels = engine.alloc(DType::U8, blocks * channels * area)?;
    let mut rows = engine.alloc(DType::F32, blocks * area)?;
    let (size_arg, window_arg) = (int("a view's side", size)?, int("a crop's weights", window)?);
    let axes = int("the number of views", 2 * count)? as u32;
    let args = vec![
        at(0),
        Arg::Int(size_arg),
        Arg::Int(i32::from(table.is_cubic())),
        Arg::Int(window_arg),
        Arg::Out(&mut weights),
        Arg::Out(&mut spans),
        Arg::Out(&mut places),
    ];
    // SAFETY: a block is an axis of a view; it reads the view's words and writes `size` spans, at most `size · window` weights (it cuts a
    // longer span) and one number of places, at offsets of its own. Blocks hold at most the 256 threads that the shared array has room for.
    unsafe { launch(engine, &VIEWS, "view_weights", [axes, 1, 1], THREADS.min(256), args)? };
    let kernel = super::launch::kernel_of("render_views", kind)?;
    let args = vec![
        Arg::In(images, 0),
        at(0),
        at(steps),
        at(taps),
        at(normal),
        Arg::In(&weights, 0),
        Arg::In(&spans, 0),
        Arg::In(&places, 0),
        Arg::Int(window_arg),
        Arg::Int(int("channels", channels)?),
        Arg::Int(size_arg),
        Arg::Long(count as i64),
        Arg::Out(&mut levels),
        Arg::Out(&mut rows),
        Arg::Out(&mut out),
    ];
    // SAFETY: the table refuses crops that reach beyond their image, and images beyond `len` were refused above; spans lie within their crop;
    // the steps of a view are among the table's, their weights among its taps and their channels below `channels`. A block writes its own
    // part of `levels` and `rows` and the views that are its own of `out`.
    unsafe { launch(engine, &VIEWS, &kernel, [blocks as u32, 1, 1], THREADS, args)? };
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::emulated::{Host, HostBuffer};
    use super::super::launch::Upload;
    use super::*;
    use crate::views::{ViewChannel, ViewCrop, ViewStep};

    const AS_IS: ViewChannel = ViewChannel { factor: 1.0, offset: 0.0, nothing: 9 };

    fn rendered(table: &ViewTable, bytes: &[u8], kind: DType) -> Vec<f32> {
        tried(table, bytes, kind).expect("views").read()
    }

    fn tried(table: &ViewTable, bytes: &[u8], kind: DType) -> Result<HostBuffer> {
        let host = Host::new();
        let images = host.upload(Upload::U8(bytes))?;
        // Behind something else, as in a larger buffer.
        let tables = host.upload(Upload::U32(&[vec![7; 5], table.words()].concat()))?;
        render(&host, &images, bytes.len(), table, View { buffer: &tables, offset: 5 }, kind)
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn a_crop_of_the_views_size_is_copied_and_steps_change_it() {
        let bytes: Vec<u8> = (0..7 * 5 * 3).map(|i| (i * 13 % 251) as u8).collect();
        let at = |x: usize, y: usize, c: usize| f32::from(bytes[(y * 7 + x) * 3 + c]);
        let crop = ViewCrop { place: 0, image: (7, 5), crop: (2, 1, 4, 4), flip: false };
        let mut table = ViewTable::new(4, false, &[AS_IS; 3]).expect("a table");
        table.push(&crop).expect("fits");
        table.push(&ViewCrop { flip: true, ..crop }).expect("fits");
        table.step(&ViewStep::Solarize(100)).expect("a step");
        table.step(&ViewStep::Erase { left: 1, top: 2, width: 9, height: 1 }).expect("a step");
        for kind in [DType::F32, DType::BF16] {
            let out = rendered(&table, &bytes, kind);
            for (i, &value) in out.iter().enumerate() {
                let (x, y, c, view) = (i % 4, i / 4 % 4, i / 16 % 3, i / 48);
                let want = match view {
                    0 => at(x + 2, y + 1, c),
                    _ if y == 2 && x >= 1 => 9.0,
                    _ => Some(at(5 - x, y + 1, c)).map(|v| if v < 100.0 { v } else { 255.0 - v }).unwrap_or_default(),
                };
                assert_eq!(value, want, "{kind:?}: view {view}, channel {c}, ({x}, {y})");
            }
        }
    }

    #[test]
    #[ignore = "needs a C++ compiler; `cargo xtask check-cuda` runs it"]
    fn flat_images_stay_flat_and_no_views_are_no_launch() {
        let empty = ViewTable::new(4, false, &[AS_IS]).expect("a table");
        assert_eq!(rendered(&empty, &[1], DType::F32), Vec::<f32>::new());
        // More views than blocks, of one pixel and of more, enlarged and reduced, at places beyond the first.
        let bytes = [vec![3; 11], vec![200; 11 * 9]].concat();
        for (size, cubic) in [(1, false), (3, true), (13, false)] {
            let mut table = ViewTable::new(size, cubic, &[AS_IS]).expect("a table");
            for i in 0..MOST_BLOCKS as u32 + 3 {
                let crop = (i % 11, i % 9, 1 + i % (11 - i % 11), 1 + i % (9 - i % 9));
                table.push(&ViewCrop { place: 11, image: (11, 9), crop, flip: i % 2 == 0 }).expect("fits");
                if i % 50 == 0 {
                    table.step(&ViewStep::Contrast(0.3)).expect("a step");
                    table.step(&ViewStep::Blur(&[0.5, 0.15, 0.1])).expect("a step");
                }
            }
            let out = rendered(&table, &bytes, DType::F32);
            assert_eq!(out.len(), table.len() * size * size);
            assert!(out.iter().all(|&v| v == 200.0), "{size}");
        }
        let mut beyond = ViewTable::new(2, false, &[AS_IS]).expect("a table");
        beyond.push(&ViewCrop { place: 12, image: (11, 9), crop: (0, 0, 1, 1), flip: false }).expect("fits the image");
        assert!(tried(&beyond, &bytes, DType::F32).is_err());
    }
}
