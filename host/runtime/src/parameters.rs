//! The parameter store: named tensors of one model or one plugin, with masks, optimiser state and
//! tagged snapshots.
//!
//! What it promises: a masked weight stays exactly zero through every update (`keep = false`) or stays
//! stored and is only hidden (`keep = true`); a rollback restores every bit; a handle given out earlier
//! keeps the value it had. What it does not promise: it knows neither layers nor the meaning of a name.

use std::cell::Cell;
use std::collections::BTreeMap;

use espalier_tensor::optim::{self, Adam, AdamPart, Sgd, SgdPart};
use espalier_tensor::{DType, Tensor, ops};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Result of the parameter store.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a request to the parameter store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No parameter has that name.
    #[error("no parameter is named `{name}`{}", nearest(.suggestion, .count))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The nearest existing name.
        suggestion: Option<String>,
        /// How many parameters the set has.
        count: usize,
    },
    /// The name is taken.
    #[error(
        "a parameter named `{name}` exists already; choose another name, or change it with assign"
    )]
    Duplicate {
        /// The name.
        name: String,
    },
    /// No snapshot has that tag.
    #[error("no snapshot is tagged `{tag}`; {}", known_tags(.known))]
    UnknownTag {
        /// The tag asked for.
        tag: String,
        /// The tags that exist.
        known: Vec<String>,
    },
    /// A tensor does not fit its parameter.
    #[error(
        "{operation}: parameter `{name}` has shape {expected:?} and dtype {dtype}, \
         the {what} has shape {found:?} and dtype {found_dtype}"
    )]
    Mismatch {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
        /// What the tensor is: value, mask, gradient.
        what: &'static str,
        /// Shape of the parameter.
        expected: Vec<usize>,
        /// Its dtype.
        dtype: DType,
        /// Shape of the tensor.
        found: Vec<usize>,
        /// Its dtype.
        found_dtype: DType,
    },
    /// Only buffers may hold whole numbers or truth values.
    #[error(
        "parameter `{name}` of kind {kind} has dtype {dtype}; only a buffer may be other than f32 or f64"
    )]
    NotFloat {
        /// The parameter.
        name: String,
        /// Its kind.
        kind: Kind,
        /// Its dtype.
        dtype: DType,
    },
    /// The run file froze the parameter.
    #[error(
        "{operation}: parameter `{name}` is not trainable; leave it out of the list of names, or let the \
         run file train it"
    )]
    Frozen {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
    },
    /// A mask says which weights live, and nothing else.
    #[error(
        "{operation}: the mask of parameter `{name}` holds {value}; a mask holds 0 and 1, or is bool: \
         compare scores with a threshold first"
    )]
    NotMask {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
        /// The first element that is neither 0 nor 1.
        value: f64,
    },
    /// Buffers follow from data, not from gradients, and have no masks.
    #[error("{operation}: parameter `{name}` is a buffer; set it with assign")]
    Buffer {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
    },
    /// The two lists of an optimiser call differ in length.
    #[error(
        "{operation}: {names} names but {grads} gradients; give one gradient for each name, in order"
    )]
    Lengths {
        /// The operation.
        operation: &'static str,
        /// Number of names.
        names: usize,
        /// Number of gradients.
        grads: usize,
    },
    /// A name stands twice in one optimiser call.
    #[error("{operation}: parameter `{name}` is named twice; add its gradients first")]
    Twice {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
    },
    /// A saved set is not whole.
    #[error(
        "saved parameters `{prefix}`: {problem}; the checkpoint is from another version or damaged"
    )]
    Saved {
        /// The prefix under which the set was saved.
        prefix: String,
        /// What is wrong.
        problem: String,
    },
    /// The tensor engine refused.
    #[error("{operation}: parameter `{name}`: {source}")]
    Tensor {
        /// The operation.
        operation: &'static str,
        /// The parameter.
        name: String,
        /// The engine's own words.
        source: espalier_tensor::Error,
    },
}

fn nearest(suggestion: &Option<String>, count: &usize) -> String {
    match suggestion {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!(" (the set has {count})"),
    }
}

fn known_tags(known: &[String]) -> String {
    if known.is_empty() {
        "none has been taken yet".into()
    } else {
        format!("there are `{}`", known.join("`, `"))
    }
}

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A matrix or filter bank; what pruners prune.
    Weight,
    /// An additive vector.
    Bias,
    /// Scale and shift of a normalisation.
    Norm,
    /// A table looked up by index, or one row a position.
    Embedding,
    /// State that no gradient changes: running statistics, moments, bases.
    Buffer,
}

