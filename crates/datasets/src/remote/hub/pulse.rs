//! Whether anything happens: how long ago a transfer or a listing went on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};

/// When something happened last.
#[derive(Clone)]
pub(super) struct Pulse(Arc<Mutex<(Instant, u64)>>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((Instant::now(), 0))))
    }
}

impl Pulse {
    /// Tells how far it is; the same as before is no news.
    pub fn beat(&self, count: u64) {
        if let Ok(mut last) = self.0.lock()
            && last.1 != count
        {
            *last = (Instant::now(), count);
        }
    }

    /// How long nothing has happened.
    pub fn silence(&self) -> Duration {
        self.0.lock().map_or(Duration::ZERO, |last| last.0.elapsed())
    }
}

impl ProgressHandler for Pulse {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                self.beat(1 + files.iter().map(|f| f.bytes_completed).sum::<u64>())
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress { bytes_completed, .. }) => self.beat(1 + bytes_completed),
            _ => {}
        }
    }
}
