"""Overlap and average precision: equal to well-kept libraries', however the images come."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex
from transformers import (
    Mask2FormerImageProcessor,
    MaskFormerImageProcessor,
    SegformerImageProcessor,
)

from hf_sft.tasks.segmentation_instance import Instance
from hf_sft.tasks.segmentation_masks import (
    IGNORED,
    PADDING,
    Objects,
    objects,
    painted,
    read_map,
    read_objects,
    written_map,
    written_objects,
)
from hf_sft.tasks.segmentation_overlap import ConfusionSummary, StreamingOverlap, overlaps
from hf_sft.tasks.segmentation_precision import (
    InstanceSummary,
    StreamingPrecision,
    found_objects,
    packed,
    unpacked,
)
from hf_sft.tasks.segmentation_runs import run_lengths

CLASSES = 4
SIZES = [(9, 13), (16, 8), (20, 21)]


def maps(seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(-1, CLASSES, size) for size in SIZES]


def padded(written):
    rows = [torch.tensor(numbers) for numbers in written]
    return torch.nn.utils.rnn.pad_sequence(rows, True, PADDING)


def logits(count=3, seed=1):
    return torch.randn(count, CLASSES, 6, 6, generator=torch.Generator().manual_seed(seed))


def evaluated(metrics, summary, answers, truth, parts):
    """What a stream of batches gives."""
    starts = np.cumsum([0, *parts])
    for number, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True), 1):
        chosen = [one[a:b] for one in answers] if isinstance(answers, tuple) else answers[a:b]
        prediction = SimpleNamespace(predictions=summary(chosen, truth[a:b]), label_ids=truth[a:b])
        result = metrics(prediction, compute_result=number == len(parts))
    return result


def test_a_map_survives_being_written():
    written = padded([written_map(found) for found in maps()])
    for row, found in zip(written, maps(), strict=True):
        assert (read_map(row).numpy() == found).all()


def test_mean_iou_is_torchmetrics_own_at_the_size_of_each_mask():
    truth, answers = padded([written_map(found) for found in maps()]), logits()
    processor = SegformerImageProcessor()
    metrics = StreamingOverlap(list("abcd"))
    result = evaluated(metrics, ConfusionSummary(processor), answers, truth, [3])
    said = processor.post_process_semantic_segmentation(
        SimpleNamespace(logits=answers), target_sizes=SIZES
    )
    target = torch.cat([torch.tensor(found).flatten() for found in maps()])
    guess = torch.cat([found.flatten() for found in said])
    jaccard = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
    assert result["mean_iou"] == pytest.approx(float(jaccard(guess, target)), abs=1e-6)
    known = target != IGNORED
    right = float((guess == target)[known].float().mean())
    assert result["pixel_accuracy"] == pytest.approx(right, abs=1e-6)
    shares = sum(row["share_of_pixels"] for row in metrics.tables["classes"])
    assert shares == pytest.approx(1.0)


@pytest.mark.parametrize("parts", [[1, 1, 1], [2, 1]], ids=["one by one", "two and one"])
def test_batches_do_not_matter(parts):
    truth = padded([written_map(found) for found in maps()])
    summary = ConfusionSummary(SegformerImageProcessor())
    whole, apart = StreamingOverlap(list("abcd")), StreamingOverlap(list("abcd"))
    expected = evaluated(whole, summary, logits(), truth, [3])
    assert evaluated(apart, summary, logits(), truth, parts) == expected
    assert apart.tables == whole.tables
    assert evaluated(whole, summary, logits(), truth, [3]) == expected  # begins anew


def test_what_does_not_occur_is_in_no_mean():
    found = overlaps(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert found["iou"][:2].tolist() == [0.75, 0.8]
    assert np.isnan(found["iou"][2])
    metrics = StreamingOverlap(["a", "b", "never"])
    result = metrics(SimpleNamespace(predictions=np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]])))
    assert result["mean_iou"] == pytest.approx(0.775)
    assert result["mean_accuracy"] == pytest.approx(0.875)
    assert metrics.tables["classes"][-1]["iou"] is None
    json.dumps(metrics.tables)


def test_the_worst_images_come_first():
    metrics = StreamingOverlap(["a", "b"])
    counts = np.array([[[4, 0], [0, 4]], [[0, 4], [4, 0]], [[4, 0], [4, 0]]])
    metrics(SimpleNamespace(predictions=counts))
    assert [row["row"] for row in metrics.tables["worst_images"]] == [2, 3, 1]
    assert metrics.worst == [1, 2, 0]


def squares():
    """Two objects and a crowd in an image of 24 × 30."""
    masks = torch.zeros(3, 24, 30, dtype=torch.bool)
    masks[0, 2:12, 3:15], masks[1, 10:20, 12:28], masks[2, :4, 20:] = True, True, True
    return Objects(masks, torch.tensor([0, 1, 1]), torch.tensor([False, False, True]))


def test_objects_survive_being_written():
    none = Objects(torch.zeros(0, 4, 5).bool(), torch.zeros(0).long(), torch.zeros(0).bool())
    full = Objects(torch.ones(1, 4, 5).bool(), torch.tensor([1]), torch.tensor([False]))
    found = [squares(), none, full]
    for row, one in zip(padded([written_objects(o) for o in found]), found, strict=True):
        back = read_objects(row)
        assert torch.equal(back.masks, one.masks)
        assert torch.equal(back.classes, one.classes)
        assert torch.equal(back.crowds, one.crowds)


def test_bits_are_the_masks():
    masks = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(unpacked(packed(masks), 5, 7), masks)


def test_outlines_are_read_in_coco_s_column_order_and_painted_small_over_large():
    box = "[[2, 1, 6, 1, 6, 3, 2, 3]]"
    run = json.dumps({"size": [4, 8], "counts": [0, 4, 28]})  # the first column
    found = objects({"segmentation": [box, run], "category": [0, 1]}, 4, 8)
    assert found.masks[0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in range(2, 6)]
    assert found.masks[1].nonzero().tolist() == [[y, 0] for y in range(4)]
    whole = json.dumps({"size": [4, 8], "counts": [0, 32]})
    both = objects({"segmentation": [box, whole], "category": [0, 1]}, 4, 8)
    assert painted(both, background=True)[1, 2] == 1
    assert painted(both, background=True)[0, 0] == 2
    assert painted(found, background=False)[0, 7] == IGNORED
    assert run_lengths(box, 4, 8)["size"] == [4, 8]


def universal(perfect=True):
    """Answers of a model with 5 queries whose first two are the squares (or nothing is)."""
    target = squares()
    scores = torch.full((1, 5, 3), -8.0)
    scores[:, :, 2] = 4.0
    masks = torch.full((1, 5, 24, 30), -6.0)
    for query in range(2 * perfect):
        scores[0, query, target.classes[query]], scores[0, query, 2] = 9.0, -8.0
        masks[0, query][target.masks[query]] = 6.0
    return scores, masks


@pytest.mark.parametrize(
    "processor", [Mask2FormerImageProcessor(), MaskFormerImageProcessor()], ids=["m2f", "mf"]
)
def test_masks_that_are_right_have_an_average_precision_of_1(processor):
    truth = padded([written_objects(squares())])
    metrics = StreamingPrecision(["a", "b"])
    result = evaluated(metrics, InstanceSummary(processor), universal(), truth, [1])
    assert result["map_50"] == pytest.approx(1.0)
    assert result["map_75"] == pytest.approx(1.0)
    assert metrics.tables["classes"][0]["objects"] == 1
    assert metrics.tables["worst_images"] == [{"row": 1, "f1": 1.0, "missed": 0, "wrong": 0}]
    nothing = evaluated(metrics, InstanceSummary(processor), universal(False), truth, [1])
    assert nothing["map_50"] == 0.0
    assert metrics.tables["worst_images"][0]["missed"] == 2


def test_the_summary_is_the_post_processing_at_the_image_s_size():
    """Masks packed at the processor's size and resized later are those it resizes itself."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 6, 4, generator=generator)
    masks = torch.randn(1, 6, 12, 12, generator=generator)
    processor = Mask2FormerImageProcessor()
    outputs = SimpleNamespace(class_queries_logits=scores, masks_queries_logits=masks)
    wanted, sure, classes = found_objects(processor, outputs, 0.0, [(30, 41)])[0]
    truth = padded([[30, 41]])
    found = InstanceSummary(processor)((scores, masks), truth)
    assert torch.equal(found[0][0, : len(sure)], sure)
    assert torch.equal(found[1][0, : len(sure)], classes)
    from hf_sft.tasks.segmentation_precision import at_size

    small = unpacked(found[2][0, : len(sure)], *found[3][0].tolist())
    assert torch.equal(at_size(small, (30, 41)), wanted)


def test_an_image_without_objects_counts():
    none = Objects(torch.zeros(0, 24, 30).bool(), torch.zeros(0).long(), torch.zeros(0).bool())
    truth = padded([written_objects(squares()), written_objects(none)])
    scores, masks = universal()
    quiet = universal(False)
    answers = (torch.cat([scores, quiet[0]]), torch.cat([masks, quiet[1]]))
    processor, metrics = Mask2FormerImageProcessor(), Instance("i", "o").metrics(["a", "b"])
    result = evaluated(metrics, InstanceSummary(processor), answers, truth, [1, 1])
    assert result["map_50"] == pytest.approx(1.0)
