//! A model whose layers an architecture declares and computes: the host knows the list, not the arithmetic.
//!
//! The list is checked once, here; a forward pass is checked before and after the plugin computes it, so that a
//! trainer meets the same words as with built-in layers.

use std::ops::Range;

use super::{
    DType, Error, FieldShape, Forward, Input, Layer, LayerInfo, Model, Op, ParameterSet, Result,
    Tensor, refuse, size_of_sample,
};

/// Most layers that an architecture declares: names are compared with each other.
const MOST_LAYERS: usize = 1024;

impl Model {
    /// Checks the layers that an architecture declared, and says to each parameter which layer it belongs to: the
    /// first that names it.
    ///
    /// # Errors
    /// Names the first layer that is wrong and what was expected: an index that is not its place, a name that
    /// stands twice, an input that does not come before, a shape that is not its input's, a parameter that was not
    /// created, or one that no layer names.
    pub fn declared(
        layers: Vec<LayerInfo>,
        fields: &[FieldShape],
        parameters: &mut ParameterSet,
    ) -> Result<Model> {
        if layers.is_empty() {
            return Err(Error::Empty);
        }
        let doubles = fields.iter().any(|field| field.dtype == DType::F64);
        let mut model = Model {
            layers: Vec::new(),
            fields: fields.to_vec(),
            dtype: if doubles { DType::F64 } else { DType::F32 },
        };
        for (index, info) in layers.into_iter().enumerate() {
            if let Some(problem) = model.unfit(index, &info, parameters) {
                let layer = info.name;
                return Err(Error::Declared { layer, problem });
            }
            for name in &info.parameters {
                parameters.belongs_to(name, index as u32)?;
            }
            for input in &info.inputs {
                if let Input::Layer(read) = input {
                    model.layers[*read as usize].last_use = index;
                }
            }
            model.layers.push(Layer {
                info,
                op: Op::Declared,
                out_dtype: model.dtype,
                last_use: index,
            });
        }
        match parameters
            .infos()
            .into_iter()
            .find(|info| info.layer.is_none())
        {
            None => Ok(model),
            Some(alone) => Err(Error::Declared {
                layer: model.layers[0].info.name.clone(),
                problem: format!(
                    "the parameter `{}` was created, and no layer names it; list it in the `parameters` of the layers \
                     that use it",
                    alone.name
                ),
            }),
        }
    }

    /// What is wrong with the next layer.
    fn unfit(&self, index: usize, info: &LayerInfo, parameters: &ParameterSet) -> Option<String> {
        let name = &info.name;
        if index >= MOST_LAYERS {
            return Some(format!("a model has at most {MOST_LAYERS} layers"));
        }
        if info.index as usize != index {
            return Some(format!(
                "its index is {}, expected its place in the list, {index}",
                info.index
            ));
        }
        if name.is_empty() || name.len() > 256 || name.contains(['/', '.']) {
            return Some("a name has 1 to 256 bytes, without `/` and `.`".into());
        }
        if name.chars().any(char::is_control) || info.kind.chars().any(char::is_control) {
            return Some("names and kinds hold no control characters".into());
        }
        if info.kind.is_empty() || info.kind.len() > 256 {
            return Some("its kind is a word of 1 to 256 bytes".into());
        }
        if self.layers.iter().any(|other| other.info.name == *name) {
            return Some("the name stands twice; names must differ".into());
        }
        if ["input", "inputs", "targets"].contains(&name.as_str())
            || self.fields.iter().any(|field| field.name == *name)
        {
            return Some("the name means a field of the batch; choose another".into());
        }
        let Some(first) = info.inputs.first() else {
            return Some(
                "it reads nothing; expected a field of the batch or an earlier layer".into(),
            );
        };
        for input in &info.inputs {
            match input {
                Input::Layer(read) if (*read as usize) < index => {}
                Input::Layer(read) => {
                    return Some(format!(
                        "it reads layer {read}, which does not come before it"
                    ));
                }
                Input::Field(field) if self.fields.iter().any(|known| known.name == *field) => {}
                Input::Field(field) => {
                    let known: Vec<&str> = self
                        .fields
                        .iter()
                        .map(|field| field.name.as_str())
                        .collect();
                    return Some(format!(
                        "it reads the field `{field}`; the model is given {}",
                        known.join(", ")
                    ));
                }
            }
        }
        let (given, _) = self.source(first);
        if info.in_shape != given {
            return Some(format!(
                "its input has shape {given:?} a sample, it says {:?}",
                info.in_shape
            ));
        }
        if info.out_shape.contains(&0) || size_of_sample(&info.out_shape).is_none() {
            return Some(format!(
                "its output {:?} a sample is empty or too large",
                info.out_shape
            ));
        }
        let missing = info
            .parameters
            .iter()
            .find(|name| !parameters.contains(name));
        missing.map(|missing| {
            format!("it names the parameter `{missing}`, which `build` did not create")
        })
    }

