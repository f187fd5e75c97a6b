//! The gradient graph: what `record` builds and [`grad`] walks.
//!
//! One node stands for one tensor that some operation made from tracked parents. Node numbers grow, so a
//! parent's number is below its children's, and descending order is a topological order: neither
//! building, nor differentiating, nor dropping a graph recurses, however long the chain.
//!
//! A gradient rule is ordinary tensor code. Under `create_graph` it runs with gradients enabled and so
//! builds the graph of the next order; otherwise it runs with gradients disabled, and may branch to a
//! fused kernel when [`grad_enabled`] says so.

use std::cell::{Cell, RefCell};
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::account::NodeCount;
use crate::counted::Counted;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Dims;
use crate::ops;
use crate::tensor::Tensor;

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
}

/// Whether operations on this thread are recorded.
pub fn grad_enabled() -> bool {
    ENABLED.with(Cell::get)
}

/// Turns recording on this thread on or off; returns the previous setting.
pub fn set_grad_enabled(enabled: bool) -> bool {
    ENABLED.with(|e| e.replace(enabled))
}

/// Recording is off on this thread until this is dropped, which restores what was before.
#[must_use = "recording is off only while the guard lives"]
#[derive(Debug)]
pub struct NoGrad {
    previous: bool,
    _on_this_thread: std::marker::PhantomData<*const ()>,
}

/// Turns recording off for a scope.
pub fn no_grad() -> NoGrad {
    NoGrad {
        previous: set_grad_enabled(false),
        _on_this_thread: std::marker::PhantomData,
    }
}

impl Drop for NoGrad {
    fn drop(&mut self) {
        set_grad_enabled(self.previous);
    }
}

/// One gradient per parent, in the order the parents were given; `None` stands for zero.
pub(crate) type Gradients = Vec<Option<Tensor>>;

/// What a gradient rule is given.
pub(crate) struct Flow<'a> {
    /// The gradient of the differentiated outputs with respect to this node's tensor; its shape and
    /// element type are that tensor's.
    pub(crate) grad: Tensor,
    /// This node's tensor, where the rule asked to keep it ([`record_keeping_output`]).
    output: Option<Tensor>,
    needs: &'a [bool],
}

impl Flow<'_> {
    /// Whether the gradient of parent `i` is wanted. A rule returns `None` for the others.
    pub(crate) fn needs(&self, i: usize) -> bool {
        self.needs.get(i).copied().unwrap_or(false)
    }

    /// This node's tensor, as the operation returned it.
    pub(crate) fn output(&self) -> Result<&Tensor> {
        self.output.as_ref().ok_or_else(|| Error::Internal {
            op: "grad",
            problem: "a gradient rule asked for an output that was not kept".into(),
        })
    }
}

pub(crate) type Rule = Box<dyn Fn(&Flow) -> Result<Gradients> + Send + Sync>;

/// A tensor's place in the graph.
pub(crate) struct Node {
    id: u64,
    op: &'static str,
    shape: Dims,
    dtype: DType,
    leaf: bool,
    /// What products multiply by in the place of this node's tensor when they pass a gradient back to their
    /// other operand: [`Tensor::with_backward`].
    backward: OnceLock<Tensor>,
    body: Mutex<Body>,
}

type Parent = Option<Counted<Node>>;

/// A node's parents, in the operation's order; `None` stands for one that is not tracked. Few of them, as nearly
/// always, lie in place.
pub(crate) enum Parents {
    Few([Parent; 3], usize),
    Many(Vec<Parent>),
}

impl Default for Parents {
    fn default() -> Parents {
        Parents::Few([None, None, None], 0)
    }
}

impl Parents {
    /// Of an operation's operands.
    pub(crate) fn of<'a>(nodes: impl IntoIterator<Item = Option<&'a Counted<Node>>>) -> Parents {
        let mut parents = Parents::default();
        for node in nodes {
            parents.push(node.cloned());
        }
        parents
    }

    fn push(&mut self, parent: Parent) {
        match self {
            Parents::Few(few, len) if *len < few.len() => {
                few[*len] = parent;
                *len += 1;
            }
            Parents::Few(few, _) => {
                let mut many: Vec<Parent> = few.iter_mut().map(Option::take).collect();
                many.push(parent);
                *self = Parents::Many(many);
            }
            Parents::Many(many) => many.push(parent),
        }
    }

    fn all(&self) -> &[Parent] {
        match self {
            Parents::Few(few, len) => &few[..*len],
            Parents::Many(many) => many,
        }
    }

    fn all_mut(&mut self) -> &mut [Parent] {
        match self {
            Parents::Few(few, len) => &mut few[..*len],
            Parents::Many(many) => many,
        }
    }
}

