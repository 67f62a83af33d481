"""Top-k pooling of instance scores against a loop over bags and classes."""

import pytest
import torch
from helpers import assert_close, make_batch

from mil_zoo import InputError, create_aggregator

SIZES = [20, 3, 1, 41]


def created(k, num_classes=3):
    torch.manual_seed(0)
    return create_aggregator("topk", in_dim=6, num_classes=num_classes, embed_dim=5, k=k)


@pytest.mark.parametrize("k", [1, 4, 100])
def test_logits_are_the_means_of_the_highest_scores(k):
    aggregator, batch = created(k), make_batch(SIZES, 6, None)
    output = aggregator(batch)
    scores = aggregator.classifier(torch.relu(aggregator.embed[0](batch.features)))
    assert_close(output.instance_logits, scores, "instance logits")
    for logits, of_bag in zip(output.logits, scores.split(SIZES), strict=True):
        expected = torch.stack([of_class.sort(descending=True).values[:k].mean() for of_class in of_bag.T])
        assert_close(logits, expected, "logits")


def test_attention_is_the_weight_of_each_score():
    aggregator, batch = created(4), make_batch(SIZES, 6, None)
    with torch.no_grad():
        output = aggregator(batch)
    for bag, attention in enumerate(output.attention.split(SIZES)):
        scores = output.instance_logits.split(SIZES)[bag]
        assert ((attention > 0).sum(0) == min(4, len(attention))).all()
        assert_close((attention * scores).sum(0), output.logits[bag], "logits")


def test_the_classifier_reads_the_embedding_where_there_is_one_class():
    aggregator = created(4, num_classes=1)
    output = aggregator(make_batch(SIZES, 6, None))
    assert_close(aggregator.classifier(output.embedding), output.logits, "logits")


def test_only_the_selected_instances_are_trained():
    aggregator, batch = created(2), make_batch(SIZES, 6, None)
    batch.features.requires_grad_()
    output = aggregator(batch)
    output.logits[:, 0].sum().backward()
    assert not batch.features.grad[output.attention[:, 0] == 0].any()
    assert batch.features.grad[output.attention[:, 0] > 0].any(dim=1).all()


def test_options_are_checked():
    with pytest.raises(InputError, match="k must be positive"):
        create_aggregator("topk", in_dim=8, k=0)
