"""Owns finding tags in text that comes in pieces: where one begins, and how much of the end may still become one."""

from collections.abc import Sequence


def find_first(text: str, tags: Sequence[str], start: int = 0) -> int:
    """Where the first of ``tags`` begins in ``text`` at or after ``start``; -1 where there is none."""
    found = [at for tag in tags if (at := text.find(tag, start)) >= 0]
    return min(found, default=-1)


def partial_at_end(text: str, tags: Sequence[str]) -> int:
    """The length of the longest end of ``text`` that is a beginning, but not the whole, of one of ``tags``."""
    longest = max((len(tag) for tag in tags), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(len(tag) > length and text.endswith(tag[:length]) for tag in tags):
            return length
    return 0


def settled(text: str, tags: Sequence[str]) -> int:
    """How much of ``text`` can be released: all but what may become a tag and the white space before that."""
    return len(text[: len(text) - partial_at_end(text, tags)].rstrip())