    /// Whether an architecture computes the layers.
    pub fn is_declared(&self) -> bool {
        self.layers
            .first()
            .is_some_and(|layer| matches!(layer.op, Op::Declared))
    }

    /// What the layers of a range read and do not compute themselves, under the names of fields and layers.
    ///
    /// # Errors
    /// A range, override or wanted name that does not fit; an input that is missing or has another shape.
    pub fn prepare(
        &self,
        range: Range<usize>,
        inputs: &[(String, Tensor)],
        want: &[String],
    ) -> Result<Vec<(String, Tensor)>> {
        self.check_range(range.start, range.end)?;
        for name in want {
            self.find_wanted(name, range.start, range.end)?;
        }
        let entry = self.entry(range.start);
        let mut read: Vec<(String, Tensor)> = Vec::new();
        for layer in &self.layers[range.clone()] {
            for input in &layer.info.inputs {
                let computed = matches!(input, Input::Layer(at) if *at as usize >= range.start);
                let name = self.source_name(input);
                if computed || read.iter().any(|(known, _)| known == name) {
                    continue;
                }
                let found = self.given(inputs, input, entry, layer)?;
                // A series may be shorter; whether the architecture minds, it says itself.
                let (expected, dtype) = self.source(input);
                let series = expected.len() == 2 || dtype == DType::I64;
                if !series && found.shape()[1..] != *expected {
                    return refuse(format!(
                        "layer `{}` reads `{name}`: found shape {:?}, expected [samples, {expected:?}]",
                        layer.info.name,
                        found.shape()
                    ));
                }
                if let Some((first, other)) = read.first()
                    && other.shape().first() != found.shape().first()
                {
                    return refuse(format!(
                        "`{first}` has shape {:?} and `{name}` {:?}; expected as many samples in both",
                        other.shape(),
                        found.shape()
                    ));
                }
                read.push((name.to_owned(), found));
            }
        }
        Ok(read)
    }

