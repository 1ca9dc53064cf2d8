"""Blocks in any order and rows from left to right: every token once, the same after a resume."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from megalodon_tasks.data.text_datasets import BlockDataset, BlockLength, RowDataset
from megalodon_tasks.errors import UserError
from tests.data.test_token_stream import EOS, make_stream

LINES = [[4 + (i + j) % 6 for j in range(i % 11)] + [EOS] for i in range(40)]
TOTAL = sum(map(len, LINES))
LENGTH = BlockLength(8, 2, 4)


def lines_stream(documents="none", lines=LINES):
    return make_stream(lines, documents)


def blocks(**settings):
    settings = {"length": LENGTH, "seed": 3} | settings
    return BlockDataset(lines_stream(), **settings)


def spans(batches):
    return [(block.start, block.stop) for batch in batches for block in batch]


def test_each_token_is_in_one_block():
    dataset = blocks(shuffle=True)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=70)
    covered = sorted(spans(batches))
    assert covered[0][0] == 0
    assert covered[-1][1] == TOTAL
    assert all(one[1] == other[0] for one, other in zip(covered, covered[1:], strict=False))
    assert covered != spans(batches)


def test_lengths_are_multiples_drawn_anew_for_each_epoch():
    dataset, drawn = blocks(), []
    for epoch in (1, 2, 3, 1):
        dataset.set_epoch(epoch)
        assert {size // 8 for size in dataset.sizes[:-1]} <= {2, 3, 4}
        assert all(size % 8 == 0 for size in dataset.sizes[:-1])
        drawn.append(dataset.sizes.tolist())
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1] != drawn[2]
    assert blocks(seed=4).sizes.tolist() != drawn[0]


def test_complete_blocks_end_with_a_line_and_long_lines_are_cut():
    dataset = blocks(break_mode="complete", length=BlockLength(10))
    ends = set(dataset.stream.line_ends.tolist())
    whole = np.isin(dataset.edges[1:], list(ends))
    assert (whole | (dataset.sizes == 10)).all()
    assert dataset.sizes.max() <= 10
    dataset = BlockDataset(lines_stream(lines=[[4] * 25, [5, EOS]]), BlockLength(10), "complete")
    assert dataset.edges.tolist() == [0, 10, 20, 27]


def test_each_line_is_a_block_with_eos():
    assert blocks(break_mode="eos").sizes.tolist() == [len(line) for line in LINES]


def test_unknown_break_mode_is_named():
    with pytest.raises(ValueError, match="task.sample_break_mode='complete_doc' is unknown"):
        blocks(break_mode="complete_doc")


@pytest.mark.parametrize("length", [BlockLength(0), BlockLength(8, 3, 2), BlockLength(8, 0, 2)])
def test_impossible_range_is_named(length):
    with pytest.raises(ValueError, match=f"{length.low} to {length.high} times {length.unit}"):
        blocks(length=length)


def test_too_long_blocks_are_refused():
    dataset = blocks()
    with pytest.raises(ValueError, match="longest block has 32 tokens, but at most 20.*max_tokens"):
        dataset.filter_indices_by_size(dataset.ordered_indices(), 20)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_batch_too_small_for_a_block_is_refused(shuffle):
    dataset = blocks(shuffle=shuffle)
    with pytest.raises(ValueError, match="max_tokens=20 .*item of 32 tokens fits in no batch"):
        dataset.batch_by_size(dataset.ordered_indices(), max_tokens=20)


def test_batch_holds_what_the_model_and_the_criterion_need():
    dataset = BlockDataset(lines_stream("line"), BlockLength(8))
    last = len(dataset) - 1
    batch = dataset.collater([dataset[0], dataset[last]])
    short = TOTAL - 8 * last
    assert batch["net_input"]["src_lengths"].tolist() == [8, short]
    assert batch["ntokens"] == 8 + short
    assert (batch["target"] != 1).sum() == batch["ntokens"]
    source, target = dataset.stream.source_and_target(0, 8)
    assert torch.equal(batch["net_input"]["src_tokens"][0], source)
    assert torch.equal(batch["target"][0], target)
    starts = batch["net_input"]["document_starts"][0].nonzero()[:, 0].tolist()
    assert starts == dataset.stream.starts_between(0, 8).tolist()
    assert dataset.collater([]) == {}
    assert "document_starts" not in blocks().collater([blocks()[0]])["net_input"]


def test_workers_of_an_earlier_epoch_read_the_blocks_of_this_one():
    dataset = blocks()
    dataset.set_epoch(2)
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=2)
    wanted = [dataset.collater([dataset[block] for block in batch]) for batch in batches]
    dataset.set_epoch(1)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collater, num_workers=1)
    for found, expected in zip(loader, wanted, strict=True):
        assert torch.equal(found["target"], expected["target"])


def test_token_out_of_range_is_the_users_error():
    dataset = BlockDataset(make_stream([[4, 99, EOS]]), BlockLength(8))
    with pytest.raises(UserError, match="token id 99 at position 1"):
        dataset[0]


def rows(
    documents="none", count=3, processes=1, together=None, lines=LINES, length=LENGTH, filled=None
):
    dataset = RowDataset(lines_stream(documents, lines), length, seed=3)
    dataset.lay_out(count, processes, together, filled)
    return dataset


def batches_of(dataset):
    return dataset.batch_by_size(dataset.ordered_indices())


@pytest.mark.parametrize(("count", "processes"), [(3, 1), (2, 2), (1, 3)])
def test_rows_continue_where_they_were(count, processes):
    dataset = rows(count=count, processes=processes)
    seen = []
    for process in range(processes):
        steps = batches_of(dataset)[process::processes]  # as fairseq deals them
        for row in range(count):
            spans = [(step[row].start, step[row].stop) for step in steps]
            assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
            seen.append((spans[0][0], spans[-1][1]))
        assert [step[0].begins for step in steps] == [True] + [False] * (len(steps) - 1)
        assert [step[0].ends for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [start for start, _ in sorted(seen)] == [0] + [stop for _, stop in sorted(seen)][:-1]
    assert max(stop for _, stop in seen) == TOTAL
    assert len(dataset) == sum(len(batch) for batch in batches_of(dataset))


@pytest.mark.parametrize(("count", "processes"), [(2, 3), (3, 2), (1, 7)])
@pytest.mark.parametrize("documents", ["none", "line"])
def test_rows_that_are_filled_are_those_of_one_process(documents, count, processes):
    one = rows(documents, count=5)
    several = rows(documents, count=count, processes=processes, filled=5)
    assert several.row_edges[:6].tolist() == one.row_edges.tolist()
    assert several.row_edges[6:].tolist() == [TOTAL] * (count * processes - 5)
    blocks = [span for span in spans(batches_of(several)) if span[0] < span[1]]
    assert sorted(blocks) == sorted(s for s in spans(batches_of(one)) if s[0] < s[1])


def test_all_rows_advance_by_the_same_length_drawn_for_each_epoch():
    dataset = rows()
    first = batches_of(dataset)
    for step in first[:-1]:
        assert len({block.stop - block.start for block in step}) == 1
    dataset.set_epoch(2)
    assert batches_of(dataset) != first
    dataset.set_epoch(1)
    assert batches_of(dataset) == first


def test_rows_may_be_read_in_groups():
    dataset = rows(count=5, together=2)
    batches = batches_of(dataset)
    assert {len(batch) for batch in batches} == {1, 2}
    assert sum(batch[0].begins for batch in batches) == 3
    assert sum(block.stop - block.start for batch in batches for block in batch) == TOTAL


def test_rows_start_with_a_document_where_documents_are_kept_apart():
    dataset = rows("line", count=4)
    assert np.isin(dataset.row_edges[:-1], dataset.stream.document_starts).all()
    assert dataset.row_edges[-1] == TOTAL
    # Nearest to equal parts: no row is a whole line longer or shorter.
    assert np.abs(np.diff(dataset.row_edges) - TOTAL / 4).max() <= max(map(len, LINES))


def test_fewer_documents_than_rows_leave_rows_empty_and_a_batch_whole():
    dataset = rows("line", count=2, processes=2, lines=[[4, 5, 6, 7, EOS]], length=BlockLength(8))
    batches = batches_of(dataset)
    assert [sum(b.stop - b.start for b in batch) for batch in batches].count(0) == 1
    for batch in batches:
        collated = dataset.collater([dataset[block] for block in batch])
        assert collated["net_input"]["src_tokens"].shape[1] >= 1


def test_more_rows_than_tokens_are_refused():
    with pytest.raises(ValueError, match="cannot be cut in 200 rows for each of 2 processes"):
        rows(count=200, processes=2)
