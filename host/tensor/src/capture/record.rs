//! What kernels say while a step is recorded.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Call, MapKernel};
use crate::layout::Layout;
use crate::tensor::Tensor;

/// What an instruction computes, comparable: name, attributes, and the function of a map.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(super) op: &'static str,
    map: Option<TypeId>,
    pub(super) words: Vec<u64>,
}

impl Key {
    pub(crate) fn new(op: &'static str, words: &[u64]) -> Key {
        Key {
            op,
            map: None,
            words: words.to_vec(),
        }
    }

    /// A map of the type `M`.
    pub(crate) fn map<M: 'static>(op: &'static str, words: Vec<u64>) -> Key {
        Key {
            op,
            map: Some(TypeId::of::<M>()),
            words,
        }
    }
}

/// One side of a map.
pub(crate) enum MapSide<'a> {
    Tensor(&'a Tensor),
    Number(f64),
}

/// A value seen through a layout. For a value that the program makes, the layout is that of the value's
/// dense elements; for a source, offsets count from the source's first element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    pub(super) value: u32,
    pub(super) layout: Layout,
}

/// Where a map's side comes from: an operand by its place in the instruction's list, or a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Side {
    Operand(usize),
    Number(f64),
}

/// What a map has beside its call.
pub(super) struct MapWork {
    pub(super) kernel: Option<MapKernel>,
    pub(super) sides: Vec<Side>,
}

/// One instruction.
pub(super) struct Instruction {
    pub(super) key: Key,
    pub(super) inputs: Vec<Operand>,
    pub(super) outputs: Vec<u32>,
    pub(super) call: Call,
    pub(super) map: Option<MapWork>,
    /// How many effects came before it.
    pub(super) part: u32,
}

/// Where a value's elements come from.
pub(super) enum Origin {
    Made,
    Constant(Tensor),
    /// A source's number and the part in which it was declared.
    Source(u32, u32),
}

/// A tensor of the program: dense, of this shape and element type.
pub(super) struct Value {
    pub(super) origin: Origin,
    pub(super) like: Layout,
    pub(super) dtype: crate::dtype::DType,
}

/// What is known of a storage.
enum Seen {
    Value(u32),
    /// Sources that lie in it: offset, elements, value.
    Sources(Vec<(usize, usize, u32)>),
    /// A parameter's value, which the next effect may change in place.
    Parameter(u32),
    /// What was a parameter's value until an effect.
    Stale,
    /// Made by an operation that has not noted it.
    Unknown(&'static str),
}

/// A recording.
pub(crate) struct Recorder {
    most: usize,
    /// By the mark of the storage. Marks are used once, so what an earlier recording or another thread left on a
    /// storage means nothing here.
    seen: HashMap<u64, Seen>,
    pub(super) values: Vec<Value>,
    pub(super) instructions: Vec<Instruction>,
    pub(super) effects: Vec<Vec<Operand>>,
    pub(super) sources: Vec<u32>,
    pub(super) refused: Option<String>,
}

impl Recorder {
    pub(super) fn new(most: usize) -> Recorder {
        Recorder {
            most,
            seen: HashMap::new(),
            values: Vec::new(),
            instructions: Vec::new(),
            effects: Vec::new(),
            sources: Vec::new(),
            refused: None,
        }
    }

    pub(super) fn refuse(&mut self, reason: String) {
        if self.refused.is_none() {
            self.refused = Some(reason);
            // Nothing of it will be used.
            self.instructions.clear();
        }
    }

    fn full(&mut self) -> bool {
        if self.instructions.len() >= self.most || self.seen.len() >= 8 * self.most {
            self.refuse(format!("it has more than {} instructions", self.most));
        }
        self.refused.is_some()
    }