impl Kind {
    /// The name used in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Weight => "weight",
            Kind::Bias => "bias",
            Kind::Norm => "norm",
            Kind::Embedding => "embedding",
            Kind::Buffer => "buffer",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known about a parameter besides its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterInfo {
    /// Unique in its set.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Index of the layer that owns it, if a layer does.
    pub layer: Option<u32>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype.
    pub dtype: DType,
    /// False if the run file froze it.
    pub trainable: bool,
    /// A name that several parameters share, for methods that treat them together.
    pub group: String,
}

/// A mask over one parameter. `live` is bool, true where the weight lives.
#[derive(Clone)]
struct Mask {
    live: Tensor,
    keep: bool,
    count: usize,
}

/// What forward passes use in place of the value, and what products pass gradients back through: straight-through
/// estimators. At least one is there. Neither changes with the value.
#[derive(Clone)]
struct Effective {
    forward: Option<Tensor>,
    backward: Option<Tensor>,
}

/// A parameter as a snapshot keeps it. Tensors are shared, so a copy costs a few pointers.
#[derive(Clone)]
struct Entry {
    name: String,
    kind: Kind,
    layer: Option<u32>,
    trainable: bool,
    group: String,
    value: Tensor,
    mask: Option<Mask>,
    effective: Option<Effective>,
    momentum: Option<Tensor>,
    adam_m: Option<Tensor>,
    adam_v: Option<Tensor>,
    adam_steps: u64,
    /// The tracked leaf of the effective value, made on demand; never part of a snapshot.
    leaf: Option<Tensor>,
}

impl Entry {
    fn fail(&self, operation: &'static str) -> impl Fn(espalier_tensor::Error) -> Error + use<'_> {
        move |source| Error::Tensor {
            operation,
            name: self.name.clone(),
            source,
        }
    }

    /// Zeroes value and optimiser state where a mask that does not keep is false.
    fn apply_mask(&mut self, operation: &'static str) -> Result<()> {
        let Some(mask) = self.mask.clone().filter(|mask| !mask.keep) else {
            return Ok(());
        };
        let name = self.name.clone();
        let fail = |source| Error::Tensor {
            operation,
            name: name.clone(),
            source,
        };
        // `where` and not a product: NaN * 0 is NaN and -1 * 0 is -0, both unlike a pruned weight.
        let cut = |t: &Tensor| {
            ops::where_(&mask.live, t, 0.0)
                .map(|t| t.detach())
                .map_err(&fail)
        };
        self.value = cut(&self.value)?;
        let states = [&mut self.momentum, &mut self.adam_m, &mut self.adam_v];
        for state in states.into_iter().flatten() {
            *state = cut(state)?;
        }
        Ok(())
    }

    fn effective(&self, part: impl Fn(&Effective) -> Option<&Tensor>) -> Option<&Tensor> {
        self.effective.as_ref().and_then(part)
    }

    /// The leaf of the next forward pass: the value or what stands for it, under the mask.
    fn fresh_leaf(&self) -> Result<Tensor> {
        let masked = |t: &Tensor, mask: Option<&Mask>| match mask {
            Some(mask) => ops::where_(&mask.live, t, 0.0)
                .map(|t| t.detach())
                .map_err(self.fail("value")),
            None => Ok(t.clone()),
        };
        let mask = self.mask.as_ref();
        let forward = match self.effective(|e| e.forward.as_ref()) {
            Some(forward) => masked(forward, mask)?,
            // A mask that does not keep is in the value already.
            None => masked(&self.value, mask.filter(|mask| mask.keep))?,
        };
        match self.effective(|e| e.backward.as_ref()) {
            Some(backward) => forward
                .with_backward(&masked(backward, mask)?)
                .map_err(self.fail("value")),
            None => Ok(forward.with_requires_grad()),
        }
    }

    fn forget_state(&mut self) {
        self.momentum = None;
        self.adam_m = None;
        self.adam_v = None;
        self.adam_steps = 0;
    }

    fn mismatch(&self, operation: &'static str, what: &'static str, tensor: &Tensor) -> Error {
        Error::Mismatch {
            operation,
            name: self.name.clone(),
            what,
            expected: self.value.shape().to_vec(),
            dtype: self.value.dtype(),
            found: tensor.shape().to_vec(),
            found_dtype: tensor.dtype(),
        }
    }

    fn check_updatable(&self, operation: &'static str, grad: &Tensor) -> Result<()> {
        if self.kind == Kind::Buffer {
            return Err(Error::Buffer {
                operation,
                name: self.name.clone(),
            });
        }
        if !self.trainable {
            return Err(Error::Frozen {
                operation,
                name: self.name.clone(),
            });
        }
        if grad.shape() != self.value.shape() || grad.dtype() != self.value.dtype() {
            return Err(self.mismatch(operation, "gradient", grad));
        }
        Ok(())
    }
}

/// How many elements are not zero.
fn living(t: &Tensor) -> espalier_tensor::Result<u64> {
    Ok(match t.dtype() {
        DType::F32 => t.to_vec::<f32>()?.iter().filter(|x| **x != 0.0).count() as u64,
        _ => t.to_list()?.iter().filter(|x| **x != 0.0).count() as u64,
    })
}

/// The mask that an update applies as it goes: one that does not keep the hidden values.
fn pruned(mask: &Option<Mask>) -> Option<&Tensor> {
    mask.as_ref()
        .filter(|mask| !mask.keep)
        .map(|mask| &mask.live)
}

/// Where each name stands.
fn places(entries: &[Entry]) -> BTreeMap<String, usize> {
    let names = entries.iter().map(|entry| entry.name.clone());
    names.zip(0..).collect()
}

/// Named parameters in the order of their creation.
///
/// A clone is cheap and independent: tensors are shared until one of the two changes them.
#[derive(Clone, Default)]
pub struct ParameterSet {
    entries: Vec<Entry>,
    index: BTreeMap<String, usize>,
    tags: BTreeMap<String, Vec<Entry>>,
    /// Where the next name is looked for first: a model and an optimiser go through the names in their order.
    next: Cell<usize>,
}

impl std::fmt::Debug for ParameterSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterSet")
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

impl ParameterSet {
    /// An empty set.
    pub fn new() -> ParameterSet {
        ParameterSet::default()
    }

