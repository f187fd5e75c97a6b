//! Interfaces `tensors`, `autograd`, `random`, `random-tensors` and `fft`: handles in, engine, handle out.

use espalier_tensor::{DType, Operand as HostOperand, Tensor, autograd, ops, random};
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::trainer::espalier::plugin::tensors::{Dtype, Host, HostTensor, Operand, Pair};
use super::bindings::trainer::espalier::plugin::{
    autograd as wit_autograd, fft, random as wit_random, random_tensors,
};
use super::guest::{Guest, misuse};

type Handle = Resource<rep::Tensor>;

pub(super) fn dtype(d: Dtype) -> DType {
    match d {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::I64 => DType::I64,
        Dtype::Bool => DType::Bool,
    }
}

pub(super) fn wit_dtype(d: DType) -> Dtype {
    match d {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::I64 => Dtype::I64,
        DType::Bool => Dtype::Bool,
    }
}

pub(super) fn sizes(shape: &[u32]) -> Vec<usize> {
    shape.iter().map(|&n| n as usize).collect()
}

pub(super) fn wit_shape(shape: &[usize]) -> Vec<u32> {
    shape
        .iter()
        .map(|&n| u32::try_from(n).unwrap_or(u32::MAX))
        .collect()
}

fn axes(axes: &[i32]) -> Vec<isize> {
    axes.iter().map(|&a| a as isize).collect()
}

fn pair((a, b): Pair) -> (usize, usize) {
    (a as usize, b as usize)
}

impl Guest {
    fn operand<'a>(&'a self, o: &Operand) -> Result<HostOperand<'a>> {
        Ok(match o {
            Operand::Tensor(t) => HostOperand::Tensor(self.tensor(t)?),
            Operand::Scalar(x) => HostOperand::Scalar(*x),
        })
    }

    fn unary(
        &mut self,
        t: Handle,
        f: fn(&Tensor) -> espalier_tensor::Result<Tensor>,
    ) -> Result<Handle> {
        self.in_time()?;
        let y = f(self.tensor(&t)?);
        self.put(y)
    }

    fn maybe(&self, t: &Option<Handle>) -> Result<Option<&Tensor>> {
        t.as_ref().map(|t| self.tensor(t)).transpose()
    }

    fn all(&self, ts: &[Handle]) -> Result<Vec<&Tensor>> {
        ts.iter().map(|t| self.tensor(t)).collect()
    }
}

macro_rules! unary {
    ($($name:ident)*) => { $(
        fn $name(&mut self, t: Handle) -> Result<Handle> {
            self.unary(t, ops::$name)
        }
    )* };
}

macro_rules! binary {
    ($($name:ident)*) => { $(
        fn $name(&mut self, a: Operand, b: Operand) -> Result<Handle> {
            self.in_time()?;
            let y = ops::$name(self.operand(&a)?, self.operand(&b)?);
            self.put(y)
        }
    )* };
}

impl HostTensor for Guest {
    fn drop(&mut self, t: Handle) -> Result<()> {
        let _profile = crate::profile::operation("tensors", "drop");
        self.take_tensor(t).map(drop)
    }
}

impl Host for Guest {
    fn shape(&mut self, t: Handle) -> Result<Vec<u32>> {
        Ok(wit_shape(self.tensor(&t)?.shape()))
    }

    fn dtype_of(&mut self, t: Handle) -> Result<Dtype> {
        Ok(wit_dtype(self.tensor(&t)?.dtype()))
    }

    fn from_list(&mut self, values: Vec<f64>, shape: Vec<u32>, d: Dtype) -> Result<Handle> {
        let y = Tensor::from_f64s(&values, &sizes(&shape), dtype(d));
        self.put(y)
    }

    fn full(&mut self, shape: Vec<u32>, value: f64, d: Dtype) -> Result<Handle> {
        let y = Tensor::full(&sizes(&shape), value, dtype(d));
        self.put(y)
    }

    fn arange(&mut self, start: f64, stop: f64, step: f64, d: Dtype) -> Result<Handle> {
        let y = ops::arange(start, stop, step, dtype(d));
        self.put(y)
    }

    fn item(&mut self, t: Handle) -> Result<f64> {
        self.uncapturable("it reads a number back with `item`");
        Ok(self.tensor(&t)?.item()?)
    }

