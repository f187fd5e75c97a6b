//! Interfaces `parameters` and `optim`.

use espalier_tensor::optim::{Adam, Sgd};
use espalier_tensor::{Tensor, autograd, capture};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::trainer::espalier::plugin::optim::{self, AdamOptions, SgdOptions};
use super::bindings::trainer::espalier::plugin::parameters::{
    Host, HostParameterSet, HostSelection, Kind, ParameterInfo,
};
use super::capture::How;
use super::guest::{Guest, Selection, misuse, named, told};
use super::state::{SetId, inner_tag, is_inner_tag};
use super::tensors::{wit_dtype, wit_shape};
use crate::parameters::{self as store, ParameterSet};
use crate::plan::Slot;

type Handle = Resource<rep::Tensor>;
type Set = Resource<rep::ParameterSet>;

/// What one plugin may own of a parameter.
#[derive(Clone, Copy)]
enum Claim {
    Mask,
    Effective,
}

impl Guest {
    /// Runs `f` on a set. The set exists as long as a handle to it can.
    fn on_set<T>(
        &self,
        set: &Set,
        f: impl FnOnce(&mut ParameterSet) -> store::Result<T>,
    ) -> Result<T> {
        self.on_id(&*self.set(set)?, f)
    }

    fn on_id<T>(
        &self,
        id: &SetId,
        f: impl FnOnce(&mut ParameterSet) -> store::Result<T>,
    ) -> Result<T> {
        let mut run = self.shared.run.borrow_mut();
        match run.sets.get_mut(id) {
            Some(set) => told(f(set)),
            None => misuse(format!("{id} is gone")),
        }
    }

    fn grads(&self, grads: &[Handle]) -> Result<Vec<Tensor>> {
        grads.iter().map(|g| self.tensor(g).cloned()).collect()
    }

    /// One step of Adam or AdamW; `rate` is the number of a captured step that is its learning rate.
    pub(super) fn adam_like(
        &mut self,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        o: AdamOptions,
        decoupled: bool,
        rate: Option<usize>,
    ) -> Result<()> {
        self.in_time()?;
        self.may_change("adam", &*self.set(&set)?)?;
        let grads = self.grads(&grads)?;
        let how = adam(o, decoupled);
        self.updating(&*self.set(&set)?, &names, &grads, How::Adam(how), rate);
        let _paused = capture::pause();
        self.on_set(&set, |s| s.adam(&names, &grads, &how))?;
        self.acted(&set)
    }

    /// One step of SGD; `rate` as in [`adam_like`](Guest::adam_like).
    pub(super) fn sgd_step(
        &mut self,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        o: SgdOptions,
        rate: Option<usize>,
    ) -> Result<()> {
        self.in_time()?;
        self.may_change("sgd", &*self.set(&set)?)?;
        let grads = self.grads(&grads)?;
        let how = sgd(o);
        self.updating(&*self.set(&set)?, &names, &grads, How::Sgd(how), rate);
        let _paused = capture::pause();
        self.on_set(&set, |s| s.sgd(&names, &grads, &how))?;
        self.acted(&set)
    }

    fn selected_values(&self, selection: &Selection) -> Result<Vec<Tensor>> {
        self.on_id(&selection.set, |s| {
            selection
                .names
                .iter()
                .map(|name| match self.overridden(name) {
                    Some(instead) => Ok(instead),
                    None => s.value(name),
                })
                .collect()
        })
    }

    fn loss_gradients(&self, selection: &Selection, loss: &Handle) -> Result<Vec<Tensor>> {
        self.in_time()?;
        let values = self.selected_values(selection)?;
        let values: Vec<&Tensor> = values.iter().collect();
        let loss = self.tensor(loss)?;
        Ok(autograd::grad(&[loss], &[None], &values, false, false)?)
    }

    /// Gradients of a loss and an update with them.
    fn minimize(&mut self, s: &Resource<rep::Selection>, loss: &Handle, how: How) -> Result<()> {
        let selection = self.selection(s)?;
        self.may_change("minimize", &selection.set)?;
        self.declare(&selection.set);
        let grads = self.loss_gradients(&selection, loss)?;
        self.updating(&selection.set, &selection.names, &grads, how, None);
        let _paused = capture::pause();
        self.on_id(&selection.set, |s| match how {
            How::Sgd(how) => s.sgd(&selection.names, &grads, &how),
            How::Adam(how) => s.adam(&selection.names, &grads, &how),
        })?;
        if *selection.set == SetId::Main {
            self.counters.acted = true;
        }
        Ok(())
    }