    /// Adds a parameter. The value is cut from any graph.
    ///
    /// # Errors
    /// The name is taken, or the dtype is not f32 or f64 and the kind is not [`Kind::Buffer`].
    pub fn create(
        &mut self,
        name: &str,
        kind: Kind,
        layer: Option<u32>,
        value: Tensor,
        trainable: bool,
        group: String,
    ) -> Result<()> {
        if self.index.contains_key(name) {
            return Err(Error::Duplicate { name: name.into() });
        }
        if kind != Kind::Buffer && !matches!(value.dtype(), DType::F32 | DType::F64) {
            return Err(Error::NotFloat {
                name: name.into(),
                kind,
                dtype: value.dtype(),
            });
        }
        let value = value
            .detach()
            .contiguous()
            .map_err(|source| Error::Tensor {
                operation: "create",
                name: name.into(),
                source,
            })?;
        self.index.insert(name.into(), self.entries.len());
        self.entries.push(Entry {
            name: name.into(),
            kind,
            layer,
            trainable,
            group,
            value,
            mask: None,
            effective: None,
            momentum: None,
            adam_m: None,
            adam_v: None,
            adam_steps: 0,
            leaf: None,
        });
        Ok(())
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Parameters of the set and of every snapshot of it: what it costs beside tensors.
    pub fn entries_kept(&self) -> usize {
        self.entries.len() + self.tags.values().map(Vec::len).sum::<usize>()
    }

    /// True if a parameter has that name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Names in the order of creation.
    pub fn names(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|entry| entry.name.clone())
            .collect()
    }

    /// What is known about each parameter, in the order of creation.
    pub fn infos(&self) -> Vec<ParameterInfo> {
        self.entries
            .iter()
            .map(|entry| ParameterInfo {
                name: entry.name.clone(),
                kind: entry.kind,
                layer: entry.layer,
                shape: entry.value.shape().to_vec(),
                dtype: entry.value.dtype(),
                trainable: entry.trainable,
                group: entry.group.clone(),
            })
            .collect()
    }

    /// Sets the run file's flag.
    ///
    /// # Errors
    /// Unknown name.
    pub fn set_trainable(&mut self, name: &str, trainable: bool) -> Result<()> {
        let at = self.find(name)?;
        self.entries[at].trainable = trainable;
        Ok(())
    }

    /// Says which layer a parameter belongs to, unless it belongs to one already.
    ///
    /// # Errors
    /// Unknown name.
    pub fn belongs_to(&mut self, name: &str, layer: u32) -> Result<()> {
        let at = self.find(name)?;
        self.entries[at].layer.get_or_insert(layer);
        Ok(())
    }

    /// The effective value as the next forward pass uses it: what [`ParameterSet::set_effective`] has put in the
    /// stored value's place, with zeros where a mask hides. A tracked leaf (dense gradients, masked positions included) unless
    /// the parameter is a buffer. The same tensor is returned until the value or the mask changes.
    ///
    /// # Errors
    /// Unknown name; out of memory under a budget.
    pub fn value(&mut self, name: &str) -> Result<Tensor> {
        let at = self.find(name)?;
        let entry = &mut self.entries[at];
        if entry.kind == Kind::Buffer {
            return Ok(entry.value.clone());
        }
        if let Some(leaf) = &entry.leaf {
            return Ok(leaf.clone());
        }
        let leaf = entry.fresh_leaf()?;
        entry.leaf = Some(leaf.clone());
        Ok(leaf)
    }

