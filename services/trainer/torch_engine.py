"""Owns the policy's weights and optimizer on one device with plain torch: log-probabilities, SFT steps and PPO steps over packed trees.

A stand-in for AReaL's engines on laptops and in tests; the algorithm around it is the same. Refuses to know services or episodes: it is
given rows and one advantage a row.

Shape suffixes: N packed tokens, U distinct generated tokens of a tree, R generated tokens of all rows one after the other, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.config.experiment import ActorConfig, OptimizerConfig
from services.common.nn.qwen3 import load_model, save_weights
from services.common.wire.calls import Row
from services.trainer.adamw import AdamW
from services.trainer.loss import loss_stats, ppo_loss
from services.trainer.packing import Tree, build_tree, split_by_size, unpacked_tokens
from services.trainer.thinning import Thinning
from services.trainer.tree_attention import Layout, TreeAttention, layout_of
from services.trainer.trust import allowed_share, divergence

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pack:
    """One tree and the rows whose generated tokens are in it."""

    tree: Tree
    layout: Layout
    position_N: Tensor
    rows: list[int]
    """Indices into the batch, in the order of R."""
    node_U: Tensor
    """Packed position of each distinct generated token."""
    parent_U: Tensor
    """Packed position of the token before it."""
    unique_R: Tensor
    """Index into U of each generated token of each row."""


class TorchEngine:
    """Weights, Adam and the schedule. Not thread-safe: one caller at a time."""

    def __init__(self, folder: Path, actor: ActorConfig, optimizer: OptimizerConfig, total_steps: int) -> None:
        self.model = load_model(folder)
        self._actor = actor
        self._config = optimizer
        self._total_steps = total_steps
        self.steps_done = 0
        self._adam = AdamW(self.model.parameters(), optimizer)

    def logp(self, rows: Sequence[Row], temperature: float = 1.0) -> list[Float32]:
        """Log-probability of each generated token under the current weights, one array [n_output] a row."""
        out: list[Float32] = [np.empty(0, np.float32)] * len(rows)
        with torch.no_grad():
            for pack in packs_of(rows, self._actor.max_tokens_per_mb):
                logp_R = self._logp(pack, temperature).numpy()
                for index, part in zip(pack.rows, np.split(logp_R, _cuts(rows, pack)), strict=True):
                    out[index] = part
        return out

    def sft_step(self, rows: Sequence[Row], thinning: Thinning | None = None) -> dict[str, float]:
        """One optimizer step on the mean negative log-probability of the generated tokens, of thinned rows where ``thinning`` is given."""
        tokens = sum(row.n_output for row in rows)
        total = 0.0
        for pack in packs_of(rows, self._actor.max_tokens_per_mb, thinning):
            loss = -self._logp(pack, 1.0).sum() / tokens
            loss.backward()
            total += loss.item()
        return {"sft/loss": total, "sft/n_tokens": float(tokens), **self._step("sft")}

    def ppo_step(
        self, rows: Sequence[Row], advantages: Sequence[float], prox_logp: Sequence[Float32], temperature: float = 1.0
    ) -> dict[str, float]:
        """One optimizer step on the PPO loss, averaged over tokens, and of that step as much as ``max_kl`` allows.

        Rows must carry the log-probabilities they were sampled with.
        """
        tokens = sum(row.n_output for row in rows)
        total, packed, plain = 0.0, 0, unpacked_tokens([row.ids for row in rows])
        stats: dict[str, float] = {}
        packs = list(packs_of(rows, self._actor.max_tokens_per_mb))
        before: list[Tensor] = []
        for pack in packs:
            logp_R = self._logp(pack, temperature)
            before.append(logp_R.detach())
            old_R = torch.from_numpy(np.concatenate([_behaviour(rows[i]) for i in pack.rows]))
            prox_R = torch.from_numpy(np.concatenate([prox_logp[i] for i in pack.rows]))
            advantage_R = torch.from_numpy(np.concatenate([np.full(rows[i].n_output, advantages[i], np.float32) for i in pack.rows]))
            terms = ppo_loss(logp_R, prox_R, old_R, advantage_R, self._actor)
            loss = terms.loss_R.sum() / tokens
            loss.backward()
            total += loss.item()
            packed += pack.tree.size
            for name, value in loss_stats(terms, logp_R.detach(), prox_R, old_R).items():
                share = len(old_R) / tokens
                stats[name] = max(stats.get(name, 0.0), value) if name.endswith("/max") else stats.get(name, 0.0) + share * value
        stats |= {"ppo_actor/update/actor_loss/avg": total, "ppo_actor/update/n_valid_tokens": float(tokens)}
        stats["ppo_actor/tree_token_ratio"] = packed / plain
        if not self._config.max_kl:
            return stats | self._step("ppo_actor/update")
        return stats | self._bounded_step(packs, before, temperature)

    def save_hf(self, folder: Path) -> None:
        """Writes config and weights into an existing folder in Hugging Face's form."""
        save_weights(self.model, folder)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: weights, optimizer, schedule position, RNG."""
        return {
            "model": self.model.state_dict(),
            "adam": self._adam.state_dict(),
            "steps_done": self.steps_done,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.model.load_state_dict(state["model"])
        self._adam.load_state_dict(state["adam"])
        self.steps_done = int(state["steps_done"])
        torch.set_rng_state(state["rng"])

    def _logp(self, pack: Pack, temperature: float) -> Tensor:
        tree, layout = pack.tree, pack.layout

        def attend(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
            return cast(Tensor, TreeAttention.apply(q_NHE, k_NKE, v_NKE, layout))

        hidden_ND = self.model(torch.from_numpy(tree.ids_N), pack.position_N, attend)
        logits_UV = self.model.logits(hidden_ND[pack.parent_U])
        if temperature not in (0.0, 1.0):
            logits_UV = logits_UV / temperature
        target_U = torch.from_numpy(tree.ids_N)[pack.node_U]
        logp_U = logits_UV.gather(1, target_U[:, None])[:, 0] - logits_UV.logsumexp(-1)
        return logp_U[pack.unique_R]

    def _bounded_step(self, packs: Sequence[Pack], before: Sequence[Tensor], temperature: float) -> dict[str, float]:
        """A step whose update is shortened where it moved the policy too far; ``before``: [R] of each pack."""
        parameters = list(self.model.parameters())
        started = [parameter.detach().clone() for parameter in parameters]
        stats = self._step("ppo_actor/update")
        with torch.no_grad():
            after = [self._logp(pack, temperature) for pack in packs]
            kl = divergence(torch.cat(after).numpy(), torch.cat(list(before)).numpy())
            share = allowed_share(kl, self._config.max_kl)
            if share < 1.0:
                for parameter, start in zip(parameters, started, strict=True):
                    parameter.copy_(start.lerp(parameter, share))
        return stats | {"ppo_actor/update/kl": kl, "ppo_actor/update/share": share}

    def _step(self, prefix: str) -> dict[str, float]:
        lr = self._config.lr * schedule(self.steps_done, self._total_steps, self._config)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.gradient_clipping).item()
        successful = math.isfinite(norm)
        if successful:
            self._adam.step(lr)
        self._adam.zero_grad()
        self.steps_done += 1
        return {f"{prefix}/grad_norm": norm, f"{prefix}/lr": lr, f"{prefix}/update_successful": float(successful)}


def schedule(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Factor on the learning rate at ``step`` (0-based): linear warm-up, then constant, linear or cosine decay to ``min_lr_ratio``."""
    warmup = round(config.warmup_steps_proportion * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_scheduler_type == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    shape = 1.0 - progress if config.lr_scheduler_type == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape


def packs_of(rows: Sequence[Row], max_tokens: int, thinning: Thinning | None = None) -> Iterator[Pack]:
    """The rows packed into trees of at most ``max_tokens`` tokens each."""
    rows = [thinning.apply(row) for row in rows] if thinning else rows
    leaf_of = leaves_of(rows)
    leaves = sorted(set(leaf_of))
    for part in split_by_size([rows[leaf].ids for leaf in leaves], max_tokens):
        chosen = [leaves[i] for i in part]
        yield _pack(rows, leaf_of, chosen, thinning)


def leaves_of(rows: Sequence[Row]) -> list[int]:
    """For each row the row that contains it: itself, or the last of the chain of rows that each extend the one before."""
    leaf = list(range(len(rows)))
    for i in range(len(rows) - 2, -1, -1):
        a, b = rows[i].ids, rows[i + 1].ids
        if len(a) <= len(b) and np.array_equal(a, b[: len(a)]):
            leaf[i] = leaf[i + 1]
    return leaf


def _pack(rows: Sequence[Row], leaf_of: list[int], leaves: list[int], thinning: Thinning | None) -> Pack:
    tree = build_tree([rows[leaf].ids for leaf in leaves])
    place = dict(zip(leaves, tree.places, strict=True))
    mine = [i for i in range(len(rows)) if leaf_of[i] in place and rows[i].n_output]
    spans = [(place[leaf_of[i]], len(rows[i].ids) - rows[i].n_output, len(rows[i].ids)) for i in mine]
    node_R = np.concatenate([where[start:stop] for where, start, stop in spans])
    parent_R = np.concatenate([where[start - 1 : stop - 1] for where, start, stop in spans])
    node_U, first_U, unique_R = np.unique(node_R, return_index=True, return_inverse=True)
    if thinning is None:
        layout, position_N = layout_of(tree), tree.depth_N
    else:
        layout = layout_of(tree, trunk=len(thinning.kept_T), log_weight=thinning.log_weight)
        position_N = thinning.positions(tree.depth_N)
    return Pack(
        tree,
        layout,
        torch.from_numpy(position_N),
        mine,
        torch.from_numpy(node_U),
        torch.from_numpy(parent_R[first_U]),
        torch.from_numpy(unique_R),
    )


def _cuts(rows: Sequence[Row], pack: Pack) -> list[int]:
    return [int(n) for n in np.cumsum([rows[i].n_output for i in pack.rows])[:-1]]


def _behaviour(row: Row) -> Float32:
    if row.logprobs is None:
        raise ValueError(f"logprobs: call {row.call_id} was captured without log-probabilities; PPO needs them")
    return row.logprobs