    fn to_list(&mut self, t: Handle) -> Result<Vec<f64>> {
        self.uncapturable("it reads numbers back with `to-list`");
        self.in_time()?;
        let t = self.tensor(&t)?;
        let n = t.numel() as u64 * 8;
        if n > self.limits.memory {
            return misuse(format!(
                "to-list of {:?} would copy {} into a plugin that may use {}",
                t.shape(),
                super::guest::bytes(n),
                super::guest::bytes(self.limits.memory)
            ));
        }
        Ok(t.to_list()?)
    }

    fn astype(&mut self, t: Handle, d: Dtype) -> Result<Handle> {
        self.in_time()?;
        let y = ops::astype(self.tensor(&t)?, dtype(d));
        self.put(y)
    }

    fn reshape(&mut self, t: Handle, shape: Vec<i32>) -> Result<Handle> {
        let shape: Vec<i64> = shape.iter().map(|&n| n.into()).collect();
        let y = ops::reshape(self.tensor(&t)?, &shape);
        self.put(y)
    }

    fn permute_dims(&mut self, t: Handle, axes: Vec<u32>) -> Result<Handle> {
        let y = ops::permute_dims(self.tensor(&t)?, &sizes(&axes));
        self.put(y)
    }

    fn broadcast_to(&mut self, t: Handle, shape: Vec<u32>) -> Result<Handle> {
        let y = ops::broadcast_to(self.tensor(&t)?, &sizes(&shape));
        self.put(y)
    }

    fn slice(&mut self, t: Handle, axis: i32, start: i32, stop: i32) -> Result<Handle> {
        let y = ops::slice(
            self.tensor(&t)?,
            axis as isize,
            start as isize,
            stop as isize,
        );
        self.put(y)
    }

    fn concat(&mut self, ts: Vec<Handle>, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::concat(&self.all(&ts)?, axis as isize);
        self.put(y)
    }

    binary! { add subtract multiply divide maximum minimum equal less }

    fn where_(&mut self, cond: Handle, a: Operand, b: Operand) -> Result<Handle> {
        self.in_time()?;
        let y = ops::where_(self.tensor(&cond)?, self.operand(&a)?, self.operand(&b)?);
        self.put(y)
    }

    unary! { abs exp expm1 log sqrt sin cos acos tanh sigmoid relu gelu softplus }

    fn sum(&mut self, t: Handle, over: Vec<i32>, keepdims: bool) -> Result<Handle> {
        self.in_time()?;
        let y = ops::sum(self.tensor(&t)?, &axes(&over), keepdims);
        self.put(y)
    }

    fn mean(&mut self, t: Handle, over: Vec<i32>, keepdims: bool) -> Result<Handle> {
        self.in_time()?;
        let y = ops::mean(self.tensor(&t)?, &axes(&over), keepdims);
        self.put(y)
    }

    fn max(&mut self, t: Handle, axis: i32, keepdims: bool) -> Result<Handle> {
        self.in_time()?;
        let y = ops::max(self.tensor(&t)?, axis as isize, keepdims);
        self.put(y)
    }

    fn argmax(&mut self, t: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::argmax(self.tensor(&t)?, axis as isize);
        self.put(y)
    }

    fn cumulative_sum(&mut self, t: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::cumulative_sum(self.tensor(&t)?, axis as isize);
        self.put(y)
    }

    fn argsort(&mut self, t: Handle, axis: i32, descending: bool) -> Result<Handle> {
        self.in_time()?;
        let y = ops::argsort(self.tensor(&t)?, axis as isize, descending);
        self.put(y)
    }

    fn top_k(&mut self, t: Handle, k: u32, axis: i32) -> Result<(Handle, Handle)> {
        self.in_time()?;
        let (values, indices) = ops::top_k(self.tensor(&t)?, k as usize, axis as isize)?;
        Ok((self.put(Ok(values))?, self.put(Ok(indices))?))
    }

    fn take(&mut self, t: Handle, indices: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::take(self.tensor(&t)?, self.tensor(&indices)?, axis as isize);
        self.put(y)
    }

    fn take_along_axis(&mut self, t: Handle, indices: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::take_along_axis(self.tensor(&t)?, self.tensor(&indices)?, axis as isize);
        self.put(y)
    }

    fn scatter_add(
        &mut self,
        base: Handle,
        indices: Handle,
        src: Handle,
        axis: i32,
    ) -> Result<Handle> {
        self.in_time()?;
        let (base, indices, src) = (
            self.tensor(&base)?,
            self.tensor(&indices)?,
            self.tensor(&src)?,
        );
        let y = ops::scatter_add(base, indices, src, axis as isize);
        self.put(y)
    }

