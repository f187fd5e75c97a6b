//! Searcher: particle filtering over partial responses, with Entropic Annealing and Look-ahead Modulation.
//!
//! "Mitigating Premature Exploitation in Particle-based Monte Carlo for Inference-Time Scaling", 2025, arXiv
//! 2510.05825. N partial responses (particles) are extended by a step, scored by the verifier, and resampled in
//! proportion to the odds of their scores. A verifier that is sure of itself too early makes all particles copies of
//! one prefix. Entropic Annealing measures the effective sample size and flattens the resampling while it is low and
//! the search is young; Look-ahead Modulation multiplies in the odds of one provisional step more.
//!
//! ```text
//! omega = logit r            the newest score alone: weights are not multiplied over time
//! p     = softmax(omega),  ESS = 1 / sum p^2,  u = t / T
//! tau   = max(1, N / ESS (1 - u))  while ESS / N < ess-ratio and u < early; else 1
//! resample N indices from softmax(omega / tau)
//! ```
//!
//! The answer is the particle with the best last score. Differences from the authors' library: nothing is resampled
//! once all particles of a prompt have ended; look-ahead, which their library lacks, follows the paper's abstract, and
//! its provisional step is thrown away, so that it doubles the steps that are drawn.

use espalier_sdk::rewards::{Prompt, TaskSpec};
use espalier_sdk::rollouts::{self, EnvironmentKind, SampleEnd, SampleRequest};
use espalier_sdk::searcher::{Candidate, SearchReport, Searcher};
use espalier_sdk::{Choice, Error, Model, Options, RunInfo, StepInfo, random};

/// What is done with N responses.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Method {
    /// Particles that are resampled after each step.
    Particles,
    /// Whole responses, of which the best is taken.
    BestOfN,
}

/// How the resampling is flattened.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Annealing {
    /// By N / ESS.
    Ess,
    /// By the inverse of the normalised entropy.
    Entropy,
    /// By 2 - u.
    Base,
    /// Not at all: a plain particle filter.
    Off,
}

#[derive(Choice, Clone, Copy, PartialEq)]
enum Resampler {
    Systematic,
    Multinomial,
}

#[derive(Choice, Clone, Copy, PartialEq)]
enum Ends {
    Stop,
    Length,
}

#[derive(Choice, Clone, Copy, PartialEq)]
enum Answer {
    Best,
    Draw,
}

/// Options under `[searcher.with]`.
#[derive(Options)]
struct Settings {
    /// A particle filter, or the best of N whole responses.
    #[option(default = Method::Particles)]
    method: Method,
    /// Particles, or responses, of each prompt.
    #[option(default = 8, min = 1, max = 4096)]
    particles: u32,
    /// What flattens the resampling: ess, entropy or base; off makes a plain particle filter.
    #[option(default = Annealing::Ess)]
    annealing: Annealing,
    /// How indices are drawn.
    #[option(default = Resampler::Systematic)]
    resampler: Resampler,
    /// Whether the odds of one provisional step more are multiplied in; it doubles the steps drawn.
    #[option(default = false)]
    lookahead: bool,
    /// Annealing acts where ESS / N is below this.
    #[option(default = 0.5, min = 0.0, max = 1.0)]
    ess_ratio: f64,
    /// Annealing acts in this first share of the steps.
    #[option(default = 0.5, min = 0.0, max = 1.0)]
    early: f64,
    /// The particle with the best score, or one drawn in proportion to the odds.
    #[option(default = Answer::Best)]
    answer: Answer,
    /// Tokens of a step.
    #[option(default = 1, min = 1)]
    step_tokens: u32,
    /// Where responses end: at the stop token, or only at their full length.
    #[option(default = Ends::Stop)]
    ends: Ends,
    /// Divides the policy's logits.
    #[option(default = 1.0, min = 0.0)]
    temperature: f64,
}

/// A partial response.
#[derive(Clone)]
struct Particle {
    tokens: Vec<u32>,
    /// Logit of its newest score.
    weight: f64,
    ended: bool,
}

/// A prompt and its particles.
struct Search {
    prompt: Prompt,
    particles: Vec<Particle>,
}

impl Search {
    fn ended(&self) -> bool {
        self.particles.iter().all(|particle| particle.ended)
    }
}

/// What the plugin's random numbers are for.
const EXTEND: u64 = 0;
const AHEAD: u64 = 1;
const RESAMPLE: u64 = 2;
const ANSWER: u64 = 3;

