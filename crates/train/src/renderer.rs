//! Who makes the views of a batch from what was drawn for them: threads of the loader, or the training device.
//!
//! The loader decides order and draws; a [`ViewRenderer`] has the images and makes the pixels. Both sides speak of [`DrawnView`]s, so that
//! a batch does not depend on who renders it.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use twinsight_augment::ops::gaussian_half;
use twinsight_augment::{DrawnView, Excerpt, Interpolation, Step, Transform, ViewPlan, Window, render_drawn};
use twinsight_datasets::Dataset;
use twinsight_kernels::device_memory;
use twinsight_kernels::views::{DeviceImages, ViewChannel, ViewCrop, ViewStep, ViewTable};

use crate::resident::{PART, Places, Resident};
use crate::{Error, Result};

/// A batch, drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnBatch {
    /// The samples, by index in the data set.
    pub samples: Vec<usize>,
    /// For each view of the plan, what was drawn for each sample.
    pub views: Vec<Vec<DrawnView>>,
}

/// Makes views of images that it keeps.
pub trait ViewRenderer: Send {
    /// Width and height of every image.
    fn sizes(&self) -> Arc<Vec<(u32, u32)>>;

    /// One (N, C, S, S) tensor a view, in the plan's order.
    ///
    /// # Errors
    /// Samples that there are not, a device that fails.
    fn render(&mut self, batch: &DrawnBatch) -> Result<Vec<Tensor>>;
}

/// Renders on the processor, from the same bytes: what renderers on other devices are compared with.
pub struct HostRenderer {
    images: Resident,
    plan: ViewPlan,
}

impl HostRenderer {
    /// A renderer of `images` by `plan`.
    pub fn new(images: Resident, plan: ViewPlan) -> Self {
        Self { images, plan }
    }
}

impl ViewRenderer for HostRenderer {
    fn sizes(&self) -> Arc<Vec<(u32, u32)>> {
        self.images.places().sizes()
    }

    fn render(&mut self, batch: &DrawnBatch) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::with_capacity(batch.views.len());
        for (v, drawn) in batch.views.iter().enumerate() {
            let (length, size) = (self.plan.view_len(v), self.plan.view(v).size);
            let mut data = vec![0.0; length * drawn.len()];
            for ((drawn, &sample), out) in drawn.iter().zip(&batch.samples).zip(data.chunks_exact_mut(length)) {
                let image = self.images.picture(sample).ok_or_else(|| missing(sample))?;
                let excerpt = Excerpt { image: &image, place: (0, 0), whole: (image.width(), image.height()), reduction: 1 };
                render_drawn(&self.plan, drawn, &excerpt, out)?;
            }
            tensors.push(Tensor::from_vec(data, (drawn.len(), self.plan.channels, size, size), &Device::Cpu)?);
        }
        Ok(tensors)
    }
}

/// Renders on a CUDA device that keeps the images as bytes.
pub struct DeviceRenderer {
    images: DeviceImages,
    places: Places,
    plan: ViewPlan,
}

impl DeviceRenderer {
    /// Copies the images of `dataset`, which lie at `places`, to `device`, part by part. The plan must be one that is [`supported`].
    ///
    /// # Errors
    /// Another device than a CUDA one; no memory for the images; images that are not as they were.
    pub fn new(dataset: &dyn Dataset, places: Places, plan: ViewPlan, device: &Device) -> Result<Self> {
        let room =
            usize::try_from(places.bytes()).map_err(|e| Error::Config(format!("{}: too many bytes: {e}", dataset.name())))?;
        let mut images = DeviceImages::with_room(device, room)?;
        places.each_part(dataset, PART, &mut |part| Ok(images.append(part)?))?;
        Ok(Self { images, places, plan })
    }
}

impl ViewRenderer for DeviceRenderer {
    fn sizes(&self) -> Arc<Vec<(u32, u32)>> {
        self.places.sizes()
    }

    fn render(&mut self, batch: &DrawnBatch) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::with_capacity(batch.views.len());
        for (views, table) in tables(&self.plan, batch, &self.places)? {
            let (made, n) = (self.images.render(&table)?, batch.samples.len());
            for v in 0..views.len() {
                tensors.push(made.narrow(0, v * n, n)?);
            }
        }
        Ok(tensors)
    }
}

/// Who makes the views of a run.
#[derive(Default)]
pub struct Choice {
    /// Who; `None` for the loader's threads.
    pub renderer: Option<Box<dyn ViewRenderer>>,
    /// Words for the user, where that is not what the device would suggest.
    pub words: Option<String>,
}

