//! A program and how it runs.

use super::Call;
use super::chain::Chain;
use super::record::Operand;
use crate::autograd::no_grad;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::ops::matmul::{strided_product, times_transposed};
use crate::ops::reduce::SumPlan;
use crate::ops::softmax::{replayed_gradient, replayed_losses};
use crate::tensor::Tensor;

/// A recorded step. See the module's head for what it promises.
///
/// One replay: for each part, bind the sources that [`reads`](Program::reads) names, [`run`](Program::run) it,
/// and let the effect that ends it happen with its [`operands`](Program::operands); then read the
/// [`output`](Program::output)s and [`end`](Program::end).
pub struct Program {
    steps: Vec<Step>,
    /// Where each part's steps end.
    ends: Vec<usize>,
    slots: Vec<Slot>,
    sources: Vec<SourceSlot>,
    /// By part: sources to bind before it.
    reads: Vec<Vec<u32>>,
    /// By part: values of sources to let go of after it.
    lets_go: Vec<Vec<u32>>,
    effects: Vec<Vec<Operand>>,
    outputs: Vec<Operand>,
    /// Values to let go of at the end.
    clears: Vec<u32>,
    inputs: Vec<Tensor>,
    results: Vec<Tensor>,
    pub(super) fingerprint: u64,
}

/// What an instruction does.
pub(super) enum Work {
    Call(Call),
    Chain(Chain),
    /// x w^T and a bias where there is a third operand, all dense: [inputs, outputs].
    Linear([usize; 2]),
    /// One product of two matrices: [m, k, n].
    Product([usize; 3]),
    /// A sum, divided by a number where there is one.
    Sum(Box<SumPlan>, Option<f32>),
    /// Cross-entropy of dense rows against class numbers, and the rows' normalisers; how many classes.
    Losses(usize),
    /// Its gradient.
    LossesBack(usize),
}

pub(super) struct Step {
    pub(super) op: &'static str,
    pub(super) inputs: Vec<Operand>,
    pub(super) outputs: Vec<u32>,
    pub(super) work: Work,
    /// Values that nobody reads afterwards.
    pub(super) frees: Vec<u32>,
}

/// One value.
pub(super) struct Slot {
    /// Dense, from offset 0 (a source may lie elsewhere).
    pub(super) like: Layout,
    pub(super) dtype: DType,
    pub(super) tensor: Option<Tensor>,
    /// Whether the buffer stays for the next replay, which writes it again.
    pub(super) keeps: bool,
}

/// One source.
pub(super) struct SourceSlot {
    pub(super) value: u32,
    /// The part in which it is bound and the last that reads it; none if nobody does.
    pub(super) bound_in: Option<(u32, u32)>,
}

impl Program {
    pub(super) fn new(
        steps: Vec<Step>,
        ends: Vec<usize>,
        slots: Vec<Slot>,
        sources: Vec<SourceSlot>,
        effects: Vec<Vec<Operand>>,
        outputs: Vec<Operand>,
    ) -> Program {
        let mut reads = vec![Vec::new(); ends.len()];
        let mut lets_go = vec![Vec::new(); ends.len()];
        for (number, source) in sources.iter().enumerate() {
            if let Some((first, last)) = source.bound_in {
                reads[first as usize].push(number as u32);
                // Results are read after the last part: `end` lets go of those.
                if let Some(part) = lets_go.get_mut(last as usize) {
                    part.push(source.value);
                }
            }
        }
        let made = steps.iter().flat_map(|step| step.outputs.iter().copied());
        let clears = made
            .filter(|&v| !slots[v as usize].keeps)
            .chain(sources.iter().map(|source| source.value))
            .collect();
        Program {
            steps,
            ends,
            slots,
            sources,
            reads,
            lets_go,
            effects,
            outputs,
            clears,
            inputs: Vec::new(),
            results: Vec::new(),
            fingerprint: 0,
        }
    }

    /// How many parts it has: one more than effects.
    pub fn parts(&self) -> usize {
        self.ends.len()
    }

    /// How many instructions it has.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Equal for recordings that compute the same from their sources, constants and all.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether it computes nothing.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The names of its instructions in order; a fused chain as `fused(N)`.
    pub fn listing(&self) -> Vec<String> {
        self.steps
            .iter()
            .map(|step| match &step.work {
                Work::Chain(chain) if chain.links.len() > 1 => {
                    format!("fused({})", chain.links.len())
                }
                _ => step.op.to_string(),
            })
            .collect()
    }

    /// The sources to bind before a part.
    pub fn reads(&self, part: usize) -> &[u32] {
        &self.reads[part]
    }

