"""Owns the names of all Redis keys of one trial. Nobody else spells a key; the Lua scripts get the same functions by `lua_keys`.

All keys share one hash tag, so that a trial lives on one node of a Redis Cluster and a script may touch all of them.
A property is one key; a method is one key per kind, id or reason.
"""


class Keys:
    """The keys of one trial. Nothing expires by itself (no TTLs): what goes is decided by state, never by the clock of a key."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @classmethod
    def of_trial(cls, experiment: str, trial: str) -> "Keys":
        """``fd:{experiment/trial}:…``."""
        return cls(f"fd:{{{experiment}/{trial}}}:")

    # Episodes

    def episode(self, episode_id: str) -> str:
        """hash: state, kind, group, order, request, attempt, failures, lease, worker, head, consumed, reason, …"""
        return f"{self.prefix}episode:{episode_id}"

    def messages(self, episode_id: str) -> str:
        """string: the messages of the trajectory as JSON, apart from its head so that listings stay light."""
        return f"{self.prefix}messages:{episode_id}"

    def episodes(self, kind: str) -> str:
        """set: every episode id ever enqueued."""
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
        """hash: the last number given out for enqueue order, completion and group readiness."""
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

    # Sessions

    def session(self, session_id: str) -> str:
        """hash: created, sealed, ``i:<call>`` open intents, ``c:<call>`` encoded call records."""
        return f"{self.prefix}session:{session_id}"

    # Groups and batches

    def group(self, group_id: str) -> str:
        """hash: state, kind, size, finals, ready_number, batch."""
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

    def ready(self, kind: str) -> str:
        """zset: ready groups in the order in which they became ready; a group that comes back keeps its place."""
        return f"{self.prefix}ready:{kind}"

    def batch(self, batch_id: str) -> str:
        """hash: state, kind, consumer, groups, step, policy_version."""
        return f"{self.prefix}batch:{batch_id}"

    def batch_leases(self, kind: str) -> str:
        """zset: unacked batches by expiry."""
        return f"{self.prefix}batch_leases:{kind}"

    def holders(self, kind: str) -> str:
        """hash: consumer -> the batch it holds and has not acked."""
        return f"{self.prefix}holders:{kind}"

    # Ledger

    def counts(self, kind: str) -> str:
        """hash: final, leased, trained, dropped, retries, duplicates_refused, duplicated."""
        return f"{self.prefix}counts:{kind}"

    def drops(self, kind: str) -> str:
        """hash: reason -> dropped episodes."""
        return f"{self.prefix}drops:{kind}"

    def drop_examples(self, reason: str) -> str:
        """list: the first few episodes dropped for a reason."""
        return f"{self.prefix}drop_examples:{reason}"

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
