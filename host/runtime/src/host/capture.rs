//! Interface `capture`: a step recorded once as a program and replayed with one call.
//!
//! The engine records what its kernels compute ([`espalier_tensor::capture`]); this file says what of the run a
//! program reads and changes. Inputs are the tensors and the batch of the step, `numbers` are given anew at each
//! replay, parameters are read from their sets at each replay, and an optimiser's step is an effect between two
//! parts of the program.
//!
//! A program is used after two recordings have agreed: in their instructions, in every number they hold, in what
//! they read and change, and in the bits of the gradients that the first one's program computes for the second
//! one's inputs. What differs between two steps can so never be frozen unnoticed from the second step on; the
//! steps after that rest on what `wit/capture.wit` tells the plugin to pass, and on the SDK, whose recorded
//! closures can reach nothing else.

use std::rc::Rc;

use espalier_tensor::capture::{self, Program};
use espalier_tensor::optim::{Adam, Sgd};
use espalier_tensor::{DType, Tensor};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::trainer::espalier::plugin::capture::{Host, HostCaptured, Results, Turn};
use super::bindings::trainer::espalier::plugin::optim::{AdamOptions, SgdOptions};
use super::guest::{Guest, misuse, named, told};
use super::state::SetId;
use crate::data::{Gathered, StreamId};
use crate::events::Level;

type Handle = Resource<rep::Tensor>;
type Set = Resource<rep::ParameterSet>;

/// Most instructions of a program.
const MOST_INSTRUCTIONS: usize = 1 << 16;
/// Most shapes of inputs that one captured step has programs for.
const MOST_SHAPES: usize = 8;
/// Most captured steps of a plugin.
const MOST_CAPTURES: usize = 64;
/// Most inputs and numbers of a step.
const MOST_INPUTS: usize = 1024;
/// How often programs may be dropped and recorded again before capture gives up.
const MOST_RECORDINGS: u32 = 64;

/// What a source of a program is bound to.
#[derive(Clone, Debug, PartialEq)]
enum Origin {
    /// A tensor of the plugin or a field of the batch, by number.
    Input(usize),
    /// A number.
    Number(usize),
    /// A parameter, by its place in its set, and whether it has a backward value.
    Parameter(SetId, usize, String, bool),
    /// What products pass gradients back through in a parameter's place.
    Backward(SetId, usize),
}

/// An optimiser's step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    set: SetId,
    names: Vec<String>,
    how: How,
    /// Which number is the learning rate, where it is one.
    rate: Option<usize>,
}

/// The optimiser and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum How {
    /// SGD.
    Sgd(Sgd),
    /// Adam and AdamW.
    Adam(Adam),
}

/// A program and what it reads and changes.
struct Recorded {
    program: Program,
    origins: Vec<Origin>,
    updates: Vec<Update>,
    shapes: Vec<(Vec<usize>, DType)>,
    numbers: usize,
    /// Gradients on their way to an optimiser: empty between replays.
    grads: Vec<Tensor>,
    /// How many of the outputs are values; the rest are tensors.
    values: usize,
    /// Whether a second recording agreed.
    confirmed: bool,
}

/// One captured step of a plugin.
pub struct Captured {
    name: String,
    stream: Option<Rc<StreamId>>,
    // Boxed: each replay takes its program out and puts it back.
    #[allow(clippy::vec_box)]
    programs: Vec<Box<Recorded>>,
    /// The last batch of a replay, whose tensors the next one takes.
    gathered: Gathered,
    recordings: u32,
    /// Whether the log says that it is captured.
    said: bool,
    /// Why it is not captured, once that is known.
    off: Option<String>,
}

/// A step that the plugin is doing between `begin` and `finish`.
pub(super) struct Performing {
    captured: u32,
    origins: Vec<Origin>,
    updates: Vec<Update>,
    shapes: Vec<(Vec<usize>, DType)>,
    numbers: Vec<f64>,
    /// What an earlier program of these shapes computed up to its first effect.
    expected: Option<Vec<Tensor>>,
    /// Whether everything compared so far was equal to it.
    agrees: bool,
}

/// Whether two tensors are the same to the bit.
fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    fn bits(t: &Tensor) -> Option<Vec<u64>> {
        let all = match t.dtype() {
            DType::F32 => t
                .to_vec::<f32>()
                .ok()?
                .iter()
                .map(|x| u64::from(x.to_bits()))
                .collect(),
            _ => t.to_list().ok()?.iter().map(|x| x.to_bits()).collect(),
        };
        Some(all)
    }
    a.shape() == b.shape() && a.dtype() == b.dtype() && bits(a) == bits(b)
}