    /// The stored value, untracked; neither a mask that keeps nor [`ParameterSet::set_effective`] shows in it.
    ///
    /// # Errors
    /// Unknown name.
    pub fn stored(&self, name: &str) -> Result<&Tensor> {
        Ok(&self.entries[self.find(name)?].value)
    }

    /// As [`ParameterSet::value`], by place; without a leaf where there is none yet.
    ///
    /// # Errors
    /// As [`ParameterSet::value`]; unknown where there are not so many.
    pub fn value_at(&mut self, place: usize) -> Result<Tensor> {
        let Some(entry) = self.entries.get(place) else {
            return Err(Error::Unknown {
                name: format!("number {place}"),
                suggestion: None,
                count: self.entries.len(),
            });
        };
        let hidden = entry.mask.as_ref().is_some_and(|mask| mask.keep);
        if hidden || entry.effective.is_some() {
            let name = entry.name.clone();
            return self.value(&name);
        }
        Ok(entry.value.clone())
    }

    /// Whether another value stands for the parameter, forward or backward.
    pub fn is_effective(&self, name: &str) -> bool {
        let entry = self.find(name).map(|at| &self.entries[at]);
        entry.is_ok_and(|entry| entry.effective.is_some())
    }

    /// Whether gradients go back through another value than the forward one, by place.
    pub fn has_backward(&self, place: usize) -> bool {
        let entry = self.entries.get(place);
        entry.is_some_and(|entry| entry.effective(|e| e.backward.as_ref()).is_some())
    }

    /// Name and stored value by place.
    pub fn stored_at(&self, place: usize) -> Option<(&str, &Tensor)> {
        let entry = self.entries.get(place)?;
        Some((&entry.name, &entry.value))
    }

    /// Replaces the stored value. The graph is cut; handles given out earlier keep the old value; a mask
    /// that does not keep is applied to the new one.
    ///
    /// # Errors
    /// Unknown name; another shape or dtype.
    pub fn assign(&mut self, name: &str, value: &Tensor) -> Result<()> {
        let at = self.find(name)?;
        let mut entry = self.entries[at].clone();
        if value.shape() != entry.value.shape() || value.dtype() != entry.value.dtype() {
            return Err(entry.mismatch("assign", "value", value));
        }
        entry.value = value.detach().contiguous().map_err(entry.fail("assign"))?;
        entry.leaf = None;
        entry.apply_mask("assign")?;
        self.entries[at] = entry;
        Ok(())
    }

    /// Sets (`Some`) or removes (`None`) the mask of a parameter: bool, or 0 and 1 of any dtype. A position lives
    /// where it is 1. With `keep` false, value and optimiser state become zero at the dead positions now and after
    /// every update; with `keep` true the stored value stays and only [`ParameterSet::value`] shows
    /// zeros, so that a later mask may bring the weight back.
    ///
    /// # Errors
    /// Unknown name; a buffer; another shape; an element that is neither 0 nor 1.
    pub fn set_mask(&mut self, name: &str, mask: Option<&Tensor>, keep: bool) -> Result<()> {
        let at = self.find(name)?;
        // A copy of a few pointers, so that a refusal leaves value and mask in step.
        let mut entry = self.entries[at].clone();
        if entry.kind == Kind::Buffer {
            return Err(Error::Buffer {
                operation: "set-mask",
                name: name.into(),
            });
        }
        let new = match mask {
            None => None,
            Some(mask) => {
                if mask.shape() != entry.value.shape() {
                    return Err(entry.mismatch("set-mask", "mask", mask));
                }
                if mask.dtype() != DType::Bool {
                    let values = mask.detach().to_list().map_err(entry.fail("set-mask"))?;
                    if let Some(value) = values.into_iter().find(|x| *x != 0.0 && *x != 1.0) {
                        return Err(Error::NotMask {
                            operation: "set-mask",
                            name: name.into(),
                            value,
                        });
                    }
                }
                let live = ops::astype(&mask.detach(), DType::Bool)
                    .and_then(|t| t.contiguous())
                    .map_err(entry.fail("set-mask"))?;
                let count = live.to_vec::<bool>().map_err(entry.fail("set-mask"))?;
                let count = count.iter().filter(|live| **live).count();
                Some(Mask { live, keep, count })
            }
        };
        entry.mask = new;
        entry.leaf = None;
        entry.apply_mask("set-mask")?;
        self.entries[at] = entry;
        Ok(())
    }

