//! Setup of every command that plays episodes, made from a recipe: models, retriever, questions,
//! the player.
use super::{
    Inner, PipelineError,
    asked::AskedBy,
    served::{Losses, Served, Waiting},
};
use crate::{
    config::{ModelRecipe, Recipe},
    data::{corpus::Corpus, questions::read_questions},
    devices,
    eval::{Figures, intervals::Intervals},
    events::Stop,
    folder::state::SideFiles,
    hub,
    models::{self, RANDOM_PREFIX, SetupError},
    retriever::{self, RetrieverError},
};
use burn::tensor::DType;
use dgpo_core::{
    env::{Env, search::Retriever},
    question::Question,
    rng::{Key, Purpose},
    rollout::{Episode, play::Opening},
    settings::Sampling,
    tokenizer::{TOKENIZER_FILE, Tokenizer, chat::Chat},
    trainer::player::Player,
};
use dgpo_models::{Backend, TrainBackend, config::DecoderConfig, decoder::Decoder};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A recipe on a device (`I` records no gradients).
#[derive(Clone, Debug)]
pub struct Setup<I: Backend> {
    pub recipe: Recipe,
    pub device: I::Device,
    pub dtype: DType,
}

/// Questions to play, and how.
#[derive(Clone, Copy)]
pub struct Play<'p, I: Backend> {
    pub model: &'p Decoder<I>,
    pub questions: &'p [Question],
    pub sampling: Sampling,
    /// Question i draws from this folded by i.
    pub key: Key,
    /// True if a stop request ends the play. Half a rollout of a training step is worth nothing:
    /// there it waits for the step.
    pub is_interruptible: bool,
}

/// The setup of a backend that trains.
pub type SetupOf<B> = Setup<Inner<B>>;

impl<I: Backend> Setup<I> {
    /// # Errors
    /// If the recipe names an unknown dtype, or one that the device does not compute in.
    pub fn new(recipe: Recipe, device: &I::Device) -> Result<Self, PipelineError> {
        let dtype = recipe.model.dtype.dtype();
        models::check_dtype::<I>(dtype, device)?;
        Ok(Self { recipe, device: device.clone(), dtype })
    }

    /// The tokenizer that student and teacher share, with the chat format of its prompts.
    /// # Errors
    /// If it is not found or does not load; if there is no chat template, or one that cannot be
    /// rendered or has tokens it does not know.
    pub fn tokenizer(&self) -> Result<Tokenizer, PipelineError> {
        let tokenizer =
            models::load_tokenizer(&self.recipe.model.tokenizer, &self.recipe.model.student)?;
        let ModelRecipe { chat_template, template_date, .. } = &self.recipe.model;
        // The tokenizer's own folder before the student's.
        let folders: Vec<PathBuf> = self.side_files()?.folders.into_iter().rev().collect();
        let chat = Chat::open(*chat_template, template_date, &folders, &tokenizer)?;
        Ok(tokenizer
            .with_chat(chat)
            .with_special_tokens_in_text(self.recipe.episode.special_tokens_in_text))
    }

    /// Loads a model and checks that tokenizer and recipe fit it. Its logits are cut to the
    /// vocabulary that student and teacher share.
    /// # Errors
    /// If it is not found, does not load, has a smaller vocabulary than the tokenizer, or was made
    /// for shorter sequences.
    pub fn load(&self, source: &str, tokenizer: &Tokenizer) -> Result<Decoder<I>, PipelineError> {
        let model: Decoder<I> =
            models::load(source, self.recipe.run.seed, self.dtype, &self.device)?;
        self.check_shape(source, &model.config(), Some(tokenizer))?;
        Ok(self.cut_to_shared(model))
    }

