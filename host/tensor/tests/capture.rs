#![allow(clippy::unwrap_used)]
//! A captured step has the bits of the step itself, and what cannot be captured is refused with a reason.

use espalier_tensor::capture::{self, Program};
use espalier_tensor::random::{Key, bits, normal};
use espalier_tensor::{DType, Error, Result, Tensor, autograd, nn, ops, threads};

fn values(seed: u64, shape: &[usize]) -> Tensor {
    normal(&Key::new(&[seed]), shape, DType::F32).unwrap()
}

fn classes(seed: u64, shape: &[usize], of: u64) -> Tensor {
    let words = bits(&Key::new(&[seed]), shape.iter().product());
    let values = words.iter().map(|b| (b % of) as i64).collect();
    Tensor::from_vec(values, shape).unwrap()
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let words =
        |t: &Tensor| -> Vec<u64> { t.to_list().unwrap().iter().map(|x| x.to_bits()).collect() };
    a.shape() == b.shape() && a.dtype() == b.dtype() && words(a) == words(b)
}

/// A step: from sources to results.
type StepFn<'a> = &'a dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>;

fn record(step: StepFn, sources: &[Tensor]) -> std::result::Result<Program, String> {
    capture::start(4096);
    for (i, source) in sources.iter().enumerate() {
        assert_eq!(capture::source(source), Some(i as u32));
    }
    let results = step(sources).unwrap();
    capture::finish(&results.iter().collect::<Vec<_>>())
}

fn replay(program: &mut Program, sources: &[Tensor]) -> Vec<Tensor> {
    assert_eq!(program.parts(), 1);
    for source in program.reads(0).to_vec() {
        program
            .bind(source, sources[source as usize].clone())
            .unwrap();
    }
    program.run::<Error>(0, || Ok(())).unwrap();
    let results = (0..program.outputs()).map(|i| program.output(i).unwrap());
    let results = results.collect();
    program.end();
    results
}

/// Records on one set of sources, replays on others, and compares with the step run plainly.
fn check(step: StepFn, make: &dyn Fn(u64) -> Vec<Tensor>) -> Program {
    let mut program = record(step, &make(1)).unwrap_or_else(|reason| panic!("refused: {reason}"));
    for seed in 2..5 {
        let sources = make(seed);
        let expected = step(&sources).unwrap();
        let found = replay(&mut program, &sources);
        for (i, (a, b)) in expected.iter().zip(&found).enumerate() {
            assert!(same_bits(a, b), "result {i} of {:?}", program.listing());
        }
        assert_eq!(expected.len(), found.len());
    }
    program
}

/// The loss and the gradients of everything from the `first` source on.
fn with_gradients(loss: Tensor, sources: &[Tensor], first: usize) -> Result<Vec<Tensor>> {
    let inputs: Vec<&Tensor> = sources[first..].iter().collect();
    let mut all = vec![loss.detach()];
    all.extend(autograd::grad(&[&loss], &[None], &inputs, false, false)?);
    Ok(all)
}

fn mean(t: &Tensor) -> Result<Tensor> {
    ops::divide(&ops::sum(t, &[], false)?, t.numel() as f64)
}

fn leaves(seed: u64, shapes: &[&[usize]]) -> Vec<Tensor> {
    let leaf =
        |(i, shape): (usize, &&[usize])| values(seed * 100 + i as u64, shape).with_requires_grad();
    shapes.iter().enumerate().map(leaf).collect()
}

fn mlp(t: &[Tensor]) -> Result<Vec<Tensor>> {
    let hidden = ops::relu(&nn::linear(&t[0], &t[2], Some(&t[3]))?)?;
    let logits = nn::linear(&hidden, &t[4], Some(&t[5]))?;
    with_gradients(mean(&ops::cross_entropy(&logits, &t[1])?)?, t, 2)
}