    /// Sets what stands for the stored value in forward passes, and what products (matrix products, convolutions,
    /// linear and recurrent layers) pass gradients back to their other operand through: without `forward` the
    /// stored value, without `backward` the forward one; without both, nothing stands for it any longer. The
    /// gradient of the parameter is that of the forward value, and changes the stored one. A mask hides places of
    /// both. Graphs are cut. Both stay as they are until they are set again, whatever becomes of the value.
    ///
    /// # Errors
    /// Unknown name; a buffer; another shape or dtype.
    pub fn set_effective(
        &mut self,
        name: &str,
        forward: Option<&Tensor>,
        backward: Option<&Tensor>,
    ) -> Result<()> {
        const OP: &str = "set-effective";
        let at = self.find(name)?;
        let entry = &self.entries[at];
        if entry.kind == Kind::Buffer {
            return Err(Error::Buffer {
                operation: OP,
                name: name.into(),
            });
        }
        let part = |what: &'static str, t: Option<&Tensor>| {
            let Some(t) = t else { return Ok(None) };
            if t.shape() != entry.value.shape() || t.dtype() != entry.value.dtype() {
                return Err(entry.mismatch(OP, what, t));
            }
            t.detach().contiguous().map(Some).map_err(entry.fail(OP))
        };
        let effective = Effective {
            forward: part("forward value", forward)?,
            backward: part("backward value", backward)?,
        };
        let there = effective.forward.is_some() || effective.backward.is_some();
        let entry = &mut self.entries[at];
        entry.effective = there.then_some(effective);
        entry.leaf = None;
        Ok(())
    }

    /// The mask (bool, true where the weight lives), or none for a dense parameter.
    ///
    /// # Errors
    /// Unknown name.
    pub fn mask(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.entries[self.find(name)?]
            .mask
            .as_ref()
            .map(|mask| mask.live.clone()))
    }

    /// Whether the parameter's mask hides values instead of setting them to 0.
    pub fn hides(&self, name: &str) -> bool {
        let entry = self.find(name).map(|at| &self.entries[at]);
        entry.is_ok_and(|entry| entry.mask.as_ref().is_some_and(|mask| mask.keep))
    }

    /// Keeps values, masks and optimiser state of all parameters under a tag; the same tag overwrites.
    pub fn snapshot(&mut self, tag: &str) {
        let kept = self
            .entries
            .iter()
            .map(|entry| Entry {
                leaf: None,
                ..entry.clone()
            })
            .collect();
        self.tags.insert(tag.into(), kept);
    }

    /// Forgets every snapshot.
    pub fn forget_tags(&mut self) {
        self.tags.clear();
    }

