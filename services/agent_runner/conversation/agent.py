"""Owns the two agents of an episode: the policy behind `policy_proxy`, and the scripted demonstrator whose messages are recorded there.

Both speak plain OpenAI chat messages, so any other OpenAI client could take their place. Refuses to repair what the policy says, and to
force a tool call: upstream's solo agent asks for ``tool_choice="required"``, which is no option where the policy's own tokens are wanted.
"""

from collections.abc import Sequence

import orjson

from services.agent_runner.conversation.demonstrator import Demonstrator
from services.agent_runner.conversation.messages import Json, Message, for_agent
from services.agent_runner.conversation.prompts import Opening
from services.agent_runner.conversation.seeds import call_seed
from services.agent_runner.proxy import Grant, ProxyClient
from services.common.wire.rollouts import Sampling

MODEL = "policy"


class Prompt:
    """The messages and tools of an episode's calls. A history only grows, so each message is encoded once."""

    def __init__(self, opening: Opening) -> None:
        self.tools = opening.tools
        self._parts = [opening.system]

    def messages(self, history: Sequence[Message]) -> list[orjson.Fragment]:
        """The messages of the next call, encoded. ``history`` begins with that of the call before."""
        for message in history[len(self._parts) - 1 :]:
            self._parts.append(orjson.Fragment(orjson.dumps(for_agent(message))))
        return self._parts


class PolicyAgent:
    """The policy, one chat completion a turn. ``versions`` collects the policy versions that answered."""

    def __init__(self, proxy: ProxyClient, grant: Grant, prompt: Prompt, sampling: Sampling, seed: int) -> None:
        self._proxy = proxy
        self._grant = grant
        self._prompt = prompt
        self._sampling = sampling
        self._seed = seed
        self._calls = 0
        self.versions: set[int] = set()
        self.version: int | None = None
        """The one that answered last."""
        self.format_errors: list[int] = []
        """Calls (0 is the first) with a tool call that the proxy could not parse and left as text."""

    async def reply(self, history: list[Message]) -> Json:
        """The policy's next message. Raises `ContextExceeded`, `RemoteError`."""
        number = self._calls
        self._calls += 1
        body: Json = {
            "model": MODEL,
            "messages": self._prompt.messages(history),
            "tools": self._prompt.tools,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_tokens": self._sampling.max_tokens,
            "seed": call_seed(self._seed, self._sampling.seed, number),
        }
        answer = await self._proxy.complete(self._grant, f"{self._grant.session_id}-{number}", body)
        self.version = answer.policy_version
        if answer.policy_version is not None:
            self.versions.add(answer.policy_version)
        if answer.malformed_tool_call:
            self.format_errors.append(number)
        return answer.message


class DemonstratorAgent:
    """The demonstrator; each of its messages is recorded at the proxy as the tokens a policy would have had to say."""

    def __init__(self, proxy: ProxyClient, grant: Grant, prompt: Prompt, demonstrator: Demonstrator) -> None:
        self._proxy = proxy
        self._grant = grant
        self._prompt = prompt
        self._demonstrator = demonstrator
        self._calls = 0
        self.versions: set[int] = set()
        self.version: int | None = None
        self.format_errors: list[int] = []

    async def reply(self, history: list[Message]) -> Json:
        """The script's next message. Raises `ContextExceeded`, `RemoteError`."""
        message = self._demonstrator.next_message(None)
        body: Json = {"messages": self._prompt.messages(history), "tools": self._prompt.tools, "message": message}
        await self._proxy.demonstrate(self._grant, f"{self._grant.session_id}-{self._calls}", body)
        self._calls += 1
        return message
