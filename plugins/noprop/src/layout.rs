//! Which layers of the run's model are which part of the method.
//!
//! The model is the chain of denoising blocks as it is used in prediction: `noise` stands for z_0 and `time` for the
//! time features, two frozen linear layers that are never run; `block1` to `blockT` are the last layers of the blocks;
//! what follows is the head. Layers before `noise` and `time` may reshape the inputs.

use std::ops::Range;

use espalier_sdk::data::Batch;
use espalier_sdk::model::{LayerInfo, LayerInput};
use espalier_sdk::parameters::{Kind, ParameterInfo};
use espalier_sdk::{Error, Mode, Model, Tensor};

/// The name of the layer that stands for the noise.
const NOISE: &str = "noise";
/// The name of the layer that stands for the time features.
const TIME: &str = "time";

/// Some layers in a row, and what they read from outside.
#[derive(Clone, Debug)]
pub struct Piece {
    pub layers: Range<u32>,
    /// Names of its trainable parameters.
    pub parameters: Vec<String>,
    /// Width of what comes out.
    pub width: u32,
    /// Names of what it reads.
    reads: Vec<String>,
    /// Which of them is the noisy label.
    label: String,
}

/// The model, divided.
#[derive(Clone, Debug)]
pub struct Layout {
    pub blocks: Vec<Piece>,
    pub head: Piece,
    /// Dimensions of the noisy label.
    pub width: u32,
    /// How many time features the blocks read.
    pub time: Option<u32>,
    /// Layers before the placeholders.
    before: Range<u32>,
    names: Vec<String>,
}

/// What of the inputs the blocks read, computed once a batch.
pub struct Seen(Vec<(String, Tensor)>);

impl Layout {
    /// Divides the run's model.
    pub fn of(model: &Model) -> Result<Layout, Error> {
        divide(&model.layers(), &model.parameters().list())
    }

    /// What the blocks read of a batch.
    pub fn look(&self, model: &Model, batch: &Batch, mode: Mode) -> Seen {
        let mut seen = vec![("inputs".to_string(), batch.inputs().clone())];
        if !self.before.is_empty() {
            let mut pass = model.pass(self.before.clone(), mode);
            pass = pass.input("inputs", batch.inputs());
            for name in &self.names {
                pass = pass.want(name);
            }
            seen.extend(pass.run_with_extra().1);
        }
        Seen(seen)
    }
}

impl Piece {
    /// Runs it on a noisy label [n, width] and, where it reads them, time features.
    pub fn run(
        &self,
        model: &Model,
        seen: &Seen,
        label: &Tensor,
        time: Option<&Tensor>,
        mode: Mode,
    ) -> Tensor {
        let mut pass = model.pass(self.layers.clone(), mode);
        for name in &self.reads {
            let tensor = match time {
                _ if *name == self.label => Some(label),
                Some(time) if name == TIME => Some(time),
                _ => seen.0.iter().find(|(n, _)| n == name).map(|(_, t)| t),
            };
            if let Some(tensor) = tensor {
                pass = pass.input(name, tensor);
            }
        }
        pass.run()
    }
}

const SHAPE: &str = "a model for `noprop` has a frozen linear layer `noise` of as many features as a label's embedding, \
                     blocks that end in layers named `block1`, `block2` and so on, each reading the inputs and the block \
                     before it (the first one `noise`) through a concat, and after the last block a linear layer with \
                     one output a class; plugins/noprop/run.toml is one";

fn refuse(problem: String) -> Error {
    Error::incompatible(format!("{problem}: {SHAPE}"))
}

