//! From a recording to a program: dead and repeated instructions removed, chains of maps fused, lifetimes
//! worked out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::chain::{Argument, Chain, Link};
use super::record::{Instruction, Key, Operand, Origin, Recorder, Side, Value};
use super::replay::{Program, Slot, SourceSlot, Step, Work};
use crate::dtype::DType;
use crate::layout::{Layout, MAX_RANK, axis_index};
use crate::ops::reduce::SumPlan;
use crate::tensor::Tensor;

/// The most functions of one chain: each but the last needs a register.
const LONGEST_CHAIN: usize = 12;

/// Most bytes of a result whose buffer is kept, and of all of them together.
const KEPT_VALUE: usize = 16 << 10;
const KEPT_BYTES: usize = 512 << 10;

/// A chain as it grows.
struct Draft {
    inputs: Vec<Operand>,
    links: Vec<DraftLink>,
}

struct DraftLink {
    kernel: super::MapKernel,
    arguments: Vec<DraftArgument>,
}

#[derive(Clone)]
enum DraftArgument {
    Input(Argument),
    Number(f32),
    Link(usize),
}

/// An instruction on its way.
struct Planned {
    inputs: Vec<Operand>,
    outputs: Vec<u32>,
    op: &'static str,
    work: PlannedWork,
    part: u32,
}

enum PlannedWork {
    Chain(Draft),
    /// Anything that needs no more planning.
    Ready(Work),
    /// Became part of a later chain.
    Gone,
}

pub(super) fn compile(mut recorder: Recorder, outputs: &[&Tensor]) -> Result<Program, String> {
    let outputs: Vec<Operand> = outputs.iter().filter_map(|t| recorder.operand(t)).collect();
    if let Some(reason) = recorder.refused.take() {
        return Err(reason);
    }
    let Recorder {
        mut values,
        instructions,
        mut effects,
        sources,
        ..
    } = recorder;
    let fingerprint = fingerprint(&values, &instructions, &effects, &outputs);
    let (instructions, renamed) = without_repeats(instructions, values.len());
    let rename = |o: &mut Operand| o.value = renamed[o.value as usize];
    let mut outputs = outputs;
    outputs.iter_mut().for_each(rename);
    effects.iter_mut().flatten().for_each(rename);

    // What somebody reads, from the end.
    let mut uses = vec![0u32; values.len()];
    let kept: Vec<u32> = outputs
        .iter()
        .chain(effects.iter().flatten())
        .map(|o| o.value)
        .collect();
    for &value in &kept {
        // Twice, so that a value that is handed out is never fused away.
        uses[value as usize] += 2;
    }
    let mut live: Vec<Instruction> = Vec::new();
    for instruction in instructions.into_iter().rev() {
        if instruction.outputs.iter().any(|&v| uses[v as usize] > 0) {
            for input in &instruction.inputs {
                uses[input.value as usize] += 1;
            }
            live.push(instruction);
        }
    }
    live.reverse();
    for instruction in &mut live {
        settle(instruction, &mut values);
    }
    uses.resize(values.len(), 0);

    let numel = |v: u32| values[v as usize].like.numel();
    let mut planned: Vec<Planned> = Vec::new();
    let mut maker: HashMap<u32, usize> = HashMap::new();
    for instruction in live {
        let place = planned.len();
        for &output in &instruction.outputs {
            maker.insert(output, place);
        }
        let f32s = instruction
            .inputs
            .iter()
            .map(|o| o.value)
            .chain(instruction.outputs.iter().copied())
            .all(|v| values[v as usize].dtype == DType::F32);
        let Instruction {
            key,
            inputs,
            outputs,
            call,
            map,
            part,
        } = instruction;
        let shape = values[outputs[0] as usize].like.shape;
        let mut next = Planned {
            inputs: inputs.clone(),
            outputs,
            op: key.op,
            work: PlannedWork::Gone,
            part,
        };
        next.work = PlannedWork::Ready(match direct(&key, &next, &values) {
            Some(work) => work,
            None => Work::Call(call),
        });
        if let Some(map) = map
            && let Some(kernel) = map.kernel
            && f32s
        {
            let mut draft = Draft {
                inputs: Vec::new(),
                links: Vec::new(),
            };
            let mut arguments = Vec::new();
            for side in &map.sides {
                let operand = match side {
                    Side::Number(x) => {
                        arguments.push(Some(DraftArgument::Number(*x as f32)));
                        continue;
                    }
                    Side::Operand(at) => inputs[*at],
                };
                let whole = operand.layout.is_dense()
                    && operand.layout.offset == 0
                    && operand.layout.numel() == numel(next.outputs[0])
                    && numel(operand.value) == numel(next.outputs[0]);
                let before = maker.get(&operand.value).copied().filter(|&p| {
                    whole && uses[operand.value as usize] == 1 && planned[p].part == part
                });
                if let Some(before) = before
                    && let PlannedWork::Chain(earlier) = &planned[before].work
                    && earlier.links.len() + draft.links.len() < LONGEST_CHAIN
                {
                    let work = std::mem::replace(&mut planned[before].work, PlannedWork::Gone);
                    if let PlannedWork::Chain(earlier) = work {
                        arguments.push(Some(DraftArgument::Link(draft.absorb(earlier))));
                    }
                    continue;
                }
                let argument = Argument::of(draft.inputs.len(), &operand.layout, &shape);
                draft.inputs.push(operand);
                arguments.push(argument.map(DraftArgument::Input));
            }
            if let Some(arguments) = arguments.into_iter().collect() {
                draft.links.push(DraftLink { kernel, arguments });
                next.inputs = draft.inputs.clone();
                next.work = PlannedWork::Chain(draft);
            } else {
                // Cannot be: a map's operands broadcast to its result.
                return Err(format!(
                    "`{}` reads an operand that does not broadcast",
                    key.op
                ));
            }
        }
        planned.push(next);
    }
    planned.retain(|p| !matches!(p.work, PlannedWork::Gone));
    let mut program = program(planned, values, effects, outputs, &sources, &kept);
    program.fingerprint = fingerprint;
    Ok(program)
}

