#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::FieldShape;
use crate::plan::LayerPlan;
use espalier_tensor::autograd;
use espalier_tensor::threads::Pool;

fn layer(kind: &str, settings: &[(&str, f64)]) -> LayerPlan {
    LayerPlan {
        name: String::new(),
        kind: kind.into(),
        inputs: Vec::new(),
        frozen: false,
        group: String::new(),
        settings: settings
            .iter()
            .map(|(name, number)| ((*name).to_owned(), vec![*number]))
            .collect(),
    }
}

fn build(layers: &[LayerPlan], steps: usize) -> (Model, ParameterSet) {
    let field = FieldShape {
        name: "inputs".into(),
        shape: vec![steps],
        dtype: DType::I64,
    };
    let mut set = ParameterSet::new();
    let model = Model::build(layers, &[field], &[7], &mut set).unwrap();
    (model, set)
}

/// Two blocks of 32 features over 11 tokens; logits spread wide enough that draws differ.
fn transformer(steps: usize) -> (Model, ParameterSet) {
    let block = |heads, dropout| {
        let settings = [("features", 32.0), ("heads", heads), ("dropout", dropout)];
        layer("transformer-block", &settings)
    };
    let (model, mut set) = build(
        &[
            layer("embedding", &[("entries", 11.0), ("features", 32.0)]),
            layer("position", &[]),
            block(4.0, 0.0),
            block(2.0, 0.1),
            layer("layer-norm", &[]),
            layer("linear", &[("features", 11.0)]),
        ],
        steps,
    );
    let weight = set.stored("linear1.weight").unwrap();
    let weight = ops::multiply(weight, 3.0).unwrap();
    set.assign("linear1.weight", &weight).unwrap();
    (model, set)
}

fn request(context: &[u32], count: usize, max_tokens: usize) -> Request {
    Request {
        context: context.to_vec(),
        forced: Vec::new(),
        count,
        stop: Vec::new(),
        max_tokens,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        key: vec![5],
    }
}

/// Log-probabilities of the next token after each prefix of a series, by a forward pass over it alone.
fn naive(model: &Model, set: &mut ParameterSet, series: &[u32]) -> Vec<Vec<f64>> {
    let tokens: Vec<i64> = series.iter().map(|token| i64::from(*token)).collect();
    let x = Tensor::from_vec(tokens, &[1, series.len()]).unwrap();
    let logits = model
        .forward(
            set,
            0,
            model.len(),
            &[("inputs".into(), x)],
            Mode::Eval,
            &BTreeMap::new(),
            &[],
            &[],
        )
        .unwrap()
        .output
        .to_list()
        .unwrap();
    logits
        .chunks_exact(logits.len() / series.len())
        .map(|row| {
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
            row.iter().map(|x| x - most - sum.ln()).collect()
        })
        .collect()
}

/// Every token's log-probability is that of a forward pass over the response; with temperature 0 it is
/// the likeliest.
fn agrees_with_forward(
    model: &Model,
    set: &mut ParameterSet,
    requests: &[Request],
    responses: &[Response],
) {
    for response in responses {
        let request = &requests[response.request];
        assert_eq!(response.tokens.len(), response.logprobs.len());
        let series = [&request.context[..], &response.tokens].concat();
        let logs = naive(model, set, &series);
        for (at, token) in response.tokens.iter().enumerate() {
            let row = &logs[request.context.len() - 1 + at];
            let expected = row[*token as usize];
            let found = f64::from(response.logprobs[at]);
            assert!((found - expected).abs() < 1e-5, "{found} and {expected}");
            if request.temperature == 0.0 && at >= request.forced.len() {
                let most = row.iter().copied().fold(f64::MIN, f64::max);
                assert!(most - expected < 1e-5);
            }
        }
    }
}

fn ragged() -> Vec<Request> {
    let mut requests = vec![
        request(&[1, 2, 3], 3, 20),
        request(&[4], 2, 7),
        request(&[5, 6, 7, 8, 9, 10, 0, 1], 4, 40),
        request(&[3, 3], 1, 0),
        request(&[9, 9, 9, 9], 2, 30),
    ];
    requests[1].forced = vec![2, 7, 1];
    requests[2].stop = vec![vec![3], vec![4, 5]];
    requests[3].forced = vec![1, 2, 3, 4];
    requests[4].temperature = 0.0;
    requests[0].top_p = 0.8;
    requests[0].top_k = 6;
    requests[2].temperature = 1.7;
    requests
}

