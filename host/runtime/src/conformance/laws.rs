//! The laws, their names and their words.

use serde::Serialize;

use crate::component::World;

/// Something that every plugin of some slots must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Law {
    /// A short name, by which reports and people speak of it.
    pub name: &'static str,
    /// What it demands, in a sentence.
    pub demands: &'static str,
}

macro_rules! laws {
    ($($constant:ident $name:literal $demands:literal,)*) => {
        $(pub(super) const $constant: Law = Law { name: $name, demands: $demands };)*
        /// Every law of every slot.
        pub const LAWS: &[Law] = &[$($constant,)*];
    };
}

laws! {
    OPTIONS "options" "declares its options with a kebab-case name, a line of documentation, and a default within their own range",
    REFUSALS "refusals" "refuses an unknown option, a value of another type and one out of range in words, without a trap",
    ORDINARY "ordinary" "does its work on an ordinary problem without a trap",
    ENDS "ends" "comes back from every call within its time, and lets the run end",
    BUDGETS "budgets" "stays within the suite's budgets of memory, tensors, handles and log text",
    SAME_BITS "same-bits" "gives the same bits for the same seed, with one thread or two",
    RESUME "resume" "goes on after a save and restore as if it had never stopped",
    LEAKS "leaks" "holds no more handles and no more memory the longer it works",
    TINY "tiny" "works on the smallest problem there is, or refuses it in words",
    EMPTY "empty" "works where there is nothing to do, or refuses that in words",

    LEARNS "learns" "lowers its own objective on a toy problem",
    PREDICTS "predicts" "predicts a number for each class, target or action and each sample, whatever the size of the batch",
    PURE "pure" "changes nothing when it is asked for its objective or its predictions",
    FROZEN "frozen" "leaves frozen parameters as they are",

    BUILDS "builds" "builds the same layers and initial values each time, from options, samples and seed alone",
    RANGES "ranges" "gives the same bits when its layers run one by one as when they run at once",
    ROWS "rows" "gives each sample in the mode `eval` what it gives it alone",
    MODES "modes" "is the same in every pass in the mode `eval`, and by its key in training; only `train` moves buffers",
    REACHES "reaches" "lets a gradient reach every trainable parameter",
    OVERRIDES "overrides" "computes with the parameters that a call gives it, and remembers none",

    MASKS "masks" "sets masks of 0 and 1, under which pruned weights are 0 at the end",
    SPARSITY "sparsity" "reaches the sparsity that its option `sparsity` asks for, within one weight",
    ONLY_WEIGHTS "only-weights" "prunes trainable weights only: no bias, norm, embedding or frozen parameter",
    NO_OP "no-op" "leaves the masks as they are at an event that brings nothing new",

    FINITE "finite" "gives a finite advantage for each rollout of a degenerate group, or refuses it in words",
    ORDER "order" "gives each rollout the same advantage in whatever order rollouts and groups come",
    CONSTANT "constant" "gives equal rewards the advantage 0, unless its folder declares otherwise",

    SPEC "spec" "describes itself in a way that can be: vocabulary, lengths, splits, ranges",
    PROMPTS "prompts" "gives a prompt by its number alone, within the declared vocabulary and length",
    VERDICTS "verdicts" "judges a response by itself alone: the same verdict each time",
    BOUNDED "bounded" "pays and shows only what lies within the declared ranges, whatever comes",
    SOLUTIONS "solutions" "finds its own solutions right",
    KEYED "keyed" "begins and goes on by the key and the actions alone",
    LOOKS_ONLY "looks-only" "leaves the run's parameters and masks as they are",
    REPORT "report" "reports finite numbers under names, tables with a number for each column, and something in any case",

    ANSWERS "answers" "answers every prompt it was given, and no other, in tokens of the vocabulary",

    SPLITS "splits" "makes splits that can be: fields of one count, classes within their number, one shape of inputs",
    BATCHES "batches" "gives a training batch back with the same samples, the same each time it is asked",

    EPISODES "episodes" "ends or cuts off every episode within the declared number of steps",

    DOMAINS "domains" "proposes knobs for each member, and sets only those that there are, within their domains",
    CHANGES "changes" "changes only members that there are and have not ended, each once, and copies none from itself",
    SCORELESS "scoreless" "goes on where members have no score, and copies none of them while another has one",
    TIES "ties" "answers equal scores by a rule, the same each time",
}

/// The laws of a world, in the order in which they are judged and shown.
pub fn laws_of(world: World) -> Vec<Law> {
    let mut laws = vec![
        OPTIONS, REFUSALS, ORDINARY, ENDS, BUDGETS, SAME_BITS, RESUME, LEAKS, TINY, EMPTY,
    ];
    laws.extend(match world {
        World::Trainer => &[LEARNS, PREDICTS, PURE, FROZEN][..],
        World::Pruner => &[MASKS, SPARSITY, ONLY_WEIGHTS, NO_OP],
        World::Normalizer | World::NormalizerTracking => &[FINITE, ORDER, CONSTANT],
        World::Tasks => &[SPEC, PROMPTS, VERDICTS, BOUNDED, SOLUTIONS],
        World::Mdp => &[SPEC, KEYED, BOUNDED, EPISODES],
        World::Architecture => &[LEARNS, BUILDS, RANGES, ROWS, MODES, REACHES, OVERRIDES],
        World::Tuner => &[DOMAINS, CHANGES, SCORELESS, TIES],
        World::Auditor => &[LOOKS_ONLY, REPORT],
        World::Transform => &[SPLITS, BATCHES],
        World::Searcher => &[LOOKS_ONLY, ANSWERS],
    });
    laws
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_law_has_a_name_of_its_own_and_one_sentence() {
        let mut names: Vec<&str> = LAWS.iter().map(|law| law.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LAWS.len());
        for law in LAWS {
            assert!(
                !law.demands.ends_with('.') && law.demands.len() > 20,
                "{}",
                law.name
            );
        }
    }
}
