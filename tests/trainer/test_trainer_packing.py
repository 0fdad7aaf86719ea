"""Properties of the prefix tree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.packing import Tree, build_tree, common_prefix, split_by_size, unpacked_tokens

# Few different tokens, so that prefixes are shared by chance.
sequences = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(lambda ids: np.asarray(ids, np.int32)), min_size=1, max_size=12
)


@given(sequences)
def test_each_sequence_is_found_at_its_places(batch: list[np.ndarray]) -> None:
    tree = build_tree(batch)
    for ids, place in zip(batch, tree.places, strict=True):
        np.testing.assert_array_equal(tree.ids_N[place], ids)
        np.testing.assert_array_equal(tree.depth_N[place], np.arange(len(ids)))


@given(sequences)
def test_a_token_sees_exactly_its_ancestors(batch: list[np.ndarray]) -> None:
    tree = build_tree(batch)
    ancestors = {int(place[i]): set(place[: i + 1].tolist()) for place in tree.places for i in range(len(place))}
    assert ancestors.keys() == set(range(tree.size))
    for query, expected in ancestors.items():
        assert {key for key in range(query + 1) if query < tree.end_N[key]} == expected


@given(sequences)
def test_every_shared_prefix_is_packed_once(batch: list[np.ndarray]) -> None:
    distinct = {tuple(ids[: i + 1].tolist()) for ids in batch for i in range(len(ids))}
    assert build_tree(batch).size == len(distinct) <= unpacked_tokens(batch)


@given(sequences)
def test_the_trunk_is_what_all_sequences_start_with(batch: list[np.ndarray]) -> None:
    assert build_tree(batch).trunk == min(common_prefix(batch[0], ids) for ids in batch)


@given(sequences, st.integers(9, 30))
def test_splitting_is_a_partition_into_trees_that_fit(batch: list[np.ndarray], limit: int) -> None:
    parts = split_by_size(batch, limit)
    assert sorted(index for part in parts for index in part) == list(range(len(batch)))
    assert all(build_tree([batch[index] for index in part]).size <= limit for part in parts)


def test_what_cannot_be_packed_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="at least one"):
        build_tree([])
    with pytest.raises(ValueError, match="max_tokens_per_mb"):
        split_by_size([np.zeros(5, np.int32)], 4)


def test_an_empty_tree_is_not_made() -> None:
    with pytest.raises(ValueError, match="none of them empty"):
        build_tree([np.zeros(0, np.int32)])
    assert isinstance(build_tree([np.zeros(1, np.int32)]), Tree)