#[test]
fn cached_generation_equals_recomputation() {
    let (model, mut set) = transformer(48);
    let requests = ragged();
    let responses = model.generate(&mut set, &requests, 48).unwrap();
    assert_eq!(responses.len(), 12);
    let of: Vec<usize> = responses.iter().map(|response| response.request).collect();
    assert_eq!(of, [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4]);
    agrees_with_forward(&model, &mut set, &requests, &responses);
    for response in &responses {
        let request = &requests[response.request];
        assert!(response.tokens.starts_with(&request.forced));
        if !response.stopped {
            let most = request.forced.len() + request.max_tokens;
            assert_eq!(response.tokens.len(), most.min(48 - request.context.len()));
        }
    }
    // Copies are drawn by themselves, greedy ones are alike.
    assert_ne!(responses[0].tokens, responses[1].tokens);
    assert_eq!(responses[10].tokens, responses[11].tokens);
}

#[test]
fn a_recurrent_model_is_computed_again() {
    let (model, mut set) = build(
        &[
            layer("embedding", &[("entries", 11.0), ("features", 16.0)]),
            layer("lstm", &[("features", 16.0)]),
            layer("linear", &[("features", 11.0)]),
        ],
        48,
    );
    let requests = ragged();
    let responses = model.generate(&mut set, &requests, 48).unwrap();
    agrees_with_forward(&model, &mut set, &requests, &responses);
}

#[test]
fn company_and_threads_change_no_response() {
    let (model, mut set) = transformer(48);
    let requests = ragged();
    let all = Pool::new(2)
        .unwrap()
        .install(|| model.generate(&mut set, &requests, 48).unwrap());
    let single = Pool::new(1)
        .unwrap()
        .install(|| model.generate(&mut set, &requests, 48).unwrap());
    assert_eq!(all, single);
    for (at, request) in requests.iter().enumerate() {
        let alone = model
            .generate(&mut set, std::slice::from_ref(request), 48)
            .unwrap();
        let together = all.iter().filter(|response| response.request == at);
        for (a, b) in alone.iter().zip(together) {
            // To the last bit of the log-probabilities.
            assert_eq!(
                a,
                &Response {
                    request: 0,
                    ..b.clone()
                }
            );
        }
    }
    // The key decides.
    let mut others = requests.clone();
    others[0].key = vec![6];
    let changed = model.generate(&mut set, &others, 48).unwrap();
    assert_ne!(all[0], changed[0]);
    assert_eq!(all[3..], changed[3..]);
}

#[test]
fn a_response_has_the_same_bits_among_many() {
    let (model, mut set) = transformer(16);
    let requests: Vec<Request> = (0..300)
        .map(|i| Request {
            key: vec![i],
            ..request(
                &[1, i as u32 % 10, 3, i as u32 % 7][..1 + i as usize % 4],
                1,
                9,
            )
        })
        .collect();
    let all = model.generate(&mut set, &requests, 16).unwrap();
    for few in [1, 2, 3, 7, 16, 33, 100] {
        let some = model.generate(&mut set, &requests[..few], 16).unwrap();
        assert_eq!(some, all[..few], "among {few}");
    }
}

#[test]
fn forced_tokens_are_scored_and_nothing_else() {
    let (model, mut set) = transformer(12);
    let mut forced = request(&[1, 2, 3], 1, 0);
    forced.forced = vec![4, 5, 6];
    forced.stop = vec![vec![5]];
    let mut ended = forced.clone();
    ended.stop = vec![vec![5, 6]];
    let mut more = ended.clone();
    more.max_tokens = 5;
    let nothing = request(&[1], 1, 0);
    let requests = [forced, ended, more, nothing];
    let responses = model.generate(&mut set, &requests, 12).unwrap();
    agrees_with_forward(&model, &mut set, &requests, &responses);
    let found: Vec<(usize, bool)> = responses
        .iter()
        .map(|response| (response.tokens.len(), response.stopped))
        .collect();
    assert_eq!(found, [(3, false), (3, true), (3, true), (0, false)]);
}

