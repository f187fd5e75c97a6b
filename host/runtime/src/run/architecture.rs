//! The model of a run whose layers an architecture declares.

use super::*;

/// The model, its parameters, and the session that computes it.
pub(super) struct Built {
    pub(super) model: Model,
    pub(super) parameters: ParameterSet,
    pub(super) session: Session,
}

/// Starts the architecture and lets it build. `shared` holds nothing but an empty set.
pub(super) fn build(
    part: &Part,
    shared: &Rc<Shared>,
    info: wit::RunInfo,
    source: &Source,
) -> Result<Built, Diagnostic> {
    let name = &part.plan.name;
    if let Environment::Tasks { .. } = &source.environment {
        return Err(
            Diagnostic::new(format!("architecture `{name}` does not generate"))
                .expected("a model that answers prompts token by token: a list of layers")
                .found("an environment with tasks")
                .help("put [model] in the place of [architecture], or [data] in that of [environment]"),
        );
    }
    let at = |death: Death| death.diagnostic("before the first step");
    let mut session = new_session(part, shared, info, None, "before the first step")?;
    let outputs = outputs(source);
    let layers = session
        .build(&SetId::Main, &source.inputs, outputs)
        .map_err(at)?
        .map_err(|refusal| refused(name, refusal, "build its layers"))?;
    let parameters = shared.run.borrow_mut().sets.remove(&SetId::Main);
    let mut parameters = parameters.unwrap_or_default();
    let unfit = |problem: &dyn std::error::Error| {
        edge("the model could not be built", problem).at(format!("architecture `{name}`"))
    };
    let model =
        Model::declared(layers, &source.inputs, &mut parameters).map_err(|error| unfit(&error))?;
    let last = model.infos().pop();
    match last {
        Some(last) if last.out_shape.last() != Some(&(outputs as usize)) => Err(Diagnostic::new(
            "the architecture's last layer does not give what the run needs",
        )
        .at(format!("architecture `{name}`, layer `{}`", last.name))
        .expected(format!("{outputs} numbers along the last axis"))
        .found(format!("{:?} a sample", last.out_shape))
        .help("mend the plugin: `build` is told how many outputs there are")),
        _ => Ok(Built {
            model,
            parameters,
            session,
        }),
    }
}

/// Classes, or values of a target; of an environment tokens, or actions.
fn outputs(source: &Source) -> u32 {
    match &source.environment {
        Environment::Tasks { spec, .. } => spec.vocabulary.len() as u32,
        Environment::Mdp(spec) => match &spec.action {
            ActionSpace::Discrete(n) => *n,
            ActionSpace::Continuous(ranges) => ranges.len() as u32,
        },
        Environment::None => {
            let train = source.dataset.split("train").ok();
            let classes = train.map_or(0, |train| train.classes);
            let targets = train.and_then(|train| train.field("targets").ok());
            match classes {
                0 => targets.map_or(1, |t| t.shape()[1..].iter().product::<usize>() as u32),
                classes => classes,
            }
        }
    }
}
