"""Owns how a banking agent gets at the bank's documents: retrieval variants, their policy texts and the two search tools.

Variants are tau2's. Those that need an embedding service, an LLM reranker or a shell are refused by name, before an episode begins. Search
results are the same in every process; the timings that tau2 prints under them are always 0, since they would make no two runs equal.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

DEFAULT_VARIANT = "grep_only"
"""The port's default. tau2's own, `alltools`, needs an embedding service."""
TOP_K = 10
REMEMBERED = 1024
"""Patterns whose matches are kept."""
SEPARATOR = "\n\n---\n\n"

ReadPrompt = Callable[[str], str]
"""Path below the domain's ``prompts`` folder -> text."""


class UnknownVariant(ValueError):
    """There is no such retrieval variant, or not here."""


@dataclass(frozen=True, slots=True)
class Document:
    """One page of the knowledge base."""

    id: str
    title: str
    content: str

    @property
    def section(self) -> str:
        """The document as a policy quotes it."""
        return f"## {self.title}\n\n{self.content}"


@dataclass(frozen=True, slots=True)
class Variant:
    """What the agent is told and which search tools it has."""

    template: str
    search: bool = False
    grep: bool = False


VARIANTS = {
    "no_knowledge": Variant("no_knowledge.md"),
    "full_kb": Variant("full_kb.md"),
    "golden_retrieval": Variant("required_docs.md"),
    "grep_only": Variant("grep_only.md", grep=True),
    "bm25": Variant("classic_rag_bm25_no_grep.md", search=True),
    "bm25_grep": Variant("classic_rag_bm25.md", search=True, grep=True),
}


def variant(name: str) -> Variant:
    """A variant by tau2's name. Raises `UnknownVariant`."""
    if name not in VARIANTS:
        raise UnknownVariant(
            f"retrieval variant: {name!r} is not available; choose one of {', '.join(VARIANTS)}"
            " (tau2's embeddings, reranker, terminal_use and alltools variants need services that episodes here do not call)"
        )
    return VARIANTS[name]


