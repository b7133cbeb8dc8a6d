//! The encoder stage: contrastive training of a retrieval encoder on questions that name their gold
//! passages.
use super::{PipelineError, run::Run};
use crate::{
    data::corpus::Corpus,
    events::Event,
    folder::{checkpoint, state::MODEL_DIR},
    hub,
    models::RANDOM_PREFIX,
    retriever::{
        RetrieverError,
        contrastive::{Contrastive, TextEncoding, pairs_of, recall, train_encoder},
        declared::{EncoderDeclaration, copy_declarations},
    },
};
use burn::tensor::DType;
use dgpo_core::{
    env::search::Passage,
    rng::{Key, Purpose},
    settings::Phase,
    tokenizer::Tokenizer,
    trainer::metrics::{ENCODER_LOSS, ENCODER_RECALL, Metrics},
};
use dgpo_models::{
    TrainBackend,
    bert::{BertEncoder, SentenceHead},
    config::BertConfig,
    weights::{copy_side_files, load_bert, save_bert},
};

/// Trains `retriever.encoder` on `data.train` over `data.corpus` and saves it as a checkpoint
/// in Hugging Face layout. Not resumable: small encoders train in minutes.
pub(super) fn encoder_phase<B: TrainBackend>(run: &mut Run<'_, B>) -> Result<(), PipelineError> {
    let recipe = run.setup.recipe.clone();
    let source = &recipe.retriever.encoder;
    let dir = hub::resolve(source.strip_prefix(RANDOM_PREFIX).unwrap_or(source))?;
    let declared = EncoderDeclaration::read(&dir)?;
    if declared.head != SentenceHead::default() {
        let why = "an encoder with CLS pooling, or with vectors of any length, is not trained here";
        let hint = "start from one with mean pooling for cosines, or without modules.json and \
                    1_Pooling";
        return Err(RetrieverError::encoder(&dir, why, hint).into());
    }
    let prompts =
        declared.resolve(&recipe.retriever.query_prefix, &recipe.retriever.passage_prefix);
    let tokenizer = Tokenizer::from_path(&dir)?;
    let corpus = Corpus::open(&hub::resolve(&recipe.data.corpus)?)?;
    let passages =
        (0..corpus.len()).map(|i| corpus.passage(i)).collect::<Result<Vec<Passage>, _>>()?;
    let questions = run.setup.questions(&recipe.data.train, recipe.data.max_train)?;
    let pairs = pairs_of(&questions, &passages)?;
    let start: BertEncoder<B::InnerBackend> = if source.starts_with(RANDOM_PREFIX) {
        let config = BertConfig::from_file(&dir.join("config.json"))?;
        BertEncoder::init(
            &config,
            Key::new(recipe.run.seed, Purpose::Init).bits(0),
            &run.setup.device,
        )
    } else {
        load_bert(&dir, DType::F32, &run.setup.device)?
    };
    tokenizer.check_fits(start.config().vocab_size)?;
    let form = TextEncoding {
        tokenizer: &tokenizer,
        query_prefix: &prompts.query,
        passage_prefix: &prompts.passage,
        max_tokens: recipe.retriever.max_tokens,
    };
    let (optim, seed) = (&recipe.optim.distill, recipe.run.seed);
    let task = Contrastive {
        passages: &passages,
        pairs: &pairs,
        form,
        recipe: &recipe.encoder,
        optim,
        seed,
    };
    let total = recipe.encoder.steps;
    (run.observer)(Event::PhaseStarted { phase: Phase::Encoder, done: 0, total });
    let device = run.setup.device.clone();
    let trained = train_encoder::<B, PipelineError>(start, task, &device, &mut |step, loss| {
        let mut metrics = Metrics::default();
        metrics.set(ENCODER_LOSS, loss);
        run.report(Phase::Encoder, step + 1, total, &metrics)?;
        if run.stop.is_requested() {
            run.say("the training of an encoder does not resume: it would start again");
            return Err(PipelineError::Stopped);
        }
        Ok(())
    })?;
    let mut metrics = Metrics::default();
    metrics.set(ENCODER_RECALL, recall(&trained, task, recipe.retriever.top_k, &run.setup.device)?);
    run.say(&format!(
        "gold passage among the top {}: {:.3}",
        recipe.retriever.top_k, metrics.0[0].1
    ));
    let wall_s = run.wall_s();
    run.save(Phase::Encoder, total, |checkpoint_dir| {
        let model_dir = checkpoint_dir.join(MODEL_DIR);
        std::fs::create_dir_all(&model_dir)?;
        save_bert(&trained, &model_dir, None)?;
        copy_side_files(&dir, &model_dir)?;
        copy_declarations(&dir, &model_dir)?;
        checkpoint::write_state(checkpoint_dir, &serde_json::json!({ "wall_s": wall_s }))
    })?;
    (run.observer)(Event::PhaseDone { phase: Phase::Encoder });
    Ok(())
}