    /// Whether a tensor may be bound to a source: shape and element type are those recorded.
    pub fn fits(&self, source: u32, t: &Tensor) -> bool {
        self.sources.get(source as usize).is_some_and(|s| {
            let slot = &self.slots[s.value as usize];
            *slot.like.shape == *t.shape() && slot.dtype == t.dtype()
        })
    }

    /// Binds a source for this replay.
    ///
    /// # Errors
    /// [`Error::Argument`] where the tensor does not fit; [`Error::Budget`] where it has to be copied.
    pub fn bind(&mut self, source: u32, t: Tensor) -> Result<()> {
        const OP: &str = "replay";
        if !self.fits(source, &t) {
            return Err(Error::argument(
                OP,
                format!("source {source} was recorded with another shape or type"),
            ));
        }
        let value = self.sources[source as usize].value;
        let plain = t.is_contiguous() && !t.requires_grad();
        self.slots[value as usize].tensor = Some(if plain { t } else { t.dense(OP)? });
        Ok(())
    }

    /// Computes a part. `go_on` is asked from time to time, and can end it.
    ///
    /// # Errors
    /// What the instructions or `go_on` say. The program can be replayed again afterwards.
    pub fn run<E: From<Error>>(
        &mut self,
        part: usize,
        mut go_on: impl FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let _no_graph = no_grad();
        let first = if part == 0 { 0 } else { self.ends[part - 1] };
        let mut elements = 0;
        for at in first..self.ends[part] {
            // About once a millisecond.
            elements += self.step(at)?;
            if elements > 1 << 20 {
                elements = 0;
                go_on()?;
            }
        }
        for &value in &self.lets_go[part] {
            self.slots[value as usize].tensor = None;
        }
        Ok(())
    }

    /// Computes one step; returns how many elements it read and wrote.
    fn step(&mut self, at: usize) -> Result<usize> {
        let step = &self.steps[at];
        let mut elements = 0;
        match &step.work {
            Work::Call(call) => {
                self.inputs.clear();
                for operand in &step.inputs {
                    let t = seen(&self.slots, operand)?;
                    elements += t.numel();
                    self.inputs.push(t);
                }
                self.results.clear();
                let done = call(&self.inputs, &mut self.results);
                self.inputs.clear();
                done?;
                if self.results.len() != step.outputs.len() {
                    return Err(changed(step.op));
                }
                for (&value, t) in step.outputs.iter().zip(self.results.drain(..)) {
                    let slot = &mut self.slots[value as usize];
                    if *t.shape() != *slot.like.shape
                        || t.dtype() != slot.dtype
                        || !t.is_contiguous()
                    {
                        return Err(changed(step.op));
                    }
                    elements += t.numel();
                    slot.tensor = Some(t);
                }
            }
            work => {
                let first = step.outputs[0] as usize;
                let second = step.outputs.get(1).map(|&v| v as usize);
                let op = step.op;
                let mut out = self.slots[first].buffer(op)?;
                let mut other = match second {
                    Some(second) => Some(self.slots[second].buffer(op)?),
                    None => None,
                };
                let step = &self.steps[at];
                let room = out.own_mut::<f32>().ok_or_else(|| changed(step.op))?;
                elements = room.len();
                let read = |at: usize| elements_of(&self.slots, &step.inputs[at]);
                match work {
                    Work::Call(_) => {}
                    Work::Linear(sizes) => {
                        let (x, w) = (read(0)?, read(1)?);
                        let bias = match step.inputs.len() {
                            3 => Some(&read(2)?[..sizes[1]]),
                            _ => None,
                        };
                        let x = &x[..room.len() / sizes[1].max(1) * sizes[0]];
                        times_transposed(x, w, bias, *sizes, room);
                        elements += sizes[0] * elements / 8;
                    }
                    Work::Product(sizes) => {
                        let [left, right] = [0, 1].map(|at| &step.inputs[at].layout.strides);
                        let (a, b) = ((read(0)?, left[0], left[1]), (read(1)?, right[0], right[1]));
                        strided_product(*sizes, a, b, room);
                        elements += sizes[1] * elements / 8;
                    }
                    Work::Sum(plan, divisor) => {
                        plan.sum_f32(read(0)?, room);
                        if let Some(divisor) = divisor {
                            room.iter_mut().for_each(|x| *x /= divisor);
                        }
                        elements += step.inputs[0].layout.numel();
                    }
                    Work::Losses(classes) => {
                        let rows = room.len();
                        let x = &read(0)?[..rows * classes];
                        let t = &numbers_of(&self.slots, &step.inputs[1])?[..rows];
                        let normaliser = other.as_mut().and_then(Tensor::own_mut::<f32>);
                        let normaliser = normaliser.ok_or_else(|| changed(step.op))?;
                        replayed_losses(step.op, x, t, *classes, room, normaliser)?;
                        elements *= 8 * classes;
                    }
                    Work::LossesBack(classes) => {
                        let rows = room.len() / classes;
                        let t = &numbers_of(&self.slots, &step.inputs[2])?[..rows];
                        let xzg = [
                            &read(0)?[..room.len()],
                            &read(1)?[..rows],
                            &read(3)?[..rows],
                        ];
                        replayed_gradient(step.op, xzg, t, *classes, room)?;
                        elements *= 8;
                    }
                    Work::Chain(chain) => {
                        let mut slices: [&[f32]; 16] = [&[]; 16];
                        if step.inputs.len() > slices.len() {
                            return Err(changed(step.op));
                        }
                        for (slice, operand) in slices.iter_mut().zip(&step.inputs) {
                            *slice = elements_of(&self.slots, operand)?;
                        }
                        if !room.is_empty() {
                            chain.run(&slices[..step.inputs.len()], room);
                        }
                        elements *= 1 + chain.links.len();
                    }
                }
                self.slots[first].tensor = Some(out);
                if let Some(second) = second {
                    self.slots[second].tensor = other;
                }
            }
        }
        for &value in &self.steps[at].frees {
            self.slots[value as usize].tensor = None;
        }
        Ok(elements)
    }