    /// True if a snapshot has that tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.contains_key(tag)
    }

    /// The tags, in alphabetical order.
    pub fn tags(&self) -> Vec<String> {
        self.tags.keys().cloned().collect()
    }

    /// Makes the set what it was at the snapshot: values, masks, optimiser state; parameters created
    /// since then are gone. Snapshots themselves stay.
    ///
    /// # Errors
    /// Unknown tag.
    pub fn rollback(&mut self, tag: &str) -> Result<()> {
        self.entries = self.tagged(tag)?.clone();
        self.index = places(&self.entries);
        Ok(())
    }

    /// As [`ParameterSet::rollback`], but the masks stay as they are now and are applied to the values
    /// and the optimiser state that come back.
    ///
    /// # Errors
    /// Unknown tag; out of memory under a budget.
    pub fn restore_keeping_masks(&mut self, tag: &str) -> Result<()> {
        let mut restored = self.tagged(tag)?.clone();
        for entry in &mut restored {
            // A parameter's shape never changes under one name except through a rollback that drops it.
            if let Some(&at) = self.index.get(&entry.name) {
                entry.mask = self.entries[at]
                    .mask
                    .clone()
                    .filter(|m| m.live.shape() == entry.value.shape());
                entry.apply_mask("rewind")?;
            }
        }
        self.entries = restored;
        self.index = places(&self.entries);
        Ok(())
    }

    /// One step of stochastic gradient descent on the named parameters; others stay untouched.
    ///
    /// # Errors
    /// Before anything changes: unknown or repeated names, frozen parameters, buffers, a gradient of
    /// another shape or dtype, lists of different lengths.
    pub fn sgd(&mut self, names: &[String], grads: &[Tensor], how: &Sgd) -> Result<()> {
        let plan = self.plan_update("sgd", names, grads)?;
        let mut parts = self.parts(&plan, |entry, grad| SgdPart {
            value: &mut entry.value,
            grad,
            buf: &mut entry.momentum,
            mask: pruned(&entry.mask),
        });
        let done = optim::sgd_steps(&mut parts, how);
        done.map_err(|(at, source)| self.entries[plan[at].0].fail("sgd")(source))
    }

    /// One step of Adam or AdamW on the named parameters; others stay untouched.
    ///
    /// # Errors
    /// As [`ParameterSet::sgd`].
    pub fn adam(&mut self, names: &[String], grads: &[Tensor], how: &Adam) -> Result<()> {
        let plan = self.plan_update("adam", names, grads)?;
        let mut parts = self.parts(&plan, |entry, grad| AdamPart {
            value: &mut entry.value,
            grad,
            m: &mut entry.adam_m,
            v: &mut entry.adam_v,
            step: entry.adam_steps + 1,
            mask: pruned(&entry.mask),
        });
        let done = optim::adam_steps(&mut parts, how);
        done.map_err(|(at, source)| self.entries[plan[at].0].fail("adam")(source))?;
        for (at, _) in plan {
            self.entries[at].adam_steps += 1;
        }
        Ok(())
    }

    /// What an update that [`Self::plan_update`] allows makes of its entries, in their order. Their leaves are gone:
    /// a leaf shares the value's storage, and the step would have to copy it.
    fn parts<'a, T>(
        &'a mut self,
        plan: &[(usize, &'a Tensor)],
        part: impl Fn(&'a mut Entry, &'a Tensor) -> T,
    ) -> Vec<T> {
        let mut parts = Vec::with_capacity(plan.len());
        let (mut rest, mut passed) = (&mut self.entries[..], 0);
        for &(at, grad) in plan {
            let from = std::mem::take(&mut rest);
            let Some((entry, after)) = from[at - passed..].split_first_mut() else {
                break;
            };
            entry.leaf = None;
            parts.push(part(entry, grad));
            (rest, passed) = (after, at + 1);
        }
        parts
    }

    /// Checks that the names exist and differ.
    ///
    /// # Errors
    /// Unknown or repeated names.
    pub fn check_names(&self, operation: &'static str, names: &[String]) -> Result<()> {
        let mut seen = vec![false; self.entries.len()];
        for name in names {
            if std::mem::replace(&mut seen[self.find(name)?], true) {
                return Err(Error::Twice {
                    operation,
                    name: name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Sets moments and step counters of the named parameters to zero.
    ///
    /// # Errors
    /// Unknown name.
    pub fn reset_state(&mut self, names: &[String]) -> Result<()> {
        let places = names
            .iter()
            .map(|name| self.find(name))
            .collect::<Result<Vec<_>>>()?;
        for at in places {
            self.entries[at].forget_state();
        }
        Ok(())
    }

    /// How many weights live, and how many there are, over parameters of [`Kind::Weight`]: counted by the
    /// mask where there is one, by values other than zero where there is none, those of the forward pass where
    /// they are others than the stored ones.
    ///
    /// # Errors
    /// Reading a value failed.
    pub fn density(&self) -> Result<(u64, u64)> {
        let (mut live, mut total) = (0u64, 0u64);
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.kind == Kind::Weight)
        {
            total += entry.value.numel() as u64;
            let forward = entry.effective(|e| e.forward.as_ref());
            live += match (&entry.mask, forward) {
                (Some(mask), None) => mask.count as u64,
                (Some(_), Some(_)) => {
                    living(&entry.fresh_leaf()?).map_err(entry.fail("density"))?
                }
                (None, forward) => {
                    living(forward.unwrap_or(&entry.value)).map_err(entry.fail("density"))?
                }
            };
        }
        Ok((live, total))
    }

    /// SHA-256 over name, dtype, shape and bytes of every stored value, mask and effective value, in order. Equal digests
    /// mean equal bits.
    ///
    /// # Errors
    /// Reading a value failed.
    pub fn content_digest(&self) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        for entry in &self.entries {
            let fail = entry.fail("content-digest");
            hash_tensor(&mut hash, &entry.name, &entry.value).map_err(&fail)?;
            if let Some(mask) = &entry.mask {
                hash_tensor(
                    &mut hash,
                    if mask.keep { "hidden" } else { "pruned" },
                    &mask.live,
                )
                .map_err(&fail)?;
            }
            if let Some(effective) = &entry.effective {
                for (role, t) in [
                    ("forward", &effective.forward),
                    ("backward", &effective.backward),
                ] {
                    if let Some(t) = t {
                        hash_tensor(&mut hash, role, t).map_err(&fail)?;
                    }
                }
            }
        }
        Ok(hash.finalize().into())
    }

    /// The same values, buffers, masks and effective values without optimiser state and snapshots: what a clone of a model
    /// starts from.
    pub fn duplicate(&self) -> ParameterSet {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            entry.leaf = None;
            entry.forget_state();
        }
        ParameterSet {
            entries,
            index: self.index.clone(),
            next: Cell::default(),
            tags: BTreeMap::new(),
        }
    }

    /// Everything, as named tensors and a JSON document for a checkpoint: values, masks, effective values, optimiser state,
    /// flags, and the same for each tag. [`ParameterSet::import`] is the inverse.
    pub fn export(&self, prefix: &str) -> (Vec<(String, Tensor)>, serde_json::Value) {
        let mut tensors = Vec::new();
        let current = save_entries(&self.entries, prefix, &mut tensors);
        let tags = self
            .tags
            .iter()
            .enumerate()
            .map(|(number, (tag, entries))| SavedTag {
                tag: tag.clone(),
                entries: save_entries(entries, &format!("{prefix}/tags/{number}"), &mut tensors),
            });
        let saved = SavedSet {
            current,
            tags: tags.collect(),
        };
        (
            tensors,
            serde_json::to_value(saved).unwrap_or(serde_json::Value::Null),
        )
    }

    /// The set that was saved under `prefix`.
    ///
    /// # Errors
    /// [`Error::Saved`] names what is missing or does not fit.
    pub fn import(
        prefix: &str,
        tensors: &BTreeMap<String, Tensor>,
        meta: &serde_json::Value,
    ) -> Result<ParameterSet> {
        let broken = |problem: String| Error::Saved {
            prefix: prefix.into(),
            problem,
        };
        let saved = SavedSet::deserialize(meta).map_err(|error| broken(error.to_string()))?;
        let entries = load_entries(&saved.current, prefix, tensors).map_err(broken)?;
        let mut tags = BTreeMap::new();
        for (number, tag) in saved.tags.iter().enumerate() {
            let kept = load_entries(&tag.entries, &format!("{prefix}/tags/{number}"), tensors);
            tags.insert(tag.tag.clone(), kept.map_err(broken)?);
        }
        let index = places(&entries);
        if index.len() != entries.len() {
            return Err(broken("a name stands twice".into()));
        }
        Ok(ParameterSet {
            entries,
            index,
            tags,
            next: Cell::default(),
        })
    }

    fn find(&self, name: &str) -> Result<usize> {
        let next = self.next.get();
        if self
            .entries
            .get(next)
            .is_some_and(|entry| entry.name == name)
        {
            self.next.set(next + 1);
            return Ok(next);
        }
        if let Some(&at) = self.index.get(name) {
            self.next.set(at + 1);
            return Ok(at);
        }
        Err(Error::Unknown {
            name: name.into(),
            suggestion: crate::diagnostic::nearest(name, self.index.keys().map(String::as_str))
                .map(str::to_owned),
            count: self.entries.len(),
        })
    }

    fn tagged(&self, tag: &str) -> Result<&Vec<Entry>> {
        self.tags.get(tag).ok_or_else(|| Error::UnknownTag {
            tag: tag.into(),
            known: self.tags(),
        })
    }

    /// Checks an update as a whole, so that a refused call has changed nothing; the places in the set, ascending.
    fn plan_update<'a>(
        &self,
        operation: &'static str,
        names: &[String],
        grads: &'a [Tensor],
    ) -> Result<Vec<(usize, &'a Tensor)>> {
        if names.len() != grads.len() {
            return Err(Error::Lengths {
                operation,
                names: names.len(),
                grads: grads.len(),
            });
        }
        let mut plan: Vec<(usize, &Tensor)> = Vec::with_capacity(names.len());
        // Names mostly come in the set's order; then no two can be the same.
        let mut seen: Option<Vec<bool>> = None;
        for (name, grad) in names.iter().zip(grads) {
            let at = self.find(name)?;
            self.entries[at].check_updatable(operation, grad)?;
            if seen.is_none() && plan.last().is_some_and(|&(last, _)| at <= last) {
                let mut all = vec![false; self.entries.len()];
                plan.iter().for_each(|&(at, _)| all[at] = true);
                seen = Some(all);
            }
            if let Some(seen) = &mut seen
                && std::mem::replace(&mut seen[at], true)
            {
                return Err(Error::Twice {
                    operation,
                    name: name.clone(),
                });
            }
            plan.push((at, grad));
        }
        if seen.is_some() {
            plan.sort_unstable_by_key(|&(at, _)| at);
        }
        Ok(plan)
    }
}

/// Bytes of a tensor in row-major order, little-endian; bool as one byte of 0 or 1.
pub(crate) fn tensor_bytes(t: &Tensor) -> espalier_tensor::Result<Vec<u8>> {
    Ok(match t.dtype() {
        DType::F32 => t
            .to_vec::<f32>()?
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect(),
        DType::F64 => t
            .to_vec::<f64>()?
            .into_iter()
            .flat_map(f64::to_le_bytes)
            .collect(),
        DType::I64 => t
            .to_vec::<i64>()?
            .into_iter()
            .flat_map(i64::to_le_bytes)
            .collect(),
        DType::Bool => t.to_vec::<bool>()?.into_iter().map(u8::from).collect(),
    })
}

/// Feeds name, dtype, shape and bytes of a tensor to a hash, each with its length.
pub(crate) fn hash_tensor(
    hash: &mut Sha256,
    name: &str,
    t: &Tensor,
) -> espalier_tensor::Result<()> {
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    hash.update(format!("{} {:?} ", t.dtype(), t.shape()));
    hash.update(tensor_bytes(t)?);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct SavedSet {
    current: Vec<SavedEntry>,
    tags: Vec<SavedTag>,
}

#[derive(Serialize, Deserialize)]
struct SavedTag {
    tag: String,
    entries: Vec<SavedEntry>,
}

#[derive(Serialize, Deserialize)]
struct SavedEntry {
    name: String,
    kind: Kind,
    layer: Option<u32>,
    trainable: bool,
    group: String,
    /// None: dense. Some(keep): masked.
    mask: Option<bool>,
    /// Whether other values stand for this one, forward and backward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effective: Option<(bool, bool)>,
    momentum: bool,
    adam: bool,
    adam_steps: u64,
}

fn save_entries(
    entries: &[Entry],
    prefix: &str,
    tensors: &mut Vec<(String, Tensor)>,
) -> Vec<SavedEntry> {
    let mut save = |role: &str, name: &str, tensor: Option<&Tensor>| {
        if let Some(tensor) = tensor {
            tensors.push((format!("{prefix}/{role}/{name}"), tensor.clone()));
        }
    };
    entries
        .iter()
        .map(|entry| {
            save("value", &entry.name, Some(&entry.value));
            save(
                "mask",
                &entry.name,
                entry.mask.as_ref().map(|mask| &mask.live),
            );
            let forward = entry.effective(|e| e.forward.as_ref());
            let backward = entry.effective(|e| e.backward.as_ref());
            save("forward", &entry.name, forward);
            save("backward", &entry.name, backward);
            save("momentum", &entry.name, entry.momentum.as_ref());
            save("adam-m", &entry.name, entry.adam_m.as_ref());
            save("adam-v", &entry.name, entry.adam_v.as_ref());
            SavedEntry {
                name: entry.name.clone(),
                kind: entry.kind,
                layer: entry.layer,
                trainable: entry.trainable,
                group: entry.group.clone(),
                mask: entry.mask.as_ref().map(|mask| mask.keep),
                effective: entry
                    .effective
                    .as_ref()
                    .map(|e| (e.forward.is_some(), e.backward.is_some())),
                momentum: entry.momentum.is_some(),
                adam: entry.adam_m.is_some(),
                adam_steps: entry.adam_steps,
            }
        })
        .collect()
}

fn load_entries(
    saved: &[SavedEntry],
    prefix: &str,
    tensors: &BTreeMap<String, Tensor>,
) -> std::result::Result<Vec<Entry>, String> {
    let load = |role: &str, name: &str, shape: Option<&[usize]>| {
        let key = format!("{prefix}/{role}/{name}");
        let tensor = tensors
            .get(&key)
            .cloned()
            .ok_or_else(|| format!("tensor `{key}` is missing"))?;
        match shape {
            Some(shape) if shape != tensor.shape() => Err(format!(
                "tensor `{key}` has shape {:?}, expected {shape:?}",
                tensor.shape()
            )),
            _ => Ok(tensor),
        }
    };
    let mut entries = Vec::with_capacity(saved.len());
    for entry in saved {
        let value = load("value", &entry.name, None)?;
        let state = |there: bool, role: &str| {
            there
                .then(|| load(role, &entry.name, Some(value.shape())))
                .transpose()
        };
        let mask = match entry.mask {
            None => None,
            Some(keep) => {
                let live = load("mask", &entry.name, Some(value.shape()))?;
                let flags = live.to_vec::<bool>().map_err(|error| error.to_string())?;
                Some(Mask {
                    live,
                    keep,
                    count: flags.iter().filter(|live| **live).count(),
                })
            }
        };
        let effective = match entry.effective {
            None => None,
            Some((forward, backward)) => Some(Effective {
                forward: state(forward, "forward")?,
                backward: state(backward, "backward")?,
            }),
        };
        entries.push(Entry {
            name: entry.name.clone(),
            kind: entry.kind,
            layer: entry.layer,
            trainable: entry.trainable,
            group: entry.group.clone(),
            mask,
            effective,
            momentum: state(entry.momentum, "momentum")?,
            adam_m: state(entry.adam, "adam-m")?,
            adam_v: state(entry.adam, "adam-v")?,
            adam_steps: entry.adam_steps,
            leaf: None,
            value,
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