    fn know(&mut self, t: &Tensor, seen: Seen) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if !self.seen.contains_key(&t.storage_mark()) {
            t.mark_storage(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        self.seen.insert(t.storage_mark(), seen);
    }

    pub(super) fn made(&mut self, op: &'static str, t: &Tensor) {
        if !self.full() {
            self.know(t, Seen::Unknown(op));
        }
    }

    fn value(&mut self, t: &Tensor, origin: Origin) -> u32 {
        self.values.push(Value {
            origin,
            like: *t.layout(),
            dtype: t.dtype(),
        });
        (self.values.len() - 1) as u32
    }

    pub(super) fn constant(&mut self, t: &Tensor) {
        if !self.full() {
            let value = self.value(t, Origin::Constant(t.detach()));
            self.know(t, Seen::Value(value));
        }
    }

    pub(super) fn source(&mut self, t: &Tensor) -> u32 {
        let (offset, len) = (t.layout().offset, t.numel());
        if !t.is_contiguous() {
            self.refuse("one of its inputs is a view with gaps; pass a contiguous tensor".into());
        }
        match self.seen.get(&t.storage_mark()) {
            Some(Seen::Sources(all)) => {
                if let Some((_, _, value)) = all.iter().find(|(o, l, _)| (*o, *l) == (offset, len))
                    && let Origin::Source(number, _) = self.values[*value as usize].origin
                {
                    return number;
                }
            }
            Some(_) => self.refuse("it reads a parameter that the step itself has made".into()),
            None => {}
        }
        let number = self.sources.len() as u32;
        let part = self.effects.len() as u32;
        let value = self.value(t, Origin::Source(number, part));
        self.sources.push(value);
        match self.seen.get_mut(&t.storage_mark()) {
            Some(Seen::Sources(all)) => all.push((offset, len, value)),
            Some(_) => {}
            None => self.know(t, Seen::Sources(vec![(offset, len, value)])),
        }
        number
    }

    /// As [`source`](Recorder::source), for a value that effects may change in place: it is the source until the
    /// next effect. A storage holds one parameter.
    pub(super) fn parameter(&mut self, t: &Tensor) -> u32 {
        if !t.is_contiguous() || t.layout().offset != 0 {
            self.refuse("a parameter is a view into something else".into());
        }
        match self.seen.get(&t.storage_mark()) {
            Some(&Seen::Parameter(value)) => {
                if let Origin::Source(number, _) = self.values[value as usize].origin {
                    return number;
                }
            }
            Some(Seen::Stale) | None => {}
            Some(_) => self.refuse("a parameter's value is something the step has made".into()),
        }
        let number = self.sources.len() as u32;
        let part = self.effects.len() as u32;
        let value = self.value(t, Origin::Source(number, part));
        self.sources.push(value);
        self.know(t, Seen::Parameter(value));
        number
    }

    /// The tensor as an operand; none, and the recording ends, where nothing is known of it.
    pub(super) fn operand(&mut self, t: &Tensor) -> Option<Operand> {
        let layout = *t.layout();
        let reason = match self.seen.get(&t.storage_mark()) {
            Some(&(Seen::Value(value) | Seen::Parameter(value))) => {
                return Some(Operand { value, layout });
            }
            Some(Seen::Sources(all)) => {
                let (low, high) = reach(&layout);
                let within = |(offset, len, _): &&(usize, usize, u32)| {
                    t.numel() == 0 || (low >= *offset && high < offset + len)
                };
                if let Some(&(offset, _, value)) = all.iter().find(within) {
                    let offset = layout.offset.saturating_sub(offset);
                    return Some(Operand {
                        value,
                        layout: Layout { offset, ..layout },
                    });
                }
                "it reads beside one of its inputs".to_string()
            }
            Some(Seen::Unknown(op)) => format!("`{op}` cannot be captured"),
            Some(Seen::Stale) => {
                "it reads the value that a parameter had before an update".to_string()
            }
            None => "it reads a tensor made before the step that is neither an input nor a \
                     parameter; pass it as an input"
                .to_string(),
        };
        self.refuse(reason);
        None
    }

    fn operands(&mut self, inputs: &[&Tensor]) -> Option<Vec<Operand>> {
        inputs.iter().map(|t| self.operand(t)).collect()
    }

    pub(super) fn note(&mut self, key: Key, inputs: &[&Tensor], outs: &[&Tensor], call: Call) {
        if self.full() {
            return;
        }
        if let Some(inputs) = self.operands(inputs) {
            self.push(key, inputs, outs, call, None);
        }
    }

    pub(super) fn note_map(
        &mut self,
        key: Key,
        sides: &[MapSide],
        out: &Tensor,
        kernel: Option<MapKernel>,
        call: Call,
    ) {
        if self.full() {
            return;
        }
        let mut inputs = Vec::new();
        let mut places = Vec::new();
        for side in sides {
            match side {
                MapSide::Number(x) => places.push(Side::Number(*x)),
                MapSide::Tensor(t) => {
                    let Some(operand) = self.operand(t) else {
                        return;
                    };
                    places.push(Side::Operand(inputs.len()));
                    inputs.push(operand);
                }
            }
        }
        let map = MapWork {
            kernel,
            sides: places,
        };
        self.push(key, inputs, &[out], call, Some(map));
    }

    fn push(
        &mut self,
        key: Key,
        inputs: Vec<Operand>,
        outs: &[&Tensor],
        call: Call,
        map: Option<MapWork>,
    ) {
        let constant =
            |o: &Operand| matches!(self.values[o.value as usize].origin, Origin::Constant(_));
        if inputs.iter().all(constant) {
            // Constants alone make a constant.
            for out in outs {
                self.constant(out);
            }
            return;
        }
        let mut outputs = Vec::with_capacity(outs.len());
        for out in outs {
            if !out.is_contiguous() || out.layout().offset != 0 {
                self.refuse(format!("`{}` cannot be captured", key.op));
            }
            let value = self.value(out, Origin::Made);
            self.know(out, Seen::Value(value));
            outputs.push(value);
        }
        self.instructions.push(Instruction {
            key,
            inputs,
            outputs,
            call,
            map,
            part: self.effects.len() as u32,
        });
    }

    pub(super) fn effect(&mut self, operands: &[&Tensor]) -> u32 {
        let stop = self.effects.len() as u32;
        let operands = self.operands(operands).unwrap_or_default();
        self.effects.push(operands);
        for seen in self.seen.values_mut() {
            if matches!(seen, Seen::Parameter(_)) {
                *seen = Seen::Stale;
            }
        }
        stop
    }
}

/// The lowest and the highest place that a layout with elements reads.
fn reach(layout: &Layout) -> (usize, usize) {
    let far = layout
        .shape
        .iter()
        .zip(layout.strides.iter())
        .map(|(&size, &stride)| size.saturating_sub(1) * stride)
        .sum::<usize>();
    (layout.offset, layout.offset + far)
}

impl Key {
    /// Adds a map's sides, so that `1 - x` and `x - 1` differ.
    pub(super) fn sides(&mut self, sides: &[Side]) {
        for side in sides {
            match side {
                Side::Operand(at) => self.words.extend([0, *at as u64]),
                Side::Number(x) => self.words.extend([1, x.to_bits()]),
            }
        }
    }
}