fn mlp_sources(seed: u64, batch: usize, sizes: [usize; 3]) -> Vec<Tensor> {
    let [inputs, hidden, outputs] = sizes;
    let mut all = vec![
        values(seed, &[batch, inputs]),
        classes(seed, &[batch], outputs as u64),
    ];
    let shapes: [&[usize]; 4] = [&[hidden, inputs], &[hidden], &[outputs, hidden], &[outputs]];
    all.extend(leaves(seed, &shapes));
    all
}

#[test]
fn a_perceptron_and_its_gradients_keep_their_bits() {
    for (batch, sizes) in [(8, [8, 16, 2]), (1, [3, 5, 4]), (64, [100, 300, 10])] {
        for n in [1, 2] {
            threads::Pool::new(n)
                .unwrap()
                .install(|| drop(check(&mlp, &|seed| mlp_sources(seed, batch, sizes))));
        }
    }
}

#[test]
fn a_program_serves_tensors_that_lie_anywhere() {
    // A source recorded at the start of its storage and bound in the middle of another.
    let step: StepFn = &|t| Ok(vec![ops::tanh(&ops::slice(&t[0], 0, 1, 3)?)?]);
    let mut program = record(step, &[values(1, &[4, 2])]).unwrap();
    let large = values(2, &[9, 2]);
    let inner = ops::slice(&large, 0, 3, 7).unwrap();
    let found = replay(&mut program, std::slice::from_ref(&inner));
    assert!(same_bits(&found[0], &step(&[inner]).unwrap()[0]));
}

fn spectra(t: &[Tensor]) -> Result<Vec<Tensor>> {
    let filtered = ops::multiply(&ops::rfft(&t[0], 1)?, &t[1])?;
    let series = ops::tanh(&ops::irfft(&filtered, 16, 1)?)?;
    with_gradients(mean(&series)?, t, 1)
}

#[test]
fn spectra_and_their_gradients_keep_their_bits() {
    for n in [1, 2] {
        threads::Pool::new(n).unwrap().install(|| {
            drop(check(&spectra, &|seed| {
                let mut all = vec![values(seed, &[300, 16, 3])];
                all.extend(leaves(seed, &[&[9, 3, 2]]));
                all
            }));
        });
    }
}

#[test]
fn convolution_and_pooling_keep_their_bits() {
    let step: StepFn = &|t| {
        let y = nn::conv2d(&t[0], &t[2], Some(&t[3]), (1, 1), (1, 1), (1, 1), 1)?;
        let y = nn::max_pool2d(&ops::relu(&y)?, (2, 2), (2, 2), (0, 0))?;
        let y = nn::conv2d(&y, &t[4], None, (1, 1), (0, 0), (1, 1), 1)?;
        let y = nn::avg_pool2d(&y, (2, 2), (2, 2), (0, 0))?;
        let y = ops::reshape(&y, &[3, -1])?;
        with_gradients(mean(&ops::cross_entropy(&y, &t[1])?)?, t, 2)
    };
    check(step, &|seed| {
        let mut all = vec![values(seed, &[3, 1, 8, 8]), classes(seed, &[3], 5)];
        all.extend(leaves(seed, &[&[4, 1, 3, 3], &[4], &[5, 4, 3, 3]]));
        all
    });
}

#[test]
fn a_transformer_block_keeps_its_bits() {
    let step: StepFn = &|t| {
        let x = ops::take(&t[2], &t[0], 0)?;
        let y = ops::layer_norm(&x, &[-1], Some(&t[3]), Some(&t[4]), 1e-5)?;
        let y = nn::linear(&y, &t[5], None)?;
        let x = ops::add(&x, &nn::self_attention(&y, 2, true)?)?;
        let y = nn::linear(&ops::gelu(&x)?, &t[6], None)?;
        with_gradients(mean(&ops::cross_entropy(&y, &t[1])?)?, t, 2)
    };
    check(step, &|seed| {
        let mut all = vec![classes(seed, &[3, 6], 11), classes(seed + 9, &[3, 6], 11)];
        all.extend(leaves(seed, &[&[11, 8], &[8], &[8], &[24, 8], &[11, 8]]));
        all
    });
}