    /// Refuses what an architecture gave where it is not what the layers promise.
    ///
    /// # Errors
    /// An output of another shape or dtype; outputs other than those that were wanted.
    pub fn check_forward(
        &self,
        range: Range<usize>,
        inputs: &[(String, Tensor)],
        want: &[String],
        result: &Forward,
    ) -> Result<()> {
        let samples = inputs.first().map(|(_, t)| t.shape()[0]);
        let steps = inputs.first().and_then(|(_, t)| t.shape().get(1)).copied();
        let check = |layer: &Layer, t: &Tensor| {
            let declared = &layer.info.out_shape;
            let fits = match (t.shape(), declared.as_slice()) {
                ([n, rest @ ..], declared) if Some(*n) == samples => {
                    let shorter = |(found, most): (&usize, &usize)| {
                        found == most || (found < most && Some(*found) == steps)
                    };
                    rest.len() == declared.len()
                        && rest.iter().zip(declared).take(1).all(shorter)
                        && rest.get(1..) == declared.get(1..)
                }
                _ => false,
            };
            if fits && t.dtype() == self.dtype {
                return Ok(());
            }
            refuse(format!(
                "the architecture gave {} {:?} for layer `{}`, expected {} [{}{}]",
                t.dtype(),
                t.shape(),
                layer.info.name,
                self.dtype,
                samples.map_or("samples".into(), |n| n.to_string()),
                declared
                    .iter()
                    .map(|size| format!(", {size}"))
                    .collect::<String>()
            ))
        };
        check(&self.layers[range.end - 1], &result.output)?;
        if !want.iter().eq(result.extra.iter().map(|(name, _)| name)) {
            let missing = want
                .iter()
                .find(|name| result.extra.iter().all(|(given, _)| given != *name));
            return refuse(match missing {
                Some(name) => format!("want `{name}`: the architecture does not give it"),
                None => "the architecture gave other outputs than were wanted".into(),
            });
        }
        for (name, t) in &result.extra {
            if let Some(layer) = self.layers.iter().find(|layer| layer.info.name == *name) {
                check(layer, t)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::parameters::Kind;

    fn fields() -> Vec<FieldShape> {
        vec![FieldShape {
            name: "inputs".into(),
            shape: vec![4],
            dtype: DType::F32,
        }]
    }

    fn weights() -> ParameterSet {
        let mut set = ParameterSet::new();
        for name in ["a", "b"] {
            let zeros = Tensor::zeros(&[2], DType::F32).unwrap();
            set.create(name, Kind::Weight, None, zeros, true, String::new())
                .unwrap();
        }
        set
    }

    fn layer(index: u32, inputs: Vec<Input>, parameter: &str, shapes: [usize; 2]) -> LayerInfo {
        LayerInfo {
            index,
            name: format!("layer{index}"),
            kind: "dense".into(),
            inputs,
            parameters: vec![parameter.into()],
            in_shape: vec![shapes[0]],
            out_shape: vec![shapes[1]],
            macs: 1,
            settings: Vec::new(),
        }
    }

    fn two() -> Vec<LayerInfo> {
        vec![
            layer(0, vec![Input::Field("inputs".into())], "a", [4, 3]),
            layer(1, vec![Input::Layer(0)], "b", [3, 2]),
        ]
    }

    #[test]
    fn parameters_belong_to_the_first_layer_that_names_them() {
        let mut set = weights();
        let mut layers = two();
        layers[1].parameters = vec!["a".into(), "b".into()];
        let model = Model::declared(layers, &fields(), &mut set).unwrap();
        assert!(model.is_declared() && model.len() == 2);
        let of = set.infos().into_iter().map(|info| info.layer);
        assert_eq!(of.collect::<Vec<_>>(), [Some(0), Some(1)]);
    }

    #[test]
    fn layers_that_cannot_be_are_refused_in_words() {
        type Change = fn(&mut Vec<LayerInfo>);
        let cases: [(Change, &str); 10] = [
            (|l| l.clear(), "the model has no layers"),
            (
                |l| l[1].index = 0,
                "its index is 0, expected its place in the list, 1",
            ),
            (|l| l[1].name = "layer0".into(), "the name stands twice"),
            (
                |l| l[1].name = "inputs".into(),
                "the name means a field of the batch",
            ),
            (|l| l[1].name = "a/b".into(), "without `/` and `.`"),
            (
                |l| l[1].inputs = vec![Input::Layer(1)],
                "reads layer 1, which does not come before it",
            ),
            (
                |l| l[1].inputs = vec![Input::Field("targets".into())],
                "reads the field `targets`; the model is given inputs",
            ),
            (
                |l| l[1].in_shape = vec![4],
                "its input has shape [3] a sample, it says [4]",
            ),
            (
                |l| l[1].parameters = vec!["c".into()],
                "`c`, which `build` did not create",
            ),
            (
                |l| l[1].parameters.clear(),
                "`b` was created, and no layer names it",
            ),
        ];
        for (change, words) in cases {
            let mut layers = two();
            change(&mut layers);
            let error = Model::declared(layers, &fields(), &mut weights()).unwrap_err();
            assert!(
                error.to_string().contains(words),
                "{error}, expected {words}"
            );
        }
    }

    #[test]
    fn a_range_is_given_what_it_reads_and_nothing_else() {
        let model = Model::declared(two(), &fields(), &mut weights()).unwrap();
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32).unwrap();
        let batch = [
            ("inputs".to_string(), t(&[5, 4])),
            ("other".into(), t(&[5])),
        ];
        let names = |given: Vec<(String, Tensor)>| {
            given.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(model.prepare(0..2, &batch, &[]).unwrap()), ["inputs"]);
        let hidden = [("input".to_string(), t(&[5, 3]))];
        assert_eq!(
            names(model.prepare(1..2, &hidden, &[]).unwrap()),
            ["layer0"]
        );
        let error = model.prepare(1..2, &batch, &[]).unwrap_err().to_string();
        assert!(
            error.contains("reads `layer0`, which is not given"),
            "{error}"
        );
        let wrong = [("inputs".to_string(), t(&[5, 3]))];
        assert!(model.prepare(0..2, &wrong, &[]).is_err());
        assert!(model.prepare(0..3, &batch, &[]).is_err());
        let unknown = ["layer7".to_string()];
        assert!(model.prepare(0..2, &batch, &unknown).is_err());
    }

    #[test]
    fn what_an_architecture_gives_is_held_to_what_it_declared() {
        let model = Model::declared(two(), &fields(), &mut weights()).unwrap();
        let t = |shape: &[usize]| Tensor::zeros(shape, DType::F32).unwrap();
        let batch = [("inputs".to_string(), t(&[5, 4]))];
        let gave = |output: Tensor, extra: Vec<(String, Tensor)>, want: &[&str]| {
            let want: Vec<String> = want.iter().map(|name| name.to_string()).collect();
            let result = Forward { output, extra };
            let checked = model.check_forward(0..2, &batch, &want, &result);
            checked.err().map(|error| error.to_string())
        };
        assert_eq!(gave(t(&[5, 2]), Vec::new(), &[]), None);
        let error = gave(t(&[5, 3]), Vec::new(), &[]).unwrap();
        assert!(
            error.contains("gave f32 [5, 3] for layer `layer1`, expected f32 [5, 2]"),
            "{error}"
        );
        assert!(gave(t(&[4, 2]), Vec::new(), &[]).is_some());
        let error = gave(t(&[5, 2]), Vec::new(), &["layer0/x"]).unwrap();
        assert!(
            error.contains("want `layer0/x`: the architecture does not give it"),
            "{error}"
        );
        let extra = vec![("layer0".to_string(), t(&[5, 2]))];
        assert!(gave(t(&[5, 2]), extra, &["layer0"]).is_some());
    }
}
