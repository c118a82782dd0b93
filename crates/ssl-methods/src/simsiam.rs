//! SimSiam (Chen & He 2021): BYOL without a teacher. A prediction from one view meets the projection of the other, through which no
//! gradient flows; that and the predictor are what keeps it from collapse.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use twinsight_augment::{SimclrViews, ViewPlan};
use twinsight_nn::Mode;

use crate::byol::negative_cosine;
use crate::config::{defaults, ensure, read};
use crate::heads::{HeadNorm, ProjectionHead};
use crate::networks::{Single, rows};
use crate::simclr::halves;
use crate::{
    At, EncoderNeed, Keys, LossOutput, Method, MethodContext, MethodSpec, Networks, Outputs, Result, ViewContext, views,
};

/// The registry's entry.
pub(crate) const SPEC: MethodSpec = MethodSpec {
    name: NAME,
    title: "SimSiam",
    paper: "Chen & He 2021, Exploring Simple Siamese Representation Learning",
    summary: "no negatives, no teacher: a prediction meets the other view's projection, which gets no gradient",
    encoder: EncoderNeed::Any,
    needs: "64 images a batch will do; no second network: the least memory of all",
    choose: "where memory is short; watch its effective rank, which falls sooner than others'",
    defaults: defaults::<SimSiamConfig>,
    views: |table, context| read::<SimSiamConfig>(NAME, table)?.plan(context),
    build: |table, context| Ok(Box::new(SimSiam::new(&read(NAME, table)?, context)?)),
    keys: Keys { own: KEYS, views: SimclrViews::KEYS, defaults: defaults::<SimSiamConfig> },
};

const NAME: &str = "simsiam";

const KEYS: &[(&str, &str)] = &[
    ("hidden_dim", "width of the projector's hidden layers (2048 in the paper)"),
    ("projection_dim", "elements of a projection (2048 in the paper)"),
    ("projector_layers", "linear layers of the projector; 2 or 3 (3 in the paper, 2 for CIFAR-10)"),
    (
        "predictor_hidden_dim",
        "hidden width of the predictor (512 in the paper); a quarter of the projection, so that it must choose",
    ),
];

/// SimSiam's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimSiamConfig {
    /// Width of the projector's hidden layers. The paper has 2048.
    pub hidden_dim: usize,
    /// Elements of a projection. The paper has 2048.
    pub projection_dim: usize,
    /// Linear layers of the projector, 2 or 3. The paper has 3, and 2 for CIFAR-10.
    pub projector_layers: usize,
    /// Hidden width of the predictor. The paper has 512.
    pub predictor_hidden_dim: usize,
    /// How views are made; where small images want other views than large ones, −1 leaves it to the image size.
    pub views: SimclrViews,
    /// Takes the predictor away, which makes the method collapse (section 4.2 of the paper). For tests of whether that is
    /// noticed; no file can set it.
    #[serde(skip)]
    pub without_predictor: bool,
    /// Takes away the projector's last batch norm (the paper's table 3, where it learns all the same), which keeps embeddings apart from
    /// each other whatever the network does. For the same tests.
    #[serde(skip)]
    pub without_last_norm: bool,
}

impl Default for SimSiamConfig {
    fn default() -> Self {
        Self {
            hidden_dim: 2048,
            projection_dim: 2048,
            projector_layers: 3,
            predictor_hidden_dim: 512,
            views: views::by_size(moderate),
            without_predictor: false,
            without_last_norm: false,
        }
    }
}

impl SimSiamConfig {
    fn plan(&self, context: &ViewContext) -> Result<ViewPlan> {
        views::alike(&self.views, moderate, context)
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [
            ("hidden_dim", self.hidden_dim),
            ("projection_dim", self.projection_dim),
            ("predictor_hidden_dim", self.predictor_hidden_dim),
        ] {
            ensure(NAME, value > 0, key, value, "at least 1")?;
        }
        ensure(NAME, (2..=3).contains(&self.projector_layers), "projector_layers", self.projector_layers, "2 or 3")
    }
}

/// MoCo v2's and SimSiam's views: jitter of (0.4, 0.4, 0.4, 0.1), crops of at least a fifth of the image, blur for large images.
pub(crate) fn moderate(size: usize) -> SimclrViews {
    let blur_p = if size <= ViewPlan::SMALL { 0.0 } else { 0.5 };
    SimclrViews { crop_scale_min: 0.2, jitter_strength: 0.5, blur_p, ..SimclrViews::default() }
}

/// SimSiam at work.
pub struct SimSiam {
    plan: ViewPlan,
    net: Single<(ProjectionHead, Option<ProjectionHead>)>,
}

impl SimSiam {
    /// Builds backbone, projector and predictor.
    ///
    /// # Errors
    /// Settings out of range, of the method or of the encoder.
    pub fn new(config: &SimSiamConfig, context: &MethodContext) -> Result<Self> {
        config.check()?;
        let plan = config.plan(&context.view_context())?;
        let (hidden, dim) = (config.hidden_dim, config.projection_dim);
        let net = Single::new(context, |b, inputs| {
            let last = if config.without_last_norm { HeadNorm::None } else { HeadNorm::Plain };
            let mut widths = vec![hidden; config.projector_layers + 1];
            (widths[0], widths[config.projector_layers]) = (inputs, dim);
            let projector = ProjectionHead::normed(&b.under("projector"), &widths, last)?;
            let widths = [dim, config.predictor_hidden_dim, dim];
            let build = || ProjectionHead::normed_with_bias(&b.under("predictor"), &widths);
            Ok((projector, (!config.without_predictor).then(build).transpose()?))
        })?;
        Ok(Self { plan, net })
    }
}

impl Method for SimSiam {
    fn views(&self) -> &ViewPlan {
        &self.plan
    }

    fn networks(&self) -> Networks<'_> {
        self.net.networks()
    }

    fn student_outputs(&self, views: &[Tensor], _first: usize, mode: &Mode) -> Result<Vec<Tensor>> {
        self.net.branch.vectors(views, mode)
    }

    fn objective(&mut self, outputs: &Outputs, at: &At) -> Result<LossOutput> {
        let mode = at.mode().with_views(2);
        let (projector, predictor) = &self.net.branch.head;
        let z = projector.forward(&rows(&outputs.student[0])?, &mode)?;
        let p = predictor.as_ref().map_or_else(|| Ok(z.clone()), |predictor| predictor.forward(&z, &mode))?;
        let [z1, z2] = halves(&z.detach())?;
        Ok(LossOutput {
            loss: negative_cosine(&p, &Tensor::cat(&[&z2, &z1], 0)?)?,
            embedding: z1,
            partner: Some(z2),
            assignments: None,
            metrics: Vec::new(),
        })
    }
}