    /// Checks that tokenizer and recipe fit a model of this shape.
    /// # Errors
    /// If its vocabulary is smaller than the tokenizer's, or it was made for shorter sequences.
    pub fn check_shape(
        &self,
        source: &str,
        config: &DecoderConfig,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(), PipelineError> {
        if let Some(tokenizer) = tokenizer {
            tokenizer.check_fits(config.vocab_size)?;
        }
        let (longest, limit) =
            (self.recipe.episode.max_prompt_length, config.max_position_embeddings);
        match longest > limit {
            true => Err(PipelineError::TooLong { model: source.to_owned(), longest, limit }),
            false => Ok(()),
        }
    }

    /// Cuts a model's logits to the vocabulary that student and teacher share, as far as their
    /// shapes are known (method §3).
    pub fn cut_to_shared(&self, model: Decoder<I>) -> Decoder<I> {
        let vocab_size = |source: &String| {
            let config =
                DecoderConfig::from_file(&models::model_dir(source).ok()?.join("config.json"))
                    .ok()?;
            Some(config.vocab_size)
        };
        let shared = [&self.recipe.model.student, &self.recipe.model.teacher]
            .into_iter()
            .filter_map(vocab_size)
            .min();
        shared.map_or(model.clone(), |shared| model.with_logits_cut_to(shared))
    }

    /// The teacher, where the recipe names one.
    /// # Errors
    /// As [`Setup::load`]; also if the teacher's own tokenizer gives tokens other ids.
    pub fn load_teacher(&self, tokenizer: &Tokenizer) -> Result<Option<Decoder<I>>, PipelineError> {
        let source = &self.recipe.model.teacher;
        if source.is_empty() {
            return Ok(None);
        }
        self.check_teacher_tokenizer(tokenizer)?;
        self.load(source, tokenizer).map(Some)
    }

    /// Checks that the teacher reads the same tokens.
    /// # Errors
    /// If its own tokenizer gives one of them another id.
    pub fn check_teacher_tokenizer(&self, tokenizer: &Tokenizer) -> Result<(), PipelineError> {
        let source = &self.recipe.model.teacher;
        let own = models::model_dir(source)?.join(TOKENIZER_FILE);
        // To random weights no id means anything yet.
        if own.is_file() && !source.starts_with(RANDOM_PREFIX) {
            tokenizer.check_same_ids(&Tokenizer::from_path(&own)?)?;
        }
        Ok(())
    }

    /// Opens the recipe's retriever; an index that has to be built on disk lies in `dir`.
    /// # Errors
    /// [`PipelineError::Stopped`] after a stop request; otherwise what is wrong with corpus,
    /// encoder or index.
    pub fn retriever(&self, dir: &Path, stop: &Stop) -> Result<Box<dyn Retriever>, PipelineError> {
        let corpus = match self.recipe.data.corpus.as_str() {
            "" => None,
            name => Some(Arc::new(self.corpus(name)?)),
        };
        let mut progress = |_| {
            if stop.is_requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match retriever::open::<I>(&self.recipe.retriever, corpus, dir, &self.device, &mut progress)
        {
            Err(RetrieverError::Interrupted { .. }) => Err(PipelineError::Stopped),
            opened => Ok(opened?),
        }
    }

    /// The passages of a file, at most `data.max_passages`.
    fn corpus(&self, name: &str) -> Result<Corpus, PipelineError> {
        let corpus = Corpus::open(&hub::resolve(name)?)?;
        match self.recipe.data.max_passages {
            0 => Ok(corpus),
            max => Ok(corpus.first(max)?),
        }
    }

    /// Plays every question once, again and again until the retriever has served them
    /// ([`super::served`]).
    /// # Errors
    /// If the model breaks, the retriever is away for too long, or a stop was requested.
    pub fn play_until_served(
        &self,
        what: &str,
        (tokenizer, retriever): (&Tokenizer, &dyn Retriever),
        play: Play<'_, I>,
        waiting: &mut Waiting<'_>,
    ) -> Result<Served<Vec<Episode>>, PipelineError> {
        let Play { model, questions, sampling, key, is_interruptible } = play;
        let stop = waiting.stop;
        waiting.until_served(what, retriever, questions.len(), |watched| {
            let is_over =
                || watched.has_lost_too_much() || (is_interruptible && stop.is_requested());
            let episodes = self.player(tokenizer, watched, &is_over).play(
                model,
                questions,
                sampling,
                key,
                &self.device,
            )?;
            let losses = Losses::of_episodes(&episodes);
            Ok((episodes, losses))
        })
    }

    /// Tokenizer, environment and limits for playing episodes; the play ends where `is_over`.
    pub fn player<'p>(
        &self,
        tokenizer: &'p Tokenizer,
        retriever: &'p dyn Retriever,
        is_over: &'p dyn Fn() -> bool,
    ) -> Player<'p> {
        let env = Env {
            instruction: self.recipe.episode.instruction.clone(),
            chat: tokenizer.chat().clone(),
            retriever,
            top_k: self.recipe.retriever.top_k,
        };
        Player {
            tokenizer,
            env,
            limits: self.recipe.episode.clone(),
            opening: &Opening::none,
            is_over,
        }
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

    /// The training questions.
    /// # Errors
    /// As [`Self::questions`].
    pub fn training_questions(&self) -> Result<Vec<Question>, PipelineError> {
        self.questions(&self.recipe.data.train, self.recipe.data.max_train)
    }

    /// The test questions, each once.
    /// # Errors
    /// Those of [`Setup::questions`]; if two questions of one data set have the same id.
    pub fn test_questions(&self) -> Result<Vec<Question>, PipelineError> {
        let mut questions = Vec::new();
        let mut asked = AskedBy::default();
        for file in &self.recipe.data.test {
            let of_file = self.questions(std::slice::from_ref(file), self.recipe.data.max_test)?;
            asked.once_each(file, &of_file)?;
            questions.extend(of_file);
        }
        Ok(questions)
    }

    /// Plays the test questions with a model, greedily unless the recipe says otherwise.
    /// # Errors
    /// If questions cannot be read, the model breaks, the retriever is away for too long, or a stop
    /// was requested.
    pub fn play_test(
        &self,
        player: (&Tokenizer, &dyn Retriever),
        model: &Decoder<I>,
        waiting: &mut Waiting<'_>,
    ) -> Result<(Vec<Episode>, Figures), PipelineError> {
        let questions = self.test_questions()?;
        let sampling = Sampling { temperature: self.recipe.eval.temperature, ..Sampling::GREEDY };
        let key = Key::new(self.recipe.run.seed, Purpose::Eval);
        let play = Play { model, questions: &questions, sampling, key, is_interruptible: true };
        let episodes = self.play_until_served("the evaluation", player, play, waiting)?.value;
        devices::check::<I>(&self.device)?;
        let figures = Figures {
            intervals: Some(Intervals::of(&episodes, self.recipe.run.seed)),
            ..Figures::of(&episodes)
        };
        Ok((episodes, figures))
    }

    /// Files that belong to a saved student beside its weights.
    /// # Errors
    /// If they are not found.
    pub fn side_files(&self) -> Result<SideFiles, SetupError> {
        let mut folders = vec![models::model_dir(&self.recipe.model.student)?];
        if !self.recipe.model.tokenizer.is_empty() {
            folders.push(hub::resolve(&self.recipe.model.tokenizer)?);
        }
        Ok(SideFiles { folders, chat_template: self.recipe.model.chat_template })
    }
}

/// Parameters of a model, for the log.
pub fn describe_model<I: Backend>(name: &str, model: &Decoder<I>) -> String {
    let config = model.config();
    format!(
        "{name}: {} parameters, {} layers of {}",
        config.n_parameters(),
        config.num_hidden_layers,
        config.hidden_size
    )
}

/// The setup for a training backend: its inner backend does everything but the updates.
/// # Errors
/// As [`Setup::new`].
pub fn setup_of<B: TrainBackend>(
    recipe: Recipe,
    device: &B::Device,
) -> Result<SetupOf<B>, PipelineError> {
    Setup::new(recipe, device)
}
