//! The recorded update through what training itself runs: `RolloutBatch`, the scoring passes,
//! `token_rewards`, `gae` and `rl_step`.
//!
//! The reference differs in one thing: its critic also counts the state behind a row's last token.
//! With lam = 1 the value of that state cancels in every advantage of the response, so rewards,
//! advantages, returns and the whole update of the actor must be the recorded ones. For the
//! critic's own mini-batches each row gets one inserted token more, which makes the trainer count
//! that state as well.
use super::{
    Case, FixtureError, Tolerance,
    fixtures::{count, list, number},
    models::critic,
    network::{compare_trained, parameters},
    rollouts::question,
    step::{ADVANTAGES, AFTER, Chain, FIRST_MINIBATCH, LATER_MINIBATCH, LOG_PROBS, SCALAR_FLOOR},
};
use dgpo_core::{
    algo::{
        advantage::{Advantages, gae},
        kl::{SampledKl, estimate, is_penalised, token_rewards},
    },
    engine::StopReason,
    rollout::{Episode, ObservationKind, RolloutBatch, Segment, Status},
    settings::{
        EpisodeRecipe, GaeOver, GaeRecipe, KlEstimator, KlMode, KlPlacement, KlRecipe, OptimRecipe,
        RlRecipe,
    },
    trainer::{
        metrics::*,
        optimizer::AdamW,
        rl::{ActorCritic, Penalty, TrainedCritic, Update, rl_step},
        score,
    },
};
use dgpo_models::TrainBackend;
use dgpo_run::config::Recipe;

pub(super) fn compare<B: TrainBackend>(
    chain: &Chain<'_, B>,
    case: &mut Case,
) -> Result<(), FixtureError> {
    let scores = chain.floats("token_level_scores")?;
    let score =
        |row: usize| scores[row * chain.n_response..(row + 1) * chain.n_response].iter().sum();
    let episodes: Vec<Episode> =
        (0..chain.n_rows()).map(|row| episode(chain, row, score(row))).collect();
    let mut step = RecordedStep {
        chain,
        recipe: recipe(chain)?,
        batch: RolloutBatch::new(&episodes.iter().collect::<Vec<_>>()),
    };
    step.recipe.rl.micro_batch_tokens = 2 * step.batch.n_cols;
    step.layout(case);
    let rewards = step.scores_and_rewards(case)?;
    if step.recipe.gae.lambda != 1.0 {
        case.differs_on_purpose(
            "rl_step",
            "with lam below 1 the reference's advantages hold the value of the state behind a \
             row's last token",
        );
        return Ok(());
    }
    step.advantages(&rewards, case)?;
    step.actor(&episodes, case)?;
    step.critic(&episodes, case)
}

/// One recorded row as an episode: runs of agent and inserted tokens by the info mask.
fn episode<B: TrainBackend>(chain: &Chain<'_, B>, row: usize, reward: f32) -> Episode {
    let ids: Vec<u32> = chain.rows.row_ids(row).into_iter().map(|id| id as u32).collect();
    let n_prompt = ids.len() - response_columns(chain, row).len();
    let mut segments = vec![Segment::Prompt { ids: ids[..n_prompt].to_vec() }];
    for (col, &id) in response_columns(chain, row).into_iter().zip(&ids[n_prompt..]) {
        let is_agent = chain.info_mask[row * chain.n_response + col];
        match segments.last_mut() {
            Some(Segment::Agent { ids, .. }) if is_agent => ids.push(id),
            Some(Segment::Observation { ids, .. }) if !is_agent => ids.push(id),
            _ if is_agent => segments.push(Segment::Agent {
                ids: vec![id],
                sample_log_probs: Vec::new(),
                stop: StopReason::Length,
            }),
            _ => segments
                .push(Segment::Observation { ids: vec![id], kind: ObservationKind::Information }),
        }
    }
    Episode {
        question: question(&format!("row {row}")),
        segments,
        status: Status::Answered,
        prediction: None,
        reward,
        searches: Vec::new(),
        n_invalid_actions: 0,
    }
}