/// Chooses who makes the views of a run; `on` is `auto`, `cpu` or `device`.
///
/// # Errors
/// `device` where the device can't; when CUDA fails.
pub fn choose(on: &str, dataset: &dyn Dataset, plan: &ViewPlan, device: &Device) -> Result<Choice> {
    if on == "cpu" || on == "auto" && !device.is_cuda() {
        return Ok(Choice::default());
    }
    let places = if device.is_cuda() {
        let most = device_memory(device).map_or(0, |memory| memory.free / 2);
        supported(plan).and_then(|()| Places::of(dataset, plan.channels, most))
    } else {
        Err("it is no CUDA device".into())
    };
    match places {
        Ok(places) => {
            let renderer = DeviceRenderer::new(dataset, places, plan.clone(), device)?;
            Ok(Choice { renderer: Some(Box::new(renderer)), words: None })
        }
        Err(reason) if on == "device" => {
            Err(Error::Config(format!("data.views_on = device: the training device can't make the views, since {reason}")))
        }
        Err(reason) => Ok(Choice { renderer: None, words: Some(format!("views are made on the CPU, since {reason}")) }),
    }
}

fn missing(sample: usize) -> Error {
    Error::Config(format!("image {sample} is not among those that views are made of"))
}

/// Whether the kernels make the views of `plan`.
///
/// # Errors
/// What they don't do, in words that fit behind "since".
pub fn supported(plan: &ViewPlan) -> Result<(), String> {
    if !matches!(plan.channels, 1 | 3) {
        return Err(format!("it makes views of 1 or 3 channels, not {}", plan.channels));
    }
    for group in &plan.groups {
        let steps = &group.spec.transforms;
        let first = steps.first();
        if !matches!(first, Some(Transform::RandomResizedCrop { .. } | Transform::Resize { shorter: None, .. })) {
            return Err(format!("views `{}` do not begin with a crop or a plain resize", group.name));
        }
        for (place, step) in steps.iter().enumerate().filter(|(_, step)| step.probability() != Some(0.0)) {
            let name = match step {
                Transform::Affine { .. } => "affine changes",
                Transform::Equalize { .. } => "equalising",
                Transform::Jpeg { .. } => "JPEG's artefacts",
                Transform::HorizontalFlip { .. } if place != 1 => "a flip elsewhere than right after the crop",
                _ => continue,
            };
            return Err(format!("views `{}` hold {name}", group.name));
        }
    }
    Ok(())
}

/// A drawn batch as tables for the kernels: neighbouring views of one size go together. Each with the views that it holds, of which the
/// first's images come first.
///
/// # Errors
/// Samples that `images` lacks, steps that [`supported`] refuses.
pub fn tables(plan: &ViewPlan, batch: &DrawnBatch, images: &Places) -> Result<Vec<(Range<usize>, ViewTable)>> {
    let channels: Vec<ViewChannel> = (0..plan.channels)
        .map(|c| {
            let (factor, offset) = plan.normalize.affine(c);
            ViewChannel { factor, offset, nothing: plan.normalize.zero_level(c) }
        })
        .collect();
    let mut found = Vec::new();
    let kind = |v: usize| batch.views[v].first().map(|d| (d.size, d.interpolation));
    let mut start = 0;
    while start < batch.views.len() {
        let end = (start..batch.views.len()).find(|&v| kind(v) != kind(start)).unwrap_or(batch.views.len());
        if let Some((size, interpolation)) = kind(start) {
            let mut table = ViewTable::new(size, interpolation == Interpolation::Bicubic, &channels)?;
            for drawn in &batch.views[start..end] {
                for (drawn, &sample) in drawn.iter().zip(&batch.samples) {
                    push(&mut table, drawn, images.image(sample).ok_or_else(|| missing(sample))?)?;
                }
            }
            found.push((start..end, table));
        }
        start = end;
    }
    Ok(found)
}

