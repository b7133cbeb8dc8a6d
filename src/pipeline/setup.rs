//! What every command that plays episodes needs, made from a recipe: models, retriever, questions, the player.
use super::{Inner, PipelineError};
use crate::{
    config::{Recipe, Sampling},
    data::{
        corpus::Corpus,
        questions::{Question, read_questions},
    },
    env::Env,
    eval::Figures,
    hub,
    retriever::{self, Retriever, RetrieverError},
    rng::{Key, Purpose},
    rollout::Episode,
    tokenizer::Tokenizer,
    trainer::{
        events::Stop,
        models::{self, SetupError},
        player::Player,
    },
};
use burn::tensor::DType;
use dgpo_models::{Backend, TrainBackend, decoder::Decoder};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// "Today Date" in Llama 3.1's system header. Fixed, so that a run does not depend on the day it is started.
pub const TEMPLATE_DATE: &str = "26 Jul 2024";

/// A recipe on a device (`I` records no gradients).
#[derive(Clone, Debug)]
pub struct Setup<I: Backend> {
    pub recipe: Recipe,
    pub device: I::Device,
    pub dtype: DType,
}

/// The setup of a backend that trains.
pub type SetupOf<B> = Setup<Inner<B>>;

impl<I: Backend> Setup<I> {
    /// # Errors
    /// If the recipe names an unknown dtype.
    pub fn new(recipe: Recipe, device: &I::Device) -> Result<Self, PipelineError> {
        let dtype = models::dtype(&recipe.model.dtype)?;
        Ok(Self { recipe, device: device.clone(), dtype })
    }

    /// The tokenizer that student and teacher share.
    /// # Errors
    /// If it is not found or does not load.
    pub fn tokenizer(&self) -> Result<Tokenizer, PipelineError> {
        Ok(models::load_tokenizer(&self.recipe.model.tokenizer, &self.recipe.model.student)?)
    }

    /// Loads a model and checks that the tokenizer fits it.
    /// # Errors
    /// If it is not found, does not load, or has a smaller vocabulary than the tokenizer.
    pub fn load(&self, source: &str, tokenizer: &Tokenizer) -> Result<Decoder<I>, PipelineError> {
        let model: Decoder<I> = models::load(source, self.recipe.run.seed, self.dtype, &self.device)?;
        tokenizer.check_fits(model.config().vocab_size)?;
        Ok(model)
    }

    /// The teacher, where the recipe names one.
    /// # Errors
    /// As [`Setup::load`].
    pub fn load_teacher(&self, tokenizer: &Tokenizer) -> Result<Option<Decoder<I>>, PipelineError> {
        if self.recipe.model.teacher.is_empty() { Ok(None) } else { self.load(&self.recipe.model.teacher, tokenizer).map(Some) }
    }

    /// Opens the recipe's retriever; an index that has to be built on disk lies in `dir`.
    /// # Errors
    /// [`PipelineError::Stopped`] after a stop request; otherwise what is wrong with corpus, encoder or index.
    pub fn retriever(&self, dir: &Path, stop: &Stop) -> Result<Box<dyn Retriever>, PipelineError> {
        let corpus = match self.recipe.data.corpus.as_str() {
            "" => None,
            name => Some(Arc::new(self.corpus(name)?)),
        };
        let mut progress = |_| if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        match retriever::open::<I>(&self.recipe.retriever, corpus, dir, &self.device, &mut progress) {
            Err(RetrieverError::Interrupted { .. }) => Err(PipelineError::Stopped),
            opened => Ok(opened?),
        }
    }

    /// The passages of a file, at most `data.max_passages`.
    fn corpus(&self, name: &str) -> Result<Corpus, PipelineError> {
        let corpus = Corpus::open(&hub::resolve(name)?)?;
        match self.recipe.data.max_passages {
            0 => Ok(corpus),
            max => {
                let passages: Result<Vec<_>, _> = (0..corpus.len().min(max)).map(|i| corpus.passage(i)).collect();
                Ok(Corpus::from_passages(passages?))
            }
        }
    }

    /// Tokenizer, environment and limits for playing episodes.
    pub fn player<'p>(&self, tokenizer: &'p Tokenizer, retriever: &'p dyn Retriever) -> Player<'p> {
        let env = Env {
            instruction: self.recipe.episode.instruction.clone(),
            template: self.recipe.model.chat_template,
            date: TEMPLATE_DATE.to_owned(),
            retriever,
            top_k: self.recipe.retriever.top_k,
        };
        Player { tokenizer, env, limits: self.recipe.episode.clone() }
    }

    /// All questions of some files, at most `max` a file (0 = all).
    /// # Errors
    /// If a file is not found or holds a bad line.
    pub fn questions(&self, names: &[String], max: usize) -> Result<Vec<Question>, PipelineError> {
        let mut questions = Vec::new();
        for name in names {
            let mut of_file = read_questions(&hub::resolve(name)?)?;
            of_file.truncate(if max == 0 { usize::MAX } else { max });
            questions.append(&mut of_file);
        }
        Ok(questions)
    }

    /// Plays the test questions with a model, greedily unless the recipe says otherwise.
    /// # Errors
    /// If questions cannot be read or the model breaks.
    pub fn play_test(
        &self,
        tokenizer: &Tokenizer,
        retriever: &dyn Retriever,
        model: &Decoder<I>,
    ) -> Result<(Vec<Episode>, Figures), PipelineError> {
        let questions = self.questions(&self.recipe.data.test, self.recipe.data.max_test)?;
        let sampling = Sampling { temperature: self.recipe.eval.temperature, ..Sampling::GREEDY };
        let key = Key::new(self.recipe.run.seed, Purpose::Eval);
        let episodes = self.player(tokenizer, retriever).play(model, &questions, sampling, key, &self.device)?;
        let figures = Figures::of(&episodes);
        Ok((episodes, figures))
    }

    /// Folders whose tokenizer and generation files belong to a saved student.
    /// # Errors
    /// If they are not found.
    pub fn side_files(&self) -> Result<Vec<PathBuf>, SetupError> {
        let mut folders = vec![models::model_dir(&self.recipe.model.student)?];
        if !self.recipe.model.tokenizer.is_empty() {
            folders.push(hub::resolve(&self.recipe.model.tokenizer)?);
        }
        Ok(folders)
    }
}

/// Parameters of a model, for the log.
pub fn describe_model<I: Backend>(name: &str, model: &Decoder<I>) -> String {
    let config = model.config();
    format!("{name}: {} parameters, {} layers of {}", config.n_parameters(), config.num_hidden_layers, config.hidden_size)
}

/// The setup for a training backend: its inner backend does everything but the updates.
/// # Errors
/// As [`Setup::new`].
pub fn setup_of<B: TrainBackend>(recipe: Recipe, device: &B::Device) -> Result<SetupOf<B>, PipelineError> {
    Setup::new(recipe, device)
}