#[test]
fn what_is_read_twice_or_never_is_computed_once_or_never() {
    let step: StepFn = &|t| {
        let a = ops::exp(&t[0])?;
        let again = ops::exp(&t[0])?;
        ops::cos(&a)?;
        Ok(vec![ops::sum(&ops::multiply(&a, &again)?, &[0], false)?])
    };
    let program = check(step, &|seed| vec![values(seed, &[40])]);
    assert_eq!(program.listing(), ["exp", "multiply", "sum"]);
}

#[test]
fn a_chain_of_maps_becomes_one_pass() {
    let step: StepFn = &|t| {
        Ok(vec![ops::tanh(&ops::add(
            &ops::multiply(&t[0], &t[1])?,
            &t[2],
        )?)?])
    };
    for shape in [&[5][..], &[1 << 17], &[3, 1000, 7]] {
        let make = |seed| (0..3).map(|i| values(seed * 3 + i, shape)).collect();
        assert_eq!(check(step, &make).listing(), ["fused(3)"]);
    }
    // Rows, columns, single elements and transposes beside whole tensors.
    let step: StepFn = &|t| {
        let y = ops::subtract(2.0, &ops::multiply(&t[0], &t[1])?)?;
        let y = ops::maximum(&ops::divide(&y, &t[2])?, &t[3])?;
        let y = ops::add(&ops::permute_dims(&y, &[1, 0])?, &t[4])?;
        Ok(vec![ops::multiply(&y, &ops::sqrt(&ops::abs(&y)?)?)?])
    };
    let shapes: [&[usize]; 5] = [&[33, 70], &[70], &[33, 1], &[], &[70, 33]];
    check(step, &|seed| {
        let one = |(i, shape): (usize, &&[usize])| values(seed * 7 + i as u64, shape);
        shapes.iter().enumerate().map(one).collect()
    });
}

#[test]
fn a_value_read_outside_the_chain_stays() {
    let step: StepFn = &|t| {
        let a = ops::exp(&t[0])?;
        Ok(vec![ops::sin(&a)?, a])
    };
    check(step, &|seed| vec![values(seed, &[2000])]);
}

#[test]
fn the_program_stops_at_effects_and_reads_sources_anew() {
    // w is read, updated outside, and read again; the value held from before stays what it was.
    let w = values(1, &[6]);
    capture::start(100);
    capture::source(&w).unwrap();
    let g = ops::multiply(&w, 2.0).unwrap();
    assert_eq!(capture::effect(&[&g]), Some(0));
    let paused = capture::pause();
    let after = values(2, &[6]);
    drop(paused);
    let late = capture::source(&after).unwrap();
    let out = ops::subtract(&after, &w).unwrap();
    let mut program = capture::finish(&[&out]).unwrap();
    assert_eq!((program.parts(), late), (2, 1));
    let (w, after) = (values(3, &[6]), values(4, &[6]));
    program.bind(0, w.clone()).unwrap();
    program.run::<Error>(0, || Ok(())).unwrap();
    let g = program.operands(0).unwrap();
    assert!(same_bits(&g[0], &ops::multiply(&w, 2.0).unwrap()));
    assert_eq!(program.reads(1), [1]);
    program.bind(1, after.clone()).unwrap();
    program.run::<Error>(1, || Ok(())).unwrap();
    let expected = ops::subtract(&after, &w).unwrap();
    assert!(same_bits(&program.output(0).unwrap(), &expected));
}

fn reason(step: StepFn, sources: &[Tensor]) -> String {
    record(step, sources).map(|_| ()).unwrap_err()
}