struct EntropicPf {
    settings: Settings,
    prompts: u32,
    tasks: TaskSpec,
}

impl Searcher for EntropicPf {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let EnvironmentKind::Tasks(tasks) = rollouts::environment() else {
            return Err(Error::incompatible(
                "a particle filter needs prompts to answer: an environment with tasks",
            ));
        };
        Ok(EntropicPf {
            settings,
            prompts: run.batch_size,
            tasks,
        })
    }

    fn step(&mut self, _at: &StepInfo) -> SearchReport {
        let prompts = rollouts::prompts(self.prompts);
        if prompts.is_empty() {
            return SearchReport::done();
        }
        let mut searches: Vec<Search> = prompts
            .into_iter()
            .map(|prompt| self.begin(prompt))
            .collect();
        match self.settings.method {
            Method::BestOfN => {
                self.advance(&mut searches, 0, self.tasks.max_response);
            }
            Method::Particles => {
                let steps = self.tasks.max_response.div_ceil(self.settings.step_tokens);
                for t in 1..=steps {
                    self.advance(&mut searches, t, self.settings.step_tokens);
                    if searches.iter().all(Search::ended) {
                        break;
                    }
                    let progress = f64::from(t) / f64::from(steps);
                    self.resample(&mut searches, t, progress);
                }
            }
        }
        SearchReport::of(searches.into_iter().map(|s| self.choose(s)).collect())
    }
}

impl EntropicPf {
    fn begin(&self, prompt: Prompt) -> Search {
        let empty = Particle {
            tokens: Vec::new(),
            weight: 0.0,
            ended: false,
        };
        Search {
            prompt,
            particles: vec![empty; self.settings.particles as usize],
        }
    }

    /// A few tokens more behind a prefix. The key holds the particle's place, so copies go on differently.
    fn extension(&self, prompt: &Prompt, prefix: &[u32], most: u32, key: &[u64]) -> SampleRequest {
        SampleRequest {
            forced: prefix.to_vec(),
            max_tokens: most,
            stop: match self.settings.ends {
                Ends::Stop => vec![vec![self.tasks.stop]],
                Ends::Length => Vec::new(),
            },
            temperature: self.settings.temperature,
            ..rollouts::request(&self.tasks, prompt, 1, key)
        }
    }

    /// Tokens, logit of the score and whether it has ended, of one extension of each living particle, in order.
    fn extended(&self, searches: &[Search], t: u32, most: u32, purpose: u64) -> Vec<Particle> {
        let mut requests = Vec::new();
        for search in searches {
            for (place, particle) in search.particles.iter().enumerate() {
                if !particle.ended {
                    let key = [purpose, search.prompt.id, t.into(), place as u64];
                    requests.push(self.extension(&search.prompt, &particle.tokens, most, &key));
                }
            }
        }
        if requests.is_empty() {
            return Vec::new();
        }
        let samples = rollouts::generate(&Model::main(), &requests);
        let ids: Vec<u64> = samples.iter().map(|sample| sample.id).collect();
        let verdicts = rollouts::verify(&ids);
        let rewards = &self.tasks.rewards;
        let process = rewards.terms.iter().find(|term| term.name == "process");
        let bounds = process.unwrap_or(&rewards.outcome);
        let one =
            |(sample, verdict): (rollouts::Sample, espalier_sdk::rewards::Verdict)| Particle {
                weight: logit(bounds.unit(verdict.process())),
                ended: sample.end == SampleEnd::Stop
                    || sample.tokens.len() >= self.tasks.max_response as usize,
                tokens: sample.tokens,
            };
        samples.into_iter().zip(verdicts).map(one).collect()
    }

    /// Every living particle draws its next step.
    fn advance(&self, searches: &mut [Search], t: u32, most: u32) {
        let mut drawn = self.extended(searches, t, most, EXTEND).into_iter();
        for search in searches {
            for particle in search.particles.iter_mut().filter(|p| !p.ended) {
                if let Some(next) = drawn.next() {
                    *particle = next;
                }
            }
        }
    }

