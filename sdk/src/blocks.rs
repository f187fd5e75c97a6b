//! A model as a chain of blocks, for trainers that work layer by layer.
//!
//! A block is a layer with a weight and the layers without one that follow it (activation, normalisation,
//! pooling, dropout). What precedes the first weight belongs to the first block. Where a later layer reads
//! across a border, as a residual connection does, the blocks on both sides are one.

use std::ops::Range;

use crate::model::{LayerInfo, LayerInput, Mode, Model};
use crate::parameters::{Kind, ParameterInfo};
use crate::run::Error;
use crate::tensor::Tensor;

/// Some layers in a row that read nothing but their common input.
///
/// ```no_run
/// # use espalier_sdk::blocks::blocks;
/// # use espalier_sdk::Model;
/// for block in blocks(&Model::main()) {
///     espalier_sdk::log::info(format!("layers {:?}, {} numbers out", block.layers, block.width()));
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Block {
    /// Places of its layers.
    pub layers: Range<u32>,
    /// Where it reads from: a layer before it, or a field of the batch.
    pub reads: String,
    /// Names of its trainable parameters, all kinds.
    pub parameters: Vec<String>,
    /// Names of its layers with their kinds.
    pub kinds: Vec<(String, String)>,
    /// Shape of one sample going in.
    pub in_shape: Vec<u32>,
    /// Shape of one sample coming out.
    pub out_shape: Vec<u32>,
}

impl Block {
    /// Numbers coming out for one sample.
    ///
    /// ```no_run
    /// # use espalier_sdk::blocks::Block;
    /// # use espalier_sdk::Tensor;
    /// # fn f(block: &Block) {
    /// let goodness = Tensor::zeros(&[64, block.width()]).square().mean(&[1]);
    /// # }
    /// ```
    pub fn width(&self) -> u32 {
        self.out_shape.iter().product()
    }

    /// This block and the next as one.
    ///
    /// ```no_run
    /// # use espalier_sdk::blocks::Block;
    /// # fn f(a: Block, b: Block) {
    /// let both = a.join(&b);
    /// assert_eq!(both.layers.end, b.layers.end);
    /// # }
    /// ```
    pub fn join(mut self, next: &Block) -> Block {
        self.layers.end = next.layers.end;
        self.parameters.extend(next.parameters.iter().cloned());
        self.kinds.extend(next.kinds.iter().cloned());
        self.out_shape = next.out_shape.clone();
        self
    }

    /// `[n, ..]` in the shape that the block reads.
    ///
    /// ```no_run
    /// # use espalier_sdk::blocks::Block;
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # fn f(block: &Block, rows: &Tensor) {
    /// let y = block.forward(&Model::main(), &block.shaped(rows), Mode::Train);
    /// # }
    /// ```
    pub fn shaped(&self, x: &Tensor) -> Tensor {
        let dims = [x.size(0)]
            .iter()
            .chain(&self.in_shape)
            .map(|&n| n as i32)
            .collect::<Vec<_>>();
        x.reshape(&dims)
    }

    /// Runs the block on `[n, ..]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::blocks::Block;
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # fn f(block: &Block, x: &Tensor) {
    /// let y = block.forward(&Model::main(), x, Mode::Train);
    /// # }
    /// ```
    pub fn forward(&self, model: &Model, x: &Tensor, mode: Mode) -> Tensor {
        model
            .pass(self.layers.clone(), mode)
            .input(&self.reads, x)
            .run()
    }
}

/// The blocks of a model, in order.
///
/// ```no_run
/// # use espalier_sdk::blocks::blocks;
/// # use espalier_sdk::{Mode, Model, Tensor};
/// # fn f(x: &Tensor) {
/// let model = Model::main();
/// let mut x = x.clone();
/// for block in blocks(&model) {
///     x = block.forward(&model, &x.detach(), Mode::Train);
/// }
/// # }
/// ```
pub fn blocks(model: &Model) -> Vec<Block> {
    let (layers, parameters) = (model.layers(), model.parameters().list());
    cut(&layers, &parameters)
        .into_iter()
        .map(|range| {
            let inside = &layers[range.start as usize..range.end as usize];
            let trained = |p: &&ParameterInfo| {
                p.trainable
                    && p.kind != Kind::Buffer
                    && p.layer.is_some_and(|layer| range.contains(&layer))
            };
            let reads = match inside.first().and_then(|layer| layer.inputs.first()) {
                Some(LayerInput::Field(field)) => field.clone(),
                Some(LayerInput::Layer(from)) => layers[*from as usize].name.clone(),
                None => "input".to_string(),
            };
            Block {
                reads,
                parameters: parameters
                    .iter()
                    .filter(trained)
                    .map(|p| p.name.clone())
                    .collect(),
                kinds: inside
                    .iter()
                    .map(|layer| (layer.name.clone(), layer.kind.clone()))
                    .collect(),
                in_shape: inside
                    .first()
                    .map(|layer| layer.in_shape.clone())
                    .unwrap_or_default(),
                out_shape: inside
                    .last()
                    .map(|layer| layer.out_shape.clone())
                    .unwrap_or_default(),
                layers: range,
            }
        })
        .collect()
}

