"""Owns the names of all Redis keys and which of them expire. Nobody else spells a key; the Lua scripts get the same ones by `lua_keys`.

The keys of a trial share one hash tag, so that a trial lives on one node of a Redis Cluster and a script may touch all of them.
A property is one key; a method is one key per kind, id or reason. docs/store.md has the same names as a table.
"""

from collections.abc import Mapping

TRIALS = "fd:trials"
"""set: ``experiment/trial`` of every trial that was ever written to. The one key that belongs to no trial."""

PREFIXES_KEPT = 64
"""Of one trial; further prompts are packed without one."""

METRICS_KEPT = 20_000
"""Metrics records; the oldest go first."""

AUDIT_TTL_S = 10
"""An audit that asks for nothing for this long is over: its process was killed."""

ENDED_BATCH_TTL_S = 7 * 86400
"""A batch that was acked, nacked or expired is remembered this long for the sake of repeated requests."""

EXPIRES: Mapping[str, str] = {
    "session": "session_ttl_s after something last happened to it, unless a trajectory names it; an hour after it was exported",
    "session_key": "with its session",
    "batch": "7 days after it ended",
    "events": "capped at about 10,000 entries",
    "metrics": "capped at the newest 20,000 records",
    "audit": "10 s after the audit last asked for something",
    "touched": "10 s after its last change",
}
"""When the keys go that go by themselves. Everything else goes by state: retention, or the end of the trial."""