fn divide(layers: &[LayerInfo], parameters: &[ParameterInfo]) -> Result<Layout, Error> {
    let place = |name: &str| layers.iter().position(|layer| layer.name == name);
    let trainable = |range: &Range<u32>| -> Vec<String> {
        let inside = |p: &&ParameterInfo| {
            p.trainable && p.kind != Kind::Buffer && p.layer.is_some_and(|l| range.contains(&l))
        };
        parameters
            .iter()
            .filter(inside)
            .map(|p| p.name.clone())
            .collect()
    };
    let noise = place(NOISE).ok_or_else(|| refuse("no layer is called `noise`".into()))?;
    let stand_ins: Vec<usize> = [Some(noise), place(TIME)].into_iter().flatten().collect();
    for &at in &stand_ins {
        let (layer, at) = (&layers[at], at as u32);
        if layer.kind != "linear"
            || layer.out_shape.len() != 1
            || !trainable(&(at..at + 1)).is_empty()
        {
            return Err(refuse(format!(
                "`{}` is no frozen linear layer with one axis",
                layer.name
            )));
        }
    }
    let first = stand_ins.iter().copied().min().unwrap_or(noise);
    let after = stand_ins.iter().copied().max().unwrap_or(noise) + 1;
    if after - first != stand_ins.len() {
        return Err(refuse(
            "`noise` and `time` do not stand side by side".into(),
        ));
    }
    let before = 0..first as u32;
    if let [name, ..] = &trainable(&before)[..] {
        return Err(refuse(format!(
            "`{name}` comes before `noise` and belongs to no block"
        )));
    }
    let mut ends = Vec::new();
    while let Some(end) = place(&format!("block{}", ends.len() + 1)) {
        ends.push(end);
    }
    if ends.is_empty() {
        return Err(refuse("no layer is called `block1`".into()));
    }
    if ends[ends.len() - 1] + 1 >= layers.len() {
        return Err(refuse("nothing follows the last block".into()));
    }
    let mut pieces = Vec::new();
    let (mut start, mut label) = (after, NOISE.to_string());
    for end in ends.iter().copied().chain([layers.len() - 1]) {
        if end < start {
            return Err(refuse(
                "the blocks do not stand in the order of their numbers".into(),
            ));
        }
        let range = start as u32..end as u32 + 1;
        let is_head = end + 1 == layers.len();
        let mut reads: Vec<String> = Vec::new();
        for input in layers[start..=end].iter().flat_map(|layer| &layer.inputs) {
            let name = match input {
                LayerInput::Field(name) => name.clone(),
                LayerInput::Layer(from) if range.contains(from) => continue,
                LayerInput::Layer(from) => {
                    let name = &layers[*from as usize].name;
                    let known = before.contains(from) || *name == label || name == TIME;
                    if !known || (is_head && *name != label) {
                        return Err(refuse(format!(
                            "`{}` reads `{name}` from outside its block",
                            layers[end].name
                        )));
                    }
                    name.clone()
                }
            };
            if !reads.contains(&name) {
                reads.push(name);
            }
        }
        if !reads.contains(&label) {
            return Err(refuse(format!(
                "`{}` does not read `{label}`",
                layers[end].name
            )));
        }
        let parameters = trainable(&range);
        if parameters.is_empty() {
            return Err(refuse(format!(
                "`{}` has nothing to train",
                layers[end].name
            )));
        }
        pieces.push(Piece {
            parameters,
            width: layers[end].out_shape.iter().product(),
            layers: range,
            reads,
            label: std::mem::replace(&mut label, layers[end].name.clone()),
        });
        start = end + 1;
    }
    let Some(head) = pieces.pop() else {
        return Err(refuse("nothing follows the last block".into()));
    };
    let used = |i: &u32| {
        let name = &layers[*i as usize].name;
        pieces.iter().any(|piece| piece.reads.contains(name))
    };
    let names = before.clone().filter(used);
    Ok(Layout {
        names: names.map(|i| layers[i as usize].name.clone()).collect(),
        head,
        width: layers[noise].out_shape.iter().product(),
        time: place(TIME).map(|at| layers[at].out_shape.iter().product()),
        blocks: pieces,
        before,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use espalier_sdk::Dtype;

    /// Layers as (name, kind, what it reads); `w:` before a kind gives it a trainable weight.
    fn model(layers: &[(&str, &str, &[u32])]) -> Result<Layout, Error> {
        let mut infos = Vec::new();
        let mut parameters = Vec::new();
        for (i, (name, kind, reads)) in layers.iter().enumerate() {
            let inputs = match reads {
                [] => vec![LayerInput::Field("inputs".into())],
                reads => reads.iter().map(|&from| LayerInput::Layer(from)).collect(),
            };
            infos.push(LayerInfo {
                index: i as u32,
                name: name.to_string(),
                kind: kind.trim_start_matches("w:").to_string(),
                inputs,
                parameters: Vec::new(),
                in_shape: vec![4],
                out_shape: vec![3],
                macs: 0,
                settings: Vec::new(),
            });
            if kind.starts_with("w:") {
                parameters.push(ParameterInfo {
                    name: format!("{name}.weight"),
                    kind: Kind::Weight,
                    layer: Some(i as u32),
                    shape: vec![3, 4],
                    dtype: Dtype::F32,
                    trainable: true,
                    group: String::new(),
                });
            }
        }
        divide(&infos, &parameters)
    }

    const TWO: [(&str, &str, &[u32]); 7] = [
        ("x", "flatten", &[]),
        ("noise", "linear", &[0]),
        ("c1", "concat", &[0, 1]),
        ("block1", "w:linear", &[2]),
        ("c2", "concat", &[0, 3]),
        ("block2", "w:linear", &[4]),
        ("head", "w:linear", &[5]),
    ];

    #[test]
    fn blocks_begin_after_the_block_before_them() {
        let layout = model(&TWO).unwrap();
        let ranges: Vec<_> = layout.blocks.iter().map(|b| b.layers.clone()).collect();
        assert_eq!(ranges, [2..4, 4..6]);
        assert_eq!(layout.head.layers, 6..7);
        assert_eq!(layout.blocks[0].reads, ["x", "noise"]);
        assert_eq!(layout.blocks[1].label, "block1");
        assert_eq!(layout.blocks[1].parameters, ["block2.weight"]);
        assert_eq!((layout.before, layout.time), (0..1, None));
    }

    #[test]
    fn models_of_another_form_are_refused_with_what_is_wrong() {
        let wrong = |at: usize, layer: (&'static str, &'static str, &'static [u32])| {
            let mut layers = TWO;
            layers[at] = layer;
            model(&layers).unwrap_err().message
        };
        assert!(wrong(1, ("other", "linear", &[0])).contains("called `noise`"));
        assert!(wrong(1, ("noise", "w:linear", &[0])).contains("no frozen linear"));
        assert!(wrong(0, ("x", "w:linear", &[])).contains("belongs to no block"));
        assert!(wrong(4, ("c2", "concat", &[0, 1])).contains("reads `noise`"));
        assert!(wrong(4, ("c2", "concat", &[0])).contains("does not read `block1`"));
        assert!(wrong(5, ("block2", "linear", &[4])).contains("nothing to train"));
    }
}