/// What is worth computing without making tensors of the operands.
fn direct(key: &Key, next: &Planned, values: &[Value]) -> Option<Work> {
    let dtype = |v: &u32| values[*v as usize].dtype;
    let is_f32 = |o: &Operand| dtype(&o.value) == DType::F32;
    let dense = |o: &Operand| o.layout.is_dense();
    let inputs = &next.inputs[..];
    let a = inputs.first()?.layout;
    let results = values[next.outputs[0] as usize].like.numel();
    let f32s = inputs.iter().all(is_f32) && next.outputs.iter().all(|v| dtype(v) == DType::F32);
    if results == 0 || a.numel() == 0 {
        return None;
    }
    let last = |layout: Layout| layout.shape.last().copied();
    match (key.op, inputs) {
        ("linear", [_, w, ..]) if f32s && inputs.iter().all(dense) => {
            Some(Work::Linear([last(a)?, *w.layout.shape.first()?]))
        }
        ("matmul", [_, b]) if f32s => match (&a.shape[..], &b.layout.shape[..]) {
            ([m, k], [_, n]) => Some(Work::Product([*m, *k, *n])),
            _ => None,
        },
        ("sum" | "mean", [_]) if f32s => {
            let (_, axes) = key.words.split_last()?;
            // A mean over no axes is one over all; of a sum, all axes are named.
            let mut summed = [key.op == "mean" && axes.is_empty(); MAX_RANK];
            for &axis in axes {
                summed[axis_index("capture", axis as isize, a.shape.len()).ok()?] = true;
            }
            let divisor = a.numel() as f64 / results as f64;
            let divisor = (key.op == "mean").then_some(divisor as f32);
            Some(Work::Sum(Box::new(SumPlan::new(&a, &summed)?), divisor))
        }
        ("cross_entropy", [x, t])
            if is_f32(x) && dtype(&t.value) == DType::I64 && inputs.iter().all(dense) =>
        {
            Some(Work::Losses(last(a)?))
        }
        ("cross_entropy_back", [x, z, t, g])
            if [x, z, g].into_iter().all(is_f32)
                && dtype(&t.value) == DType::I64
                && inputs.iter().all(dense) =>
        {
            Some(Work::LossesBack(last(a)?))
        }
        _ => None,
    }
}