class Keys:
    """The keys of one trial."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @classmethod
    def of_trial(cls, experiment: str, trial: str) -> "Keys":
        """``fd:{experiment/trial}:…``."""
        return cls(f"fd:{{{experiment}/{trial}}}:")

    # Episodes

    def episode(self, episode_id: str) -> str:
        """hash: state, kind, group, order, request, attempt, failures, lease, worker, head, oldest, session, bytes, consumed, reason, …"""
        return f"{self.prefix}episode:{episode_id}"

    def messages(self, episode_id: str) -> str:
        """string: the messages of the trajectory (JSON, zstd or a spilled file's name), apart from its head so that listings stay light."""
        return f"{self.prefix}messages:{episode_id}"

    def episodes(self, kind: str) -> str:
        """set: every episode id ever enqueued and not retired."""
        return f"{self.prefix}episodes:{kind}"

    @property
    def adhoc(self) -> str:
        """set: episodes that were stored without having been enqueued."""
        return f"{self.prefix}adhoc"

    @property
    def completed(self) -> str:
        """zset: final episodes by completion number, ad-hoc ones included."""
        return f"{self.prefix}completed"

    @property
    def sequence(self) -> str:
        """hash: the last number given out for enqueue order, completion, group readiness, the beat that sees lost writes, metrics gone."""
        return f"{self.prefix}sequence"

    # Rollout queue

    def queue(self, kind: str) -> str:
        """zset: queued episodes by enqueue order."""
        return f"{self.prefix}queue:{kind}"

    def delayed(self, kind: str) -> str:
        """zset: episodes waiting for their next attempt, by the time it is due."""
        return f"{self.prefix}delayed:{kind}"

    def leases(self, kind: str) -> str:
        """zset: rollout leases by expiry."""
        return f"{self.prefix}leases:{kind}"

    @property
    def lease_episode(self) -> str:
        """hash: lease id -> episode id, while the lease holds."""
        return f"{self.prefix}lease_episode"

    @property
    def paused(self) -> str:
        """hash: kinds of which nothing is leased -> why."""
        return f"{self.prefix}paused"

    # Sessions

    def session(self, session_id: str) -> str:
        """hash: created, touched, ttl, sealed, closed, opener, key, recorded, ``i:<call>`` open intents, ``c:<call>`` encoded call records,
        ``r:<name> <call>`` rewards as JSON; once packed: tree, n_calls."""
        return f"{self.prefix}session:{session_id}"

    def session_key(self, digest: str) -> str:
        """string: the session that a key chosen by a client names; sha256 of the key."""
        return f"{self.prefix}session_key:{digest}"

    @property
    def unclaimed(self) -> str:
        """zset: sessions that no trajectory names, by the time at which they are looked at to be forgotten."""
        return f"{self.prefix}unclaimed"

    @property
    def grants(self) -> str:
        """string: sessions that may begin, where beginning takes a grant."""
        return f"{self.prefix}grants"

    @property
    def unpacked(self) -> str:
        """list: sessions of final trajectories whose call records are not packed yet, each with its episode."""
        return f"{self.prefix}unpacked"

    @property
    def prefixes(self) -> str:
        """hash: digest -> the beginning of a prompt that many sessions have, which their packed trees need."""
        return f"{self.prefix}prefixes"

    @property
    def prefix_names(self) -> str:
        """hash: digest of a prompt's first 1,024 tokens -> the prefix that such prompts use."""
        return f"{self.prefix}prefix_names"

    # Groups and batches

    def group(self, group_id: str) -> str:
        """hash: state, kind, size, finals, scored, quorum, started, overdue, ready_number, deliver, batch."""
        return f"{self.prefix}group:{group_id}"

    def members(self, group_id: str) -> str:
        """zset: the episodes of a group by sample index."""
        return f"{self.prefix}members:{group_id}"

    def groups(self, kind: str) -> str:
        """set: every group id."""
        return f"{self.prefix}groups:{kind}"

    def open_groups(self, kind: str) -> str:
        """set: groups with members that are not final."""
        return f"{self.prefix}open_groups:{kind}"

    def deadlines(self, kind: str) -> str:
        """zset: groups that may be delivered without their last members, by the time from which on."""
        return f"{self.prefix}deadlines:{kind}"

    def ready(self, kind: str) -> str:
        """zset: ready groups in the order in which they became ready; a group that comes back keeps its place."""
        return f"{self.prefix}ready:{kind}"

    def batch(self, batch_id: str) -> str:
        """hash: state, kind, consumer, groups, sizes, step, policy_version."""
        return f"{self.prefix}batch:{batch_id}"

    def batch_leases(self, kind: str) -> str:
        """zset: unacked batches by expiry."""
        return f"{self.prefix}batch_leases:{kind}"

    def holders(self, kind: str) -> str:
        """hash: consumer -> the batch it holds and has not acked."""
        return f"{self.prefix}holders:{kind}"

    # Ledger

    def counts(self, kind: str) -> str:
        """hash: final, leased, trained, dropped, retries, superseded, duplicates_refused, duplicated, barren."""
        return f"{self.prefix}counts:{kind}"

    def drops(self, kind: str) -> str:
        """hash: reason -> dropped episodes."""
        return f"{self.prefix}drops:{kind}"

    def drop_examples(self, reason: str) -> str:
        """list: the first few episodes dropped for a reason."""
        return f"{self.prefix}drop_examples:{reason}"

    @property
    def swept(self) -> str:
        """hash: reason -> sessions that were forgotten without a trajectory."""
        return f"{self.prefix}swept"

    @property
    def alarms(self) -> str:
        """hash: name of an alarm that is raised -> its text."""
        return f"{self.prefix}alarms"

    @property
    def losses(self) -> str:
        """hash: beat at which acknowledged writes were found missing, or Redis process that began without them -> what is known."""
        return f"{self.prefix}losses"

    @property
    def audit(self) -> str:
        """string: the audit that reads the records now."""
        return f"{self.prefix}audit"

    @property
    def touched(self) -> str:
        """set: keys of episodes and groups that changed since that audit began."""
        return f"{self.prefix}touched"

    @property
    def totals(self) -> str:
        """hash: bytes of all bodies, and where the dumper is."""
        return f"{self.prefix}totals"

    @property
    def events(self) -> str:
        """stream: what happened, for people and dashboards."""
        return f"{self.prefix}events"

    # Retention

    @property
    def retirable(self) -> str:
        """zset: ``g:<group>`` and ``e:<ad-hoc episode>`` that retention may remove, by the time since when."""
        return f"{self.prefix}retirable"

    def retired(self, kind: str) -> str:
        """set: ids of retired episodes, so that a repeated request is still known."""
        return f"{self.prefix}retired:{kind}"

    def retired_counts(self, kind: str) -> str:
        """hash: trained, ``dropped:<reason>``, adhoc -> retired episodes."""
        return f"{self.prefix}retired_counts:{kind}"

    # Experiment

    @property
    def policy_versions(self) -> str:
        """zset: published versions by number."""
        return f"{self.prefix}policy_versions"

    def policy_version(self, version: str) -> str:
        """hash: path, step, published_at."""
        return f"{self.prefix}policy_version:{version}"

    @property
    def metrics(self) -> str:
        """list: metrics records as JSON, oldest first."""
        return f"{self.prefix}metrics"

    @property
    def documents(self) -> str:
        """hash: name -> JSON object."""
        return f"{self.prefix}documents"


def lua_keys() -> str:
    """The same names for scripts: ``K.name`` for a property, ``K.name(id)`` for a method, on the prefix in KEYS[1]."""
    here = Keys("")
    lines = ["local K = {}"]
    for name, member in vars(Keys).items():
        if isinstance(member, property):
            lines.append(f"K.{name} = KEYS[1] .. '{getattr(here, name)}'")
        elif callable(member) and not name.startswith("_"):
            lines.append(f"function K.{name}(id) return KEYS[1] .. '{getattr(here, name)('')}' .. id end")
    return "\n".join(lines)
