//! Sampling from a model of token series, and scoring given tokens.
//!
//! A model qualifies if it reads one field of whole numbers [t], gives [t, vocabulary], and no step of a
//! series sees a later one. Where causal attention is all that looks back, keys and values of seen
//! positions are kept and each new token costs one position; with a recurrence the series is computed
//! again for each token.
//!
//! What a response is depends on its request, its number and the parameters: not on the threads, and not on
//! which other requests are answered beside it. With keys and values kept and layers of at most 512 inputs
//! that holds to the last bit of the log-probabilities; else the last bits may differ, and a draw whose
//! random number falls between them, because products of other sizes are summed in another order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use espalier_tensor::autograd::no_grad;
use espalier_tensor::nn::{self, KeyValueCache, Query};
use espalier_tensor::random::{Key, uniform_at};
use espalier_tensor::{DType, Tensor, ops};

use super::layer::{self, AlongTime, Op, Pass};
use super::{Error, Input, Layer, Mode, Model, Result};
use crate::parameters::ParameterSet;

/// What to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the model reads first; at least one token.
    pub context: Vec<u32>,
    /// Tokens with which every response begins.
    pub forced: Vec<u32>,
    /// How many responses.
    pub count: usize,
    /// A response ends after any of these.
    pub stop: Vec<Vec<u32>>,
    /// Most tokens after the forced ones; 0 scores the forced tokens alone.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token, the lowest of several.
    pub temperature: f64,
    /// Only the likeliest tokens whose probabilities, after temperature and `top_k`, together reach this.
    pub top_p: f64,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// The same key and parameters give the same responses.
    pub key: Vec<u64>,
}

/// One response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Its tokens: forced ones first, the stop sequence last.
    pub tokens: Vec<u32>,
    /// Log-probability of each token at temperature 1, of all tokens of the vocabulary, in nats.
    pub logprobs: Vec<f32>,
    /// True if it ended at a stop sequence, false if at `max_tokens` or at the end of the context.
    pub stopped: bool,
    /// Index of its request.
    pub request: usize,
}

/// Responses of one call: far above any use, far below what would fill a machine's memory.
const MOST_RESPONSES: usize = 1 << 20;
/// Tokens of all responses of one call.
const MOST_TOKENS: usize = 1 << 26;
/// Responses, and tokens of contexts, that are computed side by side.
const TOGETHER: usize = 4096;
const CONTEXT_TOGETHER: usize = 32 * 1024;
/// Slots that a response has at first; doubled when they are full.
const FIRST_SLOTS: usize = 16;

/// How a model goes through a series.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Token by token, with keys and values kept.
    Cached,
    /// From the beginning for each token.
    Again,
}

/// What a model of token series is like.
struct Series {
    field: String,
    steps: usize,
    vocabulary: usize,
    way: Way,
}

/// A response that is being made.
struct Row {
    request: usize,
    /// Its prefix within the chunk.
    prefix: usize,
    key: Key,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    stopped: bool,
}

impl Row {
    /// Whether the tokens end with a stop sequence.
    fn at_stop(&self, request: &Request) -> bool {
        request.stop.iter().any(|stop| self.tokens.ends_with(stop))
    }
}

impl Model {
    /// Samples responses, request after request, each request's `count` in order.
    ///
    /// `context` is the most tokens of a context and its response together. A request's key is all that its
    /// randomness comes from, beside the number of the response and the place of the token. Batch-norm and dropout behave as in [`Mode::Eval`]; no graph is recorded.
    ///
    /// # Errors
    /// A model that does not qualify (see the module), a request that is out of range, more than 2^20
    /// responses or 2^26 tokens at once, parameters that give NaN; the engine's errors.
    pub fn generate(
        &self,
        parameters: &mut ParameterSet,
        requests: &[Request],
        context: usize,
    ) -> Result<Vec<Response>> {
        let series = self.series()?;
        series.check(requests, context)?;
        let _no_graph = no_grad();
        let mut out = Vec::new();
        for chunk in chunks(requests) {
            self.generate_chunk(parameters, &series, requests, &chunk, context, &mut out)?;
        }
        Ok(out)
    }

    /// An upper bound of the multiply-accumulates of a call of [`Model::generate`], and at least 1 for each
    /// token that it may give: for refusing what would never end.
    pub fn generate_macs(&self, requests: &[Request], context: usize) -> f64 {
        let Ok(series) = self.series() else {
            return 0.0;
        };
        let all = self.macs(0, self.len()) as f64;
        let step = all / series.steps.max(1) as f64 + 1.0;
        requests.iter().fold(0.0, |sum, request| {
            let prefix = (request.context.len() + request.forced.len()) as f64;
            let room = (context as f64 - prefix).max(0.0);
            let own = (request.max_tokens as f64).min(room) + 1.0;
            let count = request.count as f64;
            let cost = match series.way {
                Way::Cached => (prefix + own * count) * step,
                Way::Again => (1.0 + own * count) * (all + 1.0),
            };
            sum + cost + count * request.forced.len() as f64
        })
    }