/// What a node holds of the graph below it.
#[derive(Default)]
struct Body {
    parents: Parents,
    /// `None` for a leaf, and after the node was freed.
    saved: Option<Saved>,
    /// Whether a tracked parent was let go when the node was freed: what lies below is then unknown.
    pruned: bool,
}

/// What a node holds until it is freed.
struct Saved {
    rule: Rule,
    /// The node's own tensor without its node: a node that held itself would never be dropped.
    output: Option<Tensor>,
    _count: NodeCount,
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Node {
    /// A node without parents.
    pub(crate) fn leaf(tensor: &Tensor) -> Counted<Node> {
        Counted::new(Node {
            id: next_id(),
            op: "leaf",
            shape: tensor.layout().shape,
            dtype: tensor.dtype(),
            leaf: true,
            backward: OnceLock::new(),
            body: Mutex::new(Body::default()),
        })
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(crate) fn backward(&self) -> Option<&Tensor> {
        self.backward.get()
    }

    /// Sets what [`backward`](Node::backward) returns; a node just made has none.
    pub(crate) fn set_backward(&self, backward: Tensor) {
        // Only a second setting fails, and there is none.
        let _ = self.backward.set(backward);
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        // A panic while the lock was held leaves a body that is still whole.
        self.body
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Body {
    /// Lets go of everything saved, and of parents that were not on the path just walked, and hands them over. The
    /// path itself stays, so that a later walk knows whether it needs what is gone.
    fn free(&mut self, on_path: &[bool]) -> Body {
        let mut gone = Body {
            saved: self.saved.take(),
            ..Body::default()
        };
        for (parent, kept) in self.parents.all_mut().iter_mut().zip(on_path) {
            if !kept && let Some(parent) = parent.take() {
                self.pruned = true;
                gone.parents.push(Some(parent));
            }
        }
        gone
    }
}

thread_local! {
    /// Bodies waiting to be dropped; `Some` while a drop further up the stack empties it.
    static DOOMED: RefCell<Option<Vec<Body>>> = const { RefCell::new(None) };
}

impl Drop for Node {
    fn drop(&mut self) {
        let body = match self.body.get_mut() {
            Ok(body) => body,
            Err(poisoned) => poisoned.into_inner(),
        };
        if !body.parents.all().is_empty() || body.saved.is_some() {
            discard(std::mem::take(body));
        }
    }
}

/// Drops a body without recursing into its ancestors: nested drops queue up instead.
fn discard(body: Body) {
    let mut waiting = Some(body);
    let outermost = DOOMED
        .try_with(|doomed| {
            let mut doomed = doomed.borrow_mut();
            match doomed.as_mut() {
                Some(queue) => {
                    queue.extend(waiting.take());
                    false
                }
                None => {
                    *doomed = Some(Vec::new());
                    true
                }
            }
        })
        .unwrap_or(false);
    if !outermost {
        // Either queued above, or the thread is ending and its queue is gone: then `waiting` drops here.
        return;
    }
    drop(waiting.take());
    loop {
        let next = DOOMED.with(|doomed| {
            let mut doomed = doomed.borrow_mut();
            let next = doomed.as_mut().and_then(Vec::pop);
            if next.is_none() {
                *doomed = None;
            }
            next
        });
        match next {
            Some(body) => drop(body),
            None => return,
        }
    }
}

/// Makes `out` a tracked result of `op` on `parents`, unless no parent is tracked, recording is off, or
/// `out` is not a float; then `out` is returned as it is.
///
/// `rule` maps the gradient of `out` to one gradient per parent. A gradient may have a shape that its
/// parent broadcasts to (it is summed down) or that broadcasts to the parent (it is repeated), and must
/// have the parent's element type.
pub(crate) fn record(
    op: &'static str,
    out: Tensor,
    parents: &[&Tensor],
    rule: impl Fn(&Flow) -> Result<Gradients> + Send + Sync + 'static,
) -> Tensor {
    if !tracks(parents) {
        return out;
    }
    attach(op, out, nodes(parents), false, Box::new(rule))
}

/// As [`record`], for a rule that reads the result itself ([`Flow::output`]). Rules must not capture
/// their own result: it would keep itself alive.
pub(crate) fn record_keeping_output(
    op: &'static str,
    out: Tensor,
    parents: &[&Tensor],
    rule: impl Fn(&Flow) -> Result<Gradients> + Send + Sync + 'static,
) -> Tensor {
    if !tracks(parents) {
        return out;
    }
    attach(op, out, nodes(parents), true, Box::new(rule))
}

/// Whether [`record`] would record: lets an operation skip work that only its gradient needs.
pub(crate) fn tracks(parents: &[&Tensor]) -> bool {
    grad_enabled() && parents.iter().any(|p| p.requires_grad())
}

fn nodes(parents: &[&Tensor]) -> Parents {
    Parents::of(parents.iter().map(|p| p.node()))
}

/// Attaches a node; the caller has found that some parent is tracked. Sides of an operation that are not
/// tensors stand in `parents` as `None`.
pub(crate) fn attach(
    op: &'static str,
    out: Tensor,
    parents: Parents,
    keep: bool,
    rule: Rule,
) -> Tensor {
    if !out.dtype().is_float() {
        return out;
    }
    let saved = Saved {
        rule,
        output: keep.then(|| out.detach()),
        _count: NodeCount::take(),
    };
    let node = Node {
        id: next_id(),
        op,
        shape: out.layout().shape,
        dtype: out.dtype(),
        leaf: false,
        backward: OnceLock::new(),
        body: Mutex::new(Body {
            parents,
            saved: Some(saved),
            pruned: false,
        }),
    };
    out.with_node(Some(Counted::new(node)))
}

/// Gives `y`, a view of `t`, the same view of what products multiply by in `t`'s place, where there is something.
pub(crate) fn carry_backward(
    y: Tensor,
    t: &Tensor,
    view: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if let (Some(backward), Some(node)) = (t.backward_value(), y.node()) {
        node.set_backward(view(backward)?);
    }
    Ok(y)
}

/// Gradients of `outputs` with respect to `inputs`, one per input, each of its input's shape and type.
///
/// `grad_outputs[i]` is the cotangent of `outputs[i]`; `None` means ones and is allowed for outputs of
/// one element. An input that the graph does not reach gets zeros. With `create_graph` the results are
/// tracked themselves, and the graph is kept. Without `create_graph` and `retain_graph` each node's saved
/// tensors are freed as soon as its rule has run, and a second use on the way to some input is
/// [`Error::GraphFreed`]. Nodes that lie on no path to an input are not touched.
///
/// # Errors
/// [`Error::Shape`] for a cotangent that does not have its output's shape or a missing one for an output
/// of several elements; [`Error::Argument`] where the lists' lengths differ; [`Error::GraphFreed`].
pub fn grad(
    outputs: &[&Tensor],
    grad_outputs: &[Option<&Tensor>],
    inputs: &[&Tensor],
    create_graph: bool,
    retain_graph: bool,
) -> Result<Vec<Tensor>> {
    const OP: &str = "grad";
    let seeds = seeds(outputs, grad_outputs)?;
    let _restore = RestoreMode(set_grad_enabled(create_graph));
    let retain = retain_graph || create_graph;

    let path = path(outputs, inputs)?;
    let mut pending: Vec<Option<Tensor>> = Vec::new();
    pending.resize_with(path.ids.len(), || None);
    for (output, seed) in outputs.iter().zip(seeds) {
        if let Some(place) = output.node().and_then(|n| path.place(n.id)) {
            // Without a graph of the next order, a tracked cotangent does not make results tracked.
            let seed = if create_graph { seed } else { seed.detach() };
            accumulate(&mut pending[place], seed)?;
        }
    }
    // Where each input stands, and what has been found for it.
    let wanted: Vec<Option<usize>> = inputs
        .iter()
        .map(|input| input.node().and_then(|n| path.place(n.id)))
        .collect();
    let mut found: Vec<Option<Tensor>> = Vec::new();
    found.resize_with(inputs.len(), || None);
    let mut needs = Vec::with_capacity(4);
    for (place, node) in path.nodes.iter().enumerate().rev() {
        let Some(gradient) = pending[place].take() else {
            continue;
        };
        for (found, _) in found
            .iter_mut()
            .zip(&wanted)
            .filter(|(_, w)| **w == Some(place))
        {
            *found = Some(gradient.clone());
        }
        if node.leaf {
            continue;
        }
        let mut body = node.body();
        let place_of = |parent: &Parent| parent.as_ref().and_then(|p| path.place(p.id));
        needs.clear();
        needs.extend(body.parents.all().iter().map(|p| place_of(p).is_some()));
        if !needs.contains(&true) {
            continue;
        }
        let Some(saved) = &body.saved else {
            return Err(Error::GraphFreed { op: node.op });
        };
        let flow = Flow {
            grad: gradient,
            output: saved
                .output
                .as_ref()
                .map(|t| t.clone().with_node(Some(node.clone()))),
            needs: &needs,
        };
        let gradients = (saved.rule)(&flow)?;
        drop(flow);
        if gradients.len() != body.parents.all().len() {
            return Err(Error::Internal {
                op: node.op,
                problem: "its gradient rule returned a wrong number of gradients".into(),
            });
        }
        for (parent, gradient) in body.parents.all().iter().zip(gradients) {
            if let (Some(place), Some(gradient)) = (place_of(parent), gradient) {
                let gradient = fit(node.op, gradient, &path.nodes[place])?;
                accumulate(&mut pending[place], gradient)?;
            }
        }
        if !retain {
            let gone = body.free(&needs);
            drop(body);
            discard(gone);
        }
    }
    inputs
        .iter()
        .zip(found)
        .map(|(input, found)| match found {
            Some(gradient) => Ok(gradient),
            None => Tensor::zeros_for(OP, input.shape(), input.dtype()),
        })
        .collect()
}

/// Vector-Jacobian products: [`grad`] of first order with every cotangent given, freeing the graph.
///
/// # Errors
/// As [`grad`].
pub fn vjp(outputs: &[&Tensor], cotangents: &[&Tensor], inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let cotangents: Vec<Option<&Tensor>> = cotangents.iter().map(|t| Some(*t)).collect();
    grad(outputs, &cotangents, inputs, false, false)
}

/// Restores the gradient mode on every way out of [`grad`].
struct RestoreMode(bool);

impl Drop for RestoreMode {
    fn drop(&mut self) {
        set_grad_enabled(self.0);
    }
}

fn seeds(outputs: &[&Tensor], grad_outputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    const OP: &str = "grad";
    if outputs.len() != grad_outputs.len() {
        return Err(Error::argument(
            OP,
            format!(
                "{} outputs but {} cotangents",
                outputs.len(),
                grad_outputs.len()
            ),
        ));
    }
    outputs
        .iter()
        .zip(grad_outputs)
        .map(|(output, seed)| {
            if !output.dtype().is_float() {
                return Err(Error::DType {
                    op: OP,
                    found: vec![output.dtype()],
                    expected: "an f32 or f64 output",
                });
            }
            match seed {
                None if output.numel() == 1 => {
                    Tensor::full_for(OP, output.shape(), 1.0, output.dtype())
                }
                None => Err(Error::shape(
                    OP,
                    "an output of more or less than one element needs a cotangent of its shape",
                    &[output.shape()],
                )),
                Some(seed) if seed.dtype() != output.dtype() => Err(Error::DType {
                    op: OP,
                    found: vec![output.dtype(), seed.dtype()],
                    expected: "a cotangent of the output's type; cast with astype",
                }),
                Some(seed) if seed.shape() != output.shape() => Err(Error::shape(
                    OP,
                    "a cotangent has its output's shape",
                    &[output.shape(), seed.shape()],
                )),
                Some(seed) => Ok((*seed).clone()),
            }
        })
        .collect()
}

/// The nodes between outputs and inputs (both included), by ascending number.
struct Path {
    /// Their numbers: what is searched.
    ids: Vec<u64>,
    nodes: Vec<Counted<Node>>,
}

impl Path {
    fn place(&self, id: u64) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }
}

/// A node that was reached, for the queue that gives the youngest first.
struct Reached(Counted<Node>);

impl PartialEq for Reached {
    fn eq(&self, other: &Reached) -> bool {
        self.0.id == other.0.id
    }
}
impl Eq for Reached {}
impl PartialOrd for Reached {
    fn partial_cmp(&self, other: &Reached) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Reached {
    fn cmp(&self, other: &Reached) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

/// Room that a walk makes at once: a small network's graph fits.
const FEW: usize = 32;

fn path(outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<Path> {
    let mut path = Path {
        ids: Vec::new(),
        nodes: Vec::new(),
    };
    let mut wanted: Vec<u64> = inputs
        .iter()
        .filter_map(|t| t.node().map(|n| n.id))
        .collect();
    wanted.sort_unstable();
    let Some(&oldest) = wanted.first() else {
        return Ok(path);
    };
    // Everything the outputs depend on that is not older than every input, youngest first: a node comes after all
    // its children, and a second time in a row where several of them lead to it.
    let mut queue: BinaryHeap<Reached> = BinaryHeap::with_capacity(FEW);
    queue.extend(
        outputs
            .iter()
            .filter_map(|output| output.node())
            .filter(|node| node.id >= oldest)
            .map(|node| Reached(node.clone())),
    );
    // Each with whether it was freed; the numbers of all their parents one after the other, and how many.
    let mut reached: Vec<(Counted<Node>, bool, usize)> = Vec::with_capacity(FEW);
    let mut parents: Vec<u64> = Vec::with_capacity(FEW);
    while let Some(Reached(node)) = queue.pop() {
        if reached.last().is_some_and(|(last, ..)| last.id == node.id) {
            continue;
        }
        if node.leaf {
            reached.push((node, false, 0));
            continue;
        }
        let body = node.body();
        // Where parents were let go, an older input might lie below them.
        if body.pruned && oldest < node.id {
            return Err(Error::GraphFreed { op: node.op });
        }
        let before = parents.len();
        for parent in body.parents.all().iter().flatten() {
            if parent.id >= oldest {
                parents.push(parent.id);
                queue.push(Reached(parent.clone()));
            }
        }
        let (freed, count) = (body.saved.is_none(), parents.len() - before);
        drop(body);
        reached.push((node, freed, count));
    }
    // A node is on a path if it is an input or one of its parents is on a path.
    path.ids.reserve(reached.len());
    path.nodes.reserve(reached.len());
    let mut gone = None;
    while let Some((node, freed, count)) = reached.pop() {
        let first = parents.len() - count;
        let leads = parents[first..].iter().any(|&id| path.place(id).is_some());
        parents.truncate(first);
        if leads && freed {
            // Named in the error: the one nearest to the outputs.
            gone = Some(node.op);
        }
        if leads || wanted.binary_search(&node.id).is_ok() {
            path.ids.push(node.id);
            path.nodes.push(node);
        }
    }
    match gone {
        Some(op) => Err(Error::GraphFreed { op }),
        None => Ok(path),
    }
}

/// Adds a gradient to what has arrived at a node so far, in place where nobody else holds that.
fn accumulate(sum: &mut Option<Tensor>, gradient: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        None => gradient,
        Some(earlier) if grad_enabled() => ops::add(&earlier, &gradient)?,
        Some(mut earlier) => {
            if ops::add_in_place(&mut earlier, &gradient)? {
                earlier
            } else {
                ops::add(&earlier, &gradient)?
            }
        }
    });
    Ok(())
}

/// Brings a rule's gradient to its parent's shape: sums over axes the operation broadcast, repeats along
/// axes it reduced.
fn fit(op: &'static str, gradient: Tensor, parent: &Node) -> Result<Tensor> {
    if gradient.dtype() != parent.dtype {
        return Err(Error::Internal {
            op,
            problem: format!(
                "its gradient rule returned {} for a parent of {}",
                gradient.dtype(),
                parent.dtype
            ),
        });
    }
    if *gradient.shape() == *parent.shape {
        return Ok(gradient);
    }
    ops::fit_shape(&gradient, &parent.shape)
}
