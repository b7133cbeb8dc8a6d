//! The encoder stage: contrastive training of a retrieval encoder on questions that name their gold
//! passages.
use super::{Pipeline, PipelineError};
use crate::{
    data::corpus::Corpus,
    events::Event,
    folder::{checkpoint, state::MODEL_DIR},
    hub,
    models::RANDOM_PREFIX,
    retriever::{
        RetrieverError,
        contrastive::{
            Contrastive, EncoderTrainingError, TextForm, pairs_of, recall, train_encoder,
        },
        declared::{Declared, copy_declarations},
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
use std::ops::ControlFlow;

impl<B: TrainBackend> Pipeline<'_, B> {
    /// Trains `retriever.encoder` on `data.train` over `data.corpus` and saves it as a checkpoint
    /// in Hugging Face layout. Not resumable: small encoders train in minutes.
    pub(super) fn train_encoder(&mut self) -> Result<(), PipelineError> {
        let recipe = self.setup.recipe.clone();
        let source = &recipe.retriever.encoder;
        let dir = hub::resolve(source.strip_prefix(RANDOM_PREFIX).unwrap_or(source))?;
        let declared = Declared::read(&dir)?;
        if declared.head != SentenceHead::default() {
            let why =
                "an encoder with CLS pooling, or with vectors of any length, is not trained here"
                    .to_owned();
            let hint = "start from one with mean pooling for cosines, or without modules.json and \
                        1_Pooling"
                .to_owned();
            return Err(RetrieverError::Encoder { path: dir, why, hint }.into());
        }
        let prompts =
            declared.resolve(&recipe.retriever.query_prefix, &recipe.retriever.passage_prefix);
        let tokenizer = Tokenizer::from_path(&dir)?;
        let corpus = Corpus::open(&hub::resolve(&recipe.data.corpus)?)?;
        let passages =
            (0..corpus.len()).map(|i| corpus.passage(i)).collect::<Result<Vec<Passage>, _>>()?;
        let questions = self.setup.questions(&recipe.data.train, recipe.data.max_train)?;
        let pairs = pairs_of(&questions, &passages)?;
        let start: BertEncoder<B::InnerBackend> = if source.starts_with(RANDOM_PREFIX) {
            let config = BertConfig::from_file(&dir.join("config.json"))?;
            BertEncoder::init(
                &config,
                Key::new(recipe.run.seed, Purpose::Init).bits(0),
                &self.setup.device,
            )
        } else {
            load_bert(&dir, DType::F32, &self.setup.device)?
        };
        tokenizer.check_fits(start.config().vocab_size)?;
        let form = TextForm {
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
        (self.observer)(Event::PhaseStarted { phase: Phase::Encoder, done: 0, total });
        let device = self.setup.device.clone();
        let mut lost = None;
        let stop = self.stop.clone();
        let trained = train_encoder::<B>(start, task, &device, &mut |step, loss| {
            let mut metrics = Metrics::default();
            metrics.set(ENCODER_LOSS, loss);
            if let Err(error) = self.report(Phase::Encoder, step + 1, total, &metrics) {
                lost.get_or_insert(error);
            }
            if lost.is_some() || stop.is_requested() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let trained = match (lost, trained) {
            (Some(error), _) => return Err(error),
            (None, Err(EncoderTrainingError::Stopped)) => {
                self.say("the training of an encoder does not resume: it would start again");
                return Err(PipelineError::Stopped);
            }
            (None, trained) => trained?,
        };
        let mut metrics = Metrics::default();
        metrics.set(
            ENCODER_RECALL,
            recall(&trained, task, recipe.retriever.top_k, &self.setup.device)?,
        );
        self.say(&format!(
            "gold passage among the top {}: {:.3}",
            recipe.retriever.top_k, metrics.0[0].1
        ));
        let wall_s = self.wall_s();
        self.save(Phase::Encoder, total, |checkpoint_dir| {
            let model_dir = checkpoint_dir.join(MODEL_DIR);
            std::fs::create_dir_all(&model_dir)?;
            save_bert(&trained, &model_dir, None)?;
            copy_side_files(&dir, &model_dir)?;
            copy_declarations(&dir, &model_dir)?;
            checkpoint::write_state(checkpoint_dir, &serde_json::json!({ "wall_s": wall_s }))
        })?;
        (self.observer)(Event::PhaseDone { phase: Phase::Encoder });
        Ok(())
    }
}