#[test]
fn a_response_ends_at_its_stop_sequence_or_with_the_context() {
    let (model, mut set) = transformer(24);
    let free = request(&[1, 2], 1, 100);
    let whole = model
        .generate(&mut set, std::slice::from_ref(&free), 20)
        .unwrap()
        .remove(0);
    assert_eq!((whole.tokens.len(), whole.stopped), (18, false));
    // Any two neighbours stop it where they first stand together.
    let pair = whole.tokens[6..8].to_vec();
    let first = (0..)
        .find(|at| whole.tokens[*at..].starts_with(&pair))
        .unwrap();
    let mut stopping = free.clone();
    stopping.stop = vec![pair];
    let cut = model.generate(&mut set, &[stopping], 20).unwrap().remove(0);
    assert_eq!(cut.tokens, whole.tokens[..first + 2]);
    assert!(cut.stopped);
    // A stop sequence may begin among the forced tokens.
    let mut across = free.clone();
    across.forced = whole.tokens[..3].to_vec();
    across.stop = vec![whole.tokens[2..4].to_vec()];
    let ends = model.generate(&mut set, &[across], 20).unwrap().remove(0);
    assert_eq!(ends.tokens, whole.tokens[..4]);
    assert!(ends.stopped);
    // No room: nothing is drawn.
    let full = model.generate(&mut set, &[free], 2).unwrap().remove(0);
    assert_eq!((full.tokens.len(), full.stopped), (0, false));
}

