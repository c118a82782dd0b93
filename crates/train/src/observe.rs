//! What a run tells while it goes on, and the progress bar that shows it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::health::Health;

/// Something that happened in a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// A line of words.
    Note(String),
    /// Training begins, or goes on, at `step` of `total`.
    Start {
        /// The next step.
        step: u64,
        /// All steps.
        total: u64,
    },
    /// A step was done.
    Step(StepReport),
    /// k-NN accuracy on the held-out images after an epoch.
    Evaluated {
        /// Epochs done.
        epoch: u64,
        /// Accuracy of the held-out images, as a fraction.
        accuracy: f64,
        /// Neighbours that voted.
        k: usize,
    },
    /// Training is over or was interrupted.
    End,
}

/// Figures of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The epoch that the step belongs to, from 0.
    pub epoch: u64,
    /// The loss; where it is looked at now and then only (see `log.every`), that of the last step that was. Not a number before the first.
    pub loss: f64,
    /// The learning rate used.
    pub lr: f64,
    /// Images a second since training began or went on, evaluations left out; each image counted once however many views.
    pub images_per_s: f64,
    /// Share of that time spent waiting for the loader, 0 to 1.
    pub wait_share: f64,
    /// Spread of the embeddings, where it was measured at this step.
    pub health: Option<Health>,
}

/// Receives events. Called from the training thread.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event);
}

/// Takes no notice.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event) {}
}

/// A progress bar on standard error, and notes above it. Where standard error is no terminal, a line every now and then.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    knn: Option<f64>,
    health: Option<Health>,
    last_line: std::time::Instant,
}

impl Progress {
    /// A bar, hidden until training starts.
    pub fn new() -> Self {
        use std::io::IsTerminal;
        Self {
            bar: ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
            plain: !std::io::stderr().is_terminal(),
            knn: None,
            health: None,
            last_line: std::time::Instant::now(),
        }
    }

    fn line(&self, report: &StepReport) -> String {
        let knn = self.knn.map_or(String::new(), |k| format!(" · k-NN {:.1} %", k * 100.0));
        let std = self.health.map_or(String::new(), |h| format!(" · spread {:.2} · rank {:.0}", h.feature_std, h.effective_rank));
        format!(
            "epoch {} · {:.0} images/s · waiting for data {:.0} % · loss {} · lr {:.1e}{std}{knn}",
            report.epoch + 1,
            report.images_per_s,
            report.wait_share * 100.0,
            if report.loss.is_nan() { "–".to_string() } else { format!("{:.3}", report.loss) },
            report.lr
        )
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Note(text) if self.plain => eprintln!("{text}"),
            Event::Note(text) => self.bar.suspend(|| eprintln!("{text}")),
            Event::Start { step, total } => {
                if self.plain {
                    eprintln!("training: step {step} of {total}");
                    return;
                }
                self.bar = ProgressBar::with_draw_target(Some(*total), ProgressDrawTarget::stderr());
                let style = ProgressStyle::with_template("{bar:24} {pos}/{len} · {elapsed} gone, {eta} left\n{wide_msg}");
                if let Ok(style) = style {
                    self.bar.set_style(style);
                }
                self.bar.set_position(*step);
                self.bar.reset_eta();
                self.bar.enable_steady_tick(Duration::from_millis(500));
            }
            Event::Step(report) => {
                self.health = report.health.or(self.health);
                self.bar.set_position(report.step);
                if self.plain {
                    if self.last_line.elapsed() > Duration::from_secs(10) {
                        self.last_line = std::time::Instant::now();
                        eprintln!("step {} · {}", report.step, self.line(report));
                    }
                } else {
                    self.bar.set_message(self.line(report));
                }
            }
            Event::Evaluated { epoch, accuracy, k } => {
                self.knn = Some(*accuracy);
                if self.plain {
                    eprintln!("after epoch {epoch}: k-NN {:.1} % on held-out images (k = {k})", accuracy * 100.0);
                }
            }
            Event::End => self.bar.finish_and_clear(),
        }
    }
}
