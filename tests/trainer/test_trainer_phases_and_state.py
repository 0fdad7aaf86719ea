"""The phases' transition table, refusals of the config, and what is on disk between two processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_helpers import random_rows

from services.common.config import ExperimentConfig
from services.common.passk import Estimate
from services.trainer.checks import ExperimentFailed, check_config, config_digest
from services.trainer.files import write_atomic, write_folder
from services.trainer.phases import TRANSITIONS, IllegalTransition, Phase, move, next_phase
from services.trainer.state import Checkpoints, Evaluation, PendingAck, Report, Score, State, StateError, engine_checkpoint
from services.trainer.torch_engine import TorchEngine

MakeConfig = Callable[..., ExperimentConfig]


@given(st.sampled_from(list(Phase)), st.sampled_from(list(Phase)))
def test_only_edges_of_the_table_exist(source: Phase, target: Phase) -> None:
    if target in TRANSITIONS[source]:
        assert move(source, target) is target
    else:
        with pytest.raises(IllegalTransition):
            move(source, target)


def test_every_phase_that_works_may_fail_and_the_ends_are_ends() -> None:
    for phase in Phase:
        ends = phase in (Phase.DONE, Phase.FAILED)
        assert (Phase.FAILED in TRANSITIONS[phase]) != ends
        assert bool(TRANSITIONS[phase]) != ends


@pytest.mark.parametrize("sft", [True, False])
@pytest.mark.parametrize("evals", [True, False])
def test_the_config_decides_which_phases_come(make_config: MakeConfig, sft: bool, evals: bool) -> None:
    config = make_config(sft={"enabled": sft}, evaluator={"before": evals, "after": evals})
    path = [Phase.SETUP]
    while path[-1] is not Phase.DONE:
        path.append(next_phase(path[-1], config))
    assert (Phase.SFT in path) == sft and (Phase.EVAL_BEFORE in path) == (Phase.EVAL_AFTER in path) == evals
    assert path[-2:] == [Phase.FINISH, Phase.DONE] and Phase.RL in path
    with pytest.raises(IllegalTransition):
        next_phase(Phase.DONE, config)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"actor": {"kl_ctl": 0.1}}, "actor.kl_ctl"),
        ({"actor": {"backend": "archon:d2"}}, "actor.backend"),
        ({"actor": {"gae_lambda": 0.9}}, "gae_lambda"),
        ({"actor": {"recompute_logprob": False}}, "actor.recompute_logprob"),
        ({"actor": {"path": "/nowhere"}}, "actor.path"),
        ({"gconfig": {"n_samples": 1}}, "gconfig.n_samples"),
        ({"rollout": {"consumer_batch_size": 7}}, "rollout.consumer_batch_size"),
        ({"trial_name": "a trial"}, "trial_name"),
        (
            {"train_dataset": {"path": "", "mix": {"telecom/train": 1, "airline/train": 1}}},
            "econfig.solo_mode: train_dataset names airline/train",
        ),
        ({"valid_dataset": {"path": "retail/test"}}, "econfig.solo_mode: valid_dataset names retail/test"),
        ({"sft": {"enabled": True, "dataset": "banking_knowledge/base"}}, "econfig.solo_mode: sft.dataset"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_key(make_config: MakeConfig, sections: dict[str, object], key: str) -> None:
    check_config(make_config())
    with pytest.raises(ExperimentFailed, match=key):
        check_config(make_config(**sections))


def test_domains_that_need_a_user_are_fine_with_one(make_config: MakeConfig) -> None:
    check_config(make_config(econfig={"solo_mode": False}, valid_dataset={"path": "retail/test"}))


def test_the_digest_of_a_config_is_of_what_decides_the_outcome(make_config: MakeConfig) -> None:
    config = make_config()
    assert config_digest(config) != config_digest(config.model_copy(update={"seed": 9}))
    assert config_digest(config) == config_digest(config.model_copy(update={"log_level": "ERROR"}))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.load() is None
    score = Score(
        reward=Estimate(0.5, 0.4, 0.6),
        greedy=None,
        pass_hat={"1": Estimate(0.5, 0.4, 0.6)},
        floor=0.1,
        n_tasks=3,
        left_out=0,
        n_episodes=6,
        failed={"infra": 1},
        truncated={},
    )
    state = State(
        phase=Phase.RL,
        step=3,
        next_group=9,
        acks=[PendingAck(batch_id="b", trained=["e1"], dropped={"e2": "stale"})],
        settled={"e3": ""},
        report=Report(step=3, phase="rl", values={"rollout/reward": 0.5}),
        sources={"telecom": "inspect-evals 1"},
        datasets={"telecom/small": "d"},
        evaluations={"before": Evaluation(version=0, total=score, datasets={"telecom/small": score}, per_task={}, wall_s=1.0)},
    )
    checkpoints.commit(state)
    assert checkpoints.load() == state


@pytest.mark.parametrize("content", [b"{", b'{"state_version": 99}'])
def test_a_state_that_cannot_be_used_is_an_error_and_not_a_fresh_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(StateError):
        Checkpoints(tmp_path, keep=2).load()


def test_engine_checkpoints_beyond_keep_are_removed_and_the_named_one_never(
    make_config: MakeConfig, model_folder: Path, tmp_path: Path
) -> None:
    config = make_config()
    engine = TorchEngine(model_folder, config.actor, config.actor.optimizer, 10)
    checkpoints, state = Checkpoints(tmp_path, keep=2), State(phase=Phase.RL)
    for step in range(9, 13):
        checkpoints.save_engine(engine, engine_checkpoint(0, step))
    state.engine = engine_checkpoint(0, 9)
    checkpoints.commit(state)
    assert sorted(path.name for path in tmp_path.glob("engine-*")) == ["engine-11", "engine-12", "engine-9"]


def test_a_checkpoint_cut_short_is_written_again_and_restores_to_the_bit(
    make_config: MakeConfig, model_folder: Path, tmp_path: Path
) -> None:
    config = make_config()
    engine = TorchEngine(model_folder, config.actor, config.actor.optimizer, 10)
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "engine-1.partial").mkdir()
    (tmp_path / "engine-1.partial" / "engine.pt").write_bytes(b"half")
    checkpoints.save_engine(engine, "engine-1")
    engine.sft_step(random_rows(2))
    checkpoints.save_engine(engine, "engine-1")
    other = TorchEngine(model_folder, config.actor, config.actor.optimizer, 10)
    checkpoints.restore_engine(other, "engine-1")
    assert all((a == b).all() for a, b in zip(engine.model.parameters(), other.model.parameters(), strict=True))
    with pytest.raises(StateError, match="engine-7"):
        checkpoints.restore_engine(other, "engine-7")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill_and_fail(partial: Path) -> None:
        (partial / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "v1", fill_and_fail)
    assert not (tmp_path / "v1").exists()
    write_folder(tmp_path / "v1", lambda partial: write_atomic(partial / "a", json.dumps(1).encode()))
    write_folder(tmp_path / "v1", fill_and_fail)
    assert (tmp_path / "v1" / "a").read_text() == "1"