    /// Scores the tokens of `sequences`, pairs of a context and the response to it, under the parameters as
    /// they are. Gives, each [n, longest response]: the log-probability in nats of each token at temperature
    /// 1, tracked, 0 for padding; a mask in f32, 1 for tokens and 0 for padding; and if asked for the entropy
    /// in nats of the distribution from which each token came, tracked, 0 for padding. Padding has no part
    /// in any gradient. A `mode` in which dropout drops drops the same units every time.
    ///
    /// # Errors
    /// A model that does not qualify (see the module); no sequences, an empty context, a token outside the
    /// vocabulary, a series that is too long; the engine's errors.
    pub fn logprobs(
        &self,
        parameters: &mut ParameterSet,
        sequences: &[(Vec<u32>, Vec<u32>)],
        entropy: bool,
        mode: Mode,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let series = self.series()?;
        let bad = |at: usize, problem: String| {
            Err(Error::Score {
                sequence: at,
                problem,
            })
        };
        if sequences.is_empty() {
            return bad(0, "is missing; give at least one".into());
        }
        for (at, (context, tokens)) in sequences.iter().enumerate() {
            if context.is_empty() {
                return bad(
                    at,
                    "has an empty context; expected at least one token".into(),
                );
            }
            if context.len() + tokens.len() > series.steps {
                return bad(
                    at,
                    format!(
                        "has {} tokens, its context included; the model reads at most {}",
                        context.len() + tokens.len(),
                        series.steps
                    ),
                );
            }
            let outside = |token: &&u32| **token as usize >= series.vocabulary;
            if let Some(token) = context.iter().chain(tokens).find(outside) {
                return bad(
                    at,
                    format!(
                        "holds token {token}; the vocabulary has {}, counted from 0",
                        series.vocabulary
                    ),
                );
            }
        }
        let n = sequences.len();
        let longest = sequences.iter().map(|(_, tokens)| tokens.len()).max();
        let longest = longest.unwrap_or(0);
        // A series is read without its last token, which predicts nothing.
        let steps = sequences
            .iter()
            .map(|(context, tokens)| (context.len() + tokens.len() - 1).max(1))
            .max()
            .unwrap_or(1);
        let mut read = vec![0i64; n * steps];
        let mut mask = vec![0f32; n * longest];
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        // Where each place of the result comes from; one past the last row stands for padding.
        let count: usize = sequences.iter().map(|(_, tokens)| tokens.len()).sum();
        let mut source = vec![count as i64; n * longest];
        for (at, (context, tokens)) in sequences.iter().enumerate() {
            let tokens_of_series = context.iter().chain(tokens);
            for (place, token) in read[at * steps..(at + 1) * steps]
                .iter_mut()
                .zip(tokens_of_series)
            {
                *place = i64::from(*token);
            }
            for (j, token) in tokens.iter().enumerate() {
                mask[at * longest + j] = 1.0;
                source[at * longest + j] = rows.len() as i64;
                rows.push((at * steps + context.len() - 1 + j) as i64);
                targets.push(i64::from(*token));
            }
        }
        let shape = [n, longest];
        let mask = self.engine(Tensor::from_vec(mask, &shape))?;
        if count == 0 {
            let nothing = || self.engine(Tensor::zeros(&shape, self.dtype));
            let zeros = nothing()?;
            return Ok((zeros.clone(), mask, entropy.then_some(zeros)));
        }
        let read = self.engine(Tensor::from_vec(read, &[n, steps]))?;
        let logits = self.rows_of_forward(parameters, &series, read, &rows, mode)?;
        let compute = || -> espalier_tensor::Result<(Tensor, Option<Tensor>)> {
            let logs = ops::log_softmax(&logits, -1)?;
            let targets = Tensor::from_vec(targets, &[count, 1])?;
            let source = Tensor::from_vec(source, &shape)?;
            let padding = Tensor::zeros(&[1], self.dtype)?;
            let spread = |values: &Tensor| {
                let values = ops::reshape(values, &[-1])?;
                ops::take(&ops::concat(&[&values, &padding], 0)?, &source, 0)
            };
            let chosen = spread(&ops::take_along_axis(&logs, &targets, 1)?)?;
            let entropy = if entropy {
                // A token of probability 0 adds nothing: 0 times a finite number instead of -inf.
                let finite = ops::maximum(&logs, -1e30)?;
                let sum = ops::sum(&ops::multiply(&ops::exp(&logs)?, &finite)?, &[1], false)?;
                Some(spread(&ops::multiply(&sum, -1.0)?)?)
            } else {
                None
            };
            Ok((chosen, entropy))
        };
        let (logprobs, entropy) = self.engine(compute())?;
        Ok((logprobs, mask, entropy))
    }