    fn segment_max(&mut self, t: Handle, ids: Handle, n: u32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::segment_max(self.tensor(&t)?, self.tensor(&ids)?, n as usize);
        self.put(y)
    }

    fn matmul(&mut self, a: Handle, b: Handle) -> Result<Handle> {
        let (x, y) = (self.tensor(&a)?, self.tensor(&b)?);
        // Broadcast leading axes can make the product larger than either operand suggests.
        let batch = |t: &Tensor| {
            t.shape()
                .iter()
                .rev()
                .skip(2)
                .map(|&n| n as f64)
                .product::<f64>()
        };
        let rows = |t: &Tensor| t.shape().iter().rev().nth(1).map_or(1.0, |&n| n as f64);
        let columns = |t: &Tensor| t.shape().last().map_or(1.0, |&n| n as f64);
        self.affordable(
            "matmul",
            batch(x).max(1.0) * batch(y).max(1.0) * rows(x) * columns(x) * columns(y),
        )?;
        let z = ops::matmul(x, y);
        self.put(z)
    }

    fn conv2d(
        &mut self,
        x: Handle,
        w: Handle,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: u32,
    ) -> Result<Handle> {
        let (x, w) = (self.tensor(&x)?, self.tensor(&w)?);
        if let ([n, _, h, width], [_, ..]) = (x.shape(), w.shape()) {
            let out_h = (*h as f64 + 2.0 * f64::from(padding.0)) / f64::from(stride.0.max(1));
            let out_w = (*width as f64 + 2.0 * f64::from(padding.1)) / f64::from(stride.1.max(1));
            self.affordable("conv2d", *n as f64 * out_h * out_w * w.numel() as f64)?;
        }
        let y = ops::conv2d(
            x,
            w,
            pair(stride),
            pair(padding),
            pair(dilation),
            groups as usize,
        );
        self.put(y)
    }

    fn batch_norm(
        &mut self,
        x: Handle,
        weight: Option<Handle>,
        bias: Option<Handle>,
        stats: Option<(Handle, Handle)>,
        eps: f64,
    ) -> Result<(Handle, Handle, Handle)> {
        self.in_time()?;
        let stats = match &stats {
            Some((mean, var)) => Some((self.tensor(mean)?, self.tensor(var)?)),
            None => None,
        };
        let (y, mean, var) = ops::batch_norm(
            self.tensor(&x)?,
            self.maybe(&weight)?,
            self.maybe(&bias)?,
            stats,
            eps,
        )?;
        Ok((self.put(Ok(y))?, self.put(Ok(mean))?, self.put(Ok(var))?))
    }

    fn layer_norm(
        &mut self,
        x: Handle,
        over: Vec<i32>,
        weight: Option<Handle>,
        bias: Option<Handle>,
        eps: f64,
    ) -> Result<Handle> {
        self.in_time()?;
        let y = ops::layer_norm(
            self.tensor(&x)?,
            &axes(&over),
            self.maybe(&weight)?,
            self.maybe(&bias)?,
            eps,
        );
        self.put(y)
    }

    fn softmax(&mut self, t: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::softmax(self.tensor(&t)?, axis as isize);
        self.put(y)
    }

    fn log_softmax(&mut self, t: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::log_softmax(self.tensor(&t)?, axis as isize);
        self.put(y)
    }

    fn cross_entropy(&mut self, logits: Handle, target: Handle) -> Result<Handle> {
        self.in_time()?;
        let y = ops::cross_entropy(self.tensor(&logits)?, self.tensor(&target)?);
        self.put(y)
    }

    fn scaled_dot_product_attention(
        &mut self,
        q: Handle,
        k: Handle,
        v: Handle,
        bias: Option<Handle>,
        causal: bool,
    ) -> Result<Handle> {
        let (q, k, v) = (self.tensor(&q)?, self.tensor(&k)?, self.tensor(&v)?);
        let keys = k.shape().iter().rev().nth(1).map_or(1.0, |&n| n as f64);
        self.affordable(
            "scaled-dot-product-attention",
            2.0 * q.numel() as f64 * keys,
        )?;
        let y = ops::scaled_dot_product_attention(q, k, v, self.maybe(&bias)?, causal);
        self.put(y)
    }
}

