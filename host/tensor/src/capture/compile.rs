//! From a recording to a program: dead and repeated instructions removed, chains of maps fused, lifetimes
//! worked out.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::chain::{Argument, Chain, Link};
use super::record::{Instruction, Key, Operand, Origin, Recorder, Side};
use super::replay::{Program, Slot, SourceSlot, Step, Work};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// The most functions of one chain: each but the last needs a register.
const LONGEST_CHAIN: usize = 12;

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
    Call(super::Call),
    Chain(Draft),
    Linear([usize; 2]),
    Product([usize; 3]),
    /// Became part of a later chain.
    Gone,
}

pub(super) fn compile(mut recorder: Recorder, outputs: &[&Tensor]) -> Result<Program, String> {
    let outputs: Vec<Operand> = outputs.iter().filter_map(|t| recorder.operand(t)).collect();
    if let Some(reason) = recorder.refused.take() {
        return Err(reason);
    }
    let Recorder {
        values,
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
            work: PlannedWork::Call(call),
            part,
        };
        if f32s && let Some(work) = direct(next.op, &next.inputs, numel(next.outputs[0])) {
            next.work = work;
        }
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

/// Products that are worth calling without making tensors of their operands.
fn direct(op: &str, inputs: &[Operand], results: usize) -> Option<PlannedWork> {
    let (a, b) = (inputs.first()?.layout, inputs.get(1)?.layout);
    if results == 0 || a.numel() == 0 {
        return None;
    }
    match (op, &a.shape[..], &b.shape[..]) {
        ("linear", [.., inner], [outputs, _]) if inputs.iter().all(|o| o.layout.is_dense()) => {
            Some(PlannedWork::Linear([*inner, *outputs]))
        }
        ("matmul", [m, k], [_, n]) => Some(PlannedWork::Product([*m, *k, *n])),
        _ => None,
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
            .collect();
        frees.sort_unstable();
        frees.dedup();
        let work = match step.work {
            PlannedWork::Call(call) => Work::Call(call),
            PlannedWork::Chain(draft) => Work::Chain(draft.finish()),
            PlannedWork::Linear(sizes) => Work::Linear(sizes),
            PlannedWork::Product(sizes) => Work::Product(sizes),
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