/// Columns of [B, R] that hold a row's real response tokens.
fn response_columns<B: TrainBackend>(chain: &Chain<'_, B>, row: usize) -> Vec<usize> {
    chain.rows.columns[row].iter().filter_map(|col| col.checked_sub(chain.n_prompt)).collect()
}

/// The reference's hyper-parameters as a recipe.
fn recipe<B: TrainBackend>(chain: &Chain<'_, B>) -> Result<Recipe, FixtureError> {
    let optimizer = chain.optimizer_recipe()?;
    Ok(Recipe {
        episode: EpisodeRecipe { temperature: 1.0, ..EpisodeRecipe::default() },
        rl: RlRecipe {
            steps: 1,
            mini_batch: count(chain.json, "minibatch")?.max(1),
            epochs: 1,
            clip_ratio: number(chain.json, "cliprange")?,
            clip_value: number(chain.json, "cliprange_value")?,
            entropy_coef: 0.0,
            ..RlRecipe::default()
        },
        kl: KlRecipe {
            mode: KlMode::Selective,
            estimator: KlEstimator::K1,
            placement: KlPlacement::Reward,
            coef: number(chain.json, "kl_coef")?,
            target: 0.0,
            ..KlRecipe::default()
        },
        gae: GaeRecipe {
            gamma: chain.factor("gamma")?,
            lambda: chain.factor("lam")?,
            over: GaeOver::Response,
            whiten: true,
        },
        optim: OptimRecipe {
            actor: optimizer.clone(),
            critic: optimizer,
            ..OptimRecipe::default()
        },
        ..Recipe::default()
    })
}

/// The recorded step in the trainer's own terms.
struct RecordedStep<'a, B: TrainBackend> {
    chain: &'a Chain<'a, B>,
    recipe: Recipe,
    batch: RolloutBatch,
}