fn shapes(inputs: &[Tensor]) -> Vec<(Vec<usize>, DType)> {
    inputs
        .iter()
        .map(|t| (t.shape().to_vec(), t.dtype()))
        .collect()
}

fn fits(shapes: &[(Vec<usize>, DType)], inputs: &[Tensor]) -> bool {
    shapes.len() == inputs.len()
        && shapes
            .iter()
            .zip(inputs)
            .all(|((shape, dtype), t)| *shape == *t.shape() && *dtype == t.dtype())
}

impl Guest {
    /// Says that the step being recorded, if any, cannot be captured.
    pub(super) fn uncapturable(&self, why: &str) {
        if capture::is_recording() {
            capture::refuse(why);
        }
    }

    /// Forgets every recorded step: what it holds of the model has changed.
    pub(crate) fn forget_programs(&mut self) {
        for captured in self.captures.iter_mut() {
            captured.programs.clear();
        }
    }

    /// Declares the parameters of a set to the recording, if there is one, before anybody reads them.
    pub(super) fn declare(&mut self, id: &SetId) {
        if !capture::is_recording() {
            return;
        }
        let Some(performing) = &mut self.performing else {
            return;
        };
        let mut run = self.shared.run.borrow_mut();
        let Some(set) = run.sets.get_mut(id) else {
            return;
        };
        for (place, name) in set.names().into_iter().enumerate() {
            let value = {
                let _paused = capture::pause();
                set.value(&name)
            };
            let Ok(value) = value else { continue };
            let backward = value.backward_value();
            let origin = Origin::Parameter(id.clone(), place, name, backward.is_some());
            let parts = [
                Some((&value, origin)),
                backward.map(|t| (t, Origin::Backward(id.clone(), place))),
            ];
            for (t, origin) in parts.into_iter().flatten() {
                let Some(source) = capture::parameter(t) else {
                    continue;
                };
                match performing.origins.get(source as usize) {
                    Some(known) if *known == origin => {}
                    // Two parameters with the same elements would part at their first update.
                    Some(_) => capture::refuse("two parameters of it share their elements"),
                    None => performing.origins.push(origin),
                }
            }
        }
    }

    /// Notes an optimiser's step, and compares its gradients with what the earlier program computed.
    pub(super) fn updating(
        &mut self,
        set: &SetId,
        names: &[String],
        grads: &[Tensor],
        how: How,
        rate: Option<usize>,
    ) {
        if !capture::is_recording() {
            return;
        }
        let Some(performing) = &mut self.performing else {
            return;
        };
        if performing.updates.is_empty()
            && let Some(expected) = &performing.expected
        {
            let equal = expected.len() == grads.len()
                && expected.iter().zip(grads).all(|(a, b)| same_bits(a, b));
            performing.agrees &= equal;
        }
        capture::effect(&grads.iter().collect::<Vec<_>>());
        // A rate that is a number is not part of the program.
        let how = match (how, rate) {
            (How::Sgd(how), Some(_)) => How::Sgd(Sgd { lr: 0.0, ..how }),
            (How::Adam(how), Some(_)) => How::Adam(Adam { lr: 0.0, ..how }),
            (how, None) => how,
        };
        performing.updates.push(Update {
            set: set.clone(),
            names: names.to_vec(),
            how,
            rate,
        });
    }

    fn captured(&mut self, c: &Resource<rep::Captured>) -> Result<&mut Captured> {
        self.captures.get_mut(c.rep())
    }

    /// The step's batch, across the end of an epoch.
    fn next_batch(&mut self, id: &StreamId, gathered: &mut Gathered) -> Result<()> {
        {
            let run = &mut *self.shared.run.borrow_mut();
            while !told(run.streams.next_into(id, &run.data, run.seed, gathered))? {}
        }
        if !self.shared.transforms.borrow().is_empty() {
            let batch = told(std::mem::take(gathered).into_batch(id))?;
            let _paused = capture::pause();
            let batch = self.transformed(id, batch)?;
            gathered.rows = batch.index.to_vec()?;
            gathered.fields = batch.fields.into_iter().map(|(_, t)| t).collect();
        }
        Ok(())
    }