#[test]
fn frequencies_are_those_of_the_distribution() {
    let (model, mut set) = transformer(4);
    let expected = naive(&model, &mut set, &[3, 1])[1].clone();
    let draws = 20_000;
    for temperature in [1.0, 0.5] {
        let mut request = request(&[3, 1], draws, 1);
        request.temperature = temperature;
        let responses = model.generate(&mut set, &[request], 4).unwrap();
        let mut counts = [0.0; 11];
        for response in &responses {
            counts[response.tokens[0] as usize] += 1.0;
        }
        let weights: Vec<f64> = expected
            .iter()
            .map(|log| (log / temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        // Pearson's statistic of 10 degrees of freedom: above 29.6 in one case of a thousand.
        let statistic: f64 = counts
            .iter()
            .zip(&weights)
            .map(|(count, weight)| {
                let mean = draws as f64 * weight / total;
                (count - mean) * (count - mean) / mean
            })
            .sum();
        assert!(statistic < 29.6, "temperature {temperature}: {statistic}");
    }
}

/// The tokens that top-k and then top-p leave, as the definition has it.
fn left(logs: &[f64], temperature: f64, top_k: usize, top_p: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logs.len()).collect();
    order.sort_by(|a, b| logs[*b].partial_cmp(&logs[*a]).unwrap().then(a.cmp(b)));
    if top_k > 0 {
        order.truncate(top_k);
    }
    let weights: Vec<f64> = order
        .iter()
        .map(|token| (logs[*token] / temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for (token, weight) in order.iter().zip(weights) {
        kept.push(*token);
        sum += weight / total;
        if sum >= top_p {
            break;
        }
    }
    kept.sort_unstable();
    kept
}

#[test]
fn top_p_and_top_k_leave_what_their_definition_leaves() {
    let logs = [-2.5, -0.9, -3.0, -0.9, -1.7, -4.0, f64::NEG_INFINITY];
    let floats: Vec<f32> = logs.iter().map(|log| *log as f32).collect();
    let mut scratch = Vec::new();
    for temperature in [0.3, 1.0, 2.0] {
        for top_k in [0, 1, 3, 5, 9] {
            for top_p in [0.05, 0.3, 0.62, 0.9, 0.999] {
                let mut asked = request(&[0], 1, 1);
                (asked.temperature, asked.top_k, asked.top_p) = (temperature, top_k, top_p);
                let mut seen: Vec<usize> = (0..4000)
                    .map(|i| draw(&floats, &asked, f64::from(i) / 4000.0, &mut scratch))
                    .collect();
                seen.sort_unstable();
                seen.dedup();
                // What is less likely than the grid is fine may be missed: none here at these numbers.
                let expected: Vec<usize> = left(&logs, temperature, top_k, top_p)
                    .into_iter()
                    .filter(|token| (logs[*token] / temperature).exp() > 1e-3 * 0.9)
                    .collect();
                let seen: Vec<usize> = seen
                    .into_iter()
                    .filter(|token| (logs[*token] / temperature).exp() > 1e-3 * 0.9)
                    .collect();
                assert_eq!(
                    seen, expected,
                    "temperature {temperature}, {top_k}, {top_p}"
                );
            }
        }
    }
    // The lowest of the likeliest.
    let mut greedy = request(&[0], 1, 1);
    greedy.temperature = 0.0;
    assert_eq!(draw(&floats, &greedy, 0.9, &mut scratch), 1);
    // However cold, a draw is the likeliest and no NaN.
    greedy.temperature = 1e-300;
    assert!([1, 3].contains(&draw(&floats, &greedy, 0.9, &mut scratch)));
}

#[test]
fn requests_out_of_range_are_refused_in_words() {
    let (model, mut set) = transformer(8);
    let mut refused = |change: &dyn Fn(&mut Request)| {
        let mut bad = request(&[1, 2], 1, 3);
        change(&mut bad);
        let requests = [request(&[1], 1, 1), bad];
        model
            .generate(&mut set, &requests, 8)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(&|r| r.context.clear()),
        "generate: request 1, `context`: is empty; expected at least one token"
    );
    assert_eq!(
        refused(&|r| r.context[1] = 11),
        "generate: request 1, `context`: holds token 11; the vocabulary has 11, counted from 0"
    );
    assert!(refused(&|r| r.forced = vec![99]).contains("`forced`: holds token 99"));
    assert!(refused(&|r| r.context = vec![1; 9]).contains("has 9 tokens"));
    assert!(refused(&|r| r.stop = vec![vec![]]).contains("`stop`: holds an empty sequence"));
    for temperature in [f64::NAN, -1.0, f64::INFINITY] {
        assert!(refused(&|r| r.temperature = temperature).contains("`temperature`: expected"));
    }
    for top_p in [f64::NAN, 0.0, 1.1] {
        assert!(refused(&|r| r.top_p = top_p).contains("`top-p`: expected"));
    }
    assert!(refused(&|r| r.count = usize::MAX).contains("`count`: with this request"));
    let long = model.generate(&mut set, &[], 9).unwrap_err();
    assert_eq!(
        long.to_string(),
        "the model cannot go through tokens one by one: it reads at most 8 tokens, a context and a response \
         of 9 were asked for"
    );
}

#[test]
fn parameters_of_nan_are_refused_in_words() {
    let (model, mut set) = transformer(8);
    let table = Tensor::full(&[11, 32], f64::NAN, DType::F32).unwrap();
    set.assign("embedding1.weight", &table).unwrap();
    let requests = [request(&[1], 1, 1)];
    let error = model.generate(&mut set, &requests, 8).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}

#[test]
fn models_that_see_ahead_are_refused() {
    let embedding = layer("embedding", &[("entries", 5.0), ("features", 4.0)]);
    let refused = |layers: &[LayerPlan]| {
        let (model, mut set) = build(layers, 6);
        let error = model
            .generate(&mut set, &[request(&[1], 1, 1)], 6)
            .unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(&[embedding.clone(), layer("attention", &[("heads", 2.0)])]),
        "the model cannot go through tokens one by one: layer `attention1` (attention) lets a step see later \
         ones; set causal = true"
    );
    assert_eq!(
        refused(&[
            embedding,
            layer("flatten", &[]),
            layer("linear", &[("features", 5.0)])
        ]),
        "the model cannot go through tokens one by one: layer `flatten1` (flatten) does not treat a series \
         step by step"
    );
}

#[test]
fn scores_are_log_softmax_at_the_tokens_and_padding_has_no_gradient() {
    let (model, mut set) = transformer(16);
    let sequences = [
        (vec![1, 2, 3], vec![4, 5]),
        (vec![7], vec![8, 9, 10, 0, 1]),
        (vec![2, 2, 2, 2], vec![]),
        (vec![6, 5], vec![3]),
    ];
    let (logs, mask, entropy) = model
        .logprobs(&mut set, &sequences, true, Mode::Eval)
        .unwrap();
    assert_eq!(logs.shape(), [4, 5]);
    let (logs, mask) = (logs.to_list().unwrap(), mask.to_list().unwrap());
    let entropy = entropy.unwrap().to_list().unwrap();
    for (at, (context, tokens)) in sequences.iter().enumerate() {
        let rows = naive(&model, &mut set, &[&context[..], tokens].concat());
        for j in 0..5 {
            let place = at * 5 + j;
            if j >= tokens.len() {
                assert_eq!((logs[place], mask[place], entropy[place]), (0.0, 0.0, 0.0));
                continue;
            }
            let row = &rows[context.len() - 1 + j];
            assert_eq!(mask[place], 1.0);
            assert!((logs[place] - row[tokens[j] as usize]).abs() < 1e-5);
            let expected: f64 = row.iter().map(|log| -log.exp() * log).sum();
            assert!((entropy[place] - expected).abs() < 1e-5);
        }
    }
    // The gradient of the first sequence alone is that of its score beside the others.
    let names = set.names();
    let gradients = |logs: &Tensor, set: &mut ParameterSet| -> Vec<f64> {
        let own = ops::slice(logs, 0, 0, 1).unwrap();
        let loss = ops::sum(&own, &[], false).unwrap();
        let leaves: Vec<Tensor> = names.iter().map(|name| set.value(name).unwrap()).collect();
        let leaves: Vec<&Tensor> = leaves.iter().collect();
        let found = autograd::grad(&[&loss], &[None], &leaves, false, false).unwrap();
        found.iter().flat_map(|t| t.to_list().unwrap()).collect()
    };
    let again = model
        .logprobs(&mut set, &sequences, false, Mode::Eval)
        .unwrap();
    let together = gradients(&again.0, &mut set);
    let alone = model
        .logprobs(&mut set, &sequences[..1], false, Mode::Eval)
        .unwrap();
    let alone = gradients(&alone.0, &mut set);
    assert!(alone.iter().any(|x| x.abs() > 1e-3));
    for (a, b) in together.iter().zip(&alone) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn the_gradient_of_scores_is_that_of_finite_differences() {
    let (model, mut set) = build(
        &[
            layer(
                "embedding",
                &[("entries", 3.0), ("features", 4.0), ("deviation", 0.5)],
            ),
            layer(
                "transformer-block",
                &[("features", 4.0), ("heads", 2.0), ("feed-forward", 6.0)],
            ),
            layer("tied-linear", &[]),
        ],
        5,
    );
    let sequences = [(vec![0, 1], vec![2, 1]), (vec![2], vec![0])];
    let total = |set: &mut ParameterSet| {
        let (logs, _, entropy) = model.logprobs(set, &sequences, true, Mode::Eval).unwrap();
        let both = ops::add(&logs, &entropy.unwrap()).unwrap();
        ops::sum(&both, &[], false).unwrap()
    };
    for name in set.names() {
        let loss = total(&mut set);
        let leaf = set.value(&name).unwrap();
        let found = autograd::grad(&[&loss], &[None], &[&leaf], false, false).unwrap();
        let found = found[0].to_list().unwrap();
        let start = leaf.to_list().unwrap();
        let step = 2e-2;
        for at in (0..start.len()).step_by(3) {
            let mut moved = |by: f64| {
                let mut values = start.clone();
                values[at] += by;
                let value = Tensor::from_f64s(&values, leaf.shape(), DType::F32).unwrap();
                set.assign(&name, &value).unwrap();
                total(&mut set).item().unwrap()
            };
            // Richardson: the error is of fourth order.
            let narrow = (moved(step) - moved(-step)) / (2.0 * step);
            let wide = (moved(2.0 * step) - moved(-2.0 * step)) / (4.0 * step);
            let expected = (4.0 * narrow - wide) / 3.0;
            assert!(
                (found[at] - expected).abs() < 2e-3 * (1.0 + expected.abs()),
                "{name} {at}: {} and {expected}",
                found[at]
            );
        }
        let value = Tensor::from_f64s(&start, leaf.shape(), DType::F32).unwrap();
        set.assign(&name, &value).unwrap();
    }
}

#[test]
fn a_model_may_end_with_attention_or_have_none() {
    let embedding = layer("embedding", &[("entries", 11.0), ("features", 11.0)]);
    let attention = layer("attention", &[("heads", 1.0), ("causal", 1.0)]);
    let position = layer("position", &[("learned", 0.0)]);
    let linear = layer("linear", &[("features", 11.0)]);
    for layers in [
        vec![embedding.clone(), position.clone(), attention],
        vec![embedding.clone(), position, linear.clone()],
        vec![layer("identity", &[]), embedding.clone(), linear],
        vec![embedding],
    ] {
        let (model, mut set) = build(&layers, 48);
        let requests = ragged();
        let responses = model.generate(&mut set, &requests, 48).unwrap();
        agrees_with_forward(&model, &mut set, &requests, &responses);
    }
}

#[test]
fn more_than_one_part_side_by_side_changes_nothing() {
    // Contexts of 40 tokens and 5,000 responses are more than is computed at once, by both limits.
    let (model, mut set) = transformer(48);
    let mut requests: Vec<Request> = (0..1000)
        .map(|i| Request {
            key: vec![i],
            ..request(&[i as u32 % 11; 40], 1, 2)
        })
        .collect();
    requests.push(request(&[3], 4500, 1));
    requests.push(request(&[4], 0, 1));
    requests.push(request(&[5], 1, 3));
    let responses = model.generate(&mut set, &requests, 48).unwrap();
    assert_eq!(responses.len(), 5501);
    assert!(responses.is_sorted_by_key(|response| response.request));
    for at in [0, 999, 1000, 1002] {
        let alone = model.generate(&mut set, &requests[at..=at], 48).unwrap();
        let among = responses.iter().filter(|response| response.request == at);
        for (a, b) in alone.iter().zip(among) {
            assert_eq!(
                a,
                &Response {
                    request: 0,
                    ..b.clone()
                }
            );
        }
    }
}

#[test]
fn the_cost_of_a_call_bounds_its_arithmetic() {
    let (model, _) = transformer(48);
    let step = model.macs(0, model.len()) as f64 / 48.0;
    let cost = model.generate_macs(&[request(&[1, 2, 3], 10, 5)], 48);
    assert!(cost >= (3.0 + 10.0 * 4.0) * step && cost < 2.0 * (3.0 + 10.0 * 5.0) * step);
    // No more than the context holds, and never nothing.
    let cost = model.generate_macs(&[request(&[1; 40], 10, usize::MAX)], 48);
    assert!(cost < (40.0 + 10.0 * 9.0) * (step + 1.0) + 1.0);
    assert!(model.generate_macs(&[request(&[1], 1000, 0)], 48) >= 1000.0);
}

#[test]
fn sequences_that_cannot_be_scored_are_refused_in_words() {
    let (model, mut set) = transformer(6);
    let mut refused = |sequences: &[(Vec<u32>, Vec<u32>)]| {
        let error = model.logprobs(&mut set, sequences, false, Mode::Eval);
        error.unwrap_err().to_string()
    };
    assert_eq!(
        refused(&[]),
        "score: sequence 0 is missing; give at least one"
    );
    assert_eq!(
        refused(&[(vec![1], vec![2]), (vec![], vec![1])]),
        "score: sequence 1 has an empty context; expected at least one token"
    );
    assert_eq!(
        refused(&[(vec![1; 4], vec![2; 3])]),
        "score: sequence 0 has 7 tokens, its context included; the model reads at most 6"
    );
    assert_eq!(
        refused(&[(vec![1], vec![11])]),
        "score: sequence 0 holds token 11; the vocabulary has 11, counted from 0"
    );
    // Responses of nothing have scores of nothing.
    let (logs, mask, entropy) = model
        .logprobs(&mut set, &[(vec![1], vec![])], true, Mode::Eval)
        .unwrap();
    assert_eq!(logs.shape(), [1, 0]);
    assert_eq!(mask.shape(), [1, 0]);
    assert_eq!(entropy.unwrap().shape(), [1, 0]);
}