impl<B: TrainBackend> RecordedStep<'_, B> {
    /// [B, T] of the batch as the fixture's [B, R]; 0 where a row has no token.
    fn to_fixture(&self, array: &[f32]) -> Vec<f32> {
        let mut result = vec![0.0; self.chain.attention_mask.len()];
        for row in 0..self.chain.n_rows() {
            for (i, col) in response_columns(self.chain, row).into_iter().enumerate() {
                result[row * self.chain.n_response + col] =
                    array[self.batch.at(row, self.batch.prompt_lens[row] + i)];
            }
        }
        result
    }

    fn close(
        &self,
        key: &str,
        array: &[f32],
        recorded: &str,
        mask: &[bool],
        tolerance: Tolerance,
        case: &mut Case,
    ) -> Result<(), FixtureError> {
        case.close_where(
            key,
            &self.to_fixture(array),
            &self.chain.floats(recorded)?,
            |i| mask[i],
            tolerance,
        );
        Ok(())
    }

    fn layout(&self, case: &mut Case) {
        let flags = |mask: &[bool]| mask.iter().map(|&m| f32::from(m)).collect::<Vec<f32>>();
        let response: Vec<bool> = (0..self.batch.ids.len())
            .map(|at| self.batch.is_response(at / self.batch.n_cols, at % self.batch.n_cols))
            .collect();
        case.equal(
            "RolloutBatch.loss_mask",
            &self.to_fixture(&flags(&self.batch.loss_mask)),
            &flags(&self.chain.info_mask),
        );
        case.equal(
            "RolloutBatch.is_response",
            &self.to_fixture(&flags(&response)),
            &flags(&self.chain.attention_mask),
        );
    }

    /// The passes of the trainer, and the token rewards from them.
    fn scores_and_rewards(&mut self, case: &mut Case) -> Result<Vec<f32>, FixtureError> {
        let (chain, batch) = (self.chain, &mut self.batch);
        let pass = score::Pass::<B::InnerBackend> {
            micro_batch_tokens: self.recipe.rl.micro_batch_tokens,
            temperature: self.recipe.episode.temperature,
            device: chain.device,
        };
        let rows: Vec<usize> = (0..batch.n_rows).collect();
        let penalised: Vec<usize> = rows
            .iter()
            .copied()
            .filter(|&row| is_penalised(self.recipe.kl.mode, &[batch.scores[row]]))
            .collect();
        batch.old_log_probs = score::log_probs(&chain.student, batch, &rows, &pass);
        batch.ref_log_probs = score::log_probs(&chain.teacher, batch, &penalised, &pass);
        batch.values =
            score::values(&critic(&chain.student, chain.tensors, chain.device)?, batch, &pass);
        let mut kl = vec![0.0; batch.ids.len()];
        for at in batch.agent_tokens(&penalised).at {
            kl[at] = estimate(SampledKl::K1, batch.old_log_probs[at], batch.ref_log_probs[at]);
        }
        let rewards = token_rewards(&self.batch, &kl, self.recipe.kl.mode, self.recipe.kl.coef);

        let batch = &self.batch;
        self.close(
            "score::log_probs, actor",
            &batch.old_log_probs,
            "old_log_probs",
            &chain.info_mask,
            LOG_PROBS,
            case,
        )?;
        if !penalised.is_empty() {
            let is_penalised: Vec<bool> = (0..chain.info_mask.len())
                .map(|i| chain.info_mask[i] && penalised.contains(&(i / chain.n_response)))
                .collect();
            self.close(
                "score::log_probs, teacher",
                &batch.ref_log_probs,
                "ref_log_prob",
                &is_penalised,
                LOG_PROBS,
                case,
            )?;
        }
        self.close(
            "score::values",
            &batch.values,
            "values",
            &chain.attention_mask,
            LOG_PROBS,
            case,
        )?;
        self.close(
            "token_rewards",
            &rewards.rewards,
            "token_level_rewards",
            &chain.attention_mask,
            LOG_PROBS,
            case,
        )?;
        case.scalar(
            "token_rewards, mean KL",
            rewards.mean_kl,
            number(chain.json, "kl_metric")?,
            FIRST_MINIBATCH,
        );
        let selected = chain
            .floats("selective_mask")?
            .chunks(chain.n_response)
            .filter(|row| row[0] > 0.0)
            .count();
        case.equal("token_rewards, rows penalised", &rewards.n_penalised, &selected);
        Ok(rewards.rewards)
    }

    fn advantages(&self, rewards: &[f32], case: &mut Case) -> Result<(), FixtureError> {
        let result = gae(&self.batch, rewards, &self.recipe.gae);
        let mask = &self.chain.attention_mask;
        self.close("gae, advantages", &result.advantages, "advantages", mask, ADVANTAGES, case)?;
        self.close("gae, returns", &result.returns, "returns", mask, ADVANTAGES, case)
    }

    fn networks(&self) -> Result<ActorCritic<B>, FixtureError> {
        let chain = self.chain;
        let network = critic(&chain.student, chain.tensors, chain.device)?;
        let trained =
            TrainedCritic { network, optimizer: AdamW::new(self.recipe.optim.critic.clone()) };
        Ok(ActorCritic {
            critic: Some(trained),
            ..ActorCritic::new(chain.student.clone(), 0, self.recipe.rl_settings())
        })
    }

    /// The whole step: means over its mini-batches, and the actor it leaves.
    fn actor(&self, episodes: &[Episode], case: &mut Case) -> Result<(), FixtureError> {
        let chain = self.chain;
        let mut networks = self.networks()?;
        let metrics = rl_step(
            &mut networks,
            Penalty::new(&chain.teacher, &self.recipe.kl),
            episodes,
            self.recipe.rl_settings(),
            0,
            chain.device,
        )
        .metrics;
        let steps = list(chain.json, "actor")?;
        let recorded = [
            (POLICY_LOSS, "loss"),
            (CLIP_FRACTION, "clipfrac"),
            (OLD_APPROX_KL, "ppo_kl"),
            (ACTOR_GRAD_NORM, "grad_norm"),
        ];
        for (name, key) in
            recorded.into_iter().filter(|(_, key)| steps.iter().all(|step| step.get(key).is_some()))
        {
            let values =
                steps.iter().map(|step| number(step, key)).collect::<Result<Vec<f64>, _>>()?;
            let n = values.len().max(1) as f64;
            let rel = |i: usize| if i == 0 { FIRST_MINIBATCH.rel } else { LATER_MINIBATCH.rel };
            // The mean may be off by the mean of what each mini-batch may be off by.
            let allowed = values
                .iter()
                .enumerate()
                .map(|(i, value)| SCALAR_FLOOR + rel(i) * value.abs())
                .sum::<f64>()
                / n;
            let got = metrics.get(name).unwrap_or(f64::NAN);
            case.scalar(
                &format!("rl_step, {name}"),
                got,
                values.iter().sum::<f64>() / n,
                Tolerance::abs(allowed),
            );
        }
        case.equal("rl_step, skipped updates", &networks.n_skipped, &0);
        let log_probs = chain.log_probs(&networks.actor);
        case.close(
            "rl_step, actor.after.log_probs",
            &log_probs,
            &chain.floats("actor.after.log_probs")?,
            AFTER,
        );
        let initial = parameters(&chain.student);
        for (name, after) in parameters(&networks.actor) {
            let key = format!("actor.after.{name}");
            if chain.tensors.has(&key) {
                let expected = chain.tensors.floats_of(&key, &after.shape)?;
                compare_trained(
                    &format!("rl_step, {key}"),
                    &initial[&name],
                    &after,
                    &expected,
                    AFTER,
                    case,
                );
            }
        }
        Ok(())
    }

    /// The critic's mini-batches, run by the trainer on the recorded values and returns. The
    /// reference counts the state behind a row's last token, too: it is the state in front of one
    /// more inserted token.
    fn critic(&self, episodes: &[Episode], case: &mut Case) -> Result<(), FixtureError> {
        let chain = self.chain;
        let mut episodes = episodes.to_vec();
        for (row, episode) in episodes.iter_mut().enumerate() {
            if response_columns(chain, row).len() < chain.n_response {
                episode.segments.push(Segment::Observation {
                    ids: vec![0],
                    kind: ObservationKind::Information,
                });
            }
        }
        let mut batch = RolloutBatch::new(&episodes.iter().collect::<Vec<_>>());
        let mut advantages = Advantages {
            advantages: vec![0.0; batch.ids.len()],
            returns: vec![0.0; batch.ids.len()],
            mask: vec![false; batch.ids.len()],
        };
        let (values, returns) = (chain.floats("values")?, chain.floats("returns")?);
        for row in 0..batch.n_rows {
            for (i, col) in (batch.prompt_lens[row]..batch.lengths[row]).enumerate() {
                let (at, recorded) = (batch.at(row, col), row * chain.n_response + i);
                (batch.values[at], advantages.returns[at], advantages.mask[at]) =
                    (values[recorded], returns[recorded], true);
            }
        }
        let mut networks = self.networks()?;
        let (device, lr) = (chain.device, self.recipe.optim.critic.lr);
        let mut update = Update {
            networks: &mut networks,
            penalty: None,
            batch: &batch,
            advantages: &advantages,
            penalised: &[],
            settings: self.recipe.rl_settings(),
            device,
        };
        for (step, (rows, recorded)) in
            chain.minibatches()?.into_iter().zip(list(chain.json, "critic")?).enumerate()
        {
            let stats = update
                .critic(&rows.collect::<Vec<_>>(), lr)
                .expect("the networks were made with a critic");
            let tolerance = Tolerance {
                abs: SCALAR_FLOOR,
                ..if step == 0 { FIRST_MINIBATCH } else { LATER_MINIBATCH }
            };
            for (key, got) in [
                ("loss", stats.value.loss),
                ("clipfrac", stats.value.clip_fraction),
                ("grad_norm", stats.grad_norm),
            ] {
                if let Some(expected) = recorded.get(key) {
                    case.number(
                        &format!("Update::critic, critic[{step}].{key}"),
                        got,
                        expected,
                        tolerance,
                    );
                }
            }
        }
        case.equal("Update::critic, skipped updates", &networks.n_skipped, &0);
        let trained = &networks.critic.as_ref().expect("made with one").network;
        case.close(
            "Update::critic, critic.after.values",
            &chain.values(trained),
            &chain.floats("critic.after.values")?,
            AFTER,
        );
        Ok(())
    }
}