impl wit_autograd::HostNoGrad for Guest {
    fn new(&mut self) -> Result<Resource<rep::NoGrad>> {
        if self.handles() >= self.limits.handles as usize {
            return Err(super::guest::Refusal::Handles {
                limit: self.limits.handles,
            }
            .into());
        }
        self.no_grad += 1;
        autograd::set_grad_enabled(false);
        Ok(Resource::new_own(self.no_grad))
    }

    fn drop(&mut self, _scope: Resource<rep::NoGrad>) -> Result<()> {
        self.no_grad = self.no_grad.saturating_sub(1);
        if self.no_grad == 0 {
            autograd::set_grad_enabled(self.grad_allowed);
        }
        Ok(())
    }
}

impl wit_autograd::Host for Guest {
    fn requires_grad(&mut self, t: Handle) -> Result<Handle> {
        let t = self.tensor(&t)?;
        if !matches!(t.dtype(), DType::F32 | DType::F64) {
            return misuse(format!(
                "requires-grad: floats only, not {} {:?}",
                t.dtype(),
                t.shape()
            ));
        }
        let y = t.with_requires_grad();
        self.put(Ok(y))
    }

    fn detach(&mut self, t: Handle) -> Result<Handle> {
        let y = self.tensor(&t)?.detach();
        self.put(Ok(y))
    }

    fn grad(
        &mut self,
        outputs: Vec<Handle>,
        grad_outputs: Vec<Option<Handle>>,
        inputs: Vec<Handle>,
        create_graph: bool,
        retain_graph: bool,
    ) -> Result<Vec<Handle>> {
        self.in_time()?;
        let cotangents: Vec<Option<&Tensor>> = grad_outputs
            .iter()
            .map(|t| self.maybe(t))
            .collect::<Result<_>>()?;
        let grads = autograd::grad(
            &self.all(&outputs)?,
            &cotangents,
            &self.all(&inputs)?,
            create_graph,
            retain_graph,
        )?;
        grads.into_iter().map(|g| self.put(Ok(g))).collect()
    }
}

impl Guest {
    /// Output depends on the run's seed, the plugin's name and the key alone.
    fn key(&self, key: &[u64]) -> Result<random::Key> {
        self.uncapturable("it draws random numbers");
        if key.len() > 64 {
            return misuse(format!("a random key of {} numbers: at most 64", key.len()));
        }
        let mut words = vec![self.shared.run.borrow().seed, name_word(&self.name)];
        words.extend_from_slice(key);
        Ok(random::Key::new(&words))
    }
}

/// A number for a name (FNV-1a), to key randomness by.
pub fn name_word(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl wit_random::Host for Guest {
    fn bits(&mut self, key: Vec<u64>, n: u32) -> Result<Vec<u64>> {
        if u64::from(n) * 8 > self.limits.memory {
            return misuse(format!(
                "random bits: {n} words are more than the plugin's memory"
            ));
        }
        Ok(random::bits(&self.key(&key)?, n as usize))
    }
}

impl random_tensors::Host for Guest {
    fn uniform(&mut self, key: Vec<u64>, shape: Vec<u32>, d: Dtype) -> Result<Handle> {
        self.in_time()?;
        let y = random::uniform(&self.key(&key)?, &sizes(&shape), dtype(d));
        self.put(y)
    }

    fn normal(&mut self, key: Vec<u64>, shape: Vec<u32>, d: Dtype) -> Result<Handle> {
        self.in_time()?;
        let y = random::normal(&self.key(&key)?, &sizes(&shape), dtype(d));
        self.put(y)
    }
}

impl fft::Host for Guest {
    fn rfft(&mut self, t: Handle, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::rfft(self.tensor(&t)?, axis as isize);
        self.put(y)
    }

    fn irfft(&mut self, t: Handle, n: u32, axis: i32) -> Result<Handle> {
        self.in_time()?;
        let y = ops::irfft(self.tensor(&t)?, n as usize, axis as isize);
        self.put(y)
    }
}

// Interfaces of types only.
impl super::bindings::trainer::espalier::plugin::options::Host for Guest {}
impl super::bindings::trainer::espalier::plugin::run::Host for Guest {}
impl super::bindings::trainer::espalier::plugin::rewards::Host for Guest {}
impl super::bindings::trainer::espalier::plugin::control::Host for Guest {}
