//! Kinds that stand for several layers.

use std::collections::{BTreeMap, BTreeSet};

use super::kinds::{self, Settings, TRANSFORMER_BLOCK};
use super::{Error, Result, fill_names};
use crate::plan::LayerPlan;

/// The layers with names, and with every `transformer-block` replaced by the layers it stands for. A list
/// without such blocks comes back as it is, so that expanding twice changes nothing.
///
/// A block NAME normalises before each part (Xiong et al. 2020, "On layer normalization in the transformer
/// architecture", figure 1b): NAME-norm1, NAME-attention, NAME-add, NAME-norm2, NAME-linear1, NAME-gelu,
/// NAME-linear2 and NAME, which is the last sum, so that who reads the block reads its output. With
/// `dropout` above 0, NAME-dropout1 and NAME-dropout2 stand before the two sums.
///
/// # Errors
/// A setting of a block that is unknown, missing or out of range; a block with several inputs; a name
/// that the block needs and another layer has.
pub fn expand(layers: &[LayerPlan]) -> Result<Vec<LayerPlan>> {
    let mut named = layers.to_vec();
    fill_names(&mut named);
    let taken: BTreeSet<String> = named.iter().map(|layer| layer.name.clone()).collect();
    let mut out: Vec<LayerPlan> = Vec::with_capacity(named.len());
    for plan in named {
        if plan.kind != TRANSFORMER_BLOCK {
            out.push(plan);
            continue;
        }
        let before = out.last().map(|layer| layer.name.clone());
        let parts = block(&plan, before)?;
        let clash = parts[..parts.len() - 1]
            .iter()
            .find(|part| taken.contains(&part.name));
        if let Some(part) = clash {
            return Err(Error::Name {
                layer: part.name.clone(),
                problem: format!(
                    "`{}` stands for several layers and calls one of them so; choose another name",
                    plan.name
                ),
            });
        }
        out.extend(parts);
    }
    Ok(out)
}

/// The layers of one block, which follows the layer `before`.
fn block(plan: &LayerPlan, before: Option<String>) -> Result<Vec<LayerPlan>> {
    let settings = Settings::check(plan, kinds::find(plan)?)?;
    let stream = match plan.inputs.as_slice() {
        [] => before.unwrap_or_else(|| "inputs".into()),
        [one] => one.clone(),
        several => {
            return Err(Error::Name {
                layer: plan.name.clone(),
                problem: format!(
                    "a {TRANSFORMER_BLOCK} reads one thing, found {}; join them with add or concat",
                    several.join(", ")
                ),
            });
        }
    };
    let features = settings.number("features");
    let hidden = match settings.number("feed-forward") {
        0.0 => 4.0 * features,
        given => given,
    };
    let dropout = settings.number("dropout");
    let mut parts: Vec<LayerPlan> = Vec::new();
    let mut push = |suffix: &str, kind: &str, inputs: Vec<String>, set: &[(&str, f64)]| {
        let name = format!("{}{suffix}", plan.name);
        parts.push(LayerPlan {
            name: name.clone(),
            kind: kind.into(),
            inputs,
            frozen: plan.frozen,
            group: plan.group.clone(),
            settings: set
                .iter()
                .map(|(name, number)| ((*name).to_owned(), vec![*number]))
                .collect::<BTreeMap<_, _>>(),
        });
        name
    };
    let norm = push("-norm1", "layer-norm", vec![stream.clone()], &[]);
    let heads = [
        ("heads", settings.number("heads")),
        ("causal", settings.number("causal")),
    ];
    let mut branch = push("-attention", "attention", vec![norm], &heads);
    if dropout > 0.0 {
        branch = push("-dropout1", "dropout", vec![branch], &[("rate", dropout)]);
    }
    let middle = push("-add", "add", vec![stream, branch], &[]);
    let norm = push("-norm2", "layer-norm", vec![middle.clone()], &[]);
    let wide = push("-linear1", "linear", vec![norm], &[("features", hidden)]);
    let wide = push("-gelu", "gelu", vec![wide], &[]);
    let mut branch = push("-linear2", "linear", vec![wide], &[("features", features)]);
    if dropout > 0.0 {
        branch = push("-dropout2", "dropout", vec![branch], &[("rate", dropout)]);
    }
    push("", "add", vec![middle, branch], &[]);
    Ok(parts)
}
