//! What a run finds out about its encoder: after an epoch, and at the end with figures and report.

use serde_json::json;
use twinsight_datasets::{Dataset, Subset};

use super::{RunResult, Trainer};
use crate::attention::attention_sheet;
use crate::data::eval_plan;
use crate::evaluate::{Chosen, Features, encode};
use crate::folder::MetricsFile;
use crate::machine::Machine;
use crate::observe::{Event, Observer};
use crate::protocols::{Encoded, PROTOCOLS};
use crate::spread::Spread;
use crate::tensorboard::EventFile;
use crate::{Error, Result, report, sheet};

/// Images whose neighbours TensorBoard shows after each evaluation, and neighbours of each.
const QUERIES: usize = 8;
const NEIGHBOURS: usize = 8;

/// Neighbours and temperature of the figure that `eval.published` records.
pub(super) const PUBLISHED: (usize, f64) = (200, 0.1);

impl Trainer {
    /// What is done after every few epochs: the held-out images' accuracy, or without labels how features are spread.
    pub(super) fn evaluate(
        &mut self,
        epoch: u64,
        observer: &mut dyn Observer,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<()> {
        let Some(evaluation) = self.data.evaluation.clone() else {
            let shown = report::shown(&self.data)?;
            let (features, spread) = self.spread(&shown)?;
            self.left_out(&features.bad)?;
            let step = self.state.step;
            metrics.append(&json!({
                "event": "spread", "step": step, "epoch": epoch, "effective_rank": spread.effective_rank,
                "uniformity": spread.uniformity, "alignment": spread.alignment
            }))?;
            let values = [
                ("features/effective_rank", Some(spread.effective_rank)),
                ("features/uniformity", spread.uniformity),
                ("features/alignment", spread.alignment),
            ];
            let known: Vec<(&str, f64)> = values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            events.scalars(step, &known)?;
            return self.draw(&shown, &features, events);
        };
        let encoder = self.method.encoder();
        let encoded = match self.config.eval.published {
            true => Encoded::new(&evaluation, encoder, &self.device)?,
            false => Encoded::without_test(&evaluation, encoder, &self.device)?,
        };
        self.left_out(&encoded.bad)?;
        let eval = &self.config.eval;
        let chosen = encoded.choose(&eval.k, &eval.temperature)?;
        let held = encoded.held_out();
        let (accuracy, _) = self.record(&encoded, &held, chosen, epoch, metrics, events)?;
        observer.event(&Event::Evaluated { epoch, accuracy, k: chosen.k });
        self.draw(&*evaluation.held_out, &held, events)
    }

    /// Writes down what an evaluation found: the accuracy of the held-out images by k-NN, which is returned with that of the online probe,
    /// and what others print.
    fn record(
        &self,
        encoded: &Encoded,
        held: &Features,
        chosen: Chosen,
        epoch: u64,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<(f64, Option<f64>)> {
        let step = self.state.step;
        let probe = self.probe.as_ref().map(|p| p.accuracy(held)).transpose()?;
        if let Some(accuracy) = probe {
            metrics.append(&json!({"event": "probe", "step": step, "epoch": epoch, "accuracy": accuracy}))?;
            events.scalars(step, &[("probe/held_out", accuracy)])?;
        }
        if self.config.eval.published
            && let Some(spec) = PROTOCOLS.iter().find(|p| p.knn == Some(PUBLISHED))
            && PUBLISHED.0 <= encoded.kept
        {
            let found = encoded.published_knn(spec)?;
            metrics.append(&json!({
                "event": "published", "step": step, "epoch": epoch, "protocol": found.protocol, "accuracy": found.top1,
                "measured_on": found.measured_on
            }))?;
        }
        let accuracy = match chosen.left_out {
            true => {
                let (predicted, labels) = encoded.predict_knn(chosen.k, chosen.temperature)?;
                twinsight_knn::top1(&predicted, labels)
            }
            false => chosen.accuracy,
        };
        metrics.append(&json!({
            "event": "knn", "step": step, "epoch": epoch, "accuracy": accuracy, "k": chosen.k,
            "temperature": chosen.temperature, "measured_on": "held-out"
        }))?;
        events.scalars(step, &[("knn/held_out", accuracy)])?;
        Ok((accuracy, probe))
    }

    /// The backbone's features of the shown images, and how they are spread.
    pub(super) fn spread(&self, shown: &Subset) -> Result<(Features, Spread)> {
        let (encoder, plan) = (self.method.encoder(), eval_plan(&self.config, self.data.channels));
        let features = encode(shown, encoder, &plan, self.config.eval.batch, &self.device)?;
        let spread = Spread::of(&features, shown, encoder, self.method.views(), self.config.seed, &self.device)?;
        Ok((features, spread))
    }

    /// Nearest neighbours of some images for TensorBoard, and the map of its projector.
    fn draw(&self, dataset: &dyn Dataset, features: &Features, events: &mut EventFile) -> Result<()> {
        let near = NEIGHBOURS.min(features.index.len().saturating_sub(1));
        if near > 0 {
            let picture = sheet::neighbour_sheet(dataset, features, QUERIES, near)?;
            let mut png = std::io::Cursor::new(Vec::new());
            picture
                .write_to(&mut png, image::ImageFormat::Png)
                .map_err(|e| Error::run(self.folder.root(), format!("a picture of neighbours: {e}")))?;
            events.image(self.state.step, "neighbours", picture.width(), picture.height(), png.get_ref())?;
        }
        report::project(&self.folder, dataset, features)
    }

    /// Takes note of images that could not be read.
    ///
    /// # Errors
    /// Under `strict` the first.
    pub(super) fn left_out(&mut self, bad: &[(String, String)]) -> Result<()> {
        if let (true, Some((id, reason))) = (self.config.data.strict, bad.first()) {
            return Err(Error::Config(format!("{id}: {reason} (an image that can't be read ends the run under --strict)")));
        }
        self.bad.extend(bad.iter().cloned());
        Ok(())
    }

    /// Names the images that were left out since the last call.
    pub(super) fn tell_left_out(&mut self, observer: &mut dyn Observer) {
        for (id, reason) in &self.bad {
            if self.told.insert(id.clone()) {
                observer.event(&Event::Note(format!("skipped {id}: {reason}")));
            }
        }
    }

    /// What is done once, after the last step: the exported encoder, the figures, the report.
    pub(super) fn finish(
        &mut self,
        observer: &mut dyn Observer,
        metrics: &mut MetricsFile,
        events: &mut EventFile,
    ) -> Result<RunResult> {
        let encoded: Option<Encoded> = match &self.data.evaluation {
            Some(evaluation) => Some(Encoded::new(evaluation, self.method.encoder(), &self.device)?),
            None => None,
        };
        let (mut own, mut probe) = (None, None);
        if let Some(encoded) = &encoded {
            self.left_out(&encoded.bad)?;
            let eval = &self.config.eval;
            let (chosen, measured) = encoded.own_knn(&eval.k, &eval.temperature)?;
            let held = encoded.held_out();
            probe = self.record(encoded, &held, chosen, self.config.epochs, metrics, events)?.1;
            let on = measured.measured_on.as_str();
            metrics.append(&json!({"event": "final", "step": self.state.step, "accuracy": measured.top1, "measured_on": on}))?;
            if on == "test" {
                events.scalars(self.state.step, &[("knn/test", measured.top1)])?;
            }
            own = Some((chosen, measured));
        }
        self.export_encoder()?;
        let shown = report::shown(&self.data)?;
        let (features, spread) = self.spread(&shown)?;
        let test = self.data.evaluation.as_ref().is_some_and(|e| e.test.is_some());
        let seen: Vec<(String, String)> = features
            .bad
            .iter()
            .map(|(id, reason)| (if test { format!("{id} (test)") } else { id.clone() }, reason.clone()))
            .collect();
        self.left_out(&seen)?;
        self.tell_left_out(observer);
        let look = report::Look::at(shown, features)?;
        let known = |v: f64| v.is_finite().then_some(v);
        let measured = own.as_ref().map(|o| &o.1);
        let chosen = own.as_ref().map(|o| o.0);
        let rank = encoded.as_ref().map(Encoded::effective_rank).transpose()?;
        let result = RunResult {
            knn_pixels: known(self.state.pixels),
            knn_random: known(self.state.random),
            knn_trained: measured.map(|m| m.top1),
            knn_low: measured.map(|m| m.low),
            knn_high: measured.map(|m| m.high),
            knn_top5: measured.map(|m| m.top5),
            probe,
            rank_random: known(self.state.random_rank),
            rank_trained: Some(rank.unwrap_or(spread.effective_rank)),
            spread_random: self.state.spread,
            spread_trained: Some(spread),
            clusters: look.clusters().map(|c| c.0),
            silhouette: look.clusters().map(|c| c.1),
            k: chosen.map(|c| c.k),
            temperature: chosen.map(|c| c.temperature),
            chosen_on: chosen.map(|c| {
                let eval = &self.config.eval;
                match (eval.k.len() * eval.temperature.len(), c.left_out) {
                    (1, _) => "nothing".into(),
                    (_, true) => "training images left out in turn".into(),
                    (_, false) => "held-out images".into(),
                }
            }),
            measured_on: measured.map(|m| m.measured_on.clone()),
            loss: self.state.loss,
            steps: self.state.step,
            images: self.state.step * self.config.batch as u64,
            skipped: self.data.report.bad_files.len() + self.bad.len(),
            seconds: self.state.seconds + self.started.elapsed().as_secs_f64(),
            machine: Some(Machine::here(self.commit.as_deref())),
        };
        events.flush()?;
        metrics.sync()?;
        let text = serde_json::to_string_pretty(&result).map_err(|e| Error::Config(e.to_string()))?;
        self.folder.write("result.json", format!("{text}\n").as_bytes())?;
        let found = self.bad.iter().map(|(id, reason)| format!("{id}: {reason}"));
        let unreadable = self.data.report.bad_files.iter().map(ToString::to_string).chain(found).collect();
        let judged = match &encoded {
            Some(encoded) => report::judge(encoded, &result)?,
            None => None,
        };
        self.draw_attention()?;
        let findings = report::Findings { judged, unreadable };
        report::write(&self.folder, &self.config, &result, &findings, &look)?;
        observer.event(&Event::Note(format!("report: {}", self.folder.path("report.html").display())));
        Ok(result)
    }

    /// Of a transformer, a picture of where its heads look in four of the shown images.
    fn draw_attention(&self) -> Result<()> {
        let shown = &self.data.shown;
        let samples: Vec<usize> = (0..4).map(|i| i * shown.len() / 4).collect();
        let plan = eval_plan(&self.config, self.data.channels);
        let Some(picture) = attention_sheet(self.method.encoder(), &plan, &**shown, &samples, &self.device)? else {
            return Ok(());
        };
        let mut png = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(|e| Error::run(self.folder.path("attention.png"), e.to_string()))?;
        self.folder.write("attention.png", png.get_ref())
    }
}