    /// What the effect that ends a part is given.
    ///
    /// # Errors
    /// [`Error::Internal`] before the part has run.
    pub fn operands(&self, part: usize) -> Result<Vec<Tensor>> {
        let mut all = Vec::new();
        self.operands_into(part, &mut all)?;
        Ok(all)
    }

    /// As [`operands`](Program::operands), after what is in a list already.
    ///
    /// # Errors
    /// As [`operands`](Program::operands).
    pub fn operands_into(&self, part: usize, all: &mut Vec<Tensor>) -> Result<()> {
        for operand in self.effects.get(part).into_iter().flatten() {
            all.push(seen(&self.slots, operand)?);
        }
        Ok(())
    }

    /// A result, after the last part.
    ///
    /// # Errors
    /// [`Error::Internal`] before the last part has run.
    pub fn output(&self, at: usize) -> Result<Tensor> {
        match self.outputs.get(at) {
            Some(operand) => seen(&self.slots, operand),
            None => Err(changed("output")),
        }
    }

    /// How many results there are.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Lets go of everything but constants and small buffers.
    pub fn end(&mut self) {
        for &value in &self.clears {
            self.slots[value as usize].tensor = None;
        }
    }
}

impl Slot {
    /// Room for the value, which the caller writes: the last replay's, where nobody else has come to hold it.
    fn buffer(&mut self, op: &'static str) -> Result<Tensor> {
        if let Some(mut kept) = self.tensor.take()
            && kept.own_mut::<f32>().is_some()
        {
            return Ok(kept);
        }
        Tensor::build_unset::<f32>(op, &self.like.shape, |_| ())
    }
}

/// The elements that an operand may read, from its first on.
fn elements_of<'a>(slots: &'a [Slot], operand: &Operand) -> Result<&'a [f32]> {
    match &slots[operand.value as usize].tensor {
        Some(t) => Ok(t.data::<f32>()?.get(operand.layout.offset..).unwrap_or(&[])),
        None => Err(changed("replay")),
    }
}

/// As [`elements_of`], of class numbers.
fn numbers_of<'a>(slots: &'a [Slot], operand: &Operand) -> Result<&'a [i64]> {
    match &slots[operand.value as usize].tensor {
        Some(t) => Ok(t.data::<i64>()?.get(operand.layout.offset..).unwrap_or(&[])),
        None => Err(changed("replay")),
    }
}

/// An operand as a tensor.
fn seen(slots: &[Slot], operand: &Operand) -> Result<Tensor> {
    match &slots[operand.value as usize].tensor {
        Some(t) if t.layout().offset == 0 && *t.layout() == operand.layout => Ok(t.clone()),
        Some(t) => {
            let offset = t.layout().offset + operand.layout.offset;
            Ok(t.view(Layout {
                offset,
                ..operand.layout
            }))
        }
        None => Err(changed("replay")),
    }
}

fn changed(op: &'static str) -> Error {
    Error::Internal {
        op,
        problem: "a replay does not go as it was recorded".into(),
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("steps", &self.listing())
            .field("parts", &self.parts())
            .finish_non_exhaustive()
    }
}