/// The blocks before the last one, and the last one, which must give one number a class.
///
/// ```no_run
/// # use espalier_sdk::blocks::{Block, hidden_and_head};
/// # use espalier_sdk::{Error, Model};
/// # fn f(classes: u32) {
/// fn start(classes: u32) -> Result<Vec<Block>, Error> {
///     let (hidden, head) = hidden_and_head(&Model::main(), classes)?;
///     assert_eq!(head.width(), classes);
///     Ok(hidden)
/// }
/// # }
/// ```
pub fn hidden_and_head(model: &Model, classes: u32) -> Result<(Vec<Block>, Block), Error> {
    if classes == 0 {
        return Err(Error::incompatible(
            "this trainer classifies; the targets of this data are numbers",
        ));
    }
    let mut hidden = blocks(model);
    match hidden.pop() {
        Some(head) if head.out_shape == [classes] && !head.parameters.is_empty() => {
            Ok((hidden, head))
        }
        Some(head) => Err(Error::incompatible(format!(
            "the model must end in a trainable layer with one output a class ({classes}); its last block gives {:?}",
            head.out_shape
        ))),
        None => Err(Error::incompatible("the model has no layers")),
    }
}

/// Ranges of layers that begin at a weight and that nothing later reads across.
fn cut(layers: &[LayerInfo], parameters: &[ParameterInfo]) -> Vec<Range<u32>> {
    let has_weight = |index: u32| {
        parameters
            .iter()
            .any(|p| p.layer == Some(index) && matches!(p.kind, Kind::Weight | Kind::Embedding))
    };
    let crossed = |border: u32| {
        layers[border as usize..]
            .iter()
            .flat_map(|layer| &layer.inputs)
            .any(|input| match input {
                LayerInput::Layer(from) => from + 1 < border,
                LayerInput::Field(_) => true,
            })
    };
    let count = layers.len() as u32;
    let mut starts = vec![0];
    let mut weight_before = false;
    for index in 0..count {
        if has_weight(index) {
            if weight_before && !crossed(index) {
                starts.push(index);
            }
            weight_before = true;
        }
    }
    let ends = starts.iter().skip(1).copied().chain([count]);
    starts
        .iter()
        .copied()
        .zip(ends)
        .map(|(start, end)| start..end)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    /// A chain of layers with some extra edges, and weights where the kind has one.
    fn chain(kinds: &[&str], extra: &[(usize, u32)]) -> (Vec<LayerInfo>, Vec<ParameterInfo>) {
        let mut layers = Vec::new();
        let mut parameters = Vec::new();
        for (i, kind) in kinds.iter().enumerate() {
            let mut inputs = match i {
                0 => vec![LayerInput::Field("inputs".into())],
                _ => vec![LayerInput::Layer(i as u32 - 1)],
            };
            inputs.extend(
                extra
                    .iter()
                    .filter(|(at, _)| *at == i)
                    .map(|(_, from)| LayerInput::Layer(*from)),
            );
            layers.push(LayerInfo {
                index: i as u32,
                name: format!("{kind}{i}"),
                kind: kind.to_string(),
                inputs,
                parameters: Vec::new(),
                in_shape: vec![4],
                out_shape: vec![4],
                macs: 0,
                settings: Vec::new(),
            });
            let parameter_kind = match *kind {
                "linear" => Kind::Weight,
                "batch-norm" => Kind::Norm,
                _ => continue,
            };
            parameters.push(ParameterInfo {
                name: format!("{kind}{i}.weight"),
                kind: parameter_kind,
                layer: Some(i as u32),
                shape: vec![4],
                dtype: Dtype::F32,
                trainable: true,
                group: String::new(),
            });
        }
        (layers, parameters)
    }

    #[test]
    fn a_block_runs_from_a_weight_to_the_next() {
        let (layers, parameters) = chain(
            &[
                "flatten",
                "linear",
                "batch-norm",
                "relu",
                "linear",
                "relu",
                "linear",
            ],
            &[],
        );
        assert_eq!(cut(&layers, &parameters), [0..4, 4..6, 6..7]);
    }

    #[test]
    fn a_residual_connection_joins_the_blocks_it_spans() {
        let (layers, parameters) = chain(&["linear", "relu", "linear", "add", "linear"], &[(3, 1)]);
        assert_eq!(cut(&layers, &parameters), [0..2, 2..4, 4..5]);
        let (layers, parameters) =
            chain(&["linear", "linear", "linear", "add", "linear"], &[(3, 0)]);
        assert_eq!(cut(&layers, &parameters), [0..1, 1..4, 4..5]);
    }

    #[test]
    fn a_model_without_weights_is_one_block() {
        let (layers, parameters) = chain(&["flatten", "relu"], &[]);
        let ranges = cut(&layers, &parameters);
        assert_eq!((ranges.len(), ranges[0].clone()), (1, 0..2));
    }
}
