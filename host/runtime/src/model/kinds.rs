//! The built-in layer kinds: their names, settings, defaults and ranges. One table serves the builder,
//! its error messages and the documentation.

use std::collections::BTreeMap;

use super::{Error, Result};
use crate::diagnostic::nearest;
use crate::plan::LayerPlan;

/// One kind of layer.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// Its name in run files.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What can be set.
    pub settings: &'static [SettingInfo],
}

/// One setting of a kind.
#[derive(Clone, Copy, Debug)]
pub struct SettingInfo {
    /// Its name in run files.
    pub name: &'static str,
    /// What holds where the run file is silent.
    pub default: Preset,
    /// Which numbers are legal.
    pub range: Range,
    /// True if two numbers may be given, for height and width; one number stands for both.
    pub pair: bool,
}

/// What holds where the run file is silent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preset {
    /// Nothing: the run file must say.
    Required,
    /// This number.
    Number(f64),
    /// The value of another setting of the layer.
    SameAs(&'static str),
}

/// Which numbers are legal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// A whole number from this one on.
    Count(u32),
    /// 0 or 1.
    Flag,
    /// Any finite number.
    Number,
    /// A finite number above 0.
    Positive,
    /// From 0 up to but not including 1.
    Fraction,
    /// From 0 to 1.
    Share,
}

impl Range {
    /// What is legal, in words.
    pub(crate) fn expected(self) -> String {
        match self {
            Range::Count(least) => format!("a whole number from {least} on"),
            Range::Flag => "true or false (1 or 0)".into(),
            Range::Number => "a number".into(),
            Range::Positive => "a number above 0".into(),
            Range::Fraction => "a number from 0 up to but not including 1".into(),
            Range::Share => "a number from 0 to 1".into(),
        }
    }

    /// True if the number is legal.
    pub(crate) fn allows(self, x: f64) -> bool {
        match self {
            // The upper end keeps products of sizes within reach of checked arithmetic.
            Range::Count(least) => {
                x.fract() == 0.0 && (f64::from(least)..=f64::from(i32::MAX)).contains(&x)
            }
            Range::Flag => x == 0.0 || x == 1.0,
            Range::Number => x.is_finite(),
            Range::Positive => x.is_finite() && x > 0.0,
            Range::Fraction => (0.0..1.0).contains(&x),
            Range::Share => (0.0..=1.0).contains(&x),
        }
    }
}

const fn must(name: &'static str, range: Range) -> SettingInfo {
    SettingInfo {
        name,
        default: Preset::Required,
        range,
        pair: false,
    }
}
const fn may(name: &'static str, default: f64, range: Range) -> SettingInfo {
    SettingInfo {
        name,
        default: Preset::Number(default),
        range,
        pair: false,
    }
}
const fn pair(setting: SettingInfo) -> SettingInfo {
    SettingInfo {
        pair: true,
        ..setting
    }
}
const fn kind(
    name: &'static str,
    about: &'static str,
    settings: &'static [SettingInfo],
) -> KindInfo {
    KindInfo {
        name,
        about,
        settings,
    }
}

const FEATURES: SettingInfo = must("features", Range::Count(1));
const BIAS: SettingInfo = may("bias", 1.0, Range::Flag);
const EPSILON: SettingInfo = may("epsilon", 1e-5, Range::Positive);
const POOL: &[SettingInfo] = &[
    pair(must("kernel", Range::Count(1))),
    SettingInfo {
        name: "stride",
        default: Preset::SameAs("kernel"),
        range: Range::Count(1),
        pair: true,
    },
    pair(may("padding", 0.0, Range::Count(0))),
];

/// The kind that [`super::expand`] replaces by others.
pub(super) const TRANSFORMER_BLOCK: &str = "transformer-block";