    /// One plugin masks a parameter of the run's set, and one sets its effective value: the first that does.
    fn claim(&self, set: &Set, name: &str, what: Claim) -> Result<()> {
        if *self.set(set)? != SetId::Main {
            return Ok(());
        }
        let run = &mut *self.shared.run.borrow_mut();
        run.mask_changes += 1;
        let (owners, operation, done, does) = match what {
            Claim::Mask => (
                &mut run.mask_owners,
                "set-mask",
                "masked",
                "masks a parameter",
            ),
            Claim::Effective => (
                &mut run.effective_owners,
                "set-effective",
                "given another value",
                "gives a parameter another value",
            ),
        };
        let owner = owners
            .entry(name.into())
            .or_insert_with(|| self.name.clone());
        if *owner != self.name {
            return misuse(format!(
                "{operation}: `{name}` is {done} by plugin `{owner}` already; one plugin {does}"
            ));
        }
        Ok(())
    }

    /// Refuses what a plugin without state has no business with.
    fn stateful(&self, what: &str) -> Result<()> {
        match self.slot {
            Slot::Architecture => misuse(format!(
                "{what}: an architecture keeps nothing; its weights are in the set that each call gives it"
            )),
            _ => Ok(()),
        }
    }

    /// Refuses an architecture's assignment to what is no buffer, or in a pass that moves none.
    fn moves_buffer(&self, set: &Set, name: &str) -> Result<()> {
        let buffer = self.on_set(set, |s| {
            s.stored(name)?;
            let is =
                |info: &store::ParameterInfo| info.name == name && info.kind == store::Kind::Buffer;
            Ok(s.infos().iter().any(is))
        })?;
        match buffer && self.lent.as_ref().is_some_and(|lent| lent.moves_buffers) {
            true => Ok(()),
            false => misuse(format!(
                "assign: an architecture changes buffers in the mode `train` alone, and `{name}` {}",
                if buffer {
                    "is assigned to in another mode"
                } else {
                    "is none"
                }
            )),
        }
    }

    /// What stands for a parameter in this call of an architecture.
    fn overridden(&self, name: &str) -> Option<Tensor> {
        self.lent.as_ref()?.overrides.get(name).cloned()
    }

    /// A plugin that never changes the run's set in a whole run is named in a warning.
    fn acted(&mut self, set: &Set) -> Result<()> {
        if *self.set(set)? == SetId::Main {
            self.counters.acted = true;
        }
        Ok(())
    }
}

fn sgd(o: SgdOptions) -> Sgd {
    Sgd {
        lr: o.lr,
        momentum: o.momentum,
        weight_decay: o.weight_decay,
        nesterov: o.nesterov,
    }
}

fn adam(o: AdamOptions, decoupled: bool) -> Adam {
    Adam {
        lr: o.lr,
        beta1: o.beta1,
        beta2: o.beta2,
        eps: o.eps,
        weight_decay: o.weight_decay,
        decoupled,
    }
}

fn kind(k: Kind) -> store::Kind {
    match k {
        Kind::Weight => store::Kind::Weight,
        Kind::Bias => store::Kind::Bias,
        Kind::Norm => store::Kind::Norm,
        Kind::Embedding => store::Kind::Embedding,
        Kind::Buffer => store::Kind::Buffer,
    }
}

fn wit_kind(k: store::Kind) -> Kind {
    match k {
        store::Kind::Weight => Kind::Weight,
        store::Kind::Bias => Kind::Bias,
        store::Kind::Norm => Kind::Norm,
        store::Kind::Embedding => Kind::Embedding,
        store::Kind::Buffer => Kind::Buffer,
    }
}

impl HostSelection for Guest {
    fn drop(&mut self, s: Resource<rep::Selection>) -> Result<()> {
        self.drop_selection(s)
    }
}

impl HostParameterSet for Guest {
    fn drop(&mut self, set: Set) -> Result<()> {
        self.drop_set(set)
    }
}

impl Host for Guest {
    fn main(&mut self) -> Result<Set> {
        self.stateful("main")?;
        self.put_set(SetId::Main)
    }

    fn new_set(&mut self, name: String) -> Result<Set> {
        self.stateful("new-set")?;
        named("new-set", &name)?;
        let id = SetId::Own {
            plugin: self.name.clone(),
            name,
        };
        {
            let run = &mut *self.shared.run.borrow_mut();
            if !run.sets.contains_key(&id) {
                run.room_for_set("new-set", &self.name)?;
                run.sets.insert(id.clone(), ParameterSet::new());
            }
        }
        self.put_set(id)
    }

