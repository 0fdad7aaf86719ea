"""The PPO loss against a reference that is written token by token with plain floats."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.config.experiment import ActorConfig, RejectionSamplingConfig
from services.trainer.loss import loss_stats, ppo_loss

token = st.tuples(st.floats(-4, 0), st.floats(-4, 0), st.floats(-4, 0), st.floats(-3, 3))


def reference(logp: float, prox: float, old: float, advantage: float, actor: ActorConfig) -> float:
    """One token of AReaL's decoupled PPO loss."""
    anchor = prox if actor.use_decoupled_loss else old
    ratio = math.exp(logp - anchor)
    high = actor.eps_clip if actor.eps_clip_higher is None else actor.eps_clip_higher
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - actor.eps_clip), 1 + high))
    if actor.c_clip is not None:
        loss = min(loss, math.copysign(1, advantage) * actor.c_clip * advantage if advantage else 0.0)
    if not actor.use_decoupled_loss:
        return loss
    weight, rule = math.exp(prox - old), actor.rejection_sampling
    if rule is None:
        return loss * weight
    lower = rule.lower or 0.0
    if rule.action == "clamp":
        return loss * min(max(weight, lower), rule.upper)
    return loss * weight if lower <= weight <= rule.upper else 0.0


actors = st.builds(
    ActorConfig,
    eps_clip=st.sampled_from([0.2, 0.4]),
    eps_clip_higher=st.sampled_from([None, 0.5]),
    c_clip=st.sampled_from([None, 3.0]),
    use_decoupled_loss=st.booleans(),
    rejection_sampling=st.one_of(
        st.none(),
        st.builds(
            RejectionSamplingConfig,
            action=st.sampled_from(["mask", "clamp"]),
            upper=st.sampled_from([2.0, 5.0]),
            lower=st.sampled_from([None, 0.5]),
        ),
    ),
)


@given(st.lists(token, min_size=1, max_size=6), actors)
def test_each_token_is_that_of_the_reference(tokens: list[tuple[float, float, float, float]], actor: ActorConfig) -> None:
    logp, prox, old, advantage = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    terms = ppo_loss(logp, prox, old, advantage, actor)
    expected = torch.tensor([reference(*values, actor) for values in tokens], dtype=torch.float64)
    torch.testing.assert_close(terms.loss_R, expected, rtol=1e-9, atol=1e-9)


def test_on_policy_the_gradient_is_that_of_the_policy_gradient() -> None:
    logp = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    ppo_loss(logp, logp.detach(), logp.detach(), advantage, ActorConfig()).loss_R.sum().backward()
    torch.testing.assert_close(logp.grad, -advantage)


def test_rejected_tokens_have_no_gradient_and_are_counted() -> None:
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    prox, old = torch.tensor([-1.0, -1.0]), torch.tensor([-9.0, -1.0])
    terms = ppo_loss(logp, prox, old, torch.ones(2), ActorConfig())
    terms.loss_R.sum().backward()
    assert logp.grad is not None and logp.grad[0] == 0 and logp.grad[1] != 0
    assert loss_stats(terms, logp, prox, old)["ppo_actor/update/rs_filtered_fraction"] == 0.5