    /// Logits of some positions of `read` [n, steps], counted through all series: [rows, vocabulary]. The
    /// last layers, as far as each step is alone and each reads only the one before, see these alone.
    fn rows_of_forward(
        &self,
        parameters: &mut ParameterSet,
        series: &Series,
        read: Tensor,
        rows: &[i64],
        mode: Mode,
    ) -> Result<Tensor> {
        let nothing = BTreeMap::new();
        let end = self.layers.len();
        let head = self.head();
        let mut run = |from, to, name: &str, x: Tensor| {
            let inputs = [(name.to_owned(), x)];
            let out = self.forward(parameters, from, to, &inputs, mode, &nothing, &[], &[]);
            out.map(|forward| forward.output)
        };
        let pick = |x: &Tensor| {
            let size = x.shape()[2];
            let flat = ops::reshape(x, &[-1, size as i64])?;
            let rows = Tensor::from_vec(rows.to_vec(), &[rows.len()])?;
            ops::take(&flat, &rows, 0)
        };
        let before = run(0, head, &series.field, read)?;
        let mut x = self.engine(pick(&before))?;
        if head < end {
            let shape = [x.shape()[0] as i64, 1, x.shape()[1] as i64];
            x = self.engine(ops::reshape(&x, &shape))?;
            x = run(head, end, "input", x)?;
        }
        let shape = [rows.len() as i64, series.vocabulary as i64];
        self.engine(ops::reshape(&x, &shape))
    }

    /// The first of the last layers that form a chain in which each step is alone; at least 1.
    fn head(&self) -> usize {
        let mut at = self.layers.len();
        while at > 1 {
            let layer = &self.layers[at - 1];
            let chain = layer.info.inputs == [Input::Layer(at as u32 - 2)];
            let alone = layer.op.along_time(&layer.info.in_shape) == AlongTime::Alone;
            let places = matches!(layer.op, Op::Position { .. } | Op::Embedding);
            if !chain || !alone || places || self.layers[at - 2].out_dtype == DType::I64 {
                break;
            }
            at -= 1;
        }
        at
    }

    /// The engine's error as one of the last layer, which gives the logits.
    fn engine<T>(&self, result: espalier_tensor::Result<T>) -> Result<T> {
        let at = self.layers.len() - 1;
        result.map_err(|source| self.engine_at(at)(source))
    }