    fn resample(&self, searches: &mut [Search], t: u32, progress: f64) {
        let ahead = match self.settings.lookahead {
            true => self.extended(searches, t, self.settings.step_tokens, AHEAD),
            false => Vec::new(),
        };
        let mut ahead = ahead.into_iter();
        for search in searches {
            let modulated = |particle: &Particle| match particle.ended {
                true => particle.weight,
                false => particle.weight + ahead.next().map_or(0.0, |next| next.weight),
            };
            let weights: Vec<f64> = search.particles.iter().map(modulated).collect();
            if search.ended() {
                continue;
            }
            let rule = Rule {
                annealing: self.settings.annealing,
                ess_ratio: self.settings.ess_ratio,
                early: self.settings.early,
            };
            let p = rule.anneal(&weights, progress);
            let key = [RESAMPLE, search.prompt.id, t.into()];
            let chosen = match self.settings.resampler {
                Resampler::Systematic => systematic(&p, random::uniform_list(&key, 1)[0]),
                Resampler::Multinomial => {
                    let draws = random::uniform_list(&key, p.len() as u32);
                    draws.into_iter().map(|u| place_of(&p, u)).collect()
                }
            };
            let copies = chosen.into_iter().map(|i| search.particles[i].clone());
            search.particles = copies.collect();
        }
    }

    fn choose(&self, search: Search) -> Candidate {
        let weights: Vec<f64> = search.particles.iter().map(|p| p.weight).collect();
        let place = match self.settings.answer {
            Answer::Best => best(&weights),
            Answer::Draw => {
                let u = random::uniform_list(&[ANSWER, search.prompt.id], 1)[0];
                place_of(&softmax(&weights, 1.0), u)
            }
        };
        Candidate {
            prompt: search.prompt.id,
            tokens: search.particles[place].tokens.clone(),
            score: weights[place],
        }
    }
}

/// The first of the largest.
fn best(weights: &[f64]) -> usize {
    let mut best = 0;
    for (place, weight) in weights.iter().enumerate() {
        if *weight > weights[best] {
            best = place;
        }
    }
    best
}

/// Scores of 0 and 1 are held this far from the ends, where the logit is infinite.
const EDGE: f64 = 1e-7;

fn logit(r: f64) -> f64 {
    let r = r.clamp(EDGE, 1.0 - EDGE);
    (r / (1.0 - r)).ln()
}

fn softmax(weights: &[f64], tau: f64) -> Vec<f64> {
    let largest = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let odds: Vec<f64> = weights
        .iter()
        .map(|w| ((w - largest) / tau).exp())
        .collect();
    let sum: f64 = odds.iter().sum();
    odds.into_iter().map(|x| x / sum).collect()
}

/// The effective sample size of probabilities.
fn ess(p: &[f64]) -> f64 {
    let squares = p.iter().map(|p| p.clamp(EDGE, 1.0 - EDGE).powi(2));
    1.0 / squares.sum::<f64>()
}

/// Entropy in units of ln N; as the authors' code, in nats for N of at most 2.
fn entropy(p: &[f64]) -> f64 {
    let terms = p.iter().map(|p| p.clamp(EDGE, 1.0 - EDGE));
    let entropy = -terms.map(|p| p * p.ln()).sum::<f64>();
    match p.len() {
        n if n > 2 => entropy / (n as f64).ln(),
        _ => entropy,
    }
}

/// When and how far the resampling is flattened.
struct Rule {
    annealing: Annealing,
    ess_ratio: f64,
    early: f64,
}

impl Rule {
    fn temperature(&self, p: &[f64], progress: f64) -> f64 {
        let n = p.len() as f64;
        let ess = ess(p);
        if ess / n >= self.ess_ratio || progress >= self.early {
            return 1.0;
        }
        let tau = match self.annealing {
            Annealing::Off => 1.0,
            Annealing::Ess => n / ess * (1.0 - progress),
            Annealing::Entropy => {
                let h = entropy(p);
                1.0 / (h + (1.0 - h) * progress)
            }
            Annealing::Base => 2.0 - progress,
        };
        tau.max(1.0)
    }

    /// Probabilities with which particles are resampled.
    fn anneal(&self, weights: &[f64], progress: f64) -> Vec<f64> {
        let p = softmax(weights, 1.0);
        match self.temperature(&p, progress) {
            1.0 => p,
            tau => softmax(weights, tau),
        }
    }
}

/// As many indices as there are probabilities, at the points (i + u) / N of the cumulated ones: index i comes
/// floor(N p_i) or ceil(N p_i) times.
fn systematic(p: &[f64], u: f64) -> Vec<usize> {
    let n = p.len();
    let (mut place, mut below) = (0, p.first().copied().unwrap_or(0.0));
    let mut chosen = Vec::with_capacity(n);
    for i in 0..n {
        let point = (i as f64 + u) / n as f64;
        // Rounding may leave the last sum below 1.
        while point >= below && place + 1 < n {
            place += 1;
            below += p[place];
        }
        chosen.push(place);
    }
    chosen
}