    /// The program for these inputs, if one has been recorded and all that it reads is as it was.
    fn program_for(&mut self, c: u32, inputs: &[Tensor], numbers: usize) -> Result<Option<usize>> {
        let shared = self.shared.clone();
        let run = shared.run.borrow();
        let captured = self.captures.get_mut(c)?;
        let found = captured
            .programs
            .iter()
            .position(|p| p.numbers == numbers && fits(&p.shapes, inputs));
        let Some(at) = found else { return Ok(None) };
        let recorded = &captured.programs[at];
        let stands = recorded.origins.iter().enumerate().all(|(source, origin)| {
            let Origin::Parameter(set, place, name, backward) = origin else {
                return true;
            };
            run.sets.get(set).is_some_and(|set| {
                set.has_backward(*place) == *backward
                    && set
                        .stored_at(*place)
                        .is_some_and(|(n, t)| n == name && recorded.program.fits(source as u32, t))
            })
        });
        if stands {
            return Ok(Some(at));
        }
        captured.programs.remove(at);
        Ok(None)
    }

    fn value_at(&self, id: &SetId, place: usize) -> Result<Tensor> {
        let mut run = self.shared.run.borrow_mut();
        match run.sets.get_mut(id) {
            Some(set) => told(set.value_at(place)),
            None => misuse(format!("{id} is gone")),
        }
    }

    /// Binds what a part reads and runs it.
    fn run_part(
        &self,
        recorded: &mut Recorded,
        part: usize,
        inputs: &[Tensor],
        numbers: &[f64],
    ) -> Result<()> {
        for at in 0..recorded.program.reads(part).len() {
            let source = recorded.program.reads(part)[at];
            let t = match &recorded.origins[source as usize] {
                Origin::Input(at) => inputs[*at].clone(),
                Origin::Number(at) => Tensor::full(&[], numbers[*at], DType::F32)?,
                Origin::Parameter(id, place, ..) => self.value_at(id, *place)?,
                Origin::Backward(id, place) => match self.value_at(id, *place)?.backward_value() {
                    Some(backward) => backward.clone(),
                    None => return misuse(format!("a backward value of {id} is gone")),
                },
            };
            recorded.program.bind(source, t)?;
        }
        recorded
            .program
            .run::<wasmtime::Error>(part, || self.in_time())
    }

    fn update(&self, update: &Update, grads: &[Tensor], numbers: &[f64]) -> Result<bool> {
        let mut run = self.shared.run.borrow_mut();
        let Some(set) = run.sets.get_mut(&update.set) else {
            return misuse(format!("{} is gone", update.set));
        };
        let rate = update.rate.map(|at| numbers[at]);
        match update.how {
            How::Sgd(mut how) => {
                how.lr = rate.unwrap_or(how.lr);
                told(set.sgd(&update.names, grads, &how))?;
            }
            How::Adam(mut how) => {
                how.lr = rate.unwrap_or(how.lr);
                told(set.adam(&update.names, grads, &how))?;
            }
        }
        Ok(update.set == SetId::Main)
    }

    fn replay(
        &mut self,
        recorded: &mut Recorded,
        inputs: &[Tensor],
        numbers: &[f64],
        count: u32,
    ) -> Result<Results> {
        for part in 0..recorded.program.parts() {
            self.run_part(recorded, part, inputs, numbers)?;
            if let Some(update) = recorded.updates.get(part) {
                recorded.program.operands_into(part, &mut recorded.grads)?;
                let acted = self.update(update, &recorded.grads, numbers);
                recorded.grads.clear();
                self.counters.acted |= acted?;
            }
        }
        let mut results = Results {
            values: Vec::with_capacity(recorded.values),
            tensors: Vec::new(),
            count,
        };
        for at in 0..recorded.program.outputs() {
            let t = recorded.program.output(at)?;
            if at < recorded.values {
                results.values.push(t.item()?);
            } else {
                results.tensors.push(self.put(Ok(t))?);
            }
        }
        recorded.program.end();
        Ok(results)
    }