class KnowledgeBase:
    """The bank's documents, in a fixed order, with an index for BM25 that is built on first search."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = tuple(documents)
        self._named = {document.id: document for document in self.documents} | {document.title: document for document in self.documents}
        self._index: Bm25 | None = None
        # The episodes of a group search for the same things, at tens of milliseconds each.
        self.matching = lru_cache(maxsize=REMEMBERED)(self._matching)

    def everything(self) -> str:
        """All documents as Markdown."""
        return SEPARATOR.join(document.section for document in self.documents)

    def required(self, names: Iterable[str]) -> str:
        """The named documents (by title, else by id) as Markdown; unknown names are left out, as in tau2."""
        sections = [self._named[name].section for name in names if name in self._named]
        return SEPARATOR.join(sections) or "(No documents provided)"

    def ranked(self, query: str) -> list[tuple[Document, float]]:
        """The best documents by BM25, best first."""
        self._index = self._index or Bm25([document.content.lower().split() for document in self.documents])
        scores = self._index.scores(query.lower().split())
        best = sorted(range(len(self.documents)), key=lambda index: scores.get(index, 0.0), reverse=True)
        return [(self.documents[index], scores.get(index, 0.0)) for index in best[:TOP_K]]

    def _matching(self, pattern: str) -> list[tuple[Document, float]]:
        """The documents with the most matches of a regular expression, case ignored; one that is invalid is searched for literally."""
        try:
            compiled = re.compile(pattern, re.IGNORECASE)
        except re.error:
            compiled = re.compile(re.escape(pattern), re.IGNORECASE)
        counted = [(document, float(len(compiled.findall(document.content)))) for document in self.documents]
        found = [(document, count) for document, count in counted if count]
        return sorted(found, key=lambda item: item[1], reverse=True)[:TOP_K]


class Bm25:
    """Okapi BM25 with the constants and the floor on negative idf of `rank_bm25.BM25Okapi`, over an inverted index."""

    K1 = 1.5
    B = 0.75
    EPSILON = 0.25

    def __init__(self, corpus: list[list[str]]) -> None:
        self._postings: dict[str, list[tuple[int, int]]] = {}
        for index, words in enumerate(corpus):
            for word, count in Counter(words).items():
                self._postings.setdefault(word, []).append((index, count))
        lengths = [len(words) for words in corpus]
        mean = sum(lengths) / len(lengths)
        self._norms = [self.K1 * (1 - self.B + self.B * length / mean) for length in lengths]
        self._idf = _floored({word: _idf(len(found), len(corpus)) for word, found in self._postings.items()}, self.EPSILON)

    def scores(self, query: Iterable[str]) -> Mapping[int, float]:
        """Score by index of the document; those without any word of the query are left out and score 0."""
        scores: dict[int, float] = {}
        for word in query:
            weight = self._idf.get(word, 0.0)
            for index, count in self._postings.get(word, ()):
                scores[index] = scores.get(index, 0.0) + weight * (count * (self.K1 + 1) / (count + self._norms[index]))
        return scores


def _idf(documents: int, corpus: int) -> float:
    return math.log(corpus - documents + 0.5) - math.log(documents + 0.5)


def _floored(idf: dict[str, float], epsilon: float) -> dict[str, float]:
    floor = epsilon * sum(idf.values()) / len(idf)
    return {word: value if value >= 0 else floor for word, value in idf.items()}


def template(name: str, read: ReadPrompt, knowledge: KnowledgeBase) -> str:
    """A policy text with its components and, where it asks for it, the whole knowledge base. ``{{required_documents}}`` stays."""

    def component(match: re.Match[str]) -> str:
        return read(f"components/{match.group(1)}.md")

    text = re.sub(r"\{\{component:(\w+)\}\}", component, read(name))
    return text.replace("{{full_knowledge_base}}", knowledge.everything()) if "{{full_knowledge_base}}" in text else text


# Class names show in the text of a TypeError, docstrings are what agents read as descriptions.


class KBSearchMixin:
    """BM25 search as a tool."""

    def __init__(self, knowledge: KnowledgeBase) -> None:
        self._knowledge = knowledge

    def KB_search(self, query: str) -> str:  # noqa: N802 - the tool's name
        """Search the knowledge base for relevant documents.

        Args:
            query: The search query to find relevant documents
        """
        found = self._knowledge.ranked(query) if query and query.strip() else []
        listing = _listing(found) if found else "No relevant documents found."
        return f"{listing}\n\n[Timing: retrieval=0ms, total=0ms]"


class GrepMixin:
    """Regular expression search as a tool."""

    def __init__(self, knowledge: KnowledgeBase) -> None:
        self._knowledge = knowledge

    def grep(self, pattern: str) -> str:
        """Search for a regex pattern in all knowledge base documents.

        Returns documents ranked by number of matches, with full content.

        Args:
            pattern: The regex pattern to search for (e.g., 'credit.*card', 'fee|charge')
        """
        found = self._knowledge.matching(pattern) if pattern.strip() else []
        return _listing(found) if found else f"No matches found for pattern: {pattern}"


def _listing(found: list[tuple[Document, float]]) -> str:
    return "\n".join(
        f"{number}. {document.title}\n   ID: {document.id}\n   Score: {score:.4f}\n   Content: {document.content}\n"
        for number, (document, score) in enumerate(found, 1)
    )


def search_tools(chosen: Variant, knowledge: KnowledgeBase) -> dict[str, Callable[..., Any]]:
    """The variant's tools by name, in upstream's order; they stand before all others."""
    tools: dict[str, Callable[..., Any]] = {}
    if chosen.search:
        tools["KB_search"] = KBSearchMixin(knowledge).KB_search
    if chosen.grep:
        tools["grep"] = GrepMixin(knowledge).grep
    return tools