/// The index in whose share of the cumulated probabilities `u` lies.
fn place_of(p: &[f64], u: f64) -> usize {
    let mut below = 0.0;
    for (place, p) in p.iter().enumerate() {
        below += p;
        if u < below {
            return place;
        }
    }
    p.len().saturating_sub(1)
}

espalier_sdk::export!(searcher: EntropicPf);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(annealing: Annealing) -> Rule {
        Rule {
            annealing,
            ess_ratio: 0.5,
            early: 0.5,
        }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }

    #[test]
    fn four_particles_of_which_one_leads_are_flattened_as_the_card_says() {
        let p = [0.97, 0.01, 0.01, 0.01];
        near(ess(&p), 1.06247);
        near(ess(&p) / 4.0, 0.26562);
        near(rule(Annealing::Ess).temperature(&p, 0.1), 3.38832);
        let weights = p.map(f64::ln);
        let annealed = rule(Annealing::Ess).anneal(&weights, 0.1);
        near(annealed[0], 0.56255);
        annealed[1..].iter().for_each(|p| near(*p, 0.14582));
    }

    #[test]
    fn equal_particles_are_left_alone_and_one_hot_ones_get_the_temperature_n() {
        near(ess(&[0.125; 8]), 8.0);
        assert_eq!(rule(Annealing::Ess).temperature(&[0.125; 8], 0.0), 1.0);
        let one_hot = [1.0, 0.0, 0.0, 0.0, 0.0];
        near(ess(&one_hot), 1.0);
        near(rule(Annealing::Ess).temperature(&one_hot, 0.0), 5.0);
    }

    #[test]
    fn late_steps_and_the_plain_filter_are_never_flattened() {
        let p = [0.999, 0.0005, 0.0005];
        for annealing in [Annealing::Ess, Annealing::Entropy, Annealing::Base] {
            assert!(rule(annealing).temperature(&p, 0.49) > 1.0, "{annealing:?}");
            assert_eq!(rule(annealing).temperature(&p, 0.5), 1.0, "{annealing:?}");
        }
        assert_eq!(rule(Annealing::Off).temperature(&p, 0.0), 1.0);
        near(rule(Annealing::Base).temperature(&p, 0.25), 1.75);
    }

    #[test]
    fn the_entropy_rule_is_normalised_above_two_particles() {
        near(entropy(&[0.25; 4]), 1.0);
        near(entropy(&[0.5; 2]), 2.0_f64.ln());
        // H = 0.0 at a one-hot: tau = 1 / u.
        near(
            rule(Annealing::Entropy).temperature(&[1.0, 0.0, 0.0], 0.25),
            3.99996,
        );
    }

    #[test]
    fn systematic_counts_are_exact_where_n_p_is_whole_and_next_to_it_else() {
        let counts = |p: &[f64], u: f64| {
            let mut counts = vec![0usize; p.len()];
            systematic(p, u).into_iter().for_each(|i| counts[i] += 1);
            counts
        };
        for u in [1e-12, 0.1, 0.5, 0.75, 0.999_999] {
            assert_eq!(counts(&[0.5, 0.25, 0.25, 0.0], u), [2, 1, 1, 0]);
            let p = softmax(&[0.3, -1.2, 2.0, 0.0, 0.9, -3.0], 1.0);
            for (count, p) in counts(&p, u).into_iter().zip(&p) {
                let expected = p * 6.0;
                let (low, high) = (expected.floor() as usize, expected.ceil() as usize);
                assert!((low..=high).contains(&count), "{count} of {expected}");
            }
        }
        // Sums that round to less than 1 end at the last index.
        assert_eq!(systematic(&[0.1; 10], 0.999_999_999_999).len(), 10);
    }

    #[test]
    fn scores_of_one_half_resample_evenly_and_scores_of_one_stay_finite() {
        assert_eq!(logit(0.5), 0.0);
        let p = rule(Annealing::Ess).anneal(&[logit(0.5); 4], 0.1);
        assert_eq!(p, [0.25; 4]);
        assert_eq!(systematic(&p, 0.5), [0, 1, 2, 3]);
        near(logit(1.0), 16.11810);
        near(logit(0.0), -16.11810);
    }

    #[test]
    fn an_index_is_drawn_by_its_share() {
        let p = [0.2, 0.5, 0.3];
        assert_eq!(
            [0.1, 0.2, 0.69, 0.7, 1.0].map(|u| place_of(&p, u)),
            [0, 1, 1, 2, 2]
        );
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
    }
}