    /// What a step that is done by the plugin begins with: the recorder, and what it will be compared with.
    fn perform(
        &mut self,
        c: u32,
        at: Option<usize>,
        inputs: &[Tensor],
        numbers: Vec<f64>,
    ) -> Result<()> {
        let captured = self.captures.get_mut(c)?;
        if captured.off.is_none() && at.is_none() && captured.programs.len() >= MOST_SHAPES {
            let why = format!("its inputs come in more than {MOST_SHAPES} shapes");
            self.give_up(c, why)?;
        }
        let captured = self.captures.get_mut(c)?;
        captured.recordings += 1;
        if captured.off.is_none() && captured.recordings > MOST_RECORDINGS {
            self.give_up(c, "what it depends on changes too often".into())?;
        }
        let mut expected = None;
        if let Some(at) = at {
            let mut recorded = self.captures.get_mut(c)?.programs.swap_remove(at);
            self.run_part(&mut recorded, 0, inputs, &numbers)?;
            let program = &recorded.program;
            expected = Some(if recorded.updates.is_empty() {
                let outputs = (0..program.outputs()).map(|i| program.output(i));
                outputs.collect::<espalier_tensor::Result<_>>()?
            } else {
                program.operands(0)?
            });
            recorded.program.end();
            self.captures.get_mut(c)?.programs.push(recorded);
        }
        self.performing = Some(Performing {
            captured: c,
            origins: (0..inputs.len()).map(Origin::Input).collect(),
            updates: Vec::new(),
            shapes: shapes(inputs),
            numbers,
            expected,
            agrees: true,
        });
        if self.captures.get_mut(c)?.off.is_none() {
            capture::start(MOST_INSTRUCTIONS);
            for (at, input) in inputs.iter().enumerate() {
                if capture::source(input) != Some(at as u32) {
                    capture::refuse("one tensor is two of its inputs");
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self, c: u32, why: String) -> Result<()> {
        let captured = self.captures.get_mut(c)?;
        captured.programs.clear();
        let said = format!("the step `{}` is not captured: {why}", captured.name);
        captured.off = Some(why);
        self.say(Level::Warning, said)
    }

    /// What the two recordings of a step say of each other.
    fn conclude(&mut self, done: Performing, outputs: &[&Tensor], values: usize) -> Result<()> {
        let c = done.captured;
        let program = match capture::finish(outputs) {
            Ok(program) => program,
            Err(why) => return self.give_up(c, why),
        };
        let new = Recorded {
            program,
            origins: done.origins,
            updates: done.updates,
            shapes: done.shapes,
            numbers: done.numbers.len(),
            grads: Vec::new(),
            values,
            confirmed: false,
        };
        let captured = self.captures.get_mut(c)?;
        let Some(expected) = done.expected else {
            captured.programs.push(Box::new(new));
            return Ok(());
        };
        let Some(old) = captured.programs.last_mut() else {
            return Ok(());
        };
        let agrees = done.agrees
            && (!new.updates.is_empty()
                || expected.len() == outputs.len()
                    && expected.iter().zip(outputs).all(|(a, b)| same_bits(a, b)));
        let why = if old.updates != new.updates {
            "its optimiser's settings change from step to step; pass what changes among its numbers"
        } else if old.program.fingerprint() != new.program.fingerprint()
            || old.origins != new.origins
            || old.values != new.values
        {
            "it computes something else from step to step, or with other numbers; pass what changes \
             among its numbers or inputs"
        } else if !agrees {
            "its program gave other numbers than the step itself"
        } else {
            old.confirmed = true;
            let instructions = old.program.len();
            let first = captured.programs.iter().filter(|p| p.confirmed).count() == 1;
            if first && !captured.said {
                captured.said = true;
                let said = format!(
                    "the step `{}` is captured: {instructions} instructions",
                    captured.name
                );
                return self.say(Level::Info, said);
            }
            return Ok(());
        };
        self.give_up(c, why.into())
    }

    /// Names of parameters, their gradients and the learning rate of an optimiser's step by number.
    fn rate(&self, c: &Resource<rep::Captured>, rate: u32) -> Result<f64> {
        match &self.performing {
            Some(p) if p.captured == c.rep() => match p.numbers.get(rate as usize) {
                Some(&number) => Ok(number),
                None => misuse(format!(
                    "number {rate} of a captured step that has {}",
                    p.numbers.len()
                )),
            },
            _ => misuse("outside of a captured step: call this between `begin` and `finish`"),
        }
    }
}

impl HostCaptured for Guest {
    fn drop(&mut self, c: Resource<rep::Captured>) -> Result<()> {
        if self
            .performing
            .as_ref()
            .is_some_and(|p| p.captured == c.rep())
        {
            self.performing = None;
            capture::abandon();
        }
        self.captures.remove(c.rep()).map(drop)
    }
}

impl Host for Guest {
    fn open(
        &mut self,
        name: String,
        source: Option<Resource<rep::Stream>>,
    ) -> Result<Resource<rep::Captured>> {
        named("capture", &name)?;
        let stream = source.map(|s| self.stream(&s)).transpose()?;
        if self.captures.len() >= MOST_CAPTURES {
            return misuse(format!("more than {MOST_CAPTURES} captured steps"));
        }
        self.put_captured(Captured {
            name,
            stream,
            programs: Vec::new(),
            gathered: Gathered::default(),
            recordings: 0,
            said: false,
            off: None,
        })
    }

    fn begin(
        &mut self,
        c: Resource<rep::Captured>,
        inputs: Vec<Handle>,
        numbers: Vec<f64>,
    ) -> Result<Turn> {
        self.in_time()?;
        if self.performing.is_some() {
            return misuse("begin: a captured step is being done already; call `finish` first");
        }
        if inputs.len() > MOST_INPUTS || numbers.len() > MOST_INPUTS {
            return misuse(format!(
                "begin: {} inputs and {} numbers; at most {MOST_INPUTS} each",
                inputs.len(),
                numbers.len()
            ));
        }
        let given = inputs
            .iter()
            .map(|t| Ok(self.tensor(t)?.detach()))
            .collect::<Result<Vec<_>>>()?;
        let captured = self.captured(&c)?;
        let stream = captured.stream.clone();
        let mut gathered = std::mem::take(&mut captured.gathered);
        if let Some(id) = &stream {
            self.next_batch(id, &mut gathered)?;
        }
        // The plugin's tensors, then the batch's.
        let mut all = std::mem::take(&mut gathered.fields);
        let own = given.len();
        if own > 0 {
            all.splice(0..0, given);
        }
        let at = self.program_for(c.rep(), &all, numbers.len())?;
        if let Some(at) = at
            && self.captured(&c)?.programs[at].confirmed
        {
            let mut recorded = self.captured(&c)?.programs.swap_remove(at);
            let count = gathered.rows.len() as u32;
            let results = self.replay(&mut recorded, &all, &numbers, count)?;
            all.drain(..own);
            gathered.fields = all;
            let captured = self.captured(&c)?;
            captured.gathered = gathered;
            captured.programs.push(recorded);
            return Ok(Turn::Done(results));
        }
        let batch = match stream {
            Some(id) => {
                gathered.fields = all[own..].to_vec();
                Some(told(gathered.into_batch(&id))?)
            }
            None => None,
        };
        self.perform(c.rep(), at, &all, numbers)?;
        let batch = batch.map(|b| self.put_batch(b)).transpose()?;
        Ok(Turn::Perform(batch))
    }

    fn finish(
        &mut self,
        c: Resource<rep::Captured>,
        values: Vec<Handle>,
        tensors: Vec<Handle>,
    ) -> Result<Vec<f64>> {
        self.in_time()?;
        let Some(done) = self.performing.take().filter(|p| p.captured == c.rep()) else {
            return misuse("finish: this captured step has not begun");
        };
        let outputs: Vec<Tensor> = values
            .iter()
            .chain(&tensors)
            .map(|t| self.tensor(t).cloned())
            .collect::<Result<_>>()?;
        let outputs: Vec<&Tensor> = outputs.iter().collect();
        let read: Vec<f64> = outputs[..values.len()]
            .iter()
            .map(|t| t.item())
            .collect::<espalier_tensor::Result<_>>()?;
        if capture::is_recording() {
            self.conclude(done, &outputs, values.len())?;
        }
        Ok(read)
    }

    fn number(&mut self, c: Resource<rep::Captured>, index: u32) -> Result<Handle> {
        let value = self.rate(&c, index)?;
        let t = {
            let _paused = capture::pause();
            Tensor::full(&[], value, DType::F32)?
        };
        if let (Some(source), Some(performing)) = (capture::source(&t), &mut self.performing) {
            debug_assert_eq!(source as usize, performing.origins.len());
            performing.origins.push(Origin::Number(index as usize));
        }
        self.put(Ok(t))
    }

    fn sgd(
        &mut self,
        c: Resource<rep::Captured>,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: SgdOptions,
        rate: u32,
    ) -> Result<()> {
        let lr = self.rate(&c, rate)?;
        self.sgd_step(
            set,
            names,
            grads,
            SgdOptions { lr, ..options },
            Some(rate as usize),
        )
    }

    fn adam(
        &mut self,
        c: Resource<rep::Captured>,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: AdamOptions,
        rate: u32,
    ) -> Result<()> {
        let lr = self.rate(&c, rate)?;
        let options = AdamOptions { lr, ..options };
        self.adam_like(set, names, grads, options, false, Some(rate as usize))
    }

    fn adamw(
        &mut self,
        c: Resource<rep::Captured>,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: AdamOptions,
        rate: u32,
    ) -> Result<()> {
        let lr = self.rate(&c, rate)?;
        let options = AdamOptions { lr, ..options };
        self.adam_like(set, names, grads, options, true, Some(rate as usize))
    }

    fn forget(&mut self, c: Resource<rep::Captured>) -> Result<()> {
        self.captured(&c)?.programs.clear();
        Ok(())
    }
}