    fn engine_at(&self, at: usize) -> impl Fn(espalier_tensor::Error) -> Error + '_ {
        let info = &self.layers[at].info;
        move |source| Error::Tensor {
            layer: info.name.clone(),
            kind: info.kind.clone(),
            source,
        }
    }

    /// Checks that the model is one of token series in which no step sees a later one.
    fn series(&self) -> Result<Series> {
        let bad = |problem: String| Err(Error::Series { problem });
        let inputs = self.layers.iter().flat_map(|layer| &layer.info.inputs);
        let read: BTreeSet<&String> = inputs
            .filter_map(|input| match input {
                Input::Field(name) => Some(name),
                Input::Layer(_) => None,
            })
            .collect();
        if read.len() > 1 {
            return bad(format!("it reads several fields ({read:?}), expected one"));
        }
        let field = read
            .first()
            .and_then(|name| self.fields.iter().find(|field| field.name == **name));
        let Some(field) = field else {
            return bad("it reads no field, expected one of tokens".into());
        };
        let [steps] = field.shape.as_slice() else {
            return bad(format!(
                "its field `{}` has shape {:?} a sample, expected [steps]",
                field.name, field.shape
            ));
        };
        if field.dtype != DType::I64 {
            return bad(format!(
                "its field `{}` has dtype {}, expected i64 tokens",
                field.name, field.dtype
            ));
        }
        let mut way = Way::Cached;
        for layer in &self.layers {
            let (name, kind) = (&layer.info.name, &layer.info.kind);
            let keeps = layer.info.in_shape.first() == Some(steps)
                && layer.info.out_shape.first() == Some(steps);
            match layer.op.along_time(&layer.info.in_shape) {
                AlongTime::Alone | AlongTime::Attends if keeps => {}
                AlongTime::Recurs if keeps => way = Way::Again,
                AlongTime::All => {
                    return bad(format!(
                        "layer `{name}` ({kind}) lets a step see later ones; set causal = true"
                    ));
                }
                _ => {
                    return bad(format!(
                        "layer `{name}` ({kind}) does not treat a series step by step"
                    ));
                }
            }
        }
        let last = &self.layers[self.layers.len() - 1];
        let (&[_, vocabulary], true) = (last.info.out_shape.as_slice(), last.out_dtype.is_float())
        else {
            return bad(format!(
                "its last layer `{}` gives {:?} a sample, expected [steps, vocabulary]",
                last.info.name, last.info.out_shape
            ));
        };
        Ok(Series {
            field: field.name.clone(),
            steps: *steps,
            vocabulary,
            way,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn generate_chunk(
        &self,
        parameters: &mut ParameterSet,
        series: &Series,
        requests: &[Request],
        chunk: &[(usize, Range<usize>)],
        context: usize,
        out: &mut Vec<Response>,
    ) -> Result<()> {
        let mut rows: Vec<Row> = Vec::new();
        let mut prefixes: Vec<Prefix> = Vec::new();
        let mut live: Vec<usize> = Vec::new();
        for (request_at, copies) in chunk {
            let request = &requests[*request_at];
            let tokens: Vec<u32> = [&request.context[..], &request.forced].concat();
            let first = rows.len();
            let mut words = request.key.clone();
            words.push(0);
            for copy in copies.clone() {
                if let Some(last) = words.last_mut() {
                    *last = copy as u64;
                }
                rows.push(Row {
                    request: *request_at,
                    prefix: prefixes.len(),
                    key: Key::new(&words),
                    tokens: request.forced.clone(),
                    logprobs: Vec::new(),
                    stopped: false,
                });
            }
            let Some(row) = rows.get_mut(first) else {
                continue;
            };
            let stopped = row.at_stop(request);
            let goes_on = !stopped && request.max_tokens > 0 && tokens.len() < context;
            for row in &mut rows[first..] {
                row.stopped = stopped;
            }
            if goes_on {
                live.extend(first..rows.len());
            }
            prefixes.push(Prefix {
                tokens,
                given: request.context.len(),
                goes_on,
                rows: first..rows.len(),
            });
        }
        let rooms = live.iter().map(|row| {
            let request = &requests[rows[*row].request];
            let room = context - prefixes[rows[*row].prefix].tokens.len();
            request.max_tokens.min(room)
        });
        let room = rooms.max().unwrap_or(0);
        let mut decoder = Decoder {
            model: self,
            series,
            prefixes: &prefixes,
            caches: Vec::new(),
            slots: 0,
            own: 0,
            places: (0..live.len()).collect(),
            turned: BTreeMap::new(),
        };
        let first = decoder.read_prefixes(parameters, live.len(), room)?;
        // Every prefix's rows of `first`: one for each forced token, then the one to draw from.
        let mut draws_from = vec![0; prefixes.len()];
        let mut at = 0;
        for (index, prefix) in prefixes.iter().enumerate() {
            let forced = &prefix.tokens[prefix.given..];
            let mut logprobs = Vec::with_capacity(forced.len());
            let request = rows[prefix.rows.start].request;
            for token in forced {
                let row = first.row(at, request)?;
                logprobs.push(row[*token as usize]);
                at += 1;
            }
            if prefix.goes_on {
                draws_from[index] = at;
                at += 1;
            }
            for row in &mut rows[prefix.rows.clone()] {
                row.logprobs.clone_from(&logprobs);
            }
        }
        let mut scratch = Vec::new();
        let mut logs = first;
        let mut drawn_from: Vec<usize> = live
            .iter()
            .map(|row| draws_from[rows[*row].prefix])
            .collect();
        let mut own = 0;
        while !live.is_empty() {
            // Places of the cache keep up with the rows that go on.
            let mut kept: Vec<usize> = Vec::with_capacity(live.len());
            for (place, row_at) in live.iter().enumerate() {
                let row = &mut rows[*row_at];
                let request = &requests[row.request];
                let logs = logs.row(drawn_from[place], row.request)?;
                let u = uniform_at(&row.key, row.tokens.len() as u64);
                let token = draw(logs, request, u, &mut scratch);
                row.tokens.push(token as u32);
                row.logprobs.push(logs[token]);
                row.stopped = row.at_stop(request);
                let full = request.context.len() + row.tokens.len() >= context;
                let enough = row.tokens.len() - request.forced.len() >= request.max_tokens;
                if !(row.stopped || full || enough) {
                    kept.push(place);
                }
            }
            own += 1;
            if kept.is_empty() {
                break;
            }
            live = kept.iter().map(|place| live[*place]).collect();
            let ahead: Vec<&Row> = live.iter().map(|row| &rows[*row]).collect();
            logs = decoder.step(parameters, &ahead, &kept, own, room)?;
            drawn_from = (0..live.len()).collect();
        }
        out.extend(rows.into_iter().map(|row| Response {
            tokens: row.tokens,
            logprobs: row.logprobs,
            stopped: row.stopped,
            request: row.request,
        }));
        Ok(())
    }
}

impl Series {
    fn check(&self, requests: &[Request], context: usize) -> Result<()> {
        if context > self.steps {
            return Err(Error::Series {
                problem: format!(
                    "it reads at most {} tokens, a context and a response of {context} were asked for",
                    self.steps
                ),
            });
        }
        let (mut responses, mut tokens) = (0usize, 0usize);
        for (at, request) in requests.iter().enumerate() {
            let bad = |field, problem: String| {
                Err(Error::Request {
                    request: at,
                    field,
                    problem,
                })
            };
            if request.context.is_empty() {
                return bad("context", "is empty; expected at least one token".into());
            }
            for (field, tokens) in [("context", &request.context), ("forced", &request.forced)] {
                let outside = tokens
                    .iter()
                    .find(|token| **token as usize >= self.vocabulary);
                if let Some(token) = outside {
                    return bad(
                        field,
                        format!(
                            "holds token {token}; the vocabulary has {}, counted from 0",
                            self.vocabulary
                        ),
                    );
                }
            }
            let length = request.context.len() + request.forced.len();
            if length > context {
                return bad(
                    "context",
                    format!("has {length} tokens, forced ones included; at most {context} fit"),
                );
            }
            if request.stop.iter().any(Vec::is_empty) {
                return bad(
                    "stop",
                    "holds an empty sequence; leave it out, or give its tokens".into(),
                );
            }
            if !(request.temperature.is_finite() && request.temperature >= 0.0) {
                return bad(
                    "temperature",
                    format!("expected a number from 0 on, found {}", request.temperature),
                );
            }
            if !(request.top_p > 0.0 && request.top_p <= 1.0) {
                return bad(
                    "top-p",
                    format!(
                        "expected a number above 0 and at most 1, found {}",
                        request.top_p
                    ),
                );
            }
            let longest = request.forced.len() + request.max_tokens.min(context - length);
            responses = responses.saturating_add(request.count);
            tokens = tokens.saturating_add(request.count.saturating_mul(longest + 1));
            if responses > MOST_RESPONSES || tokens > MOST_TOKENS {
                return bad(
                    "count",
                    format!(
                        "with this request the call has {responses} responses of up to {tokens} tokens together; \
                         at most {MOST_RESPONSES} and {MOST_TOKENS}; ask in several calls"
                    ),
                );
            }
        }
        Ok(())
    }
}

/// Cuts requests into parts that are computed side by side: indices of requests with copies of each.
fn chunks(requests: &[Request]) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut chunks = Vec::new();
    let mut chunk: Vec<(usize, Range<usize>)> = Vec::new();
    let (mut rows, mut tokens) = (0, 0);
    for (at, request) in requests.iter().enumerate() {
        let prefix = request.context.len() + request.forced.len();
        let mut next = 0;
        while next < request.count {
            if rows >= TOGETHER || (rows > 0 && tokens + prefix > CONTEXT_TOGETHER) {
                chunks.push(std::mem::take(&mut chunk));
                (rows, tokens) = (0, 0);
            }
            let taken = (request.count - next).min(TOGETHER - rows);
            chunk.push((at, next..next + taken));
            next += taken;
            rows += taken;
            tokens += prefix;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// What the copies of a request have in common.
struct Prefix {
    /// Context and forced tokens.
    tokens: Vec<u32>,
    /// Length of the context.
    given: usize,
    /// Whether tokens are drawn after it.
    goes_on: bool,
    /// Its rows.
    rows: Range<usize>,
}

impl Prefix {
    /// How many of its tokens the model reads: the last one only where something follows it.
    fn read(&self) -> usize {
        self.tokens.len() - usize::from(!self.goes_on)
    }
}

/// Log-probabilities, row by row.
struct Logs {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logs {
    fn row(&self, at: usize, request: usize) -> Result<&[f32]> {
        let row = &self.values[at * self.vocabulary..(at + 1) * self.vocabulary];
        if row.iter().any(|log| log.is_nan()) {
            return Err(Error::NotANumber { request });
        }
        Ok(row)
    }
}

/// A model in the middle of generating the responses of one chunk.
struct Decoder<'a> {
    model: &'a Model,
    series: &'a Series,
    prefixes: &'a [Prefix],
    /// One for each layer that attends; slots of all prefixes first, then those of each row.
    caches: Vec<Option<KeyValueCache>>,
    /// Slots of all prefixes.
    slots: usize,
    /// Slots that each row has of its own.
    own: usize,
    /// Which row's slots each row still going on has.
    places: Vec<usize>,
    /// Weights [out, in] of products as [in, out], by name.
    turned: BTreeMap<String, Tensor>,
}

impl Decoder<'_> {
    /// Reads every prefix once; log-probabilities for each forced token and for the first one to draw.
    fn read_prefixes(
        &mut self,
        parameters: &mut ParameterSet,
        rows: usize,
        room: usize,
    ) -> Result<Logs> {
        let mut wanted = Vec::new();
        let mut start = 0;
        for prefix in self.prefixes {
            let read = prefix.read();
            wanted.extend((prefix.given - 1..read).map(|at| (start + at) as i64));
            start += read;
        }
        if wanted.is_empty() {
            return Ok(Logs {
                values: Vec::new(),
                vocabulary: self.series.vocabulary,
            });
        }
        if self.series.way == Way::Again {
            let all: Vec<&[u32]> = self
                .prefixes
                .iter()
                .map(|prefix| &prefix.tokens[..prefix.read()])
                .collect();
            let ends: Vec<Range<usize>> = self
                .prefixes
                .iter()
                .map(|prefix| prefix.given - 1..prefix.read())
                .collect();
            return self.again(parameters, &all, &ends);
        }
        self.slots = start;
        self.own = room.min(FIRST_SLOTS);
        let slots = self.slots + rows * self.own;
        for (at, layer) in self.model.layers.iter().enumerate() {
            self.caches.push(match layer.op {
                Op::Attention { .. } => {
                    let made = KeyValueCache::new(slots, layer.info.in_shape[1], self.model.dtype);
                    Some(made.map_err(self.model.engine_at(at))?)
                }
                _ => None,
            });
        }
        let (mut tokens, mut positions, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for prefix in self.prefixes {
            let start = tokens.len();
            for (at, token) in prefix.tokens[..prefix.read()].iter().enumerate() {
                tokens.push(i64::from(*token));
                positions.push(at as i64);
                queries.push(Query {
                    slot: start + at,
                    sees: [start..start + at + 1, 0..0],
                });
            }
        }
        self.packed(parameters, tokens, positions, queries, Some(wanted))
    }

    /// The last token of each row goes in; log-probabilities of the next come out. `kept` are the rows'
    /// places in the step before, `own` the number of tokens drawn.
    fn step(
        &mut self,
        parameters: &mut ParameterSet,
        rows: &[&Row],
        kept: &[usize],
        own: usize,
        room: usize,
    ) -> Result<Logs> {
        if self.series.way == Way::Again {
            let all: Vec<Vec<u32>> = rows
                .iter()
                .map(|row| {
                    let prefix = &self.prefixes[row.prefix];
                    [&prefix.tokens[..prefix.given], &row.tokens].concat()
                })
                .collect();
            let all: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
            let ends: Vec<Range<usize>> = all
                .iter()
                .map(|series| series.len() - 1..series.len())
                .collect();
            return self.again(parameters, &all, &ends);
        }
        self.make_room(kept, own, room)?;
        let starts: Vec<usize> = self
            .prefixes
            .iter()
            .scan(0, |next, prefix| {
                let start = *next;
                *next += prefix.read();
                Some(start)
            })
            .collect();
        let (mut tokens, mut positions, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for (place, row) in self.places.iter().zip(rows) {
            let prefix = &self.prefixes[row.prefix];
            let (length, start) = (prefix.tokens.len(), starts[row.prefix]);
            let mine = self.slots + place * self.own;
            tokens.push(row.tokens.last().map_or(0, |token| i64::from(*token)));
            positions.push((length + own - 1) as i64);
            queries.push(Query {
                slot: mine + own - 1,
                sees: [start..start + length, mine..mine + own],
            });
        }
        self.packed(parameters, tokens, positions, queries, None)
    }

    /// Only rows that were at `kept` go on, and each has a slot for its `own`th token. When slots run out,
    /// the rows that ended give up theirs.
    fn make_room(&mut self, kept: &[usize], own: usize, room: usize) -> Result<()> {
        self.places = kept.iter().map(|place| self.places[*place]).collect();
        if own <= self.own {
            return Ok(());
        }
        let size = (2 * self.own).max(own).min(room);
        let mut moves = vec![(0..self.slots, 0)];
        for (to, from) in self.places.iter().enumerate() {
            let from = self.slots + from * self.own;
            moves.push((from..from + own - 1, self.slots + to * size));
        }
        let slots = self.slots + kept.len() * size;
        for (at, cache) in self.caches.iter_mut().enumerate() {
            if let Some(cache) = cache {
                *cache = cache
                    .moved(slots, &moves)
                    .map_err(self.model.engine_at(at))?;
            }
        }
        self.own = size;
        self.places = (0..kept.len()).collect();
        Ok(())
    }

    /// Runs single positions, each a series of one step, through the layers: token, place in its series,
    /// and what it sees. `wanted` names those whose log-probabilities are asked for, all by default. A row
    /// alone goes through twice, and so may stand twice in the result: a product with one row is summed in
    /// another order than one with several, and a response shall not depend on its company.
    fn packed(
        &mut self,
        parameters: &mut ParameterSet,
        mut tokens: Vec<i64>,
        mut positions: Vec<i64>,
        mut queries: Vec<Query>,
        mut wanted: Option<Vec<i64>>,
    ) -> Result<Logs> {
        if let ([token], [position], [query]) = (&tokens[..], &positions[..], &queries[..]) {
            (tokens, positions) = (vec![*token; 2], vec![*position; 2]);
            queries = vec![query.clone(); 2];
            wanted = None;
        }
        if let Some(wanted) = &mut wanted
            && let [one] = wanted[..]
        {
            wanted.push(one);
        }
        let model = self.model;
        let count = tokens.len();
        let overrides = BTreeMap::new();
        let mut field = model.engine(Tensor::from_vec(tokens, &[count, 1]))?;
        let mut positions = model.engine(Tensor::from_vec(positions, &[count]))?;
        let mut outputs: Vec<Option<Tensor>> = vec![None; model.layers.len()];
        // After the last layer that looks back, only the wanted positions go on.
        let attends = |layer: &Layer| matches!(layer.op, Op::Attention { .. });
        let mut narrow_at = model
            .layers
            .iter()
            .rposition(attends)
            .map_or(0, |at| at + 1);
        let wanted = match wanted {
            Some(wanted) if wanted.len() < count || wanted[0] == wanted[1] => {
                let len = wanted.len();
                Some(model.engine(Tensor::from_vec(wanted, &[len]))?)
            }
            _ => {
                narrow_at = usize::MAX;
                None
            }
        };
        for (at, layer) in model.layers.iter().enumerate() {
            let fail = model.engine_at(at);
            if at == narrow_at
                && let Some(wanted) = &wanted
            {
                for output in outputs.iter_mut().flatten() {
                    *output = ops::take(output, wanted, 0).map_err(&fail)?;
                }
                field = ops::take(&field, wanted, 0).map_err(&fail)?;
                positions = ops::take(&positions, wanted, 0).map_err(&fail)?;
            }
            let read: Vec<Tensor> = layer
                .info
                .inputs
                .iter()
                .map(|input| match input {
                    Input::Layer(from) => outputs[*from as usize].clone(),
                    Input::Field(_) => Some(field.clone()),
                })
                .map(|tensor| tensor.unwrap_or_else(|| field.clone()))
                .collect();
            let mut pass = Pass {
                parameters: &mut *parameters,
                overrides: &overrides,
                mode: Mode::Eval,
                dropout_key: &[],
                wanted: Vec::new(),
                extra: BTreeMap::new(),
            };
            let output = match &layer.op {
                Op::Position { fixed } => {
                    let table = match fixed {
                        Some(table) => table.clone(),
                        None => pass.parameter(&layer.info, "weight")?,
                    };
                    let place = |table: &Tensor| {
                        let rows = ops::take(table, &positions, 0)?;
                        let shape = [rows.shape()[0] as i64, 1, rows.shape()[1] as i64];
                        ops::add(&read[0], &ops::reshape(&rows, &shape)?)
                    };
                    place(&table).map_err(&fail)?
                }
                Op::Linear { bias } => {
                    let bias = if *bias { Some("bias") } else { None };
                    let weight = format!("{}.weight", layer.info.name);
                    self.product(&mut pass, at, &weight, bias, &read[0])?
                }
                Op::TiedLinear { table } => self.product(&mut pass, at, table, None, &read[0])?,
                Op::Attention { heads, .. } => {
                    let name = |suffix: &str| format!("{}.{suffix}", layer.info.name);
                    let projected =
                        self.product(&mut pass, at, &name("in-weight"), Some("in-bias"), &read[0])?;
                    let Some(cache) = &mut self.caches[at] else {
                        return Err(Error::Series {
                            problem: format!("layer `{}` has no cache", layer.info.name),
                        });
                    };
                    let mut attend = || {
                        let (rows, size) = (projected.shape()[0], projected.shape()[2]);
                        let flat = ops::reshape(&projected, &[rows as i64, size as i64])?;
                        let mixed = cache.attend(&flat, *heads, &queries)?;
                        ops::reshape(&mixed, &[rows as i64, 1, (size / 3) as i64])
                    };
                    let mixed = attend().map_err(&fail)?;
                    self.product(&mut pass, at, &name("out-weight"), Some("out-bias"), &mixed)?
                }
                op => layer::forward(op, &layer.info, &read, &mut pass)?,
            };
            outputs[at] = Some(output);
            for input in &layer.info.inputs {
                if let Input::Layer(from) = input
                    && model.layers[*from as usize].last_use <= at
                {
                    outputs[*from as usize] = None;
                }
            }
        }
        let all = model.layers.len();
        match (outputs.pop().flatten(), wanted) {
            (Some(logits), Some(wanted)) if narrow_at == all => {
                self.logs(&model.engine(ops::take(&logits, &wanted, 0))?)
            }
            (Some(logits), _) => self.logs(&logits),
            (None, _) => Err(Error::Series {
                problem: "its last layer gave nothing".into(),
            }),
        }
    }

    /// x W' + b of layer `at` for x [rows, 1, in]; the bias is the layer's own.
    fn product(
        &mut self,
        pass: &mut Pass,
        at: usize,
        weight: &str,
        bias: Option<&str>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let fail = self.model.engine_at(at);
        let bias = match bias {
            Some(suffix) => Some(pass.parameter(&self.model.layers[at].info, suffix)?),
            None => None,
        };
        if !self.turned.contains_key(weight) {
            let stored = pass.named(weight)?;
            let turned = ops::permute_dims(&stored, &[1, 0]).and_then(|turned| turned.contiguous());
            self.turned
                .insert(weight.to_owned(), turned.map_err(&fail)?);
        }
        let weight = &self.turned[weight];
        let compute = || {
            let rows = x.shape()[0] as i64;
            let flat = ops::reshape(x, &[rows, weight.shape()[0] as i64])?;
            let out = nn::project(&flat, weight, bias.as_ref())?;
            ops::reshape(&out, &[rows, 1, weight.shape()[1] as i64])
        };
        compute().map_err(&fail)
    }

    /// Runs whole series, padded at their ends; log-probabilities at the given positions of each.
    fn again(
        &self,
        parameters: &mut ParameterSet,
        all: &[&[u32]],
        positions: &[Range<usize>],
    ) -> Result<Logs> {
        let steps = all.iter().map(|series| series.len()).max().unwrap_or(1);
        let steps = steps.max(1);
        let mut read = vec![0i64; all.len() * steps];
        let mut rows = Vec::new();
        for (at, series) in all.iter().enumerate() {
            for (place, token) in read[at * steps..].iter_mut().zip(series.iter()) {
                *place = i64::from(*token);
            }
            rows.extend(positions[at].clone().map(|step| (at * steps + step) as i64));
        }
        let read = self
            .model
            .engine(Tensor::from_vec(read, &[all.len(), steps]))?;
        let logits =
            self.model
                .rows_of_forward(parameters, self.series, read, &rows, Mode::Eval)?;
        self.logs(&logits)
    }

    /// Log-softmax of logits [.., vocabulary].
    fn logs(&self, logits: &Tensor) -> Result<Logs> {
        let compute = || {
            let logs = ops::log_softmax(logits, -1)?;
            match logs.dtype() {
                DType::F32 => logs.to_vec::<f32>(),
                _ => Ok(logs.to_list()?.into_iter().map(|x| x as f32).collect()),
            }
        };
        Ok(Logs {
            values: self.model.engine(compute())?,
            vocabulary: self.series.vocabulary,
        })
    }
}

/// Draws a token from log-probabilities of which none is NaN: the one at which the sum of the weights, in
/// the order of the tokens, passes `u` times their total; with `top_k` or `top_p` in the order of falling
/// weight.
fn draw(logs: &[f32], request: &Request, u: f64, scratch: &mut Vec<(f64, usize)>) -> usize {
    let mut best = 0;
    for (token, log) in logs.iter().enumerate() {
        if *log > logs[best] {
            best = token;
        }
    }
    if request.temperature == 0.0 {
        return best;
    }
    let most = f64::from(logs[best]);
    let weight = |log: &f32| ((f64::from(*log) - most) / request.temperature).exp();
    scratch.clear();
    scratch.extend(
        logs.iter()
            .enumerate()
            .map(|(token, log)| (weight(log), token)),
    );
    let limit = match request.top_k {
        0 => logs.len(),
        k => k.min(logs.len()),
    };
    if limit < logs.len() || request.top_p < 1.0 {
        // Temperature keeps the order; by the logarithms, ties made by rounding weights to 0 are none.
        let before = |a: &(f64, usize), b: &(f64, usize)| {
            logs[b.1].total_cmp(&logs[a.1]).then(a.1.cmp(&b.1))
        };
        if limit < logs.len() {
            scratch.select_nth_unstable_by(limit - 1, before);
            scratch.truncate(limit);
        }
        scratch.sort_unstable_by(before);
        if request.top_p < 1.0 {
            let total: f64 = scratch.iter().map(|(weight, _)| weight).sum();
            let mut sum = 0.0;
            let reached = scratch.iter().position(|(weight, _)| {
                sum += weight;
                sum >= request.top_p * total
            });
            scratch.truncate(reached.map_or(scratch.len(), |at| at + 1));
        }
    }
    let total: f64 = scratch.iter().map(|(weight, _)| weight).sum();
    let mut sum = 0.0;
    for (weight, token) in scratch.iter() {
        sum += weight;
        if u * total < sum {
            return *token;
        }
    }
    // Rounding alone leads here: `u` is below 1.
    scratch
        .iter()
        .rev()
        .find(|(weight, _)| *weight > 0.0)
        .map_or(best, |(_, token)| *token)
}

#[cfg(test)]
mod tests;