/// Spreads a constant cotangent out once, where each replay would do it anew.
fn settle(instruction: &mut Instruction, values: &mut Vec<Value>) {
    if instruction.key.op != "cross_entropy_back" {
        return;
    }
    for operand in &mut instruction.inputs {
        if operand.layout.is_dense() {
            continue;
        }
        let Origin::Constant(t) = &values[operand.value as usize].origin else {
            continue;
        };
        let offset = t.layout().offset + operand.layout.offset;
        let view = t.view(Layout {
            offset,
            ..operand.layout
        });
        let Ok(spread) = view.dense("capture") else {
            continue;
        };
        let like = *spread.layout();
        *operand = Operand {
            value: values.len() as u32,
            layout: like,
        };
        values.push(Value {
            dtype: spread.dtype(),
            origin: Origin::Constant(spread),
            like,
        });
    }
}

/// A number for all that a program computes, constants included.
fn fingerprint(
    values: &[super::record::Value],
    instructions: &[Instruction],
    effects: &[Vec<Operand>],
    outputs: &[Operand],
) -> u64 {
    let mut hash = DefaultHasher::new();
    for value in values {
        value.like.shape.to_vec().hash(&mut hash);
        (value.dtype as u8).hash(&mut hash);
        match &value.origin {
            Origin::Made => 0u8.hash(&mut hash),
            Origin::Source(number, part) => (1u8, number, part).hash(&mut hash),
            Origin::Constant(t) => {
                let words = t.to_list().unwrap_or_default();
                words.iter().for_each(|x| x.to_bits().hash(&mut hash));
            }
        }
    }
    let operands = |all: &[Operand], hash: &mut DefaultHasher| {
        all.len().hash(hash);
        all.iter().for_each(|o| OperandKey::of(o).hash(hash));
    };
    for instruction in instructions {
        let mut key = instruction.key.clone();
        if let Some(map) = &instruction.map {
            key.sides(&map.sides);
        }
        (key, &instruction.outputs, instruction.part).hash(&mut hash);
        operands(&instruction.inputs, &mut hash);
    }
    effects.iter().for_each(|all| operands(all, &mut hash));
    operands(outputs, &mut hash);
    hash.finish()
}

/// Instructions that compute what an earlier one has computed are dropped, and their results renamed.
fn without_repeats(instructions: Vec<Instruction>, values: usize) -> (Vec<Instruction>, Vec<u32>) {
    let mut renamed: Vec<u32> = (0..values as u32).collect();
    let mut known: HashMap<(Key, Vec<OperandKey>), Vec<u32>> = HashMap::new();
    let mut kept = Vec::with_capacity(instructions.len());
    for mut instruction in instructions {
        for input in &mut instruction.inputs {
            input.value = renamed[input.value as usize];
        }
        let mut key = instruction.key.clone();
        if let Some(map) = &instruction.map {
            key.sides(&map.sides);
        }
        let operands = instruction.inputs.iter().map(OperandKey::of).collect();
        match known.entry((key, operands)) {
            std::collections::hash_map::Entry::Occupied(earlier) => {
                for (&from, &to) in instruction.outputs.iter().zip(earlier.get()) {
                    renamed[from as usize] = to;
                }
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(instruction.outputs.clone());
                kept.push(instruction);
            }
        }
    }
    (kept, renamed)
}

/// An operand for comparison.
#[derive(PartialEq, Eq, Hash)]
struct OperandKey(u32, usize, Vec<usize>, Vec<usize>);

impl OperandKey {
    fn of(o: &Operand) -> OperandKey {
        OperandKey(
            o.value,
            o.layout.offset,
            o.layout.shape.to_vec(),
            o.layout.strides.to_vec(),
        )
    }
}

impl Draft {
    /// Takes over another chain's functions; returns the place of its last.
    fn absorb(&mut self, other: Draft) -> usize {
        let (first_input, first_link) = (self.inputs.len(), self.links.len());
        self.inputs.extend(other.inputs);
        for link in other.links {
            let arguments = link
                .arguments
                .into_iter()
                .map(|a| match a {
                    DraftArgument::Input(a) => DraftArgument::Input(a.moved(first_input)),
                    DraftArgument::Link(l) => DraftArgument::Link(l + first_link),
                    number => number,
                })
                .collect();
            self.links.push(DraftLink {
                kernel: link.kernel,
                arguments,
            });
        }
        self.links.len() - 1
    }

