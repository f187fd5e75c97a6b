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
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::account::NodeCount;
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
    body: Mutex<Body>,
}

/// What a node holds of the graph below it.
#[derive(Default)]
struct Body {
    parents: Vec<Option<Arc<Node>>>,
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
    pub(crate) fn leaf(tensor: &Tensor) -> Arc<Node> {
        Arc::new(Node {
            id: next_id(),
            op: "leaf",
            shape: tensor.layout().shape,
            dtype: tensor.dtype(),
            leaf: true,
            body: Mutex::new(Body::default()),
        })
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        // A panic while the lock was held leaves a body that is still whole.
        self.body
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets go of everything saved, and of parents that were not on the path just walked. The path itself
    /// stays, so that a later walk knows whether it needs what is gone.
    fn free(&self, on_path: &[bool]) {
        let mut body = self.body();
        let mut gone = Body {
            saved: body.saved.take(),
            ..Body::default()
        };
        let body = &mut *body;
        for (parent, kept) in body.parents.iter_mut().zip(on_path) {
            if !kept && let Some(parent) = parent.take() {
                body.pruned = true;
                gone.parents.push(Some(parent));
            }
        }
        discard(gone);
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
        if !body.parents.is_empty() || body.saved.is_some() {
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

fn nodes(parents: &[&Tensor]) -> Vec<Option<Arc<Node>>> {
    parents.iter().map(|p| p.node().cloned()).collect()
}

/// Attaches a node; the caller has found that some parent is tracked. Sides of an operation that are not
/// tensors stand in `parents` as `None`.
pub(crate) fn attach(
    op: &'static str,
    out: Tensor,
    parents: Vec<Option<Arc<Node>>>,
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
        body: Mutex::new(Body {
            parents,
            saved: Some(saved),
            pruned: false,
        }),
    };
    out.with_node(Some(Arc::new(node)))
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

    let Path { nodes, places } = path(outputs, inputs)?;
    let mut pending: Vec<Option<Tensor>> = vec![None; nodes.len()];
    for (output, seed) in outputs.iter().zip(seeds) {
        if let Some(&place) = output.node().and_then(|n| places.get(&n.id)) {
            // Without a graph of the next order, a tracked cotangent does not make results tracked.
            let seed = if create_graph { seed } else { seed.detach() };
            accumulate(&mut pending[place], seed)?;
        }
    }
    let mut wanted = vec![false; nodes.len()];
    for input in inputs {
        if let Some(&place) = input.node().and_then(|n| places.get(&n.id)) {
            wanted[place] = true;
        }
    }
    let mut found: HashMap<u64, Tensor, ByNumber> = HashMap::default();
    let mut needs = Vec::new();
    for (place, node) in nodes.iter().enumerate().rev() {
        let Some(gradient) = pending[place].take() else {
            continue;
        };
        if wanted[place] {
            found.insert(node.id, gradient.clone());
        }
        let body = node.body();
        let place_of =
            |parent: &Option<Arc<Node>>| parent.as_ref().and_then(|p| places.get(&p.id).copied());
        needs.clear();
        needs.extend(body.parents.iter().map(|p| place_of(p).is_some()));
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
        if gradients.len() != body.parents.len() {
            return Err(Error::Internal {
                op: node.op,
                problem: "its gradient rule returned a wrong number of gradients".into(),
            });
        }
        for (parent, gradient) in body.parents.iter().zip(gradients) {
            if let (Some(place), Some(gradient)) = (place_of(parent), gradient) {
                let gradient = fit(node.op, gradient, &nodes[place])?;
                accumulate(&mut pending[place], gradient)?;
            }
        }
        drop(body);
        if !retain {
            node.free(&needs);
        }
    }
    inputs
        .iter()
        .map(|input| match input.node().and_then(|n| found.get(&n.id)) {
            Some(gradient) => Ok(gradient.clone()),
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

/// Hashes node numbers, which are distinct and small: one multiplication spreads them enough.
#[derive(Clone, Copy, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type ByNumber = BuildHasherDefault<NumberHasher>;

/// The nodes between outputs and inputs (both included), by ascending number, and each one's place.
struct Path {
    nodes: Vec<Arc<Node>>,
    places: HashMap<u64, usize, ByNumber>,
}

fn path(outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<Path> {
    let mut path = Path {
        nodes: Vec::new(),
        places: HashMap::default(),
    };
    let wanted: HashSet<u64, ByNumber> = inputs
        .iter()
        .filter_map(|t| t.node().map(|n| n.id))
        .collect();
    let Some(&oldest) = wanted.iter().min() else {
        return Ok(path);
    };
    // Everything the outputs depend on that is not older than every input.
    let mut seen: HashSet<u64, ByNumber> = HashSet::default();
    let mut stack: Vec<Arc<Node>> = Vec::new();
    let mut reached: Vec<Arc<Node>> = Vec::new();
    let mut visit = |node: &Arc<Node>, stack: &mut Vec<Arc<Node>>| {
        if node.id >= oldest && seen.insert(node.id) {
            stack.push(node.clone());
        }
    };
    for output in outputs {
        if let Some(node) = output.node() {
            visit(node, &mut stack);
        }
    }
    while let Some(node) = stack.pop() {
        let body = node.body();
        // Where parents were let go, an older input might lie below them.
        if body.pruned && oldest < node.id {
            return Err(Error::GraphFreed { op: node.op });
        }
        for parent in body.parents.iter().flatten() {
            visit(parent, &mut stack);
        }
        drop(body);
        reached.push(node);
    }
    reached.sort_unstable_by_key(|node| node.id);
    // A node is on a path if it is an input or one of its parents is on a path.
    let mut freed = None;
    for node in reached {
        let body = node.body();
        let on_path = |p: &Arc<Node>| path.places.contains_key(&p.id);
        let leads = body.parents.iter().flatten().any(on_path);
        if leads && body.saved.is_none() {
            // Named in the error: the one nearest to the outputs.
            freed = Some(node.op);
        }
        drop(body);
        if leads || wanted.contains(&node.id) {
            path.places.insert(node.id, path.nodes.len());
            path.nodes.push(node);
        }
    }
    match freed {
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