#[test]
fn what_cannot_be_captured_is_refused_with_a_reason() {
    let x = values(1, &[4, 4]);
    let outside = values(2, &[4, 4]);
    let beside: StepFn = &|t| Ok(vec![ops::add(&t[0], &outside)?]);
    assert!(reason(beside, std::slice::from_ref(&x)).contains("pass it as an input"));
    let random: StepFn = &|t| Ok(vec![ops::add(&t[0], &values(7, &[4, 4]))?]);
    assert_eq!(
        reason(random, std::slice::from_ref(&x)),
        "`normal` cannot be captured"
    );
    let dropped: StepFn = &|t| Ok(vec![nn::dropout(&t[0], 0.5, &Key::new(&[1]))?]);
    assert_eq!(
        reason(dropped, std::slice::from_ref(&x)),
        "`dropout` cannot be captured"
    );
    let normed: StepFn = &|t| Ok(vec![ops::batch_norm(&t[0], None, None, None, 1e-5)?.0]);
    assert_eq!(
        reason(normed, std::slice::from_ref(&x)),
        "`batch_norm` cannot be captured"
    );
    let long: StepFn = &|t| {
        let mut y = t[0].clone();
        for _ in 0..5000 {
            y = ops::add(&y, 1.0)?;
        }
        Ok(vec![y])
    };
    assert_eq!(
        reason(long, std::slice::from_ref(&x)),
        "it has more than 4096 instructions"
    );
    let gaps = ops::permute_dims(&x, &[1, 0]).unwrap();
    assert!(reason(&|t| Ok(vec![t[0].clone()]), &[gaps]).contains("gaps"));
}

#[test]
fn another_shape_is_not_bound() {
    let step: StepFn = &|t| Ok(vec![ops::exp(&t[0])?]);
    let mut program = record(step, &[values(1, &[4])]).unwrap();
    assert!(!program.fits(0, &values(1, &[5])));
    assert!(program.bind(0, values(1, &[5])).is_err());
    assert!(program.bind(1, values(1, &[4])).is_err());
    // Unbound sources are an error, not what the last replay left.
    assert!(program.run::<Error>(0, || Ok(())).is_err());
}

#[test]
fn an_error_of_an_instruction_is_the_replays_and_the_program_lives_on() {
    let step: StepFn = &|t| Ok(vec![ops::cross_entropy(&t[0], &t[1])?]);
    let make = |class: i64| {
        vec![
            values(1, &[2, 3]),
            Tensor::from_vec(vec![class, 0], &[2]).unwrap(),
        ]
    };
    let mut program = record(step, &make(1)).unwrap();
    let bad = make(3);
    for i in program.reads(0).to_vec() {
        program.bind(i, bad[i as usize].clone()).unwrap();
    }
    let error = program.run::<Error>(0, || Ok(())).unwrap_err();
    assert!(error.to_string().contains('3'), "{error}");
    program.end();
    let good = make(2);
    let found = replay(&mut program, &good);
    assert!(same_bits(&found[0], &step(&good).unwrap()[0]));
}

#[test]
fn a_recording_keeps_no_memory_and_a_program_gives_its_own_back() {
    let account = espalier_tensor::account::Account::new(None);
    let scope = account.enter();
    let mut program = record(&mlp, &mlp_sources(1, 8, [8, 16, 2])).unwrap();
    let sources = mlp_sources(2, 8, [8, 16, 2]);
    let before = account.used_bytes();
    replay(&mut program, &sources);
    // Small buffers stay for the next replay.
    let kept = account.used_bytes();
    assert!(kept <= before + (16 << 10), "{kept} after {before}");
    for _ in 0..50 {
        replay(&mut program, &sources);
    }
    assert_eq!(account.used_bytes(), kept);
    drop((sources, program));
    drop(scope);
    assert_eq!(account.used_bytes(), 0);
}