    fn create(
        &mut self,
        set: Set,
        name: String,
        k: Kind,
        init: Handle,
        trainable: bool,
    ) -> Result<()> {
        self.uncapturable("it creates a parameter");
        let id = self.set(&set)?;
        let building = self.lent.as_ref().is_some_and(|lent| lent.building);
        if self.slot == Slot::Architecture && !building {
            return misuse(format!(
                "create: `{name}` is created too late; an architecture creates its parameters in build"
            ));
        }
        if !building && !matches!(*id, SetId::Own { .. }) {
            return misuse(format!(
                "create: `{name}` can't be added to {id}; make a set with new-set"
            ));
        }
        named("create", &name)?;
        {
            let run = self.shared.run.borrow();
            run.room_for_entries("create", &self.name, 1)?;
            if building {
                run.room_in_model("create", &id)?;
            }
        }
        let init = self.tensor(&init)?.detach();
        self.on_set(&set, |s| match s.contains(&name) {
            true => {
                let stored = s.stored(&name)?;
                if stored.shape() == init.shape() && stored.dtype() == init.dtype() {
                    return Ok(());
                }
                // Says which shapes differ.
                s.assign(&name, &init)
            }
            false => s.create(&name, kind(k), None, init, trainable, String::new()),
        })
    }

    fn list(&mut self, set: Set) -> Result<Vec<ParameterInfo>> {
        let infos = self.on_set(&set, |s| Ok(s.infos()))?;
        let one = |i: store::ParameterInfo| ParameterInfo {
            name: i.name,
            kind: wit_kind(i.kind),
            layer: i.layer,
            shape: wit_shape(&i.shape),
            dtype: wit_dtype(i.dtype),
            trainable: i.trainable,
            group: i.group,
        };
        Ok(infos.into_iter().map(one).collect())
    }

    fn value(&mut self, set: Set, name: String) -> Result<Handle> {
        let id = self.set(&set)?;
        self.declare(&id);
        let y = match self.overridden(&name) {
            Some(instead) => instead,
            None => self.on_set(&set, |s| s.value(&name))?,
        };
        self.put(Ok(y))
    }

    fn assign(&mut self, set: Set, name: String, value: Handle) -> Result<()> {
        self.uncapturable("it assigns to a parameter");
        self.may_change("assign", &*self.set(&set)?)?;
        if self.slot == Slot::Architecture {
            self.moves_buffer(&set, &name)?;
        }
        let value = self.tensor(&value)?.clone();
        self.on_set(&set, |s| s.assign(&name, &value))?;
        self.acted(&set)
    }

    fn set_mask(&mut self, set: Set, name: String, mask: Option<Handle>, keep: bool) -> Result<()> {
        self.uncapturable("it changes a mask");
        self.may_change("set-mask", &*self.set(&set)?)?;
        self.stateful("set-mask")?;
        let mask = mask.map(|m| self.tensor(&m).cloned()).transpose()?;
        self.claim(&set, &name, Claim::Mask)?;
        self.on_set(&set, |s| s.set_mask(&name, mask.as_ref(), keep))?;
        self.acted(&set)
    }

    fn stored(&mut self, set: Set, name: String) -> Result<Handle> {
        self.uncapturable("it reads a stored value");
        let y = self.on_set(&set, |s| s.stored(&name).cloned())?;
        self.put(Ok(y))
    }

    fn set_effective(
        &mut self,
        set: Set,
        name: String,
        forward: Option<Handle>,
        backward: Option<Handle>,
    ) -> Result<()> {
        self.uncapturable("it changes what stands for a parameter");
        self.may_change("set-effective", &*self.set(&set)?)?;
        self.stateful("set-effective")?;
        // The same tensor both ways is the forward one alone.
        let same = |f: &Handle, b: &Handle| f.rep() == b.rep();
        let both = forward.as_ref().zip(backward.as_ref());
        let backward = match both {
            Some((f, b)) if same(f, b) => None,
            _ => backward,
        };
        let tensor = |t: Option<Handle>| t.map(|t| self.tensor(&t).cloned()).transpose();
        let (forward, backward) = (tensor(forward)?, tensor(backward)?);
        self.claim(&set, &name, Claim::Effective)?;
        self.on_set(&set, |s| {
            s.set_effective(&name, forward.as_ref(), backward.as_ref())
        })?;
        self.acted(&set)
    }