/// Adds one view to a table.
fn push(table: &mut ViewTable, drawn: &DrawnView, (place, image): (u64, (u32, u32))) -> Result<()> {
    let refused = |what: &dyn std::fmt::Debug| Error::Config(format!("the device does not make views with {what:?}"));
    let Window::Cut(crop) = drawn.window else { return Err(refused(&drawn.window)) };
    let (flip, steps) = match drawn.steps.split_first() {
        Some((Step::Flip, rest)) => (true, rest),
        _ => (false, &drawn.steps[..]),
    };
    table.push(&ViewCrop { place, image, crop: (crop.left, crop.top, crop.width, crop.height), flip })?;
    for step in steps {
        let weights;
        let step = match *step {
            Step::Brightness(factor) => ViewStep::Brightness(factor as f32),
            Step::Contrast(factor) => ViewStep::Contrast(factor as f32),
            Step::Saturation(factor) => ViewStep::Saturation(factor as f32),
            Step::Hue(turn) => ViewStep::Hue((turn * 255.0) as i32),
            Step::Grayscale => ViewStep::Grayscale,
            Step::Blur { kernel, sigma } => {
                weights = gaussian_half(kernel, sigma);
                if weights.len() == 1 {
                    continue; // The centre's weight rounds to 1.
                }
                ViewStep::Blur(&weights)
            }
            Step::Solarize(threshold) => ViewStep::Solarize(threshold),
            Step::Erase(r) => ViewStep::Erase { left: r.left, top: r.top, width: r.width, height: r.height },
            Step::DropChannel(c) => ViewStep::DropChannel(c),
            Step::Posterize(bits) => ViewStep::Mask(0xff << (8 - bits.clamp(1, 8))),
            Step::Flip | Step::Affine(_) | Step::Equalize | Step::Jpeg(_) => return Err(refused(step)),
        };
        table.step(&step)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinsight_augment::{ByolViews, DinoViews, DrawKey, SimclrViews};
    use twinsight_datasets::PackedImages;

    #[test]
    fn what_the_kernels_lack_is_named_and_the_methods_own_views_are_not() {
        for plan in [
            ViewPlan::simclr(32, 3, &SimclrViews::for_size(32)),
            ViewPlan::simclr(224, 1, &SimclrViews { erase_p: 0.1, cutout_p: 0.1, hide_p: 0.1, ..SimclrViews::default() }),
            ViewPlan::byol(32, 3, &ByolViews { channel_drop_p: 0.1, posterize_p: 0.1, ..ByolViews::default() }),
            ViewPlan::dino(224, 96, 8, 3, &DinoViews::default()),
        ] {
            assert_eq!(supported(&plan), Ok(()));
        }
        let refused = |views: SimclrViews| supported(&ViewPlan::simclr(32, 3, &views)).expect_err("not supported");
        assert!(refused(SimclrViews { affine_p: 0.1, ..SimclrViews::default() }).contains("affine"));
        assert!(refused(SimclrViews { equalize_p: 0.1, ..SimclrViews::default() }).contains("equalising"));
        assert!(refused(SimclrViews { jpeg_p: 0.1, ..SimclrViews::default() }).contains("JPEG"));
        assert!(supported(&ViewPlan::eval(32, 3)).is_err() && supported(&ViewPlan::eval(32, 5)).is_err());
        let mut late = ViewPlan::simclr(32, 3, &SimclrViews::default());
        late.groups[0].spec.transforms.push(Transform::HorizontalFlip { p: 0.5 });
        assert!(supported(&late).expect_err("a late flip").contains("flip"));
    }

    #[test]
    fn tables_hold_neighbouring_views_of_one_size() -> anyhow::Result<()> {
        let set = PackedImages::new("x", vec![7; 3 * 12 * 10 * 3], (12, 10, 3), None, Vec::new())?;
        let images = Places::of(&set, 3, 1 << 20).map_err(anyhow::Error::msg)?;
        let plan = ViewPlan::dino(8, 4, 3, 3, &DinoViews::default());
        let samples = vec![2, 0];
        let drawn = |view: usize, sample: usize| {
            DrawnView::draw(&plan, view, (12, 10), DrawKey { seed: 0, epoch: 0, sample: sample as u64, view: view as u64 })
        };
        let views = (0..5).map(|v| samples.iter().map(|&s| drawn(v, s)).collect()).collect::<Result<Vec<Vec<_>>, _>>()?;
        let batch = DrawnBatch { samples, views };
        let found = tables(&plan, &batch, &images)?;
        let shapes: Vec<_> = found.iter().map(|(views, table)| (views.clone(), table.size(), table.len())).collect();
        assert_eq!(shapes, [(0..2, 8, 4), (2..5, 4, 6)]);
        // The first word of every other view is where the last image begins.
        assert_eq!((found[0].1.view_words()[0], found[0].1.view_words()[12]), (720, 0));
        let missing = DrawnBatch { samples: vec![3, 0], ..batch };
        assert!(tables(&plan, &missing, &images).expect_err("no fourth image").to_string().contains("image 3"));
        Ok(())
    }

    #[test]
    fn a_processor_makes_its_views_in_the_loaders_threads() -> anyhow::Result<()> {
        let set = PackedImages::new("x", vec![7; 64], (8, 8, 1), None, Vec::new())?;
        let plan = ViewPlan::simclr(8, 1, &SimclrViews::default());
        for on in ["auto", "cpu"] {
            let choice = choose(on, &set, &plan, &Device::Cpu)?;
            assert!(choice.renderer.is_none() && choice.words.is_none());
        }
        let told = choose("device", &set, &plan, &Device::Cpu).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(told.contains("data.views_on") && told.contains("CUDA"), "{told}");
        Ok(())
    }
}