/// A random expression over `sources`, by `words`.
fn expression(words: &[u64], sources: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut known: Vec<Tensor> = sources.to_vec();
    for word in words {
        let pick = |shift: u32| &known[(word >> shift) as usize % known.len()];
        let (a, b) = (pick(8).clone(), pick(24).clone());
        let number = f64::from((word >> 40) as u8) / 64.0 - 2.0;
        let last = a.rank() as isize - 1;
        let next = (|| match word % 23 {
            0 => ops::add(&a, &b),
            1 => ops::subtract(&a, &b),
            2 => ops::multiply(&a, &b),
            3 => ops::divide(&a, &ops::add(&ops::abs(&b)?, 0.5)?),
            4 => ops::maximum(&a, &b),
            5 => ops::minimum(&a, number),
            6 => ops::subtract(number, &a),
            7 => ops::tanh(&a),
            8 => ops::sigmoid(&a),
            9 => ops::relu(&a),
            10 => ops::gelu(&a),
            11 => ops::where_(&ops::less(&a, &b)?, &a, number),
            12 if a.rank() > 0 => ops::softmax(&a, last),
            13 if a.rank() > 0 => ops::sum(&a, &[0], true),
            14 if a.rank() > 0 => ops::max(&a, last, true),
            15 if a.rank() == 2 => ops::permute_dims(&a, &[1, 0]),
            16 if a.rank() == 2 && b.rank() == 2 && a.shape()[1] == b.shape()[0] => {
                ops::matmul(&a, &b)
            }
            17 if a.rank() > 0 => ops::cumulative_sum(&a, last),
            18 if a.rank() > 0 => ops::layer_norm(&a, &[last], None, None, 1e-5),
            19 if a.rank() > 0 => ops::concat(&[&a, &a], 0),
            20 if a.rank() > 0 && a.shape()[0] > 1 => ops::slice(&a, 0, 1, a.shape()[0] as isize),
            21 => ops::reshape(&a, &[-1]),
            _ => ops::sin(&a),
        })();
        match next {
            Ok(next) if next.numel() <= 4000 => known.push(next),
            // Shapes that do not go together: nothing happens, recorded or not.
            _ => {}
        }
    }
    let made = known.split_off(sources.len());
    let Some(last) = made.last() else {
        return Ok(Vec::new());
    };
    let loss = ops::sum(last, &[], false)?;
    let inputs: Vec<&Tensor> = sources.iter().collect();
    let mut all: Vec<Tensor> = made.iter().rev().take(3).map(Tensor::detach).collect();
    if loss.requires_grad() {
        all.extend(autograd::grad(&[&loss], &[None], &inputs, false, false)?);
    }
    Ok(all)
}

#[test]
fn random_expressions_and_their_gradients_keep_their_bits() {
    for case in 0..400 {
        let words = bits(&Key::new(&[77, case]), 3 + case as usize % 30);
        let shapes: [&[usize]; 5] = [&[6, 5], &[5], &[5, 6], &[6, 1], &[]];
        let step: StepFn = &|t| expression(&words, t);
        let make = |seed| leaves(seed + 1000 * case, &shapes);
        let mut program = record(step, &make(1)).unwrap_or_else(|r| panic!("case {case}: {r}"));
        let sources = make(2);
        let expected = step(&sources).unwrap();
        let found = replay(&mut program, &sources);
        for (a, b) in expected.iter().zip(&found) {
            assert!(same_bits(a, b), "case {case}: {:?}", program.listing());
        }
    }
}

#[test]
fn a_backward_value_is_read_anew_at_each_replay() {
    let step = |s: &[Tensor]| {
        let hidden = s[0].with_requires_grad();
        let w = s[1].with_backward(&s[2])?;
        let y = nn::linear(&ops::tanh(&hidden)?, &w, None)?;
        let loss = ops::sum(&ops::multiply(&y, &y)?, &[], false)?;
        autograd::grad(&[&loss], &[None], &[&hidden, &w], false, false)
    };
    let make = |seed| {
        vec![
            values(seed, &[5, 3]),
            values(seed + 9, &[4, 3]),
            values(seed + 99, &[4, 3]),
        ]
    };
    check(&step, &make);
    // One that nobody declared ends the recording.
    let outside = values(7, &[4, 3]);
    let hidden_from_capture = |s: &[Tensor]| step(&[s[0].clone(), s[1].clone(), outside.clone()]);
    let refused = record(&hidden_from_capture, &make(1)[..2]).err();
    assert!(refused.is_some_and(|why| why.contains("pass it as an input")));
}