/// Every kind, in the order in which docs/run-file.md lists them.
pub const KINDS: &[KindInfo] = &[
    kind(
        "linear",
        "y = x W' + b on the last axis; [f] or [t, f]",
        &[FEATURES, BIAS],
    ),
    kind(
        "conv2d",
        "filters over images [c, h, w], zeros around the border",
        &[
            FEATURES,
            pair(must("kernel", Range::Count(1))),
            pair(may("stride", 1.0, Range::Count(1))),
            pair(may("padding", 0.0, Range::Count(0))),
            pair(may("dilation", 1.0, Range::Count(1))),
            may("groups", 1.0, Range::Count(1)),
            BIAS,
        ],
    ),
    kind(
        "batch-norm",
        "mean 0 and variance 1 for each channel (first axis of a sample) over the batch, then scale and shift",
        &[may("momentum", 0.1, Range::Share), EPSILON],
    ),
    kind(
        "layer-norm",
        "mean 0 and variance 1 for each position of [t, f], or over the whole sample for other ranks",
        &[EPSILON, may("affine", 1.0, Range::Flag)],
    ),
    kind("relu", "max(x, 0)", &[]),
    kind("tanh", "hyperbolic tangent", &[]),
    kind("sigmoid", "1 / (1 + exp(-x))", &[]),
    kind("gelu", "x times the normal distribution function of x", &[]),
    kind(
        "elu",
        "x above 0, alpha (exp(x) - 1) below",
        &[may("alpha", 1.0, Range::Positive)],
    ),
    kind("silu", "x sigmoid(x)", &[]),
    kind(
        "hardtanh",
        "x held between low and high",
        &[
            may("low", -1.0, Range::Number),
            may("high", 1.0, Range::Number),
        ],
    ),
    kind(
        "group-sort",
        "sorts each group of neighbouring features or channels",
        &[may("group", 2.0, Range::Count(1))],
    ),
    kind(
        "max-pool",
        "largest value of each window of [c, h, w]",
        POOL,
    ),
    kind(
        "average-pool",
        "mean of each window of [c, h, w], the padding counted",
        POOL,
    ),
    kind("flatten", "all axes of a sample into one", &[]),
    kind(
        "dropout",
        "zeroes inputs at the given rate in training and scales up the rest",
        &[may("rate", 0.5, Range::Fraction)],
    ),
    kind(
        "embedding",
        "looks up a row for each index (i64); entries 0 stands for the size of the vocabulary",
        &[
            may("entries", 0.0, Range::Count(0)),
            FEATURES,
            may("deviation", 1.0, Range::Positive),
        ],
    ),
    kind(
        "position",
        "adds a vector for each position of [t, f]: learned, or sines and cosines",
        &[may("learned", 1.0, Range::Flag)],
    ),
    kind(
        "attention",
        "self-attention of [t, f] with its four projections",
        &[
            must("heads", Range::Count(1)),
            may("causal", 0.0, Range::Flag),
        ],
    ),
    kind(
        "lstm",
        "long short-term memory over [t, f], all outputs",
        &[FEATURES],
    ),
    kind(
        "rnn",
        "tanh recurrence over [t, f], all outputs",
        &[FEATURES],
    ),
    kind("add", "sum of its inputs, all of one shape", &[]),
    kind(
        "concat",
        "its inputs one after another along an axis of the sample",
        &[may("axis", 0.0, Range::Count(0))],
    ),
    kind("identity", "its input", &[]),
    kind(
        "cosine-classifier",
        "scale times the cosine between [f] and each row of W",
        &[FEATURES, may("scale", 10.0, Range::Positive)],
    ),
    kind(
        "tied-linear",
        "y = x E' on the last axis, with the table E of the nearest embedding before it",
        &[],
    ),
    kind(
        TRANSFORMER_BLOCK,
        "stands for eight layers: norm, attention, add, norm, linear, gelu, linear, add",
        &[
            FEATURES,
            must("heads", Range::Count(1)),
            may("feed-forward", 0.0, Range::Count(0)),
            may("causal", 1.0, Range::Flag),
            may("dropout", 0.0, Range::Fraction),
        ],
    ),
];

/// The kind of a layer.
pub(super) fn find(layer: &LayerPlan) -> Result<&'static KindInfo> {
    KINDS
        .iter()
        .find(|kind| kind.name == layer.kind)
        .ok_or_else(|| Error::UnknownKind {
            layer: layer.name.clone(),
            kind: layer.kind.clone(),
            suggestion: nearest(&layer.kind, KINDS.iter().map(|kind| kind.name)).map(str::to_owned),
        })
}

/// Checked settings of one layer, defaults filled in; a pair is always two numbers.
pub(super) struct Settings(Vec<(&'static str, Vec<f64>)>);

impl Settings {
    pub(super) fn check(layer: &LayerPlan, kind: &'static KindInfo) -> Result<Settings> {
        let bad = |setting: &str, problem: String| Error::Setting {
            layer: layer.name.clone(),
            kind: kind.name,
            setting: setting.into(),
            problem,
        };
        let names = || kind.settings.iter().map(|setting| setting.name);
        if let Some(unknown) = layer
            .settings
            .keys()
            .find(|given| !names().any(|name| name == *given))
        {
            let known = names().collect::<Vec<_>>().join("`, `");
            let problem = match nearest(unknown, names()) {
                _ if kind.settings.is_empty() => "this kind has no settings; remove it".into(),
                Some(near) => format!("no such setting; did you mean `{near}`?"),
                None => format!("no such setting; this kind has `{known}`"),
            };
            return Err(bad(unknown, problem));
        }
        let given: &BTreeMap<String, Vec<f64>> = &layer.settings;
        let mut checked: Vec<(&'static str, Vec<f64>)> = Vec::with_capacity(kind.settings.len());
        for setting in kind.settings {
            let mut numbers = match (given.get(setting.name), setting.default) {
                (Some(numbers), _) => numbers.clone(),
                (None, Preset::Number(number)) => vec![number],
                (None, Preset::SameAs(other)) => checked
                    .iter()
                    .find(|(name, _)| *name == other)
                    .map(|(_, n)| n.clone())
                    .unwrap_or_default(),
                (None, Preset::Required) => {
                    let problem = format!("is missing; expected {}", setting.range.expected());
                    return Err(bad(setting.name, problem));
                }
            };
            if numbers.len() != 1 && !(setting.pair && numbers.len() == 2) {
                let expected = if setting.pair {
                    "one or two numbers"
                } else {
                    "one number"
                };
                return Err(bad(
                    setting.name,
                    format!("expected {expected}, found {numbers:?}"),
                ));
            }
            if let Some(wrong) = numbers.iter().find(|x| !setting.range.allows(**x)) {
                return Err(bad(
                    setting.name,
                    format!("expected {}, found {wrong}", setting.range.expected()),
                ));
            }
            if setting.pair && numbers.len() == 1 {
                numbers.push(numbers[0]);
            }
            checked.push((setting.name, numbers));
        }
        Ok(Settings(checked))
    }

    fn numbers(&self, name: &str) -> &[f64] {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(&[], |(_, numbers)| numbers)
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        self.numbers(name).first().copied().unwrap_or(f64::NAN)
    }

    pub(super) fn count(&self, name: &str) -> usize {
        self.number(name) as usize
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.number(name) == 1.0
    }

    pub(super) fn pair(&self, name: &str) -> (usize, usize) {
        match self.numbers(name) {
            [h, w] => (*h as usize, *w as usize),
            _ => (self.count(name), self.count(name)),
        }
    }

    pub(super) fn list(&self) -> Vec<(String, Vec<f64>)> {
        self.0
            .iter()
            .map(|(name, numbers)| ((*name).to_owned(), numbers.clone()))
            .collect()
    }
}