    /// Registers given out: a function's register is free again after its only reader.
    fn finish(self) -> Chain {
        let mut free: Vec<usize> = Vec::new();
        let mut registers = 0;
        let mut of_link = vec![0; self.links.len()];
        let links = self.links.into_iter().enumerate().map(|(place, link)| {
            let register = free.pop().unwrap_or_else(|| {
                registers += 1;
                registers - 1
            });
            of_link[place] = register;
            let arguments = link
                .arguments
                .into_iter()
                .map(|a| match a {
                    DraftArgument::Input(a) => a,
                    DraftArgument::Number(x) => Argument::Number(x),
                    DraftArgument::Link(l) => {
                        free.push(of_link[l]);
                        Argument::Register(of_link[l])
                    }
                })
                .collect();
            Link {
                kernel: link.kernel,
                arguments,
                register,
            }
        });
        let links: Vec<Link> = links.collect();
        Chain { links, registers }
    }
}

impl Argument {
    fn moved(self, by: usize) -> Argument {
        match self {
            Argument::Along(i) => Argument::Along(i + by),
            Argument::One(i) => Argument::One(i + by),
            Argument::Gather(i, walk) => Argument::Gather(i + by, walk),
            other => other,
        }
    }
}

fn program(
    planned: Vec<Planned>,
    values: Vec<super::record::Value>,
    effects: Vec<Vec<Operand>>,
    outputs: Vec<Operand>,
    sources: &[u32],
    kept: &[u32],
) -> Program {
    let parts = effects.len() as u32 + 1;
    // The last step that reads a value; what is handed out lives to the end.
    let mut last: Vec<Option<usize>> = vec![None; values.len()];
    let mut last_part: Vec<Option<u32>> = vec![None; values.len()];
    for (at, step) in planned.iter().enumerate() {
        for input in &step.inputs {
            last[input.value as usize] = Some(at);
            last_part[input.value as usize] = Some(step.part);
        }
        for &output in &step.outputs {
            last[output as usize].get_or_insert(at);
        }
    }
    for (part, operands) in effects.iter().enumerate() {
        for o in operands {
            let known = &mut last_part[o.value as usize];
            // Read after the part has run, so that it lives into the next.
            *known = Some(known.unwrap_or(0).max(part as u32 + 1));
        }
    }
    for o in &outputs {
        last_part[o.value as usize] = Some(parts);
    }
    // Small results of direct steps keep their buffers from one replay to the next.
    let mut keeps = vec![false; values.len()];
    let mut room = KEPT_BYTES;
    for step in &planned {
        if matches!(&step.work, PlannedWork::Ready(Work::Call(_))) {
            continue;
        }
        for &output in &step.outputs {
            let bytes = values[output as usize].like.numel() * size_of::<f32>();
            if bytes <= KEPT_VALUE && bytes <= room {
                room -= bytes;
                keeps[output as usize] = true;
            }
        }
    }
    let mut slots = Vec::with_capacity(values.len());
    let mut source_slots: Vec<SourceSlot> = Vec::with_capacity(sources.len());
    for (at, value) in values.into_iter().enumerate() {
        let constant = match value.origin {
            Origin::Constant(t) => Some(t),
            Origin::Source(_, part) => {
                source_slots.push(SourceSlot {
                    value: at as u32,
                    bound_in: last_part[at].map(|last| (part, last)),
                });
                None
            }
            Origin::Made => None,
        };
        slots.push(Slot {
            like: value.like,
            dtype: value.dtype,
            tensor: constant,
            keeps: keeps[at],
        });
    }
    let mut ends = vec![0; parts as usize];
    let mut steps = Vec::with_capacity(planned.len());
    for (at, step) in planned.into_iter().enumerate() {
        for end in &mut ends[step.part as usize..] {
            *end = at + 1;
        }
        let mut frees: Vec<u32> = step
            .inputs
            .iter()
            .map(|o| o.value)
            .chain(step.outputs.iter().copied())
            .filter(|v| last[*v as usize] == Some(at) && !kept.contains(v))
            .filter(|v| slots[*v as usize].tensor.is_none() && !sources.contains(v))
            .filter(|v| !keeps[*v as usize])
            .collect();
        frees.sort_unstable();
        frees.dedup();
        let work = match step.work {
            PlannedWork::Chain(draft) => Work::Chain(draft.finish()),
            PlannedWork::Ready(work) => work,
            PlannedWork::Gone => continue,
        };
        steps.push(Step {
            op: step.op,
            inputs: step.inputs,
            outputs: step.outputs,
            work,
            frees,
        });
    }
    Program::new(steps, ends, slots, source_slots, effects, outputs)
}
