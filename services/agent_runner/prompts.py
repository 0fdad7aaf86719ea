"""Owns the agent's system prompt, equal to upstream tau2's `LLMAgent` and `LLMSoloAgent` to the character.

The wording is part of the benchmark: another wording is another task.
"""

from services.agent_runner.domains import STOP_TOOL

AGENT_INSTRUCTION = """\
You are a customer service agent that helps the user according to the <policy> provided below.
In each turn you can either:
- Send a message to the user.
- Make a tool call.
You cannot do both at the same time.

Try to be helpful and always follow the policy. Always make sure you generate valid JSON only."""

SOLO_INSTRUCTION = f"""\
You are a customer service agent that helps the user according to the <policy> provided below.
You will be provided with a ticket that contains the user's request.
You will need to plan and call the appropriate tools to solve the ticket.

You cannot communicate with the user, only make tool calls.
Stop when you consider that you have solved the ticket.
To do so, send a message containing a single tool call to the `{STOP_TOOL}` tool. Do not include any other tool calls in this last message.

Always follow the policy. Always make sure you generate valid JSON only."""


def system_prompt(policy: str, ticket: str | None) -> str:
    """The agent's system message; with a ticket that of a solo agent."""
    instruction = AGENT_INSTRUCTION if ticket is None else SOLO_INSTRUCTION
    prompt = f"<instructions>\n{instruction}\n</instructions>\n<policy>\n{policy}\n</policy>"
    return prompt if ticket is None else f"{prompt}\n<ticket>\n{ticket}\n</ticket>"