    fn mask(&mut self, set: Set, name: String) -> Result<Option<Handle>> {
        self.uncapturable("it reads a mask");
        match self.on_set(&set, |s| s.mask(&name))? {
            Some(mask) => self.put(Ok(mask)).map(Some),
            None => Ok(None),
        }
    }

    fn snapshot(&mut self, set: Set, tag: String) -> Result<()> {
        self.uncapturable("it takes a snapshot");
        self.stateful("snapshot")?;
        const MOST: usize = 64;
        named("snapshot", &tag)?;
        let id = self.set(&set)?;
        self.may_change("snapshot", &id)?;
        if *id != SetId::Main && is_inner_tag(&tag) {
            return misuse(format!(
                "snapshot: the tag `{tag}` begins as the host's own do, `{}`; choose another",
                inner_tag("")
            ));
        }
        let (new, tags, entries) = self.on_set(&set, |s| {
            let own = s.tags().iter().filter(|tag| !is_inner_tag(tag)).count();
            Ok((!s.has_tag(&tag), own, s.len()))
        })?;
        if new && tags >= MOST {
            return misuse(format!(
                "snapshot: more than {MOST} tags in one set; use a tag again"
            ));
        }
        if new && *id != SetId::Main {
            self.shared
                .run
                .borrow()
                .room_for_entries("snapshot", &self.name, entries)?;
        }
        self.on_set(&set, |s| {
            s.snapshot(&tag);
            Ok(())
        })?;
        let new_tags = &mut self.shared.run.borrow_mut().new_tags;
        if *id == SetId::Main && !new_tags.contains(&tag) {
            new_tags.push(tag);
        }
        Ok(())
    }

    fn select(&mut self, set: Set, names: Vec<String>) -> Result<Resource<rep::Selection>> {
        let set = self.set(&set)?;
        self.on_id(&set, |s| s.check_names("select", &names))?;
        self.put_selection(Selection { set, names })
    }

    fn values(&mut self, s: Resource<rep::Selection>) -> Result<Vec<Handle>> {
        let selection = self.selection(&s)?;
        self.declare(&selection.set);
        let values = self.selected_values(&selection)?;
        values.into_iter().map(|y| self.put(Ok(y))).collect()
    }

    fn gradients(&mut self, s: Resource<rep::Selection>, loss: Handle) -> Result<Vec<Handle>> {
        let selection = self.selection(&s)?;
        self.declare(&selection.set);
        let grads = self.loss_gradients(&selection, &loss)?;
        grads.into_iter().map(|g| self.put(Ok(g))).collect()
    }

    fn rollback(&mut self, set: Set, tag: String) -> Result<()> {
        self.uncapturable("it goes back to a snapshot");
        self.may_change("rollback", &*self.set(&set)?)?;
        self.stateful("rollback")?;
        self.on_set(&set, |s| s.rollback(&tag))?;
        self.acted(&set)
    }
}

impl optim::Host for Guest {
    fn sgd(
        &mut self,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: SgdOptions,
    ) -> Result<()> {
        self.sgd_step(set, names, grads, options, None)
    }

    fn adam(
        &mut self,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: AdamOptions,
    ) -> Result<()> {
        self.adam_like(set, names, grads, options, false, None)
    }

    fn adamw(
        &mut self,
        set: Set,
        names: Vec<String>,
        grads: Vec<Handle>,
        options: AdamOptions,
    ) -> Result<()> {
        self.adam_like(set, names, grads, options, true, None)
    }

    fn minimize_sgd(
        &mut self,
        s: Resource<rep::Selection>,
        loss: Handle,
        o: SgdOptions,
    ) -> Result<()> {
        self.minimize(&s, &loss, How::Sgd(sgd(o)))
    }

    fn minimize_adam(
        &mut self,
        s: Resource<rep::Selection>,
        loss: Handle,
        o: AdamOptions,
    ) -> Result<()> {
        self.minimize(&s, &loss, How::Adam(adam(o, false)))
    }

    fn minimize_adamw(
        &mut self,
        s: Resource<rep::Selection>,
        loss: Handle,
        o: AdamOptions,
    ) -> Result<()> {
        self.minimize(&s, &loss, How::Adam(adam(o, true)))
    }

    fn reset_state(&mut self, set: Set, names: Vec<String>) -> Result<()> {
        self.uncapturable("it resets an optimiser's state");
        self.may_change("reset-state", &*self.set(&set)?)?;
        self.on_set(&set, |s| s.reset_state(&names))
    }
}
